"""The command `ping-gap`: outputs, limits, and a clear outcome of every bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.netns.probekit import (
    B4,
    B6,
    NOBODY4,
    ROOT,
    Pair,
    drop,
    packets,
    plain_echo,
    wait_until,
)

pytestmark = pytest.mark.root


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
    found = json.loads(out.read_text())["result"]
    assert [s["stream"]["kind"] for s in found["streams"]] == ["icmp", "udp", "tcp-connect"]
    assert [s["stream"]["interval_ms"] for s in found["streams"]] == [1.0, 1.0, 10.0]
    assert [s["loss"]["lost"] for s in found["streams"]] == [0, 0, 0]
    assert "longest gap ms" in done.stdout
    assert list(tmp_path.iterdir()) == [out]


def test_command_watches_fresh_flows_and_long_connections(served: Pair, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = command(
        *(B4, "--udp-fresh", "8", "--tcp-echo", "8", "--tcp-push", "9", "--duration", "0.5s"),
        *("--netns", served.a, "--json", str(out), "--max-lost", "0"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(out.read_text())["result"]
    assert [s["stream"]["kind"] for s in found["streams"]] == ["udp-fresh"]
    assert [c["stream"]["kind"] for c in found["connections"]] == ["tcp-echo", "tcp-push"]
    assert [(c["total"], c["alive"]) for c in found["connections"]] == [(1, 1)] * 2
    assert "longest stall ms" in done.stdout


def test_command_with_connections_alone_that_stall_exits_1(served: Pair) -> None:
    done = command(
        *(B4, "--tcp-echo", "8", "--interval", "100ms", "--duration", "0.5s"),
        *("--netns", served.a, "--max-gap", "50ms"),
    )
    assert done.returncode == 1
    assert "tcp-echo" in done.stderr
    assert "allowed 50 ms" in done.stderr
    assert "outage ms" not in done.stdout


def test_serve_on_ports_of_choice(pair: Pair) -> None:
    ports = ["--port", "1007", "--echo-port", "2007", "--push-port", "3007", "--delay", "20ms"]
    argv = [sys.executable, "-m", "vrha.probe", "serve", *ports, "--push", "50ms"]
    with subprocess.Popen(
        [*argv, "--netns", pair.b], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            done = command(
                *(B4, "--udp", "1007", "--udp-fresh", "2007", "--tcp-echo", "2007"),
                *("--tcp-push", "3007", "--duration", "1s", "--json", "-", "--netns", pair.a),
            )
        finally:
            process.terminate()
    found = json.loads(done.stdout)["result"]
    at_once, late = (s["loss"]["rtt_median_ms"] for s in found["streams"])
    assert at_once < 20 <= late
    echo, push = found["connections"]
    assert (echo["alive"], push["alive"]) == (1, 1)
    assert push["longest_stall_ms"] > 45
    assert push["messages"] <= 35


def test_command_writes_only_json_to_stdout_when_asked(pair: Pair) -> None:
    done = command(B6, "--duration", "0.2", "--json", "-", path=pair.a)
    assert done.returncode == 0
    assert json.loads(done.stdout)["result"]["streams"][0]["address"] == B6


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


def test_ctrl_c_ends_the_run_and_prints_the_result(served: Pair) -> None:
    argv = [sys.executable, "-m", "vrha.probe", B4, "--udp", "7", "--duration", "0"]
    before = packets(served.b)
    with subprocess.Popen(
        [*argv, "--netns", served.a], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until(lambda: packets(served.b) > before + 100, "probes to arrive")
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "udp from net" in out


@pytest.mark.unhurried
@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        ((NOBODY4,), 1, "no-reply"),
        ((B4, "--udp", "7"), 1, "ECONNREFUSED"),
        ((B4, "--tcp", "7"), 1, "ECONNREFUSED"),
        ((B4, "--udp-fresh", "8"), 1, "ECONNREFUSED"),
        ((B4, "--tcp-echo", "8"), 1, "not-connected"),
        ((B4, "--tcp-push", "9"), 1, "Connection refused"),
        (("192.0.2.1", "--udp-fresh", "8"), 1, "no-route"),
        (("192.0.2.1", "--tcp-echo", "8"), 1, "no-route"),
        (("192.0.2.1",), 1, "no-route"),
        (("no-such-host.invalid",), 2, "unknown-host"),
        (("",), 2, "bad-target"),
        ((B4, "--interval", "1us"), 2, "bad-stream"),
        ((B4, "--interval", "fast"), 2, "is no time"),
        ((B4, "--udp", "70000"), 2, "70000"),
        ((B4, "--netns", "/run/netns/none"), 2, "netns-not-found"),
        ((B4, "--netns", "/etc/hostname"), 1, "netns-not-permitted"),
        ((B4, "--from", "none"), 1, "no namespace here"),
        ((B4, "--duration", "0.1", "--json", "/nonexistent/x"), 1, "unwritable"),
        (("run", "--streams", "/nonexistent", "--json", "-"), 2, "unreadable"),
        (("run",), 2, "--streams and --json"),
        (("compare", "/nonexistent", "/nonexistent"), 2, "unreadable"),
        (("compare", "/etc/hostname", "/etc/hostname"), 2, "malformed"),
        (("mark", "unix:/nonexistent", "x"), 1, "no-listener"),
        (("mark", "/etc/hostname", "x"), 2, "bad-socket"),
        (("run", "--streams", "/etc/hostname", "--json", "-"), 2, "malformed"),
        (("serve", "--port", "65535"), 2, "bad-port"),
        (("serve", "--port", "7", "--push-port", "8"), 2, "three different"),
        (("serve", "--push", "0"), 2, "bad-interval"),
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


def without_capabilities(path: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Probes by a process without any capability."""
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    probe = [sys.executable, "-m", "vrha.probe", *argv, "--duration", "0.5", "--json", "-"]
    return subprocess.run(
        ["nsenter", f"--net={path}", *powerless, *probe],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
    )


def test_without_root_where_the_kernel_allows_it_and_a_clear_message_where_not(
    served: Pair,
) -> None:
    sysctl = "net.ipv4.ping_group_range"
    served.call(served.a, "sysctl", "-qw", f"{sysctl}=1 0")
    refused = without_capabilities(served.a, B4)
    assert "icmp-not-permitted" in refused.stderr
    assert refused.returncode == 1
    elsewhere = without_capabilities(served.a, B4, "--udp", "7", "--netns", served.b)
    assert "netns-not-permitted" in elsewhere.stderr
    served.call(served.a, "sysctl", "-qw", f"{sysctl}=0 2147483647")
    kinds = ("icmp", "udp", "udp-fresh", "tcp", "tcp-echo", "tcp-push")
    targets = (f"{kind}://{B4}" + (":7" if kind == "tcp" else "") for kind in kinds)
    done = without_capabilities(served.a, *targets)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["result"]
    assert [one["loss"]["lost"] for one in found["streams"]] == [0] * 4
    assert [one["alive"] for one in found["connections"]] == [1, 1]
    assert (found["realtime"], found["memory_locked"]) == (False, False)
