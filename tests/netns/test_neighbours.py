"""What one namespace knows of its neighbours arrives in another, which need not ask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.netns.nodekit import Machine, machine, until
from vrha.linux import neighbours, netns, sysctls
from vrha.linux.neighbours import PERMANENT, REACHABLE, Neighbour
from vrha.model.evidence import Carried

pytestmark = [pytest.mark.root, pytest.mark.unhurried]


@contextmanager
def files(*machines: Machine) -> Iterator[tuple[int, ...]]:
    """File descriptors of the namespaces, and of this one."""
    opened = (*(netns.open_named(each.name) for each in machines), netns.current())
    try:
        yield opened
    finally:
        for fd in opened:
            os.close(fd)


def known(at: Machine) -> set[Neighbour]:
    with files(at) as (fd, home), netns.entered(fd, home):
        return set(neighbours.entries())


def test_neighbours_are_copied_by_port(node: None) -> None:
    source = machine("source", "br-a", "10.1.1.1/24", "fd00:1::1/64")
    target = machine("target", "br-b", "10.1.1.1/24", "fd00:1::1/64")
    peer = machine("peer", "br-a", "10.1.1.50/24", "fd00:1::50/64")
    link_local = peer.run("ip", "-6", "-br", "addr", "show", "e0", "scope", "link").split()[2]
    link_local = link_local.partition("/")[0]
    for address in ("10.1.1.50", "fd00:1::50", f"{link_local}%e0"):
        assert until(lambda address=address: source.pings(address))
    assert not source.pings("10.1.1.99"), "an entry that failed"
    source.run("ip", "link", "add", "d0", "type", "bridge")
    source.run("ip", "link", "set", "d0", "up")
    for line in (
        "10.1.1.60 lladdr 02:00:00:00:00:60 dev e0 nud permanent",
        "10.1.1.61 lladdr 02:00:00:00:00:61 dev e0 nud stale",
        "10.1.1.62 lladdr 02:00:00:00:00:62 dev e0 nud noarp",
        "10.9.9.9 lladdr 02:00:00:00:00:99 dev d0 nud reachable",
    ):
        source.run("ip", "neigh", "add", *line.split())
    mac = bytes.fromhex(peer.run("cat", "/sys/class/net/e0/address").strip().replace(":", ""))
    with files(source, target) as (a, b, home):
        for _ in range(2):
            carried = neighbours.copy(a, b, home)
            assert carried == Carried("neighbours", 6, 5, (("no-port", 1),))
    assert known(target) == {
        Neighbour("e0", ip_address("10.1.1.50"), mac, REACHABLE),
        Neighbour("e0", ip_address("fd00:1::50"), mac, REACHABLE),
        Neighbour("e0", ip_address(link_local), mac, REACHABLE),
        Neighbour("e0", ip_address("10.1.1.60"), bytes.fromhex("020000000060"), PERMANENT),
        Neighbour("e0", ip_address("10.1.1.61"), bytes.fromhex("020000000061"), REACHABLE),
    }


def test_a_number_of_the_kernel_is_raised_but_not_lowered(node: None) -> None:
    setting = Path("/proc/sys/net/core/somaxconn")
    setting.write_text("100")
    sysctls.at_least([("core/somaxconn", 200), ("core/no-such-number", 1)])
    assert setting.read_text() == "200\n"
    sysctls.at_least([("core/somaxconn", 150)])
    assert setting.read_text() == "200\n"
