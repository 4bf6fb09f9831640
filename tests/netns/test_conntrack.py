"""Connections copied and followed from one router into another, on the real kernel."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.netns import ctkit
from tests.netns.ctkit import OUT, OUT6, World, bulk, connected, same, settled, talks
from tests.netns.nodekit import until
from vrha.linux.ctwire import Change, Kind

pytestmark = [pytest.mark.root, pytest.mark.unhurried]


@pytest.fixture
def world(node: None) -> World:
    return ctkit.world()


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


Ends = tuple[socket.socket, socket.socket]


def _all_tcp(world: World, closing: contextlib.ExitStack) -> dict[str, Ends]:
    """TCP connections through every kind of NAT: (inside end, outside end)."""
    vm1, vm2, vm3, out = world.vm1, world.vm2, world.vm3, world.out
    made = {
        "one-to-one out": connected(closing, vm1, OUT, 9001, out),
        "one-to-one in": connected(closing, out, ctkit.ONE, 9002, vm1)[::-1],
        "forwarded": connected(closing, out, ctkit.SHARED, ctkit.FORWARDED, vm2, listen=80)[::-1],
        "source NAT": connected(closing, vm2, OUT, 9003, out, source=5000),
        "source NAT, port taken": connected(closing, vm3, OUT, 9003, out, source=5000),
        "marked": connected(closing, vm3, OUT, ctkit.LABELLED, out),
        "IPv6": connected(closing, vm1, OUT6, 9004, out),
        "IPv6 source NAT": connected(closing, vm2, OUT6, 9005, out, source=5006),
    }
    for ends in made.values():
        assert talks(*ends)
        assert talks(*ends[::-1])
    return made


def _half_closed(vr: ctkit.Vr) -> bool:
    return any("CLOSE_WAIT" in line for line in vr.entries("-p", "tcp"))


def _udp(machine: ctkit.Machine, port: int = 0, family: int = socket.AF_INET) -> socket.socket:
    made = machine.socket(family, socket.SOCK_DGRAM)
    made.bind(("", port))
    made.settimeout(2)
    return made


def _udp_flow(
    world: World, closing: contextlib.ExitStack, port: int, rounds: int = 2
) -> tuple[socket.socket, socket.socket, tuple[str, int]]:
    """A flow from vm2: its end, the outside end, and the address that the outside sees."""
    ours = closing.enter_context(_udp(world.vm2))
    theirs = closing.enter_context(_udp(world.out, port))
    seen = ("", 0)
    for _ in range(rounds):
        ours.sendto(b"ask", (OUT, port))
        seen = theirs.recvfrom(10)[1]
        theirs.sendto(b"answer", seen)
        assert ours.recv(10) == b"answer"
    return ours, theirs, seen


def test_a_copy_is_equal(world: World, closing: contextlib.ExitStack) -> None:
    _all_tcp(world, closing)
    _udp_flow(world, closing, 9000)
    _udp_flow(world, closing, ctkit.ZONED)
    world.vm3.pings(OUT)
    silent = closing.enter_context(_udp(world.vm3))
    silent.sendto(b"no answer", (OUT, 9999))
    for protocol in (47, 50):
        # GRE (version 0 has no key that counts) and ESP, which has no ports at all.
        raw = closing.enter_context(world.vm3.socket(socket.AF_INET, socket.SOCK_RAW, protocol))
        raw.sendto(bytes(24), (OUT, 0))
    with world.a.source() as source, world.b.target() as target:
        copied = bulk(source, target)
        lines = "\n".join(world.a.entries())
        assert same(world.a, world.b)
        assert len(ctkit.labels(world.a)) == 1
        assert ctkit.labels(world.a) == ctkit.labels(world.b)
        carried = target.carried()
    assert (carried.sent, carried.taken, carried.refused) == (copied, copied, ())
    for expected in (
        "mark=42",
        "zone=5",
        "UNREPLIED",
        "ASSURED",
        "icmpv6",
        "src=2001:db8::1 dst=2001:db8::10",
        "gre",
        "unknown",
    ):
        assert expected in lines, lines
    taken = [line for line in lines.splitlines() if "sport=5000" in line and "ipv4" in line]
    assert sum("dport=5000" in line for line in taken) == 1, taken
    assert len(taken) == 2


@pytest.mark.parametrize("first", ["outside", "inside"])
def test_tcp_goes_on_in_the_copy(world: World, closing: contextlib.ExitStack, first: str) -> None:
    connections = _all_tcp(world, closing)
    with world.a.source() as source, world.b.target() as target:
        bulk(source, target)
        settled(source, target)
        world.flip()
    for name, (inside, outside) in connections.items():
        ends = (outside, inside) if first == "outside" else (inside, outside)
        assert talks(*ends), name
        assert talks(*ends), name
        assert talks(*ends[::-1]), name
    assert all("SYN" not in line for line in world.b.entries("-p", "tcp"))


def test_without_the_copy_the_outside_is_not_heard(
    world: World, closing: contextlib.ExitStack
) -> None:
    inside, outside = _all_tcp(world, closing)["source NAT"]
    world.flip()
    inside.settimeout(0.5)
    assert not talks(outside, inside)


def test_udp_goes_on_when_the_outside_sends(world: World, closing: contextlib.ExitStack) -> None:
    first = _udp_flow(world, closing, 9000)
    zoned = _udp_flow(world, closing, ctkit.ZONED)
    with world.a.source() as source, world.b.target() as target:
        bulk(source, target)
        world.flip()
    for (ours, theirs, seen), port in ((first, 9000), (zoned, ctkit.ZONED)):
        theirs.sendto(b"more", seen)
        assert ours.recv(10) == b"more"
        ours.sendto(b"back", (OUT, port))
        assert theirs.recvfrom(10) == (b"back", seen)


def test_ping_goes_on(world: World, closing: contextlib.ExitStack) -> None:
    """Two machines with one identifier: NAT gives the second another one, and keeps it."""
    echo = bytes.fromhex("0800 f7ff 0000 0000")
    pingers = [
        closing.enter_context(vm.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        for vm in (world.vm2, world.vm3)
    ]

    def answered(sock: socket.socket) -> bool:
        sock.sendto(echo, (OUT, 0))
        sock.settimeout(2)
        answer = sock.recv(100)[20:]
        return answer[0] == 0 and answer[4:6] == echo[4:6]

    assert all(answered(sock) for sock in pingers)
    with world.a.source() as source, world.b.target() as target:
        bulk(source, target)
        assert same(world.a, world.b, "-p", "icmp")
        before = world.b.entries("-p", "icmp").keys()
        world.flip()
        assert all(answered(sock) for sock in pingers)
    assert world.b.entries("-p", "icmp").keys() == before


def test_events_are_followed(world: World, closing: contextlib.ExitStack) -> None:
    with world.a.source() as source, world.b.target() as target:
        bulk(source, target)
        settled(source, target)
        assert source.pending() == []

        inside, outside = connected(closing, world.vm2, OUT, ctkit.LABELLED, world.out)
        assert select.select([source], [], [], 5)[0]
        settled(source, target)
        assert same(world.a, world.b)
        assert ctkit.labels(world.a) == ctkit.labels(world.b) != {}
        assert any("mark=42" in line for line in world.b.entries("-p", "tcp"))

        ctkit.alter(world.a, ctkit.LABELLED, mark=7)
        (update,) = source.pending()
        assert update.kind is Kind.SET
        target.apply([update])
        assert any("mark=7" in line for line in world.b.entries("-p", "tcp"))

        outside.close()
        assert inside.recv(10) == b""
        assert until(lambda: settled(source, target) >= 0 and _half_closed(world.b))
        assert same(world.a, world.b)

        world.a.run("conntrack", "-D", "-p", "tcp", "--dport", "7001")
        (gone,) = source.pending()
        assert gone.kind is Kind.REMOVED
        target.apply([gone])
        assert same(world.a, world.b)
        assert world.b.entries("-p", "tcp") == {}
        target.apply([gone])
        assert target.carried().refused == (("already-gone", 1),)


def test_a_change_between_events_keeps_what_they_do_not_tell(
    world: World, closing: contextlib.ExitStack
) -> None:
    """An event has only what changed; read together with an older one nothing may be missing."""
    with world.a.source() as source, world.b.target() as target:
        connected(closing, world.vm2, OUT, ctkit.LABELLED, world.out)
        ctkit.alter(world.a, ctkit.LABELLED, mark=7)
        settled(source, target)
        assert same(world.a, world.b, "-p", "tcp")
        (line,) = world.b.entries("-p", "tcp")
    assert "ESTABLISHED" in line
    assert "mark=7" in line
    assert ctkit.labels(world.a) == ctkit.labels(world.b) != {}


def test_what_belongs_to_one_namespace_stays(world: World) -> None:
    world.a.run("ip", "route", "add", "224.0.0.0/4", "dev", "g0")
    world.a.run("ping", "-c", "1", "127.0.0.1")
    world.a.run("ping", "-c", "1", "::1")
    with world.a.source() as source, world.b.target() as target:
        world.a.run(
            "sh", "-c", "ping -c 1 -W 0.1 224.0.0.1; ping -b -c 1 -W 0.1 255.255.255.255; true"
        )
        settled(source, target)
        bulk(source, target)
    lines = world.b.entries()
    assert lines
    assert not [line for line in lines if "127.0.0.1" in line or "::1 dst=::1" in line]
    assert not [line for line in lines if "dst=224" in line or "dst=255" in line]
    assert [line for line in world.a.entries() if "127.0.0.1" in line]


def test_both_directions_do_not_echo(world: World, closing: contextlib.ExitStack) -> None:
    with (
        world.a.target() as to_a,
        world.b.target() as to_b,
        world.a.source(to_a) as from_a,
        world.b.source(to_b) as from_b,
    ):
        bulk(from_a, to_b)
        bulk(from_b, to_a)
        connections = _all_tcp(world, closing)
        assert settled(from_a, to_b) > 0
        assert settled(from_b, to_a) == 0
        assert settled(from_a, to_b) == 0
        world.flip()
        inside, outside = connections["source NAT"]
        inside.close()
        assert outside.recv(10) == b""
        assert until(lambda: settled(from_b, to_a) > 0 and _half_closed(world.a))
        assert settled(from_a, to_b) == 0
        assert settled(from_b, to_a) == 0
        assert same(world.a, world.b, "-p", "tcp")


def test_a_taken_nat_port_is_counted(world: World, closing: contextlib.ExitStack) -> None:
    ours = closing.enter_context(_udp(world.vm2, 5000))
    theirs = closing.enter_context(_udp(world.out, 9000))
    ours.sendto(b"x", (OUT, 9000))
    assert theirs.recvfrom(10)[1] == (ctkit.SHARED, 5000)
    with world.a.source() as source, world.b.target() as target:
        world.flip()
        other = closing.enter_context(_udp(world.vm3, 5000))
        other.sendto(b"x", (OUT, 9000))
        assert theirs.recvfrom(10)[1] == (ctkit.SHARED, 5000)
        world.b.run("conntrack", "-D", "-p", "udp", "--orig-src", ctkit.VM2, ok=False)
        found = list(source.dump())
        for chunk in found:
            target.apply(chunk)
        assert target.carried().refused == (("nat-port-taken", 1),)
        events = [Change(Kind.SET, c.key, c.create, c.update) for chunk in found for c in chunk]
        target.apply(events)
        assert dict(target.carried().refused)["nat-port-taken"] == 2
        flows = world.b.entries("-p", "udp", "--dport", "9000")
    assert [line for line in flows if ctkit.VM3 in line]
    assert not [line for line in flows if ctkit.VM2 in line]


def test_a_dump_never_puts_back_what_is_newer(world: World, closing: contextlib.ExitStack) -> None:
    inside, outside = connected(closing, world.vm2, OUT, 9000, world.out)
    with world.a.source() as source, world.b.target() as target:
        stale = list(source.dump())
        for chunk in stale:
            target.apply(chunk)
        world.flip()
        outside.close()
        assert inside.recv(10) == b""
        assert until(lambda: _half_closed(world.b))
        (line,) = world.b.entries("-p", "tcp")
        for chunk in stale:
            target.apply(chunk)
        assert line in world.b.entries("-p", "tcp")
        assert "older" in dict(target.carried().refused)


def test_a_dump_leaves_out_what_events_have_told_since(
    world: World, closing: contextlib.ExitStack
) -> None:
    _flood(world, closing, 1000, 1200)
    with world.a.source() as source, world.b.target() as target:
        dump = source.dump()
        target.apply(next(dump))
        world.a.run("conntrack", "-D", "-p", "udp", "--orig-src", ctkit.VM1)
        gone = source.pending()
        target.apply(gone)
        for chunk in dump:
            target.apply(chunk)
        assert same(world.a, world.b, "-p", "udp")
        assert target.carried().refused == ()


def test_an_entry_in_use_is_not_removed(world: World, closing: contextlib.ExitStack) -> None:
    """The old router's copy ends for want of packets while the new one carries the flow."""
    ours, theirs, _seen = _udp_flow(world, closing, 9000, rounds=1)
    ctkit.alter(world.a, 9000, timeout=5)
    with world.a.source() as source, world.b.target() as target:
        bulk(source, target)
        world.flip()
        ours.sendto(b"more", (OUT, 9000))
        assert theirs.recv(10) == b"more"
        assert until(lambda: max(world.b.entries("-p", "udp").values()) > 10)
        world.a.run("conntrack", "-D", "-p", "udp")
        settled(source, target)
        assert world.b.entries("-p", "udp")
        assert target.carried().refused == (("in-use", 1),)


