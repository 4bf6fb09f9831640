"""A run of ping-gap with everything around it: marks, ends, outputs, what remains of it."""

from __future__ import annotations

import csv
import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.netns.probekit import A4, B4, ROOT, Pair, drop, packets, undrop, wait_until

pytestmark = pytest.mark.root

PING_GAP = [sys.executable, "-m", "vrha.probe"]


@contextmanager
def measuring(*argv: str, probed: str = "", **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A run; with `probed` it has begun there."""
    before = packets(probed) if probed else 0
    with subprocess.Popen(
        [*PING_GAP, *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    ) as process:
        try:
            if probed:
                wait_until(lambda: packets(probed) > before + 100, "probes to arrive")
            yield process
        finally:
            process.kill()


def flipped(pair: Pair, mark: Callable[[str], None]) -> None:
    """A fault of 0.1 s between the marks `flip` and `after`."""
    mark("flip")
    time.sleep(0.1)
    drop(pair, pair.b, "udp dport 7")
    time.sleep(0.1)
    undrop(pair, pair.b)
    time.sleep(0.1)
    mark("after")
    time.sleep(0.1)


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The record of a run that is told to end now."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    record: dict[str, Any] = json.loads(out)
    return record


def phases(record: dict[str, Any]) -> list[list[str]]:
    return [gap["phases"] for one in record["result"]["streams"] for gap in one["loss"]["gaps"]]


@pytest.mark.parametrize("way", ["file", "stdin", "socket"])
def test_a_gap_is_tied_to_the_mark_during_which_it_was(
    served: Pair, tmp_path: Path, way: str
) -> None:
    there = tmp_path / "marks"
    where = {"file": str(there), "stdin": "-", "socket": f"unix:{there}"}[way]
    argv = [f"{served.a}=udp://{B4}", "--duration", "0", "--json", "-", "--mark-from", where]
    if way == "file":
        there.write_text("before the run\n")
    with measuring(*argv, probed=served.b, stdin=subprocess.PIPE) as process:

        def mark(text: str) -> None:
            if way == "socket":
                subprocess.run([*PING_GAP, "mark", where, text], cwd=ROOT, check=True, timeout=20)
            elif way == "stdin":
                assert process.stdin is not None
                process.stdin.write(f"{time.time():.6f} {text}\n")
                process.stdin.flush()
            else:
                with there.open("a") as file:
                    file.write(f"{text}\n\n")

        if way == "socket":
            assert stat.S_IMODE(there.stat().st_mode) == 0o600
        flipped(served, mark)
        record = ended(process)
    assert [mark["text"] for mark in record["marks"]] == ["flip", "after"]
    assert phases(record) == [["flip"]]
    assert there.exists() == (way == "file")
    bad = [note for note in record["notes"] if "no mark" in note]
    assert len(bad) == (way == "file")


def test_a_file_of_marks_may_come_later_and_be_replaced(served: Pair, tmp_path: Path) -> None:
    there = tmp_path / "marks"
    argv = [f"{served.a}=udp://{B4}", "--duration", "0", "--json", "-", "--mark-from", str(there)]
    with measuring(*argv, probed=served.b) as process:
        for text in ("one", "two"):
            fresh = tmp_path / "fresh"
            fresh.write_text(f"{text}\n")
            fresh.replace(there)
            time.sleep(0.3)
        record = ended(process)
    assert [mark["text"] for mark in record["marks"]] == ["one", "two"]


def test_every_output_is_written_and_can_be_read(served: Pair, tmp_path: Path) -> None:
    files = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "junit", "html", "probes")}
    options = [text for name, path in files.items() for text in (f"--{name}", str(path))]
    target = f"{served.a}=udp://{B4}"
    with measuring(
        *(target, "--duration", "0", "--title", "a <title>", "--max-lost", "0", *options),
        probed=served.b,
    ) as process:
        flipped(served, lambda _: None)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "allowed 0" in err
    assert "does not count" in err
    assert "gap of" in out
    record = json.loads(files["json"].read_text())
    (one,) = record["result"]["streams"]
    assert (record["title"], record["settled"]) == ("a <title>", False)
    assert len(list(csv.DictReader(files["csv"].read_text().splitlines()))) == 1
    suite = ElementTree.parse(files["junit"]).getroot()
    assert list(suite.iter("failure"))
    page = files["html"].read_text()
    assert "<html" in page
    assert "a <title>" not in page
    probes = list(csv.DictReader(files["probes"].read_text().splitlines()))
    assert len(probes) == one["loss"]["sent"]
    unanswered = sum(1 for probe in probes if not probe["rtt_ms"])
    assert unanswered == one["loss"]["lost"] > 0
    assert sorted(tmp_path.iterdir()) == sorted(files.values())


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (["--max-gap", "5s", "--max-lost", "100000", "--max-total", "5s", "--settle", "0"], 0),
        (["--max-total", "20ms", "--settle", "0"], 1),
        (["--max-gap", "5s", "--settle", "1m"], 1),
    ],
)
def test_limits_set_the_exit_code(served: Pair, limits: Sequence[str], code: int) -> None:
    with measuring(
        f"{served.a}=udp://{B4}", "--duration", "0", *limits, probed=served.b
    ) as process:
        flipped(served, lambda _: None)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert ("gaps of" in err or "does not count" in err) == (code == 1)


def test_both_directions_in_one_run(served: Pair, tmp_path: Path) -> None:
    there = tmp_path / "x.json"
    targets = [f"{served.a}=udp://{B4}", f"{served.b}=udp://{A4}"]
    with measuring(*targets, "--duration", "0", "--json", str(there), probed=served.b) as process:
        flipped(served, lambda _: None)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    record = json.loads(there.read_text())
    lost = {one["stream"]["target"]: one["loss"]["lost"] for one in record["result"]["streams"]}
    assert lost[B4] > 0
    assert lost[A4] == 0


def wrapper(tmp_path: Path, path: str) -> list[str]:
    """Options that make a namespace of any host."""
    script = tmp_path / "rsh"
    script.write_text(f'#!/bin/sh\nshift\nexec nsenter --net={path} env PYTHONPATH={ROOT} "$@"\n')
    script.chmod(0o755)
    return ["--rsh", str(script), "--remote-command", " ".join(PING_GAP)]


def test_ends_elsewhere_and_here_share_one_time_line(served: Pair, tmp_path: Path) -> None:
    there = tmp_path / "x.json"
    targets = [f"far=udp://{A4}", f"{served.b}=udp://{A4}"]
    with measuring(
        *(*targets, "--duration", "0", "--json", str(there)),
        *wrapper(tmp_path, served.b),
        probed=served.a,
    ) as process:
        drop(served, served.a, "udp dport 7")
        time.sleep(0.2)
        undrop(served, served.a)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    record = json.loads(there.read_text())
    far, near = record["result"]["streams"]
    assert far["stream"]["name"].endswith("from far")
    # One fault for both: had they no common time line, it would lie a start of an end apart.
    (one,), (other,) = (each["loss"]["gaps"] for each in (far, near))
    assert abs(one["start_ms"] - other["start_ms"]) < 100
    assert any("the clock of far" in note for note in record["notes"])


@pytest.mark.parametrize("remote", [False, True])
def test_a_killed_run_leaves_nothing(served: Pair, tmp_path: Path, remote: bool) -> None:
    origin = "far" if remote else served.a
    far = wrapper(tmp_path, served.a) if remote else []
    with measuring(f"{origin}=udp://{B4}", "--duration", "0", *far, probed=served.b) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        watched = [os.pidfd_open(int(child)) for child in children]
        process.kill()
        try:
            for child in watched:
                assert select.select([child], [], [], 20)[0], "an end outlived its run"
        finally:
            for child in watched:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(child, signal.SIGKILL)
                os.close(child)


def test_an_end_that_dies_does_not_take_the_results_of_the_others(
    served: Pair, tmp_path: Path
) -> None:
    targets = [f"far=udp://{B4}", f"{served.b}=udp://{A4}", "--duration", "0", "--json", "-"]
    far = wrapper(tmp_path, served.a)
    with measuring(*targets, *far, probed=served.a) as process:
        wait_until(lambda: packets(served.b) > 0, "probes of the other end")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        nets = {child: os.stat(f"/proc/{child}/ns/net").st_ino for child in children}
        (dying,) = (c for c in children if nets[c] == os.stat(served.a).st_ino)
        os.kill(int(dying), signal.SIGKILL)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "end 'far'" in err
    record = json.loads(out)
    assert [one["stream"]["target"] for one in record["result"]["streams"]] == [A4]


def test_the_noise_of_the_machine_is_measured_beside(served: Pair, tmp_path: Path) -> None:
    served.call(served.a, "ip", "link", "set", "lo", "up")
    argv = [f"udp://{B4}@5ms", "--duration", "0.5s", "--control", "--json", "-"]
    done = subprocess.run(
        ["nsenter", f"--net={served.a}", *PING_GAP, *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert [one["stream"]["kind"] for one in record["result"]["streams"]] == ["udp"]
    assert record["control"]["stream"]["name"] == "control"
    assert record["control"]["stream"]["interval_ms"] == 5
    assert record["control"]["loss"]["sent"] > 0


def test_the_view_on_a_terminal_shows_rate_and_gap(served: Pair) -> None:
    ours, theirs = pty.openpty()
    argv = [*PING_GAP, f"{served.a}=udp://{B4}", "--duration", "0"]
    shown = b""

    def shows(*words: bytes) -> Callable[[], bool]:
        def look() -> bool:
            nonlocal shown
            while select.select([ours], [], [], 0)[0]:
                shown += os.read(ours, 65536)
            return all(word in shown for word in words)

        return look

    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "140", "LINES": "40"}
    with subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True
    ) as process:
        try:
            os.close(theirs)
            wait_until(shows(b"rate /s", b"gap now ms", b"last 60 s"), "the view")
            wait_until(shows("█".encode()), "a bar for a second")
            assert b"\x1b[1;31m" not in shown
            drop(served, served.b, "udp dport 7")
            wait_until(shows(b"\x1b[1;31m"), "a line in red while there is a gap")
            undrop(served, served.b)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
            os.close(ours)
    assert "gap of" in out
    assert process.returncode == 0


def test_a_second_ctrl_c_ends_at_once_and_leaves_no_socket(served: Pair, tmp_path: Path) -> None:
    there = tmp_path / "marks"
    argv = [f"{served.a}=udp://{B4}", "--duration", "0", "--mark-from", f"unix:{there}"]
    with measuring(*argv, probed=served.b) as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert not there.exists()


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (("--json", "/nonexistent/x"), 1, "unwritable"),
        (("--html", "/"), 1, "unwritable"),
        (("--json", "/tmp/x", "--csv", "/tmp/x"), 2, "output-twice"),
        (("--probes", "-"), 2, "needs a file"),
        (("--mark-from", "/etc"), 2, "unreadable"),
        (("--mark-from", "unix:/nonexistent/x"), 1, "socket-not-permitted"),
        (("--from", "-oProxyCommand=x"), 2, "bad-origin"),
        (("--from", "far", "--rsh", "/nonexistent/rsh"), 1, "cannot run"),
        (("--from", "far", "--rsh", "echo"), 1, "end-failed"),
        (("--from", "far", "--rsh", "false", "--probes", "/tmp/x"), 2, "bad-output"),
        (("--streams", "/nonexistent"), 2, "no-target"),
    ],
)
def test_what_cannot_be_is_said_before_the_run(argv: Sequence[str], code: int, said: str) -> None:
    """Unbounded runs: one that began would not come back."""
    done = subprocess.run(
        [*PING_GAP, "127.0.0.1", "--duration", "0", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert said in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr
