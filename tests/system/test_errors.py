"""The unlucky user: every failure has a code and a hint, and leaves the system as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.labkit import Machine, until
from tests.system.zonekit import (
    VRHA,
    Zone,
    agents_started,
    probing,
    wait_for,
    zone,
)
from vrha.lab.daemons import Daemon, environment, toml
from vrha.model.runs import RunStatus
from vrha.model.views import RouterStatus

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.unhurried]

ROOT = Path(__file__).parents[2]
LIMITS = {"check_in_s": 4.0, "step_s": 4.0}
NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    # The interpreter may lie where only root looks.
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
NO_NFNETLINK = """\
import ctypes, os, struct, sys
# seccomp(2): socket(AF_NETLINK, _, NETLINK_NETFILTER) fails as in a kernel without nfnetlink.
program = b"".join(struct.pack("HBBI", *each) for each in (
    (0x20, 0, 0, 0), (0x15, 0, 5, 41 if os.uname().machine == "x86_64" else 198),
    (0x20, 0, 0, 16), (0x15, 0, 3, 16), (0x20, 0, 0, 32), (0x15, 0, 1, 12),
    (0x06, 0, 0, 0x00050000 | 93), (0x06, 0, 0, 0x7FFF0000)))
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Filter(8, program)), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Zone]:
    with zone("seed-10x10", f"errors-{os.getpid()}", LIMITS) as made:
        yield made


@pytest.fixture
def made(lab: Zone) -> Iterator[Zone]:
    """The zone; afterwards it serves, with one instance and nothing else."""
    yield lab
    wait_for(lambda: lab.router().status is RouterStatus.SERVING, 20, "a serving router")
    wait_for(
        lambda: sum(map(len, lab.objects().values())) == lab.expected_objects(),
        20,
        "one instance and nothing else",
    )


