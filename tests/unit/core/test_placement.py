"""Placement: deterministic, explained."""

from __future__ import annotations

from vrha.core.placement import Candidate, Unfit, place
from vrha.model.spec import Node, Router

ROUTER = Router("r1", ("blue",), zone="z1", labels={"disk": "ssd"})


def node(
    name: str,
    load: int = 0,
    zone: str = "z1",
    heard: bool = True,
    capacity: int = 10,
    ssd: bool = True,
) -> Candidate:
    labels = {"disk": "ssd"} if ssd else {}
    return Candidate(Node(name, zone, labels, capacity), load, heard)


def test_the_least_loaded_node_wins_then_the_name() -> None:
    assert place(ROUTER, [node("b", 1), node("c"), node("a", 2)]).node == "c"
    assert place(ROUTER, [node("b"), node("a")]).node == "a"


def test_a_quieter_zone_wins_over_a_quieter_node() -> None:
    anywhere = Router("r1", ("blue",))
    candidates = [node("a", 0), node("b", 9), node("c", 1, zone="z2")]
    assert place(anywhere, candidates).node == "c"


def test_every_unfit_node_has_its_reason() -> None:
    candidates = [
        node("silent", heard=False),
        node("far", zone="z2"),
        node("bare", ssd=False),
        node("full", 10),
    ]
    placement = place(ROUTER, candidates)
    assert placement.node == ""
    assert placement.unfit == {
        "silent": Unfit.SILENT,
        "far": Unfit.WRONG_ZONE,
        "bare": Unfit.MISSING_LABEL,
        "full": Unfit.FULL,
    }
    assert "far: wrong-zone" in placement.explain()


def test_beside_the_old_one_when_that_node_fits() -> None:
    assert place(ROUTER, [node("a"), node("b", 5)], beside="b").node == "b"
    assert place(ROUTER, [node("a"), node("b", heard=False)], beside="b").node == "a"
