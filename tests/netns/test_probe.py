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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import vrha
from vrha.core.gaps import Gap
from vrha.errors import PreconditionError, UnreachableError
from vrha.probe.kernel import Namespace
from vrha.probe.prober import Prober
from vrha.probe.process import ProbeProcess, serving
from vrha.probe.report import notes
from vrha.probe.result import Result, Stream, StreamResult

pytestmark = pytest.mark.root

MS = 1_000_000
ROOT = Path(vrha.__file__).resolve().parent.parent
A4, B4, B4_SECOND, NOBODY4 = "10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.99"
A6, B6, B6_SECOND = "fd09::1", "fd09::2", "fd09::3"


@dataclass(frozen=True)
class Pair:
    """Two namespaces, joined by the veth pair `va`, `vb`; the values are paths of netns files."""

    a: str
    b: str

    def call(self, path: str, *argv: str, stdin: str = "") -> None:
        subprocess.run(
            ["nsenter", f"--net={path}", *argv], check=True, input=stdin, text=True, timeout=20
        )


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {limit_s} s: {what}"
        time.sleep(0.005)


@contextmanager
def namespace() -> Iterator[str]:
    """A network namespace that lives as long as its sleeping process, and never longer than us."""
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "-n", "sleep", "infinity"]
    with subprocess.Popen(argv) as sleeper:
        path = f"/proc/{sleeper.pid}/ns/net"
        own = os.stat("/proc/self/ns/net").st_ino
        try:
            wait_until(lambda: os.stat(path).st_ino != own, "a new namespace")
            yield path
        finally:
            sleeper.kill()


@pytest.fixture(scope="module")
def wire() -> Iterator[Pair]:
    with namespace() as a, namespace() as b:
        pair = Pair(a, b)
        far = b.split("/")[2]
        pair.call(a, "ip", "link", "add", "va", "type", "veth", "peer", "vb", "netns", far)
        for path, port, addresses in (
            (a, "va", (f"{A4}/24", f"{A6}/64")),
            (b, "vb", (f"{B4}/24", f"{B4_SECOND}/24", f"{B6}/64", f"{B6_SECOND}/64")),
        ):
            for address in addresses:
                nodad = ["nodad"] if ":" in address else []
                pair.call(path, "ip", "address", "add", address, "dev", port, *nodad)
            pair.call(path, "ip", "link", "set", "lo", "up")
            pair.call(path, "ip", "link", "set", port, "up")
        # Right after link up the first neighbour solicitation goes unheard; the next is 1 s later.
        wait_until(lambda: answers(a, B6) and answers(b, A6), "IPv6 neighbours to be found")
        yield pair


@pytest.fixture
def pair(wire: Pair) -> Pair:
    """The wire without faults, whatever the test before has left."""
    for path in (wire.a, wire.b):
        wire.call(path, "nft", "flush", "ruleset")
    return wire


def answers(path: str, address: str) -> bool:
    argv = ["nsenter", f"--net={path}", "ping", "-q", "-c", "1", "-W", "2", address]
    return subprocess.run(argv, stdout=subprocess.DEVNULL, timeout=10).returncode == 0


@pytest.fixture
def served(pair: Pair) -> Iterator[Pair]:
    """The pair with a responder in both namespaces, all from one process."""
    with serving(7, [pair.a, pair.b]):
        yield pair


@dataclass
class Fault:
    """When a fault began and ended, each as the instants before and after the kernel took it."""

    began: tuple[int, int] = (0, 0)
    ended: tuple[int, int] = (0, 0)

    def explains(self, gap: Gap, one: StreamResult, result: Result) -> None:
        """The gap began with the fault and ended with it, within one interval and the ticks that
        the machine missed."""
        slack = (one.late_ticks + 2) * one.stream.interval_ms
        t0 = result.t0_monotonic_ns
        earliest, latest = ((at - t0) / MS for at in self.began)
        assert earliest - slack <= gap.start_ms <= latest + slack
        earliest, latest = ((at - t0) / MS for at in self.ended)
        assert earliest - slack <= gap.start_ms + gap.length_ms <= latest + slack


def now_and_after(call: Callable[[], None]) -> tuple[int, int]:
    before = time.monotonic_ns()
    call()
    return before, time.monotonic_ns()


def drop(pair: Pair, path: str, rule: str) -> None:
    pair.call(
        path,
        "nft",
        "-f",
        "-",
        stdin="table inet fault { chain in { type filter hook input priority -300; "
        f"{rule} drop; }}; }}",
    )


def undrop(pair: Pair, path: str) -> None:
    pair.call(path, "nft", "delete", "table", "inet", "fault")


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
    assert dict(one.errors) == {"not connected within 1 s": one.loss.lost}
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


@contextmanager
def plain_echo(path: str, copies: int, arrivals: list[int]) -> Iterator[None]:
    """A UDP echo as of RFC 862 that answers `copies` times and notes the kernel's arrival times."""
    stop = threading.Event()
    with Namespace(path) as entered:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    entered.close()
    sock.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
    sock.bind(("0.0.0.0", 7))
    sock.settimeout(0.05)

    def serve() -> None:
        while not stop.is_set():
            try:
                body, control, _, peer = sock.recvmsg(256, 256)
            except TimeoutError:
                continue
            seconds, nanos = (int.from_bytes(control[0][2][i : i + 8], "little") for i in (0, 8))
            arrivals.append(seconds * 10**9 + nanos)
            for _ in range(copies):
                sock.sendto(body, peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sock.close()


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
        "import sys, time; from vrha.probe.process import *; from vrha.probe.result import Stream\n"
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
        os.close(child)


# The command.


def command(*argv: str, path: str = "", limit_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    enter = ["nsenter", f"--net={path}"] if path else []
    return subprocess.run(
        [*enter, sys.executable, "-m", "vrha.probe", *argv],
        capture_output=True,
        text=True,
        timeout=limit_s,
        cwd=ROOT,
    )


def test_command_measures_three_kinds_at_once(served: Pair, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = command(
        *(B4, "--icmp", "--udp", "7", "--tcp", "7", "--duration", "0.5s", "--netns", served.a),
        *("--json", str(out), "--max-lost", "0", "--max-gap", "1ms"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(out.read_text())
    assert [s["stream"]["kind"] for s in found["streams"]] == ["icmp", "udp", "tcp-connect"]
    assert [s["stream"]["interval_ms"] for s in found["streams"]] == [1.0, 1.0, 10.0]
    assert [s["loss"]["lost"] for s in found["streams"]] == [0, 0, 0]
    assert "longest gap ms" in done.stdout
    assert list(tmp_path.iterdir()) == [out]


def test_command_writes_only_json_to_stdout_when_asked(pair: Pair) -> None:
    done = command(B6, "--duration", "0.2", "--json", "-", path=pair.a)
    assert done.returncode == 0
    assert json.loads(done.stdout)["streams"][0]["address"] == B6


def test_command_exceeding_a_limit_exits_1(pair: Pair) -> None:
    with plain_echo(pair.b, 1, []):
        argv = [sys.executable, "-m", "vrha.probe", B4, "--udp", "7", "--duration", "1.5s"]
        argv += ["--netns", pair.a, "--max-lost", "10", "--max-gap", "20ms"]
        before = packets(pair.b)
        with subprocess.Popen(
            argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            wait_until(lambda: packets(pair.b) > before + 200, "probes to arrive")
            drop(pair, pair.b, "udp dport 7")
            out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "lost, allowed 10" in err
    assert "allowed 20 ms" in err
    assert "never restored" in out


def packets(path: str) -> int:
    """UDP datagrams delivered in a namespace, by its own counters."""
    out = subprocess.run(
        ["nsenter", f"--net={path}", "cat", "/proc/net/snmp"],
        check=True,
        capture_output=True,
        text=True,
        timeout=10,
    ).stdout
    udp = [line.split() for line in out.splitlines() if line.startswith("Udp:")]
    return int(udp[1][udp[0].index("InDatagrams")])


def test_ctrl_c_ends_the_run_and_prints_the_result(served: Pair) -> None:
    argv = [sys.executable, "-m", "vrha.probe", B4, "--udp", "7", "--duration", "0"]
    before = packets(served.b)
    with subprocess.Popen(
        [*argv, "--netns", served.a], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: packets(served.b) > before + 100, "probes to arrive")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "udp from net" in out


def test_an_interval_too_small_for_the_machine_is_said(served: Pair) -> None:
    """40 streams at 0.1 ms are 400,000 probes/s: more than Python on one core will ever send."""
    streams = [Stream(f"s{i}", "udp", B4, netns=served.a, interval_ms=0.1) for i in range(40)]
    with Prober(streams) as prober:
        result = prober.run(0.3)
    assert result.late_ticks > 300
    lines = notes(result)
    assert sum("does not hold 0.1 ms" in line for line in lines) == len(streams)
    assert [ticks(one) for one in result.streams] == [3000] * len(streams)


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        ((NOBODY4,), 1, "no-reply"),
        ((B4, "--udp", "7"), 1, "ECONNREFUSED"),
        ((B4, "--tcp", "7"), 1, "ECONNREFUSED"),
        (("192.0.2.1",), 1, "no-route"),
        (("no-such-host.invalid",), 2, "unknown-host"),
        (("",), 2, "bad-stream"),
        ((B4, "--interval", "1us"), 2, "bad-stream"),
        ((B4, "--interval", "fast"), 2, "is no time"),
        ((B4, "--udp", "70000"), 2, "70000"),
        ((B4, "--netns", "/run/netns/none"), 2, "netns-not-found"),
        ((B4, "--netns", "/etc/hostname"), 1, "netns-not-permitted"),
        ((B4, "--from", "none"), 2, "/run/netns/none"),
        ((B4, "--duration", "0.1", "--json", "/nonexistent/x"), 1, "unwritable"),
        (("run", "--streams", "/nonexistent", "--json", "-"), 2, "unreadable"),
        (("run", "--streams", "/etc/hostname", "--json", "-"), 2, "malformed"),
        (("serve", "--netns", "/run/netns/none"), 2, "netns-not-found"),
    ],
)
def test_bad_input_has_a_clear_outcome(
    pair: Pair, argv: Sequence[str], code: int, said: str
) -> None:
    done = command(*argv, path=pair.a)
    assert said in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def without_capabilities(path: str) -> subprocess.CompletedProcess[str]:
    """ICMP probes by a process without any capability."""
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    probe = [sys.executable, "-m", "vrha.probe", B4, "--duration", "0.5", "--json", "-"]
    return subprocess.run(
        ["nsenter", f"--net={path}", *powerless, *probe],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
    )


def test_without_root_where_the_kernel_allows_it_and_a_clear_message_where_not(pair: Pair) -> None:
    sysctl = "net.ipv4.ping_group_range"
    pair.call(pair.a, "sysctl", "-qw", f"{sysctl}=1 0")
    refused = without_capabilities(pair.a)
    assert "icmp-not-permitted" in refused.stderr
    assert refused.returncode == 1
    pair.call(pair.a, "sysctl", "-qw", f"{sysctl}=0 2147483647")
    done = without_capabilities(pair.a)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["streams"][0]["loss"]["lost"] == 0
    assert (found["realtime"], found["memory_locked"]) == (False, False)
