"""Changing the rules of a live instance: any ruleset to any other, and nobody loses a packet."""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from tests.golden import golden_specs
from tests.netns.nodekit import machine, spec_of
from vrha.linux import rules, tools
from vrha.linux.node import NodeKernel
from vrha.model.spec import (
    Backend,
    Ingress,
    InstanceRef,
    InstanceSpec,
    PortRange,
    Protocol,
    Rule,
)
from vrha.render.digest import expected_digest
from vrha.render.nft import nft_text
from vrha.render.nft_update import nft_update

pytestmark = [pytest.mark.root, pytest.mark.unhurried]

SPECS = {
    name: replace(getattr(golden_specs, name)(), ref=InstanceRef("edge", 1))
    for name in ("seed", "dual", "forwards", "isolated", "empty")
}


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(SPECS, 2)))
def test_from_any_ruleset_to_any_other(kernel: NodeKernel, old: str, new: str) -> None:
    """The kernel takes the difference as it is: no replacement of everything."""
    found = rules.find_tools()
    feed(found.nft, nft_text(SPECS[old]))
    feed(found.nft, nft_update(SPECS[old], SPECS[new]))
    assert rules.read_back(found, Backend.NFTABLES) == expected_digest(SPECS[new])
    feed(found.nft, "delete table inet vr\n")


def feed(nft: str, text: str) -> None:
    done = tools.run([nft, "-f", "-"], text)
    assert done.returncode == 0, done.complaint


def test_no_difference_is_no_transaction() -> None:
    assert nft_update(SPECS["dual"], SPECS["dual"]) == ""


def test_one_more_rule_moves_one_element() -> None:
    old = SPECS["seed"]
    public = old.router.static_nat[0].public
    more = Ingress(public, (Rule(Protocol.TCP, PortRange(4711, 4711)),))
    new = replace(old, router=replace(old.router, ingress=(*old.router.ingress, more)))
    text = nft_update(old, new)
    assert text == f"add element inet vr ports4 {{ {public} . tcp . 4711 }}\n"


def test_a_change_cut_short_and_a_tampered_table_end_right(kernel: NodeKernel) -> None:
    found = rules.find_tools()
    old, new = SPECS["seed"], SPECS["dual"]
    feed(found.nft, nft_text(old))
    rules.change(found, (new, old), new)
    assert rules.read_back(found, Backend.NFTABLES) == expected_digest(new)
    feed(found.nft, "flush chain inet vr forward\n")
    rules.change(found, (new, old), old)
    assert rules.read_back(found, Backend.NFTABLES) == expected_digest(old)
    feed(found.nft, "delete table inet vr\n")


def with_rule(spec: InstanceSpec, number: int) -> InstanceSpec:
    router = spec.router
    remote = ip_network(f"198.51.100.{number}/32")
    rule = Rule(Protocol.TCP, PortRange(1000, 1000 + number), remote)
    more = Ingress(ip_address("203.0.113.11"), (rule,))
    return replace(spec, router=replace(router, ingress=(*router.ingress, more)))


def test_a_hundred_changes_lose_no_packet(kernel: NodeKernel) -> None:
    """Replacing the whole table at every change lost a packet in one change of sixteen."""
    client = machine("vm", "br-a", "10.1.1.50/24", via="10.1.1.1")
    machine("out", "br-up", "203.0.113.1/24")
    spec = spec_of()
    kernel.build(spec)
    kernel.unmute(spec.ref)
    assert client.pings("203.0.113.1")
    argv = ["ip", "netns", "exec", "vm", "ping", "-n", "-q", "-f", "-c", "1000000", "203.0.113.1"]
    flood = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        for number in range(1, 101):
            kernel.configure(with_rule(spec, number))
    finally:
        flood.send_signal(2)
        said = flood.communicate(timeout=10)[0]
    sent, received = (int(word) for word in said.split() if word.isdigit())
    assert sent > 1000
    # The one that is on its way when ping is told to stop has no answer yet.
    assert sent - received <= 1, said
