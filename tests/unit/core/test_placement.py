"""Placement: deterministic, explained."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrha.core.placement import Apart, Candidate, Placement, Placer, Reason, Unfit, place
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


ANY = Router("r1", ("blue",))


def spread(placer: Placer, count: int, router: Router = ANY) -> Counter[str]:
    """How many of `count` routers each node gets."""
    found: Counter[str] = Counter()
    for _ in range(count):
        node_name = placer.place(router).node
        placer.take(node_name)
        found[node_name] += 1
    return found


def test_why_that_node() -> None:
    assert place(ROUTER, [node("a"), node("b", 5)], beside="b").chosen == (Reason.BESIDE,)
    assert place(ROUTER, [node("a"), node("b", ssd=False)]).chosen == (Reason.ONLY_ONE,)
    assert place(ROUTER, [node("a"), node("b", 5)]).chosen == (Reason.FEWEST,)
    assert place(ROUTER, [node("a"), node("b")]).chosen == (Reason.NAME,)
    found = place(ANY, [node("a"), node("b", 9), node("c", 1, "z2"), node("d", 2, "z2")])
    assert (found.node, found.chosen) == ("c", (Reason.QUIETEST_ZONE, Reason.FEWEST))
    found = place(ROUTER, [node("a"), node("b", 1), node("far", zone="z2")])
    assert found.explain() == "a: fewest instances; far: wrong-zone"


def test_the_other_instance_of_a_pair_is_elsewhere() -> None:
    candidates = [node("a"), node("b"), node("c", 9, "z2")]
    found = place(ANY, candidates, apart=Apart("a", "z1"))
    assert (found.node, found.unfit) == ("c", {"a": Unfit.SAME_NODE})
    assert found.chosen == (Reason.OTHER_ZONE,)
    found = place(ROUTER, candidates, apart=Apart("a", "z1"))
    assert (found.node, found.chosen) == ("b", (Reason.ONLY_ONE, Reason.NO_OTHER_ZONE))
    assert place(ROUTER, [node("a")], apart=Apart("a", "z1")).node == ""
    assert place(ROUTER, [node("a"), node("b")], beside="a", apart=Apart("a")).node == "b"


def test_nodes_that_flap_or_are_paused_get_nothing_by_themselves() -> None:
    flaps, paused = replace(node("a"), suppressed=True), replace(node("b"), paused=True)
    found = Placer([flaps, paused]).place(ROUTER)
    assert found == Placement("", {"a": Unfit.SUPPRESSED, "b": Unfit.PAUSED})
    assert Placer([flaps, paused, node("c", 9)]).place(ROUTER).node == "c"


def test_a_person_may_place_there_and_placement_rather_does_not() -> None:
    flaps, delayed = replace(node("a"), suppressed=True), replace(node("b"), delayed=True)
    assert place(ROUTER, [flaps, delayed, node("c", 9)]).node == "c"
    found = place(ROUTER, [flaps, delayed])
    assert (found.node, found.unfit) == ("b", {})
    assert found.chosen == (Reason.TRUSTED, Reason.LAST_RESORT)
    assert place(ROUTER, [flaps]).node == "a"
    assert place(ROUTER, [replace(node("a"), paused=True), node("b", 1)]).node == "a"


def test_who_was_failed_over_lately_is_the_last_resort() -> None:
    """Better there than nowhere: it is heard, and nobody else can."""
    delayed = replace(node("a"), delayed=True)
    found = Placer([delayed, node("b", 8)]).place(ROUTER)
    assert (found.node, found.chosen) == ("b", (Reason.TRUSTED,))
    found = Placer([delayed, node("b", 10)]).place(ROUTER)
    assert (found.node, found.chosen) == ("a", (Reason.ONLY_ONE, Reason.LAST_RESORT))


def test_a_mass_failover_is_spread_evenly_whatever_was_there_before() -> None:
    """The zone of one node must not get as many as the zone of nine; nor the emptiest node all."""
    nodes = [node(f"n{number}", number * 10, capacity=500) for number in range(9)]
    alone = node("lone", 0, zone="z2", capacity=500)
    counts = spread(Placer([*nodes, alone]), 500)
    assert set(counts.values()) == {50}
    # One alone goes to the least loaded.
    assert Placer([*nodes[3:], node("n2", 25, capacity=500)]).place(ANY).node == "n2"
    assert Placer([node("small", 5, capacity=6), node("big", 6)]).place(ANY).node == "big"


def test_what_is_on_its_way_already_counts() -> None:
    nodes = [node("a"), node("b"), node("c")]
    counts = spread(Placer(nodes, sent={"a": 2, "gone": 5}), 4)
    assert counts == {"b": 2, "c": 2}


def test_planned_ones_keep_zones_level() -> None:
    nodes = [node("a", capacity=99), node("b", capacity=99), node("c", zone="z2", capacity=99)]
    counts = spread(Placer(nodes, automatic=False), 40)
    assert counts == {"a": 10, "b": 10, "c": 20}


def test_full_nodes_drop_out_on_the_way() -> None:
    counts = spread(Placer([node("a", capacity=3), node("b", 1), node("c", 1)]), 15)
    assert counts == {"a": 3, "b": 6, "c": 6}
    placer = Placer([node("a", capacity=1)])
    placer.take("a")
    assert placer.place(ANY) == Placement("", {"a": Unfit.FULL})


@given(
    st.lists(
        st.builds(
            Candidate,
            st.builds(
                Node,
                st.integers(0, 40).map("n{}".format),
                st.sampled_from(["z1", "z2", "z3"]),
                st.just({}) | st.just({"disk": "ssd"}),
                st.integers(0, 30),
            ),
            st.integers(0, 30),
            st.booleans(),
            draining=st.booleans(),
            paused=st.booleans(),
            suppressed=st.booleans(),
            delayed=st.booleans(),
        ),
        max_size=12,
        unique_by=lambda c: c.node.name,
    ),
    st.lists(st.sampled_from([ROUTER, ANY, Router("r3", (), zone="z2")]), max_size=30),
    st.none() | st.builds(Apart, st.just("n1"), st.sampled_from(["", "z1"])),
    st.booleans(),
)
def test_what_holds_of_every_placement(
    candidates: list[Candidate], routers: list[Router], apart: Apart | None, automatic: bool
) -> None:
    by_name = {c.node.name: c for c in candidates}
    placers = Placer(candidates, automatic), Placer(candidates[::-1], automatic)
    sent: Counter[str] = Counter()
    for router in routers:
        found = placers[0].place(router, apart=apart)
        assert placers[1].place(router, apart=apart) == found
        assert bool(found.node) == bool(found.chosen)
        if not found.node:
            assert found.unfit.keys() == by_name.keys()
            continue
        chosen = by_name[found.node]
        assert found.node not in found.unfit
        assert chosen.heard
        assert not chosen.draining
        assert not automatic or not (chosen.paused or chosen.suppressed)
        assert chosen.instances + sent[found.node] < chosen.node.capacity
        assert apart is None or apart.node != found.node
        assert router.zone in ("", chosen.node.zone)
        sent[found.node] += 1
        for placer in placers:
            placer.take(found.node)


@pytest.mark.parametrize("count", [10, 100])
def test_five_hundred_are_placed_in_no_time(count: int) -> None:
    """Not once for each router over all routers: that would take longer than to move them."""
    nodes = [node(f"n{i:03}", i, f"z{i % 3}", capacity=600) for i in range(count)]
    placer = Placer(nodes)
    began = time.process_time()
    counts = spread(placer, 500)
    took = time.process_time() - began
    assert set(counts.values()) == {500 // count}
    # Some 10 and 50 ms; a second is for machines that do much else.
    assert took < 1.0
