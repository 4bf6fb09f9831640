"""Prober and responder over a real veth pair between two namespaces.

Faults are nft drops whose times the test records on the prober's own clock, so that what is
asserted does not depend on how fast the machine is.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from tests.netns.probekit import (
    A4,
    A6,
    B4,
    B4_SECOND,
    B6,
    B6_SECOND,
    MS,
    ROOT,
    Fault,
    Pair,
    drop,
    namespace,
    now_and_after,
    plain_echo,
    udp_counter,
    undrop,
    wait_until,
)
from vrha.core.verdict import notes
from vrha.errors import PreconditionError, UnreachableError
from vrha.model.probing import Stream, StreamResult
from vrha.probe.kernel import Namespace
from vrha.probe.prober import Prober
from vrha.probe.process import ProbeProcess, serving
from vrha.probe.wire import PAYLOAD, REQUEST, IcmpProbe, attach_icmp_filter

pytestmark = pytest.mark.root


def both_ways(pair: Pair) -> list[Stream]:
    return [
        Stream("out_icmp", "icmp", B4, netns=pair.a),
        Stream("out_udp", "udp", B4, netns=pair.a),
        Stream("in_icmp", "icmp", A4, netns=pair.b),
        Stream("in_udp", "udp", A4, netns=pair.b),
        Stream("out6_icmp", "icmp", B6, netns=pair.a),
        Stream("out6_udp", "udp", B6, netns=pair.a),
        Stream("connect", "tcp-connect", B4, netns=pair.a, interval_ms=10.0),
        Stream("connect6", "tcp-connect", A6, netns=pair.b, interval_ms=10.0),
    ]


def ticks(one: StreamResult) -> int:
    return one.loss.sent + one.late_ticks


def test_an_idle_pair_loses_nothing(served: Pair) -> None:
    with Prober(both_ways(served)) as prober:
        result = prober.run(2.0)
    for one in result.streams:
        assert (one.stream.name, one.loss.lost, one.loss.gaps) == (one.stream.name, 0, ())
        assert (one.loss.duplicates, one.receive_drops, one.errors) == (0, 0, ())
        assert ticks(one) == 2000 / one.stream.interval_ms
        assert one.loss.rtt_median_ms is not None
        assert 0 < one.loss.rtt_median_ms < 500
    assert result.realtime
    assert result.memory_locked
    assert abs(result.t0_realtime_ns - time.time_ns()) < 3600 * 1000 * MS


def test_the_calling_thread_is_back_in_its_namespace(served: Pair) -> None:
    before = os.stat("/proc/thread-self/ns/net").st_ino
    with Prober(both_ways(served)) as prober:
        prober.run(0.05)
        assert os.stat("/proc/thread-self/ns/net").st_ino == before
    assert os.stat("/proc/thread-self/ns/net").st_ino == before


@pytest.mark.parametrize("length_s", [0.02, 0.3])
def test_a_drop_shows_as_one_gap_of_its_length_in_its_place(served: Pair, length_s: float) -> None:
    fault = Fault()
    with ProbeProcess(both_ways(served), require_reply_s=5) as probe:
        fault.began = now_and_after(
            lambda: drop(served, served.b, "meta nfproto ipv4 icmp type echo-request")
        )
        time.sleep(length_s)
        fault.ended = now_and_after(lambda: undrop(served, served.b))
        time.sleep(0.1)
        result = probe.stop()
    for one in result.streams:
        if one.stream.name == "out_icmp":
            assert len(one.loss.gaps) == 1
            assert not one.loss.unrestored
            fault.explains(one.loss.gaps[0], one, result)
            assert one.loss.outage_ms == one.loss.lost
            assert result.to_bench()["longest_gap_ms"] == pytest.approx(
                one.loss.longest_gap_ms, abs=0.001
            )
        else:
            assert (one.stream.name, one.loss.lost) == (one.stream.name, 0)


def test_a_dead_link_takes_every_stream_and_the_gaps_lie_together(served: Pair) -> None:
    streams = [s for s in both_ways(served) if s.kind != "tcp-connect"]
    fault = Fault()
    with ProbeProcess(streams, require_reply_s=5) as probe:
        fault.began = now_and_after(lambda: drop(served, served.b, "meta l4proto { icmp, udp }"))
        time.sleep(0.1)
        fault.ended = now_and_after(lambda: undrop(served, served.b))
        time.sleep(0.1)
        result = probe.stop()
    four = [one for one in result.streams if "6" not in one.stream.name]
    for one in four:
        assert len(one.loss.gaps) == 1
        fault.explains(one.loss.gaps[0], one, result)
    assert result.stream("out6_icmp").loss.lost == 0


def test_two_outages_are_two_gaps(served: Pair) -> None:
    with ProbeProcess([Stream("s", "udp", B6, netns=served.a)], require_reply_s=5) as probe:
        for _ in range(2):
            drop(served, served.b, "udp dport 7")
            time.sleep(0.05)
            undrop(served, served.b)
            time.sleep(0.05)
        result = probe.stop()
    (one,) = result.streams
    assert len(one.loss.gaps) == 2
    assert one.loss.lost == sum(gap.lost for gap in one.loss.gaps)


def test_an_outage_that_never_ends_is_flagged(served: Pair) -> None:
    streams = [Stream("u", "udp", B4, netns=served.a), Stream("i", "icmp", B4, netns=served.a)]
    with ProbeProcess(streams, require_reply_s=5) as probe:
        drop(served, served.b, "udp dport 7")
        time.sleep(0.2)
        result = probe.stop()
    assert result.unrestored
    assert result.to_bench()["unrestored"] == ["u"]
    gap = result.stream("u").loss.gaps[-1]
    assert gap.unrestored
    assert gap.start_ms + gap.length_ms == pytest.approx(result.duration_ms)
    assert gap.length_ms >= 200
    assert not result.stream("i").loss.unrestored


def test_a_responder_that_goes_away_is_an_outage_of_its_streams_only(pair: Pair) -> None:
    streams = [
        Stream("udp", "udp", B4, netns=pair.a),
        Stream("tcp", "tcp-connect", B4, netns=pair.a, interval_ms=10.0),
        Stream("icmp", "icmp", B4, netns=pair.a),
    ]
    with ProbeProcess(streams, require_reply_s=None) as probe:
        with serving(7, [pair.b]) as pid:
            time.sleep(0.1)
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        result = probe.stop()
    for name in ("udp", "tcp"):
        one = result.stream(name)
        assert one.loss.unrestored
        assert 0 < one.loss.lost < one.loss.sent
        assert dict(one.errors)["ECONNREFUSED"] > 0
    assert result.stream("icmp").loss.lost == 0


def test_a_connect_that_gets_no_answer_fails_after_a_second(served: Pair) -> None:
    stream = Stream("tcp", "tcp-connect", B4, netns=served.a, interval_ms=10.0)
    with ProbeProcess([stream], require_reply_s=5) as probe:
        drop(served, served.b, "tcp dport 7")
        time.sleep(0.3)
        undrop(served, served.b)
        time.sleep(0.1)
        result = probe.stop()
    (one,) = result.streams
    assert len(one.loss.gaps) == 1
    assert dict(one.errors) == {"not answered in time": one.loss.lost}
    assert one.loss.lost >= 25 - one.late_ticks
    assert one.loss.rtt_max_ms is not None
    assert one.loss.rtt_max_ms <= 1000


def test_answers_come_from_the_address_that_was_asked(served: Pair) -> None:
    streams = [
        Stream("second4", "udp", B4_SECOND, netns=served.a),
        Stream("second6", "udp", B6_SECOND, netns=served.a),
    ]
    with Prober(streams) as prober:
        assert prober.run(0.3).lost == 0


def test_a_link_local_target_with_scope(served: Pair) -> None:
    def address() -> str:
        argv = ["ip", "-j", "-6", "address", "show", "dev", "vb", "scope", "link", "-tentative"]
        out = subprocess.run(
            ["nsenter", f"--net={served.b}", *argv], check=True, capture_output=True, timeout=10
        ).stdout
        found = [i["local"] for port in json.loads(out) for i in port.get("addr_info", []) if i]
        return str(found[0]) if found else ""

    wait_until(lambda: bool(address()), "a link-local address past DAD")
    target = f"{address()}%va"
    kinds = [
        Stream("i", "icmp", target, netns=served.a),
        Stream("u", "udp", target, netns=served.a),
    ]
    with Prober(kinds) as prober:
        result = prober.run(0.3, require_reply_s=5)
    assert [one.loss.sent > one.loss.lost for one in result.streams] == [True, True]


def test_streams_to_one_target_do_not_take_each_others_replies(pair: Pair) -> None:
    streams = [Stream(f"s{i}", "icmp", B4, netns=pair.a) for i in range(5)]
    with Prober(streams) as prober:
        result = prober.run(0.3)
    assert [(one.loss.lost, one.loss.duplicates) for one in result.streams] == [(0, 0)] * 5


def test_duplicates_are_counted_and_a_plain_echo_server_will_do(pair: Pair) -> None:
    with (
        plain_echo(pair.b, 2, []),
        ProbeProcess([Stream("s", "udp", B4, netns=pair.a)], require_reply_s=5) as probe,
    ):
        time.sleep(0.2)
        result = probe.stop()
    (one,) = result.streams
    assert one.loss.lost == 0
    assert one.loss.duplicates == one.loss.sent


@pytest.mark.parametrize(
    "junk",
    [
        b"x",
        b"vpg\x02" + b"\0" * 12,
        b"vpg\x02" + b"\xff" * 12,
        b"vpg\x02" + b"\0" * 100,
        b"x" * 1400,
    ],
)
def test_what_is_no_reply_is_not_taken_for_one(pair: Pair, junk: bytes) -> None:
    arrivals: list[int] = []
    with (
        plain_echo(pair.b, 1, arrivals, junk),
        Prober([Stream("s", "udp", B4, netns=pair.a)]) as prober,
    ):
        (one,) = prober.run(0.1).streams
    assert arrivals
    assert (one.loss.lost, one.loss.duplicates) == (one.loss.sent, 0)


@pytest.mark.parametrize(("family", "target"), [(socket.AF_INET, B4), (socket.AF_INET6, B6)])
def test_the_socket_filter_takes_our_echo_replies_only(
    pair: Pair, family: socket.AddressFamily, target: str
) -> None:
    v6 = family == socket.AF_INET6
    with Namespace(pair.a) as entered:
        protocol = socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP
        sock = socket.socket(family, socket.SOCK_RAW, protocol)
    entered.close()
    ours, theirs = (IcmpProbe(b"cookie!!", ident, v6) for ident in (0x1234, 0x1235))
    with sock:
        attach_icmp_filter(sock, 0x1234, v6)
        sock.settimeout(5)
        for seq in range(5):
            sock.sendto(theirs.pack(seq), (target, 0))
        sock.sendto(ours.pack(70_000), (target, 0))
        payload = sock.recv(256)[-PAYLOAD.size :]
        assert PAYLOAD.unpack(payload) == (REQUEST, b"cookie!!", 70_000)
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(256)


def test_an_icmp_error_does_not_swallow_the_next_probe(pair: Pair) -> None:
    """The kernel reports a port unreachable by failing the next send, which then sends nothing."""
    pair.call(pair.b, "sysctl", "-qw", "net.ipv4.icmp_ratelimit=0")
    before = udp_counter(pair.b, "NoPorts")
    with Prober([Stream("s", "udp", B4, netns=pair.a)]) as prober:
        (one,) = prober.run(0.3).streams
    assert dict(one.errors)["ECONNREFUSED"] >= one.loss.sent / 2
    assert udp_counter(pair.b, "NoPorts") - before == one.loss.sent


def test_missed_ticks_are_counted_and_never_sent_as_a_burst(pair: Pair) -> None:
    arrivals: list[int] = []
    streams = [Stream("u", "udp", B4, netns=pair.a), Stream("i", "icmp", B4, netns=pair.a)]
    with plain_echo(pair.b, 1, arrivals), ProbeProcess(streams, require_reply_s=5) as probe:
        time.sleep(0.1)
        stopped = now_and_after(lambda: os.kill(probe.pid, signal.SIGSTOP))
        time.sleep(0.2)
        resumed = now_and_after(lambda: os.kill(probe.pid, signal.SIGCONT))
        time.sleep(0.2)
        result = probe.stop()
    for one in result.streams:
        assert one.late_ticks >= (resumed[0] - stopped[1]) / MS - 2
        assert abs(ticks(one) - result.duration_ms) <= 2
        assert one.loss.lost == 0, "what was not sent is not lost"
        assert one.loss.longest_silence_ms is not None
        assert one.loss.longest_silence_ms >= (resumed[0] - stopped[1]) / MS - 2
    window = 20
    for first, last in zip(arrivals, arrivals[window:], strict=False):
        assert last - first >= (window - 3) * MS, "a burst"


def test_an_echo_from_nowhere_changes_nothing(served: Pair) -> None:
    """Foreign pings in the same namespaces, to the same target, are not taken for replies."""
    argv = ["nsenter", f"--net={served.a}", "ping", "-q", "-i", "0.002", B4]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as ping:
        try:
            with Prober([Stream("i", "icmp", B4, netns=served.a)]) as prober:
                (one,) = prober.run(0.5).streams
        finally:
            ping.kill()
    assert (one.loss.lost, one.loss.duplicates) == (0, 0)


def test_the_responder_answers_nothing_but_requests(served: Pair) -> None:
    with Namespace(served.a) as entered:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    entered.close()
    with sock:
        sock.settimeout(5)
        sock.connect((B4, 7))
        request = b"vpg\x01" + b"cookie!!" + b"\0\0\0\1"
        answer = b"vpg\x02" + request[4:]
        for junk in (answer, b"", b"hello", request + b"x", b"x" * 1400):
            sock.send(junk)
        sock.send(request)
        assert sock.recv(2048) == answer
        sock.send(request + b"x")
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(2048)


def test_no_reply_at_the_start_is_an_error_that_names_the_stream(pair: Pair) -> None:
    streams = [Stream("fine", "icmp", B4, netns=pair.a), Stream("udp", "udp", B4, netns=pair.a)]
    with Prober(streams) as prober, pytest.raises(UnreachableError) as caught:
        prober.run(5, require_reply_s=0.3)
    assert caught.value.code == "no-reply"
    assert "udp (10.9.0.2: ECONNREFUSED)" in caught.value.message
    assert "fine" not in caught.value.message


def test_no_route_is_an_error_before_anything_is_sent(pair: Pair) -> None:
    for kind in ("icmp", "udp"):
        with pytest.raises(UnreachableError) as caught:
            Prober([Stream("s", kind, "192.0.2.1", netns=pair.a)])  # type: ignore[arg-type]
        assert caught.value.code == "no-route"


def test_the_child_says_why_it_cannot_probe(pair: Pair) -> None:
    with pytest.raises(PreconditionError, match="no-route"):
        ProbeProcess([Stream("s", "icmp", "192.0.2.1", netns=pair.a)])
    with (
        serving(7, [pair.b]),
        pytest.raises(PreconditionError, match="port-in-use"),
        serving(7, [pair.b]),
    ):
        pytest.fail("two responders on one port")


def test_a_closed_prober_lets_a_namespace_go(pair: Pair) -> None:
    """Link `vb` vanishes with namespace a when nothing of the prober holds a any longer."""
    with namespace() as c:
        far = pair.b.split("/")[2]
        pair.call(c, "ip", "link", "add", "vc", "type", "veth", "peer", "vd", "netns", far)
        pair.call(c, "ip", "address", "add", "10.8.0.1/24", "dev", "vc")
        pair.call(c, "ip", "link", "set", "lo", "up")
        pair.call(c, "ip", "link", "set", "vc", "up")
        with Prober([Stream("s", "icmp", "10.8.0.1", netns=c)]) as prober:
            prober.run(0.05)

    def gone() -> bool:
        argv = ["nsenter", f"--net={pair.b}", "ip", "link", "show", "vd"]
        return subprocess.run(argv, capture_output=True, timeout=10).returncode != 0

    wait_until(gone, "the link of a removed namespace")


def test_the_child_ends_when_its_parent_is_killed(pair: Pair) -> None:
    code = (
        "import time; from vrha.probe.process import *; from vrha.model.probing import Stream\n"
        f"p = ProbeProcess([Stream('s', 'icmp', {B4!r}, netns={pair.a!r})])\n"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    try:
        assert select.select([child], [], [], 20)[0], "the prober outlived its parent"
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(child, signal.SIGKILL)
        os.close(child)


def test_an_interval_too_small_for_the_machine_is_said(served: Pair) -> None:
    """40 streams at 0.1 ms are 400,000 probes/s: more than Python on one core will ever send."""
    streams = [Stream(f"s{i}", "udp", B4, netns=served.a, interval_ms=0.1) for i in range(40)]
    with Prober(streams) as prober:
        result = prober.run(0.3)
    assert result.late_ticks > 300
    lines = notes(result)
    assert lines[0].startswith("warning: s0 and 39 more: this machine does not hold 0.1 ms: ")
    assert [ticks(one) for one in result.streams] == [3000] * len(streams)
