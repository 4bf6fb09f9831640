"""What a standby is told and what it forgets, on the real kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.netns import ctkit
from tests.netns.ctkit import OUT, World, connected
from tests.netns.nodekit import until
from tests.netns.test_conntrack import _udp_flow
from vrha.linux import neighbours

pytestmark = [pytest.mark.root, pytest.mark.unhurried]


@pytest.fixture
def world(node: None) -> World:
    return ctkit.world()


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def left(world: World) -> int:
    """Seconds until the flow ends in the standby."""
    (entry,) = world.b.run("conntrack", "-L", "-p", "udp", "--dport", "9002").splitlines()
    return int(entry.split()[2])


def test_what_packets_prolong_without_an_event_is_told_anew(
    world: World, closing: contextlib.ExitStack
) -> None:
    """An UDP flow ends in a standby after 30 s, unless it is told; a TCP connection lives days."""
    connected(closing, world.vm2, OUT, 9001, world.out)
    _udp_flow(world, closing, 9002)
    with world.a.target() as own, world.b.target() as target, world.a.source(own) as source:
        for chunk in source.dump():
            target.apply(chunk)
        found = source.fleeting(180)
        assert not [change for change in found if (9001).to_bytes(2, "big") in change.key]
        (fleeting,) = (change for change in found if (9002).to_bytes(2, "big") in change.key)
        soon = (3).to_bytes(4, "big")
        target.apply([replace(fleeting, update=fleeting.update[:12] + soon + fleeting.update[16:])])
        assert left(world) <= 3
        target.apply([fleeting])
        assert left(world) > 3
        assert source.pending() == []


def test_what_the_other_side_has_not_got_is_forgotten(
    world: World, closing: contextlib.ExitStack
) -> None:
    for port in (9001, 9002, 9003):
        connected(closing, world.vm2, OUT, port, world.out)
    with world.a.source() as source, world.b.target() as target:
        changes = [change for chunk in source.dump() for change in chunk]
        target.apply(changes)
    # Another agent: it knows nothing of what the one before has put there.
    with world.b.target() as target:
        target.apply(changes[1:])
        assert target.keep_only({change.key for change in changes[1:]}) == 1
        assert len(world.b.run("conntrack", "-L").splitlines()) == len(changes) - 1
        assert target.keep_only(set()) == len(changes) - 1
        assert world.b.run("conntrack", "-L") == ""


def test_neighbours_that_change_are_news(world: World) -> None:
    news = world.a.inside(neighbours.News)
    with contextlib.closing(news):
        until(lambda: not news.arrived())
        world.a.run(
            *("ip", "neigh", "replace", "10.1.1.77", "lladdr", "02:00:00:00:00:77"),
            *("dev", "g0", "nud", "reachable"),
        )
        assert news.arrived()
        assert not news.arrived()
