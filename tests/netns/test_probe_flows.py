"""Fresh flows and long TCP connections over a real veth pair, and the responder's part in them."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import statistics
import struct
import termios
import time
from collections.abc import Iterator

import pytest

from tests.netns.probekit import (
    B4,
    B4_SECOND,
    B6,
    B6_SECOND,
    MS,
    NOBODY4,
    Fault,
    Pair,
    counted,
    drop,
    now_and_after,
    plain_echo,
    undrop,
    wait_until,
)
from vrha.core.verdict import exceeded
from vrha.errors import UnreachableError
from vrha.model.probing import ConnectionsResult, Limits, Result, Stream
from vrha.probe.kernel import Namespace
from vrha.probe.prober import Prober
from vrha.probe.process import ProbeProcess, serving
from vrha.probe.responder import Services
from vrha.probe.wire import MESSAGE

pytestmark = pytest.mark.root

_, ECHO, PUSH = Services().ports


def fresh(pair: Pair, target: str = B4, port: int = ECHO) -> Stream:
    return Stream("fresh", "udp-fresh", target, port, pair.a)


def long_ones(pair: Pair, target: str = B4, count: int = 2) -> list[Stream]:
    return [
        Stream("echo", "tcp-echo", target, ECHO, pair.a, interval_ms=10.0, count=count),
        Stream("push", "tcp-push", target, PUSH, pair.a, interval_ms=10.0, count=count),
    ]


def connections(result: Result, name: str) -> ConnectionsResult:
    (one,) = (one for one in result.connections if one.stream.name == name)
    return one


def stall(result: Result, name: str) -> float:
    longest = connections(result, name).longest_stall_ms
    assert longest is not None
    return longest


def connect(path: str, address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    with Namespace(path) as entered:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, kind)
        sock.settimeout(5)
        sock.connect((address, port))
    entered.close()
    return sock


def test_no_two_fresh_probes_share_a_source_port(pair: Pair) -> None:
    ports: list[int] = []
    with plain_echo(pair.b, 1, [], ports=ports):
        for _ in range(2):
            with Prober([fresh(pair, port=7)]) as prober:
                (one,) = prober.run(1.0).streams
            assert one.loss.lost == 0
    assert len(ports) >= 1000, "hardly a probe arrived"
    assert len(set(ports)) == len(ports)


@pytest.mark.parametrize("target", [B4, B6, B4_SECOND, B6_SECOND])
def test_a_fresh_flow_stays_half_way_for_the_delay(served: Pair, target: str) -> None:
    with Prober([fresh(served, target)]) as prober:
        (one,) = prober.run(0.5).streams
    assert (one.loss.lost, one.errors) == (0, ())
    assert one.loss.rtt_median_ms is not None
    assert 3.0 <= one.loss.rtt_median_ms < 30


def test_a_drop_of_fresh_flows_shows_as_one_gap_of_its_length(served: Pair) -> None:
    fault = Fault()
    with ProbeProcess([fresh(served)], require_reply_s=5) as probe:
        fault.began = now_and_after(lambda: drop(served, served.b, f"udp dport {ECHO}"))
        time.sleep(0.1)
        fault.ended = now_and_after(lambda: undrop(served, served.b))
        time.sleep(0.1)
        result = probe.stop()
    (one,) = result.streams
    assert len(one.loss.gaps) == 1
    fault.explains(one.loss.gaps[0], one, result)


def test_answers_that_are_dropped_on_their_way_back_are_lost(served: Pair) -> None:
    """What was half-way when the fault began is lost too: those 3 ms before it."""
    with ProbeProcess([fresh(served)], require_reply_s=5) as probe:
        began = now_and_after(lambda: drop(served, served.a, f"udp sport {ECHO}"))
        time.sleep(0.1)
        undrop(served, served.a)
        time.sleep(0.1)
        result = probe.stop()
    (one,) = result.streams
    (gap,) = one.loss.gaps
    slack = (one.late_ticks + 1) * one.stream.interval_ms
    assert gap.start_ms <= (began[1] - result.t0_monotonic_ns) / MS - 3 + slack


def test_sockets_of_unanswered_fresh_probes_are_given_back(served: Pair) -> None:
    def open_files() -> int:
        return len(os.listdir(f"/proc/{probe.pid}/fd"))

    with ProbeProcess([fresh(served)], require_reply_s=5) as probe:
        before = open_files()
        drop(served, served.b, f"udp dport {ECHO}")
        until = time.monotonic() + 2.5
        most = 0
        while time.monotonic() < until:
            most = max(most, open_files())
            time.sleep(0.02)
        undrop(served, served.b)
        wait_until(lambda: open_files() < before + 50, "the sockets to be closed")
        (one,) = probe.stop().streams
    assert before + 500 < most < before + 1100, "those of the last second"
    assert one.loss.lost > 2000 - one.late_ticks


def test_a_fresh_probe_that_is_refused_is_lost(pair: Pair) -> None:
    with Prober([fresh(pair)]) as prober:
        (one,) = prober.run(0.2).streams
    assert one.loss.lost == one.loss.sent
    assert set(dict(one.errors)) == {"ECONNREFUSED"}


@pytest.mark.parametrize("target", [B4, B6])
def test_long_connections_on_an_idle_pair(served: Pair, target: str) -> None:
    with Prober(long_ones(served, target)) as prober:
        result = prober.run(1.0, require_reply_s=5)
    for one in result.connections:
        assert (one.stream.name, one.total, one.alive) == (one.stream.name, 2, 2)
        assert one.errors == ()
        assert 150 < one.messages < 2 * 200
        assert 9 < stall(result, one.stream.name) < 500
    fields = result.to_bench()
    assert (fields["tcp_total"], fields["tcp_alive"], fields["lost"]) == (4, 4, {})


def test_a_cut_path_shows_as_a_stall_of_living_connections(served: Pair) -> None:
    fault = Fault()
    with ProbeProcess(long_ones(served), require_reply_s=5) as probe:
        fault.began = now_and_after(lambda: drop(served, served.a, "meta l4proto tcp"))
        time.sleep(0.3)
        fault.ended = now_and_after(lambda: undrop(served, served.a))
        # What was lost is sent again after up to twice the time of the cut.
        time.sleep(1.2)
        result = probe.stop()
    for one in result.connections:
        assert (one.alive, one.errors) == (2, ())
        assert fault.length_ms <= stall(result, one.stream.name) < fault.length_ms + 1200


def test_a_connection_that_stays_silent_is_dead_without_an_error(served: Pair) -> None:
    with ProbeProcess(long_ones(served), require_reply_s=5) as probe:
        drop(served, served.a, f"tcp sport {PUSH}")
        time.sleep(1.2)
        result = probe.stop()
    assert connections(result, "echo").alive == 2
    push = connections(result, "push")
    assert (push.alive, push.total, push.longest_stall_ms, push.errors) == (0, 2, None, ())
    assert exceeded(result, Limits(lost=0)) == ("push: 2 connections dead, allowed 0",)
    assert exceeded(result, Limits(lost=2)) == ()


def test_a_reset_connection_is_dead_and_says_why(served: Pair) -> None:
    with ProbeProcess(long_ones(served), require_reply_s=5) as probe:
        drop(served, served.b, f"tcp dport {ECHO} reject with tcp reset; tcp dport 1")
        time.sleep(0.1)
        undrop(served, served.b)
        result = probe.stop()
    echo = connections(result, "echo")
    assert (echo.alive, echo.errors) == (0, (("ECONNRESET", 2),))
    assert connections(result, "push").alive == 2


def test_connections_to_a_responder_that_goes_away_are_dead(pair: Pair) -> None:
    with serving(7, [pair.b]) as pid, ProbeProcess(long_ones(pair), require_reply_s=5) as probe:
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        result = probe.stop()
    for one in result.connections:
        assert (one.alive, sum(dict(one.errors).values())) == (0, 2)


def test_the_probing_end_sends_nothing_on_a_push_connection(served: Pair) -> None:
    pushes = long_ones(served)[1:]
    rule = f"tcp dport {PUSH} tcp flags & psh == psh counter; tcp dport 1"
    drop(served, served.b, rule)
    with Prober(pushes) as prober:
        result = prober.run(0.5)
    assert connections(result, "push").messages > 50
    with connect(served.a, B4, PUSH, socket.SOCK_STREAM) as sock:
        assert counted(served) == 0
        sock.send(b"something")
        wait_until(lambda: counted(served) == 1, "the counter to see what is sent")


def test_what_is_pushed_is_acknowledged_at_once(pair: Pair) -> None:
    """An acknowledgement that waits for the prober to read would come after a fault, and make the
    inside speak where only the outside should."""
    with Namespace(pair.b) as entered:
        listener = socket.create_server((B4, PUSH))
    entered.close()
    waits = []
    with listener, ProbeProcess(long_ones(pair, count=1)[1:]) as probe:
        sock, _ = listener.accept()
        with sock:
            for _ in range(100):
                sent = time.monotonic()
                sock.send(MESSAGE)
                wait_until(lambda: unacknowledged(sock) == 0, "an acknowledgement", pause_s=0)
                waits.append(time.monotonic() - sent)
                time.sleep(0.0073)
            probe.stop()
    # The first ones the kernel acknowledges by itself, to open the window.
    assert statistics.median(waits[40:]) < 0.0015


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that the far end has not acknowledged, tcp(7) SIOCOUTQ."""
    return struct.unpack("@i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]


def test_who_cannot_connect_says_so_before_anything_is_sent(pair: Pair) -> None:
    for stream in long_ones(pair):
        with pytest.raises(UnreachableError, match=f"port {stream.port}: Connection ref") as caught:
            Prober([stream])
        assert caught.value.code == "not-connected"
        assert "ping-gap serve" in caught.value.hint
    for stream in long_ones(pair, "192.0.2.1"):
        with pytest.raises(UnreachableError) as caught:
            Prober([stream])
        assert caught.value.code == "no-route"
    drop(pair, pair.b, f"tcp dport {ECHO}")
    for target in (NOBODY4, B4):
        with pytest.raises(UnreachableError) as caught:
            Prober(long_ones(pair, target)[:1])
        assert caught.value.code in ("not-connected", "no-route")


@pytest.fixture
def late_port(served: Pair) -> Iterator[socket.socket]:
    with connect(served.a, B4, ECHO, socket.SOCK_DGRAM) as sock:
        yield sock


def test_the_late_echo_answers_nothing_but_requests_in_their_order(
    late_port: socket.socket,
) -> None:
    requests = [b"vpg\x01" + b"cookie!!" + bytes([0, 0, 0, i]) for i in range(20)]
    for junk in (b"vpg\x02" + requests[0][4:], b"", b"hello", requests[0] + b"x", b"x" * 1400):
        late_port.send(junk)
    began = time.monotonic()
    for request in requests:
        late_port.send(request)
    assert [late_port.recv(2048) for _ in requests] == [b"vpg\x02" + r[4:] for r in requests]
    assert time.monotonic() - began >= 0.003
    late_port.settimeout(0.1)
    with pytest.raises(TimeoutError):
        late_port.recv(2048)


@pytest.mark.parametrize("target", [B4_SECOND, B6_SECOND])
def test_a_connection_is_echoed_whatever_is_sent(served: Pair, target: str) -> None:
    with connect(served.a, target, ECHO, socket.SOCK_STREAM) as sock:
        body = os.urandom(20_000)
        sock.sendall(body)
        back = b""
        while len(back) < len(body):
            chunk = sock.recv(65536)
            assert chunk
            back += chunk
        assert back == body


def test_too_many_connections_are_turned_away_and_those_that_stand_go_on(served: Pair) -> None:
    socks = []
    try:
        first = connect(served.a, B4, ECHO, socket.SOCK_STREAM)
        socks.append(first)
        wait_until(lambda: turned_away(served, socks), "the responder to be full")
        first.send(b"still there")
        assert first.recv(100) == b"still there"
    finally:
        for sock in socks:
            sock.close()


def turned_away(pair: Pair, socks: list[socket.socket]) -> bool:
    """Open one more connection; whether it is closed instead of echoed."""
    sock = connect(pair.a, B4, ECHO, socket.SOCK_STREAM)
    socks.append(sock)
    try:
        sock.send(b"x")
        return sock.recv(1) != b"x"
    except ConnectionError:
        return True
