from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

from vrha.core.diff import diff
from vrha.model.spec import (
    Backend,
    Desired,
    Egress,
    Ingress,
    Network,
    Node,
    PortRange,
    Protocol,
    Router,
    Rule,
    Uplink,
    Verdict,
)
from vrha.model.views import Change, ChangeKind

WEB = Network("web", "br0", ())
R1 = Router(
    "r1",
    ("web",),
    uplink=Uplink("ext", (IPv4Interface("192.0.2.1/24"), IPv4Interface("192.0.2.2/24"))),
    ingress=(Ingress(IPv4Address("192.0.2.1"), (Rule(Protocol.TCP, PortRange(80, 80)),)),),
    labels={"rack": "a"},
)
N1 = Node("n1")


def fields(old: Router | Network, new: Router | Network) -> tuple[str, ...]:
    def one(item: Router | Network) -> Desired:
        return Desired(routers=(item,)) if isinstance(item, Router) else Desired(networks=(item,))

    (change,) = diff(one(old), one(new))
    assert change.kind is ChangeKind.CHANGE
    return change.fields


def test_equal_states_do_not_differ() -> None:
    state = Desired((WEB,), (R1,), (N1,))
    assert diff(state, state) == ()
    assert diff(Desired(), Desired()) == ()


def test_objects_come_and_go_networks_first() -> None:
    old = Desired((WEB,), (R1,), (N1, Node("n2")))
    new = Desired((Network("db", "br1", ()), WEB), (), (Node("n0"), N1))
    assert diff(old, new) == (
        Change(ChangeKind.ADD, "network", "db"),
        Change(ChangeKind.REMOVE, "router", "r1"),
        Change(ChangeKind.ADD, "node", "n0"),
        Change(ChangeKind.REMOVE, "node", "n2"),
    )


def test_the_order_of_objects_means_nothing() -> None:
    other = Network("db", "br1", ())
    assert diff(Desired((WEB, other)), Desired((other, WEB))) == ()


def test_the_order_within_an_object_means_something() -> None:
    uplink = R1.uplink
    assert uplink is not None
    turned = replace(R1, uplink=replace(uplink, addresses=uplink.addresses[::-1]))
    assert fields(R1, turned) == ("uplink.addresses[0]", "uplink.addresses[1]")


def test_paths_lead_to_the_field() -> None:
    rules = (Rule(Protocol.UDP, PortRange(80, 81)),)
    changed = replace(
        R1,
        ingress=(replace(R1.ingress[0], rules=rules),),
        backend=Backend.IPTABLES,
        labels={"rack": "b", "disk": "ssd"},
    )
    assert fields(R1, changed) == (
        "ingress[0].rules[0].protocol",
        "ingress[0].rules[0].ports.last",
        "backend",
        "labels.disk",
        "labels.rack",
    )


def test_a_list_of_another_length_and_a_missing_part_are_one_path() -> None:
    assert fields(R1, replace(R1, uplink=None, ingress=())) == ("uplink", "ingress")
    assert fields(WEB, replace(WEB, egress=Egress(Verdict.DENY, (Rule(),)))) == (
        "egress.default",
        "egress.rules",
    )
