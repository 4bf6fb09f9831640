"""Which way a lost probe died, as the responder at the far end tells."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.netns.probekit import B4, B6, ROOT, Pair, drop, undrop
from vrha.model.probing import Result, Stream
from vrha.probe.kernel import Namespace
from vrha.probe.process import ProbeProcess, serving
from vrha.probe.wire import QUESTION_BYTES, pack_question

pytestmark = pytest.mark.root


def streams(pair: Pair) -> list[Stream]:
    return [
        Stream("udp", "udp", B4, 7, pair.a),
        Stream("udp6", "udp", B6, 7, pair.a),
        Stream("late", "udp", B4, 8, pair.a),
        Stream("fresh", "udp-fresh", B4, 7, pair.a),
    ]


def drop_answers(pair: Pair) -> None:
    """Answers die on their way back, at the prober's end."""
    drop(pair, pair.a, "udp sport { 7, 8 }")


def drop_requests(pair: Pair) -> None:
    drop(pair, pair.b, "udp dport { 7, 8 }")


@contextmanager
def fault(pair: Pair, path: str) -> Iterator[None]:
    try:
        yield
    finally:
        undrop(pair, path)


def test_each_lost_probe_is_put_down_to_the_way_on_which_it_died(served: Pair) -> None:
    with ProbeProcess(streams(served), require_reply_s=5) as probe:
        with fault(served, served.b):
            drop_requests(served)
            time.sleep(0.1)
        time.sleep(0.1)
        with fault(served, served.a):
            drop_answers(served)
            time.sleep(0.1)
        time.sleep(0.1)
        result = probe.stop()
    for one in result.streams:
        name = one.stream.name
        first, second = one.loss.gaps
        if name == "late":
            # Its answers of before the fault were still on their way when it began, and those of
            # its end came after it.
            assert first.lost_forth == first.lost
            assert second.lost_forth == 0
        else:
            assert first.lost_forth in (first.lost, first.lost - 1), name
            assert second.lost_forth == 0, name
        assert first.lost >= 80 - one.late_ticks
        assert one.loss.lost_forth == (first.lost_forth or 0)


def test_nothing_is_asked_when_nothing_was_lost(served: Pair) -> None:
    result = clean_run(served)
    assert all(one.loss.lost_forth is None for one in result.streams)
    assert all(one.loss.lost == 0 for one in result.streams)


def clean_run(served: Pair) -> Result:
    with ProbeProcess(streams(served), require_reply_s=5) as probe:
        time.sleep(0.1)
        return probe.stop()


def test_a_responder_that_was_started_again_denies_nothing_of_before(pair: Pair) -> None:
    """It knows nothing of the probes before its start; nobody may take that for their loss."""
    with (
        serving(7, [pair.b]) as pid,
        ProbeProcess([Stream("udp", "udp", B4, 7, pair.a)], require_reply_s=5) as probe,
    ):
        drop_answers(pair)
        time.sleep(0.05)
        undrop(pair, pair.a)
        time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        with serving(7, [pair.b]):
            time.sleep(0.1)
            drop_requests(pair)
            time.sleep(0.05)
            undrop(pair, pair.b)
            time.sleep(0.1)
            result = probe.stop()
    loss = result.stream("udp").loss
    back, *_, forth = loss.gaps
    assert back.lost_forth is None
    assert forth.lost_forth in (forth.lost, forth.lost - 1)
    assert loss.lost_forth is None


def test_a_responder_that_is_gone_leaves_it_open(pair: Pair) -> None:
    with (
        serving(7, [pair.b]) as pid,
        ProbeProcess([Stream("udp", "udp", B4, 7, pair.a)], require_reply_s=5) as probe,
    ):
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        loss = probe.stop().stream("udp").loss
    assert loss.unrestored
    assert loss.lost_forth is None


def test_no_answer_is_longer_than_its_question(served: Pair) -> None:
    namespace = Namespace(served.a)
    with namespace, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((B4, 7))
        sock.settimeout(5)
        sock.send(pack_question(b"unknown!", 0))
        assert 0 < len(sock.recv(4096)) <= QUESTION_BYTES
        sock.settimeout(0.2)
        whole = pack_question(b"unknown!", 0)
        for bad in (whole[:-1], whole + b"\0", b"vpg\x04" + whole[4:], b"", whole[:16]):
            sock.send(bad)
            with pytest.raises(TimeoutError):
                sock.recv(4096)
    namespace.close()


def test_the_table_says_which_way(served: Pair) -> None:
    argv = [sys.executable, "-m", "vrha.probe", f"udp://{B4}", "--netns", served.a, "--quiet"]
    with subprocess.Popen(
        [*argv, "--duration", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        time.sleep(1.5)
        with fault(served, served.a):
            drop_answers(served)
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert "(0 on the way there" in out