def test_an_entry_that_ended_too_early_comes_again(
    world: World, closing: contextlib.ExitStack
) -> None:
    connected(closing, world.vm2, OUT, 9000, world.out)
    with world.a.source() as source, world.b.target() as target:
        bulk(source, target)
        world.b.run("conntrack", "-D", "-p", "tcp")
        ctkit.alter(world.a, 9000, mark=9)
        settled(source, target)
        assert same(world.a, world.b, "-p", "tcp")
        world.b.run("conntrack", "-D", "-p", "tcp")
        bulk(source, target)
        assert same(world.a, world.b, "-p", "tcp")
        assert target.carried().refused == ()


def test_a_connection_that_another_one_announced(
    world: World, closing: contextlib.ExitStack
) -> None:
    """An FTP data connection goes with its control connection, and never without."""
    inside, outside = connected(closing, world.vm2, OUT, 21, world.out)
    for line in (b"220 ready\r\n", b"227 Entering Passive Mode (203,0,113,1,200,10)\r\n"):
        outside.send(line)
        assert inside.recv(100) == line
    data = connected(closing, world.vm2, OUT, 200 * 256 + 10, world.out)
    assert "helper=ftp" in str(world.a.entries("-p", "tcp"))
    with world.a.source() as source, world.b.target() as target:
        chunks = list(source.dump())
        (announced,) = [c for chunk in chunks for c in chunk if c.update and c.is_expected]
        target.apply([announced])
        assert target.carried().refused == (("expectation", 1),)
        for chunk in chunks:
            target.apply(chunk)
        assert target.carried().refused == (("expectation", 1),)
        assert same(world.a, world.b, "-p", "tcp")
        world.flip()
        assert talks(*data[::-1])
        assert talks(outside, inside)


