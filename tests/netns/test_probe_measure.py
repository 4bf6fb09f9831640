"""`ping-gap measure` as people use it: marks, ends, limits, reports, a terminal."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.probekit import A4, B4, ROOT, Pair, drop, packets, undrop, wait_until

pytestmark = pytest.mark.root

PING_GAP = [sys.executable, "-m", "vrha.probe"]


@contextlib.contextmanager
def running(
    *argv: str, stdin: int | None = None, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*PING_GAP, *argv],
        cwd=ROOT,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def probed(pair: Pair, process: subprocess.Popen[str], begin: Callable[[], None]) -> None:
    """Call `begin` once probes arrive, which must be soon."""
    before = packets(pair.b)
    wait_until(lambda: packets(pair.b) > before + 100 or process.poll() is not None, "probes")
    begin()


def outage(pair: Pair, length_s: float = 0.1) -> None:
    drop(pair, pair.b, "udp dport 7")
    time.sleep(length_s)
    undrop(pair, pair.b)
    time.sleep(0.1)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def test_marks_of_a_file_a_pipe_and_a_socket_name_the_phases_of_gaps(
    served: Pair, tmp_path: Path
) -> None:
    file, sock = tmp_path / "marks", tmp_path / "marks.sock"
    file.write_text(f"{time.time()} of long ago\n")

    def by_file(text: str) -> None:
        with file.open("a") as out:
            out.write(f"{time.time():.6f} {text}\n")

    def by_socket(text: str) -> None:
        subprocess.run([*PING_GAP, "mark", f"unix:{sock}", text], cwd=ROOT, check=True, timeout=20)

    def by_stdin(text: str) -> None:
        assert process.stdin is not None
        process.stdin.write(f"{text}\n")
        process.stdin.flush()

    for where, tell in ((str(file), by_file), (f"unix:{sock}", by_socket), ("-", by_stdin)):
        arguments = (f"udp://{B4}", "--netns", served.a, "--mark-from", where, "--duration", "0")
        with running(*arguments, "--json", "-", stdin=subprocess.PIPE) as process:

            def act(tell: Callable[[str], None] = tell) -> None:
                tell("flip")
                # The mark has its own time; it must only come before the end of the run.
                time.sleep(0.05)
                outage(served)
                tell("-")
                outage(served)

            probed(served, process, act)
            code, out, err = finish(process)
        assert code == 0, err
        record = json.loads(out)
        first, second = record["result"]["streams"][0]["loss"]["gaps"]
        assert (first["phases"], second["phases"]) == (["flip"], [])
        assert [mark["text"] for mark in record["marks"]] == ["flip", ""]
        assert not sock.exists()


def test_both_directions_in_one_run(served: Pair, tmp_path: Path) -> None:
    out = tmp_path / "both.json"
    with running(
        *(f"{served.a}=udp://{B4}", f"{served.b}=udp://{A4}@5ms", "--duration", "0.5s"),
        *("--json", str(out)),
    ) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    streams = json.loads(out.read_text())["result"]["streams"]
    assert [s["loss"]["lost"] for s in streams] == [0, 0]
    assert [(s["stream"]["netns"], s["stream"]["interval_ms"]) for s in streams] == [
        (served.a, 1.0),
        (served.b, 5.0),
    ]


@pytest.fixture
def elsewhere(served: Pair, tmp_path: Path) -> Path:
    """A remote shell that reaches the far namespace whatever the host is called."""
    rsh = tmp_path / "rsh"
    rsh.write_text(f'#!/bin/sh\nshift\nexec nsenter --net={served.b} "$@"\n')
    rsh.chmod(0o755)
    return rsh


def test_an_end_on_another_machine(served: Pair, elsewhere: Path, tmp_path: Path) -> None:
    out = tmp_path / "ends.json"
    with running(
        *(f"far=udp://{A4}", f"{served.a}=udp://{B4}", "--duration", "0.6s"),
        *("--rsh", str(elsewhere), "--remote-command", " ".join(PING_GAP), "--json", str(out)),
    ) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    record = json.loads(out.read_text())
    names = [s["stream"]["name"] for s in record["result"]["streams"]]
    assert names[0] == f"udp://{A4} from far"
    assert [s["loss"]["lost"] for s in record["result"]["streams"]] == [0, 0]
    (note,) = (note for note in record["notes"] if note.startswith("the clock of far"))
    found = re.search(r"was (-?[\d.]+) ms ahead", note)
    assert found is not None
    # It is the very same clock.
    assert abs(float(found[1])) < 5


def test_an_end_that_cannot_be_reached(served: Pair) -> None:
    with running(f"far=udp://{A4}", "--rsh", "false") as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "end 'far' ended with 1" in err
    assert "Traceback" not in err


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(each) for each in text.split()]


def test_nothing_remains_when_it_is_killed(served: Pair, elsewhere: Path) -> None:
    """Neither here nor at the far end."""
    with running(
        *(f"far=udp://{A4}", f"{served.a}=udp://{B4}", "--duration", "0", "--control"),
        *("--rsh", str(elsewhere), "--remote-command", " ".join(PING_GAP)),
    ) as process:
        left: list[int] = []
        probed(served, process, lambda: left.extend(children_of(process.pid)))
        assert len(left) == 3
        process.kill()
        process.wait()
    wait_until(lambda: not any(is_running(pid) for pid in left), "its children to end")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_all_reports_of_one_run(served: Pair, tmp_path: Path) -> None:
    outs = {kind: tmp_path / f"run.{kind}" for kind in ("json", "html", "csv", "junit", "probes")}
    written = [each for kind, path in outs.items() for each in (f"--{kind}", str(path))]
    arguments = (f"udp://{B4}", f"tcp-echo://{B4}", "--netns", served.a, "--duration", "0")
    limits = ("--max-lost", "5", "--max-total", "10s", "--settle", "0.05s", "--title", "a test")
    with running(*arguments, *limits, *written, "--count", "3", "--control") as process:
        probed(served, process, lambda: outage(served))
        code, out, err = finish(process)
    assert code == 1
    assert re.search(r"ping-gap: udp.* lost, allowed 5", err)
    assert "noise floor" in out
    record = json.loads(outs["json"].read_text())
    (stream,) = record["result"]["streams"]
    (connections,) = record["result"]["connections"]
    assert connections["total"] == 3
    assert record["control"]["stream"]["name"] == "control"
    assert record["settled"] is True
    assert (record["title"], record["version"]) == ("a test", 1)
    lost, sent = stream["loss"]["lost"], stream["loss"]["sent"]
    with outs["csv"].open() as file:
        (row,) = csv.DictReader(file)
    assert (row["lost"], row["lost_forth"]) == (str(lost), str(stream["loss"]["lost_forth"]))
    with outs["probes"].open() as file:
        probes = [p for p in csv.DictReader(file) if p["stream"].startswith("udp")]
    assert len(probes) == sent
    assert sum(not probe["rtt_ms"] for probe in probes) == lost
    cases = {case.get("name"): case for case in xml.parse(outs["junit"]).iter("testcase")}
    assert [case.find("failure") is not None for case in cases.values()] == [True, False, False]
    page = outs["html"].read_text()
    assert f"{lost} of " in page
    assert sum(stream["series"]["lost"]) == lost
    assert sorted(tmp_path.iterdir()) == sorted(outs.values())


def test_a_run_that_did_not_settle_does_not_count(served: Pair) -> None:
    for limit, expected in (((), 0), (("--max-lost", "1000000"), 1)):
        arguments = (f"udp://{B4}", "--netns", served.a, "--duration", "0", "--settle", "60s")
        with running(*arguments, *limit) as process:
            probed(served, process, lambda: outage(served))
            code, out, err = finish(process)
        assert code == expected, err
        assert "the run does not count: 60 s of full rate" in out + err


def test_what_cannot_be_written_is_said_before_anything_is_probed(
    served: Pair, tmp_path: Path
) -> None:
    before = packets(served.b)
    for bad in (("--html", "/nonexistent/x"), ("--csv", str(tmp_path)), ("--probes", "-")):
        with running(f"udp://{B4}", "--netns", served.a, *bad) as process:
            _, err = process.communicate(timeout=30)
        assert process.returncode in (1, 2)
        assert "unwritable" in err or "bad-output" in err
    assert packets(served.b) == before


def test_two_runs_are_compared(served: Pair, tmp_path: Path) -> None:
    files = [str(tmp_path / f"{name}.json") for name in "ab"]
    for file in files:
        with running(
            *(f"udp://{B4}", "--netns", served.a, "--duration", "0", "--json", file)
        ) as process:
            act = (lambda: outage(served)) if file == files[1] else (lambda: time.sleep(0.2))
            probed(served, process, act)
            assert finish(process)[0] == 0
    page, found = tmp_path / "c.html", tmp_path / "c.json"
    with running(
        *("compare", *files, "--html", str(page), "--json", str(found), "--fail-if-worse")
    ) as process:
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1, err
    assert re.search(r"udp.* lost +0 +\d+ +worse", out)
    rows = {row["figure"]: row["trend"] for row in json.loads(found.read_text())["rows"]}
    assert rows["longest gap"] == "worse"
    assert "<svg" in page.read_text()
    with running("compare", files[0], "/etc/hostname") as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "malformed" in err


def test_a_terminal_shows_rate_and_gap_while_they_last(served: Pair) -> None:
    screen, ours = pty.openpty()
    shown = b""
    argv = [*PING_GAP, f"udp://{B4}", "--netns", served.a, "--duration", "0"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"}

    def shows(pattern: bytes) -> bool:
        nonlocal shown
        while select.select([screen], [], [], 0)[0]:
            shown += os.read(screen, 65536)
        return re.search(pattern, re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown)) is not None

    with subprocess.Popen(
        argv, cwd=ROOT, stdin=ours, stdout=ours, stderr=ours, env=environment
    ) as process:
        try:
            os.close(ours)
            wait_until(lambda: shows(rb"rate /s"), "the table")
            wait_until(lambda: shows("│ +(9[0-9]{2}|10[0-9]{2}) │".encode()), "the rate")
            drop(served, served.b, "udp dport 7")
            shown = b""
            wait_until(lambda: shows("│ +[0-9]{3,} │ +[0-9]{3,} │ +[0-9]{3,} │".encode()), "a gap")
            undrop(served, served.b)
            process.send_signal(signal.SIGINT)
            wait_until(lambda: shows(rb"restored at"), "the table at the end")
            assert process.wait(20) == 0
        finally:
            process.kill()
            os.close(screen)
