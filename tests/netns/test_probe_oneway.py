"""Which way did the packet die: one-way loss over a real veth pair, told by the responder."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.netns.probekit import (
    B4,
    B6,
    ROOT,
    Pair,
    counted,
    drop,
    packets,
    plain_echo,
    undrop,
    wait_until,
)
from vrha.model.probing import Stream, StreamResult
from vrha.probe.kernel import Namespace
from vrha.probe.oneway import REFUSED
from vrha.probe.process import ProbeProcess, serving
from vrha.probe.responder import Services
from vrha.probe.wire import (
    PAYLOAD,
    QUESTION,
    QUESTION_BYTES,
    REPORT,
    REQUEST,
    Report,
    pack_question,
)

pytestmark = pytest.mark.root

PORT, LATE, _ = Services().ports
COOKIE = b"cookie!!"


def both_kinds(pair: Pair) -> list[Stream]:
    return [
        Stream("udp", "udp", B4, PORT, pair.a),
        Stream("udp6", "udp", B6, PORT, pair.a, interval_ms=2.0),
        Stream("late", "udp", B4, LATE, pair.a, interval_ms=5.0),
        Stream("fresh", "udp-fresh", B4, LATE, pair.a),
        Stream("fresh6", "udp-fresh", B6, LATE, pair.a, interval_ms=5.0),
    ]


@contextmanager
def fault(pair: Pair, path: str, rule: str, hook: str = "input") -> Iterator[None]:
    """Packets that match are dropped for 0.1 s, then for as long as the body takes."""
    if hook == "input":
        drop(pair, path, rule)
    else:
        chain = f"chain out {{ type filter hook {hook} priority -300; {rule} drop; }};"
        pair.call(path, "nft", "-f", "-", stdin=f"table inet fault {{ {chain} }}")
    time.sleep(0.1)
    yield
    undrop(pair, path)
    time.sleep(0.1)


def ways(one: StreamResult) -> list[int | None]:
    """Of each gap, how many probes died on the way back; None where that is not known."""
    return [None if gap.lost_forth is None else gap.lost - gap.lost_forth for gap in one.loss.gaps]


def test_each_lost_probe_is_attributed_to_the_way_on_which_it_died(served: Pair) -> None:
    """On the way there, on the way back before it left, and on the way back at its end."""
    with ProbeProcess(both_kinds(served), require_reply_s=5) as probe:
        with fault(served, served.b, f"udp dport {{ {PORT}, {LATE} }}"):
            pass
        with fault(served, served.b, f"udp sport {{ {PORT}, {LATE} }}", "output"):
            pass
        with fault(served, served.a, f"udp sport {{ {PORT}, {LATE} }}"):
            pass
        result = probe.stop()
    for one in result.streams:
        there, left, back = one.loss.gaps
        assert (one.stream.name, ways(one)) == (one.stream.name, [0, left.lost, back.lost])
        assert one.loss.lost_forth == there.lost_forth == there.lost > 0
        assert dict(one.errors) == {REFUSED: left.lost}


def test_what_is_not_lost_needs_no_answer(served: Pair) -> None:
    """No question is asked, so nobody waits for one."""
    mark = int.from_bytes(QUESTION, "big")
    counter = f"udp dport {PORT} @th,64,32 {mark:#x} counter; udp dport 1"
    drop(served, served.b, counter)
    with ProbeProcess([Stream("udp", "udp", B4, PORT, served.a)], require_reply_s=5) as probe:
        time.sleep(0.1)
        (one,) = probe.stop().streams
    assert one.loss.lost == 0
    assert counted(served) == 0


def test_a_responder_started_anew_says_only_what_it_knows(pair: Pair) -> None:
    streams = [s for s in both_kinds(pair) if s.kind == "udp"]
    with ProbeProcess(streams) as probe:
        with serving(PORT, [pair.b]) as pid:
            time.sleep(0.1)
            with fault(pair, pair.b, f"udp dport {{ {PORT}, {LATE} }}"):
                pass
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        with serving(PORT, [pair.b]):
            time.sleep(0.1)
            with fault(pair, pair.b, f"udp dport {{ {PORT}, {LATE} }}"):
                pass
            with fault(pair, pair.a, f"udp sport {{ {PORT}, {LATE} }}"):
                pass
            result = probe.stop()
    for one in result.streams:
        assert one.loss.gaps[-2].lost > 5
        # Those before the responder came up are: nobody there yet, the first fault, nobody there.
        assert ways(one) == [None, None, None, 0, one.loss.gaps[-1].lost]
        assert one.loss.lost_forth is None


def test_an_echo_that_knows_nothing_of_it_leaves_the_way_open(pair: Pair) -> None:
    with (
        plain_echo(pair.b, 1, []),
        ProbeProcess([Stream("s", "udp", B4, PORT, pair.a)], require_reply_s=5) as probe,
    ):
        with fault(pair, pair.b, f"udp dport {PORT}"):
            pass
        (one,) = probe.stop().streams
    assert (ways(one), one.loss.lost_forth) == ([None], None)


def test_a_path_that_stays_dead_leaves_the_way_open_in_time(served: Pair) -> None:
    with ProbeProcess(both_kinds(served), require_reply_s=5) as probe:
        drop(served, served.b, f"udp dport {{ {PORT}, {LATE} }}")
        time.sleep(0.1)
        result = probe.stop()
    for one in result.streams:
        assert (ways(one), one.loss.unrestored) == ([None], True)


def test_a_responder_that_is_gone_leaves_the_way_open(pair: Pair) -> None:
    with (
        serving(PORT, [pair.b]) as pid,
        ProbeProcess(both_kinds(pair), require_reply_s=5) as probe,
    ):
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        result = probe.stop()
    for one in result.streams:
        assert (ways(one), one.loss.unrestored) == ([None], True)


def test_the_table_says_which_way(served: Pair) -> None:
    argv = [sys.executable, "-m", "vrha.probe", f"udp://{B4}", "--netns", served.a, "--quiet"]
    before = packets(served.b)
    with subprocess.Popen(
        [*argv, "--duration", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until(lambda: packets(served.b) > before + 50, "probes to come")
            with fault(served, served.a, f"udp sport {PORT}"):
                pass
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert "(0 on the way there" in out


@pytest.fixture(params=[PORT, LATE])
def asking(served: Pair, request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with Namespace(served.a) as entered:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    entered.close()
    with sock:
        sock.settimeout(5)
        sock.connect((B4, request.param))
        yield sock


def test_no_answer_is_longer_than_its_question(asking: socket.socket) -> None:
    """Page by page the record is the one of all that came, each part of it in one answer."""
    sent = [*range(0, 300, 2), *range(299, 260, -3), 0]
    for seq in sent:
        asking.send(PAYLOAD.pack(REQUEST, COOKIE, seq))
        assert asking.recv(2048)
    came: list[int] = []
    start, pages = 0, 0
    while True:
        asking.send(pack_question(COOKIE, start))
        answer = asking.recv(2048)
        assert len(answer) <= QUESTION_BYTES
        report = Report.unpack(answer, COOKIE)
        assert report is not None
        assert (report.asked_from, report.floor) == (start, 0)
        came += [seq for first, last in report.ranges for seq in range(first, last + 1)]
        pages += 1
        if not report.more:
            break
        start = came[-1] + 1
    assert came == sorted(set(sent))
    assert report.duplicates == len(sent) - len(set(sent))
    assert pages > 1


def test_garbage_for_a_question_gets_no_answer(asking: socket.socket) -> None:
    question = pack_question(COOKIE, 0)
    garbage = [
        question[:-1],
        question + b"\0",
        question[: PAYLOAD.size],
        question * 2,
        REPORT + question[4:],
        REQUEST + question[4:],
        QUESTION,
        b"\xff" * QUESTION_BYTES,
    ]
    for junk in garbage:
        asking.send(junk)
    # They come in their order: an answer to garbage would be first.
    asking.send(QUESTION + b"somebody" + struct.pack("!I", 2**32 - 1) + question[PAYLOAD.size :])
    report = Report.unpack(asking.recv(2048), b"somebody")
    assert report is not None
    assert (report.asked_from, report.ranges, report.more) == (2**32 - 1, (), False)
    asking.settimeout(0.1)
    with pytest.raises(TimeoutError):
        asking.recv(2048)