def test_poisoned_changes_are_counted_and_harm_nothing(
    world: World, closing: contextlib.ExitStack
) -> None:
    _udp_flow(world, closing, 9000)
    with world.a.source() as source, world.b.target() as target:
        found = [change for chunk in source.dump() for change in chunk]
        target.apply(found)
        before = world.b.entries().keys()
        good = found[0]
        poison = [
            Change(Kind.REMOVED, b""),
            Change(Kind.REMOVED, b"\2\0\0\0"),
            Change(Kind.REMOVED, good.key[:4] + good.update),
            Change(Kind.SET, good.key + b"x", good.create, good.update),
            Change(Kind.SET, good.key, good.create, good.update + b"x"),
            Change(Kind.SET, good.key, good.create, b""),
            Change(Kind.SET, good.key[:-4], good.create, good.update),
        ]
        target.apply([*poison, good])
        assert target.carried().refused == (("invalid", len(poison)),)
        assert world.b.entries().keys() == before


def _flood(world: World, closing: contextlib.ExitStack, first: int, count: int) -> None:
    for vm in (world.vm1, world.vm3):
        sock = closing.enter_context(_udp(vm))
        for port in range(first, first + count // 2):
            sock.sendto(b"x", (OUT, port))


def test_lost_events_show_and_a_dump_heals(world: World, closing: contextlib.ExitStack) -> None:
    _flood(world, closing, 1000, 600)
    with world.a.source(receive_bytes=20_000) as source, world.b.target() as target:
        bulk(source, target)
        settled(source, target)
        assert not source.overrun
        world.a.run("conntrack", "-D", "-p", "udp", "--orig-src", ctkit.VM1)
        _flood(world, closing, 3000, 600)
        ctkit.alter(world.a, 1001, mark=5)
        settled(source, target)
        assert source.overrun
        assert world.a.entries().keys() != world.b.entries().keys()
        bulk(source, target)
        assert not source.overrun
        settled(source, target)
        assert same(world.a, world.b, "-p", "udp")


def test_ten_thousand_entries_under_load(world: World, closing: contextlib.ExitStack) -> None:
    _all_tcp(world, closing)
    _flood(world, closing, 1000, 10_000)
    with world.a.source() as source, world.b.target() as target:
        load = threading.Thread(target=_flood, args=(world, closing, 20_000, 4000))
        load.start()
        for chunk in source.dump():
            target.apply(chunk)
            target.apply(source.pending())
        load.join(30)
        settled(source, target)
        assert not source.overrun
        assert len(world.b.entries()) > 14_000
        assert same(world.a, world.b)
        assert target.carried().refused == ()