def ended(
    argv: tuple[str, ...], env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    found = {**environment(), **(env or {})}
    return subprocess.run(argv, env=found, capture_output=True, text=True, timeout=40, check=False)


def vrha(made: Zone, *arguments: str) -> subprocess.CompletedProcess[str]:
    return ended((*VRHA, *arguments), {"VRHA_SOCKET": str(made.lab.socket)})


def inside(made: Zone, where: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """A program on a node to its end."""
    pipe = subprocess.PIPE
    child = made.lab.exec(where, argv, stdout=pipe, stderr=pipe, text=True, env=environment())
    try:
        out, err = child.communicate(timeout=20)
    finally:
        child.kill()
        child.wait()
    return subprocess.CompletedProcess(argv, child.returncode, out, err)


def assert_told(done: subprocess.CompletedProcess[str], status: int, code: str) -> None:
    """One error with its code, something to do next, and no traceback."""
    assert done.returncode == status, done.stdout + done.stderr
    assert f"[{code}]" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].count(f"[{code}]") == 0, "no hint"


def config_of(made: Zone, daemon: str) -> str:
    return str(made.lab.folder / "config" / f"{daemon}.toml")


# --- what is refused at once -----------------------------------------------------------------


def test_a_second_daemon_on_the_same_state_is_refused(made: Zone) -> None:
    second = inside(made, "n1", *VRHA, "agent", "run", "--config", config_of(made, "agent-n1"))
    assert_told(second, 4, "already-running")
    config = config_of(made, "orchestrator")
    assert_told(
        inside(made, "", *VRHA, "orchestrator", "run", "--config", config), 4, "already-running"
    )


def test_a_socket_in_use_is_told_before_a_broker_is_started(made: Zone, tmp_path: Path) -> None:
    config = tmp_path / "orchestrator.toml"
    settings = {"state_dir": str(tmp_path / "state"), "api": {"socket": str(made.lab.socket)}}
    config.write_text(toml(settings))
    done = ended((*VRHA, "orchestrator", "run", "--config", str(config)))
    assert_told(done, 1, "socket-in-use")
    assert not (tmp_path / "state" / "broker").exists()
    assert made.lab.socket.exists()


def test_a_lab_name_in_use(made: Zone) -> None:
    assert_told(vrha(made, "lab", "up", "--name", made.lab.name), 4, "lab-exists")


def test_unknown_network(made: Zone) -> None:
    done = vrha(made, "network", "restart", "nowhere", "--cleanup")
    assert_told(done, 2, "no-such-network")


def test_an_open_run_is_not_disturbed(made: Zone, tmp_path: Path) -> None:
    node = made.router().node
    made.lab.agent(node).kill(signal.SIGSTOP)
    try:
        waiting = subprocess.Popen(
            (*VRHA, "network", "restart", made.network, "--cleanup"),
            env={**environment(), "VRHA_SOCKET": str(made.lab.socket)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: made.client.runs(open_only=True), 10, "an open run")
        waiting.kill()
        waiting.wait()
        run = made.client.runs(open_only=True)[0]
        second = vrha(made, "network", "restart", made.network, "--cleanup")
        assert_told(second, 4, "run-in-progress")
        assert run.id in second.stderr
        without = tmp_path / "zone.yaml"
        without.write_text("nodes:\n  - {name: n1, zone: z1}\n")
        refused = vrha(made, "apply", "-f", str(without))
        assert_told(refused, 4, "run-in-progress")
        assert made.client.desired() == made.desired
    finally:
        made.lab.agent(node).kill(signal.SIGCONT)
    assert made.await_run(run.id).status.terminal


def test_no_node_fits(made: Zone, tmp_path: Path) -> None:
    text = made.lab.zone_file.read_text()
    elsewhere = tmp_path / "zone.yaml"
    elsewhere.write_text(text.replace("- name: r1\n", "- name: r1\n  zone: moon\n"))
    assert elsewhere.read_text() != text
    assert vrha(made, "apply", "-f", str(elsewhere), "--wait").returncode == 0
    assert_told(vrha(made, "network", "restart", made.network, "--cleanup"), 4, "no-node")
    assert vrha(made, "apply", "-f", str(made.lab.zone_file), "--wait").returncode == 0


# --- broker ----------------------------------------------------------------------------------


def test_no_broker_is_told_at_once_and_nothing_is_started(made: Zone) -> None:
    before = made.router()
    known = len(made.client.runs())
    broker = made.lab.broker()
    with probing(made.streams()) as results:
        broker.kill()
        done = vrha(made, "network", "restart", made.network, "--cleanup")
        broker.start()
    assert_told(done, 5, "broker-unreachable")
    assert len(made.client.runs()) == known
    assert made.router() == before
    assert results[0].lost == 0
    assert made.restart().status is RunStatus.DONE


def test_a_run_during_which_the_broker_goes_away_is_taken_back(made: Zone) -> None:
    before = made.router()
    broker = made.lab.broker()
    made.lab.agent(before.node).kill(signal.SIGSTOP)
    run = made.client.restart_network(made.network)
    os.kill(broker.pid, signal.SIGSTOP)
    made.lab.agent(before.node).kill(signal.SIGCONT)
    try:
        wait_for(
            lambda: made.client.run(run.id).status is RunStatus.ROLLING_BACK, 60, "the roll-back"
        )
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    ended_run = made.await_run(run.id)
    assert (ended_run.status, ended_run.reason) == (RunStatus.ROLLED_BACK, "no-answer")
    assert ended_run.leftovers == ()
    assert made.router().instance == before.instance


def test_a_wrong_password_shows_no_password(made: Zone, tmp_path: Path) -> None:
    right = made.lab.broker().url
    password = right.split(":")[2].split("@")[0]
    config = tmp_path / "agent.toml"
    url = right.replace(password, "not-this-one")
    state = made.lab.folder / "state" / "wrong-password"
    settings = {"node": "n3", "state_dir": str(state), "bus": {"urls": [url]}}
    config.write_text(toml(settings))
    log = tmp_path / "log"
    with log.open("w") as output:
        argv = (*VRHA, "agent", "run", "--config", str(config))
        child = made.lab.exec("n3", argv, stderr=output, env=environment())
        try:
            until(lambda: "refused user vrha" in log.read_text(), "a word of the refusal")
        finally:
            child.terminate()
            child.wait(timeout=10)
    said = log.read_text()
    assert "refused user vrha" in said
    assert "not-this-one" not in said
    assert password not in said


# --- disk full, damaged files ----------------------------------------------------------------


@contextmanager
def small_disk(made: Zone, daemon: Daemon, where: str) -> Iterator[Path]:
    """The daemon's state folder, on a file system of 16 MiB during the block; start it there."""
    folder = made.lab.folder / "state" / daemon.name
    copy = f"{folder}.copy"
    daemon.kill()
    move = f"cp -a {folder} {copy} && %s && cp -a {copy}/. {folder}/ && rm -rf {copy}"
    mount = f"mount -t tmpfs -o size=16m,mode=0711 none {folder}"
    made.lab.run(where, ["sh", "-c", move % mount])
    try:
        yield folder
    finally:
        daemon.kill()
        made.lab.run(where, ["sh", "-c", move % f"umount -l {folder} && rm -rf {folder}/*"])
        start(made, daemon)


def start(made: Zone, daemon: Daemon) -> None:
    """Start it; an agent has been heard before a run may count on it."""
    if daemon.name == "orchestrator":
        daemon.start()
        daemon.wait_for(made.lab.socket, 60)
        wait_for(lambda: made.client.health().broker, 60, "its broker")
    else:
        known = agents_started(made)
        daemon.start()
        wait_for(lambda: agents_started(made) > known, 60, "the agent")


def fill(made: Zone, where: str, folder: Path) -> None:
    made.lab.run(where, ["sh", "-c", f"dd if=/dev/zero of={folder}/filler bs=4k 2>&1; true"])


def test_a_full_disk_under_the_agent(made: Zone) -> None:
    before = made.router()
    daemon = made.lab.agent(before.node)
    with small_disk(made, daemon, before.node) as folder:
        fill(made, before.node, folder)
        start(made, daemon)
        with probing(made.streams()) as results:
            done = vrha(made, "network", "restart", made.network, "--cleanup")
        assert_told(done, 1, "rolled-back")
        assert "no-space" in done.stderr
        assert made.router().instance == before.instance
        assert results[0].lost == 0
        assert "Traceback" not in daemon.log.read_text()
        made.lab.run(before.node, ["rm", f"{folder}/filler"])
        assert made.restart().status is RunStatus.DONE
    assert made.restart().status is RunStatus.DONE


def test_a_full_disk_under_the_orchestrator(made: Zone) -> None:
    daemon = made.lab.orchestrator()
    with small_disk(made, daemon, "") as folder:
        # Space in the write-ahead log that is there already would put off the trouble.
        truncate = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute("
        truncate += "'pragma wal_checkpoint(truncate)')"
        made.lab.run("", [sys.executable, "-c", truncate, f"{folder}/orchestrator.db"])
        start(made, daemon)
        before = made.router()
        with probing(made.streams()) as results:
            fill(made, "", folder)
            done = vrha(made, "network", "restart", made.network, "--cleanup")
        assert_told(done, 5, "store-full")
        assert made.router() == before
        assert results[0].lost == 0
        made.lab.run("", ["rm", f"{folder}/filler"])
        assert made.restart().status is RunStatus.DONE
        assert "Traceback" not in daemon.log.read_text()


def test_damaged_epochs_are_refused(made: Zone) -> None:
    daemon = made.lab.agent("n3")
    daemon.kill()
    epochs = made.lab.folder / "state" / "agent-n3" / "epochs.json"
    epochs.write_text("{ not json")
    config = config_of(made, "agent-n3")
    done = inside(made, "n3", *VRHA, "agent", "run", "--config", config)
    assert_told(done, 1, "state-damaged")
    assert epochs.read_text() == "{ not json"
    epochs.unlink()
    daemon.start()
    wait_for(lambda: made.client.health().nodes_heard == 3, 20, "all agents")


def test_settings_with_typos_are_all_shown(tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text('nod = "n1"\nstate_dir = "relative"\n[bus]\nurls = "amqp://u:secret@h"\n')
    done = ended((*VRHA, "agent", "run", "--config", str(config)))
    assert_told(done, 2, "settings-invalid")
    for part in ("nod: unknown key", "node: is missing", "absolute path", "must be a list"):
        assert part in done.stderr
    assert "secret" not in done.stderr


# --- what the machine lacks ------------------------------------------------------------------


def test_a_kernel_without_nf_tables(made: Zone) -> None:
    lacking = (sys.executable, "-c", NO_NFNETLINK, *VRHA)
    done = inside(made, "n3", *lacking, "agent", "run", "--config", config_of(made, "agent-n3"))
    assert_told(done, 1, "no-nf-tables")
    looked = ended((*lacking, "doctor"))
    assert_told(looked, 1, "machine-not-ready")
    assert "modprobe nf_tables" in looked.stdout


@pytest.mark.parametrize("tool", ["nft", "dnsmasq"])
def test_a_missing_tool(made: Zone, tool: str) -> None:
    path = made.lab.run("n3", ["sh", "-c", f"readlink -f $(command -v {tool})"]).strip()
    made.lab.run("n3", ["mount", "--bind", "/dev/null", path])
    try:
        config = config_of(made, "agent-n3")
        done = inside(made, "n3", *VRHA, "agent", "run", "--config", config)
        looked = inside(made, "n3", *VRHA, "doctor")
    finally:
        made.lab.run("n3", ["umount", "-l", path])
    assert_told(done, 1, f"missing-tool:{tool}")
    assert_told(looked, 1, "machine-not-ready")
    assert "modprobe" not in looked.stdout, "a missing program is no matter of the kernel"


@pytest.mark.parametrize(
    "command", ["lab up", "lab down", "lab status", "lab exec vm1 -- true", "agent run"]
)
def test_without_root(made: Zone, command: str) -> None:
    words = command.split()
    if words[0] == "agent":
        words += ["--config", config_of(made, "agent-n1")]
    else:
        words[2:2] = ["--name", made.lab.name]
    assert_told(ended((*NOBODY, *VRHA, *words), {"HOME": "/nowhere"}), 1, "not-root")


def test_the_demo_without_root() -> None:
    before = Machine.now("demo-")
    assert_told(ended((*NOBODY, str(ROOT / "tools" / "demo"))), 1, "not-root")
    assert Machine.now("demo-") == before


# --- Ctrl-C at any moment --------------------------------------------------------------------


MOMENTS = {
    signal.SIGINT: (0.15, 0.8, 2.1),
    signal.SIGTERM: (0.5, 1.3, 3.3),
    signal.SIGKILL: (0.3, 0.9, 2.6),
}
"""Seconds; together over all of `vrha lab up`, and the demo until its broker runs."""


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("vrha lab up", signal.SIGINT),
        ("vrha lab up", signal.SIGKILL),
        ("demo", signal.SIGINT),
        ("demo", signal.SIGKILL),
        pytest.param("vrha lab up", signal.SIGTERM, marks=pytest.mark.long),
        pytest.param("demo", signal.SIGTERM, marks=pytest.mark.long),
    ],
)
def test_interrupted_at_any_moment_nothing_stays(command: str, number: int, tmp_path: Path) -> None:
    name = f"stopped-{os.getpid()}"
    for moment in MOMENTS[signal.Signals(number)]:
        before = Machine.now(name), Machine.now("demo-"), temporary()
        if command == "demo":
            argv = [sys.executable, "-m", "tools.demonstration", "--report", str(tmp_path)]
        else:
            argv = [*VRHA, "lab", "up", "--name", name]
        child = subprocess.Popen(
            argv, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        time.sleep(moment)  # The moment is what is tried.
        for _ in range(3 if number == signal.SIGINT else 1):
            child.send_signal(number)
            time.sleep(0.02)
        _, said = child.communicate(timeout=20)
        assert b"Traceback" not in said
        if number == signal.SIGKILL:
            # A folder without processes may be left by the first moments; this removes it.
            left = name if command != "demo" else f"demo-{child.pid}"
            ended((*VRHA, "lab", "down", "--name", left))
        wait_for(
            lambda b=before: (Machine.now(name), Machine.now("demo-"), temporary()) == b,
            10,
            f"nothing left of {command} after {moment} s",
        )


def temporary() -> list[str]:
    found = [*Path("/run").glob("vrha-stopped*"), *Path("/tmp").glob("vrha-demo*")]
    return sorted(map(str, found))


def test_the_demo_checks_what_it_is_asked_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = Machine.now("demo-")
    demo = (sys.executable, "-m", "tools.demonstration")
    done = ended((*demo, "--report", str(tmp_path / "file")))
    assert_told(done, 1, "report-unwritable")
    assert ended((*demo, "--runs", "0")).returncode == 2
    assert Machine.now("demo-") == before


def test_a_broken_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "orchestrator.db").write_bytes(os.urandom(9000))
    config = tmp_path / "orchestrator.toml"
    socket = {"socket": str(tmp_path / "s")}
    bus = {"urls": ["amqp://u:p@127.0.0.1:1/"]}
    config.write_text(toml({"state_dir": str(tmp_path), "api": socket, "bus": bus}))
    done = ended((*VRHA, "orchestrator", "run", "--config", str(config)))
    assert_told(done, 5, "store-unavailable")
    assert not (tmp_path / "s").exists()
