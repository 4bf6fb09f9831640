"""A watcher alone, beside real processes that are somebody else's agent."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from vrha.fencing.clock import clock_ms
from vrha.watcher.alone import Alone, AloneSettings
from vrha.watcher.mainprocess import Command, MainProcess, PidFile, Unit
from vrha.watcher.status import ask

SLEEP = shutil.which("sleep") or "sleep"
NOBODY = 2**22 - 3
"""A pid that is most likely nobody's."""


class Stage:
    """One watcher in a thread, and the agents that it watches by their pid files."""

    def __init__(self, folder: Path, grace_s: float = 0.3, agents: int = 1) -> None:
        self.folder, self.grace_s = folder, grace_s
        self.files = [folder / f"agent{number}.pid" for number in range(agents)]
        self.swept = folder / "swept"
        self.code = folder / "code"
        self.code.write_text("0")
        self.socket = folder / "watcher.sock"
        self.held = ExitStack()

    @contextmanager
    def watching(self, agents: Sequence[MainProcess] = ()) -> Iterator[None]:
        command = ("sh", "-c", f"echo x >> {self.swept}; exit $(cat {self.code})")
        found = agents or [PidFile(path) for path in self.files]
        alone = Alone(AloneSettings("test", found, command, self.socket, self.grace_s, 0.2))
        stop, told = os.pipe()
        thread = threading.Thread(target=alone.run, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            os.write(told, b"x")
            thread.join(10)
            assert not thread.is_alive()
            os.close(stop)
            os.close(told)

    def start(self, number: int = 0) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([SLEEP, "1000"])
        self.held.callback(child.wait)
        self.held.callback(child.kill)
        fresh = self.files[number].with_suffix(".new")
        fresh.write_text(f"{child.pid}\n")
        os.replace(fresh, self.files[number])
        return child

    def told(self) -> dict[str, Any]:
        return ask(self.socket)

    def agent(self, number: int = 0) -> dict[str, Any]:
        return dict(self.told()["agents"][str(self.files[number])])

    def sweeps(self) -> int:
        return self.swept.read_text().count("x") if self.swept.exists() else 0


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    with made.held:
        yield made


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def test_an_end_is_noticed_at_once(stage: Stage) -> None:
    took = []
    stage.grace_s = 60.0
    with stage.watching():
        for _ in range(5):
            child = stage.start()
            until(lambda pid=child.pid: stage.agent()["pid"] == pid, "the agent")
            killed = clock_ms()
            child.kill()
            until(lambda: stage.agent()["missing_ms"] is not None, "its end")
            took.append(clock_ms() - stage.agent()["missing_ms"] - killed)
    # It was less than half of this on a machine that was doing nothing else.
    assert statistics.median(took) < 5, took


def test_one_that_is_back_within_the_grace_is_followed(stage: Stage) -> None:
    stage.grace_s = 5.0
    first = stage.start()
    with stage.watching():
        until(lambda: stage.agent()["pid"] == first.pid, "the agent")
        first.kill()
        until(lambda: stage.told()["cleanup"]["reason"] == "grace", "its end")
        second = stage.start()
        until(lambda: stage.agent()["pid"] == second.pid, "the next one")
        told = stage.told()
        assert (told["cleanup"]["reason"], told["cleanup"]["last"]) == ("agent-lives", None)
        second.kill()
        until(lambda: stage.agent()["deaths"] == 2, "its end too")
    assert stage.sweeps() == 0


def test_one_that_stays_away_is_swept_once_for_each_death(stage: Stage) -> None:
    with stage.watching():
        for number in (1, 2):
            child = stage.start()
            until(lambda pid=child.pid: stage.agent()["pid"] == pid, "the agent")
            child.kill()
            until(lambda n=number: stage.sweeps() == n, "a sweep")
            until(lambda: stage.told()["cleanup"]["last"], "its end")
        time.sleep(0.5)
        assert stage.sweeps() == 2, "nothing was left"


def test_what_is_left_is_swept_again_until_the_agent_is_back(stage: Stage) -> None:
    stage.code.write_text("1")
    with stage.watching():
        until(lambda: stage.sweeps() >= 2, "sweeps of what nobody was seen to leave")
        child = stage.start()
        until(lambda: stage.agent()["pid"] == child.pid, "the agent")
        until(lambda: stage.told()["cleanup"]["pid"] is None, "the end of the last sweep")
        count = stage.sweeps()
        time.sleep(0.6)
        assert stage.sweeps() == count


def test_one_living_agent_of_two_holds_everything(tmp_path: Path) -> None:
    stage = Stage(tmp_path, agents=2)
    with stage.held:
        children = [stage.start(0), stage.start(1)]
        with stage.watching():
            until(lambda: stage.agent(1)["pid"] == children[1].pid, "both")
            children[0].kill()
            until(lambda: (stage.agent(0)["missing_ms"] or 0) > 600, "twice the grace")
            assert stage.sweeps() == 0
            children[1].kill()
            until(lambda: stage.sweeps() == 1, "a sweep")


def test_a_pid_file_of_nobody(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    for text in ("", "x", str(NOBODY)):
        path.write_text(text)
        assert PidFile(path).find() is None
    assert PidFile(tmp_path / "absent").find() is None


def test_a_command_is_found_by_its_pattern() -> None:
    mark = uuid.uuid4().hex
    assert Command(mark).find() is None
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)", mark])
    try:
        until(lambda: Command(f"python.* {mark}$").find() == child.pid, "it")
    finally:
        child.kill()
        child.wait()
    assert Command(mark).find() is None


@pytest.mark.parametrize("below", ["", "unified", "systemd"])
def test_a_unit_by_its_control_group(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without systemd: the eldest of its group. Its place differs between machines."""
    monkeypatch.setenv("PATH", str(tmp_path))
    group = tmp_path / below / "system.slice" / "agent.service"
    unit = Unit("agent.service", tmp_path)
    assert unit.find() is None
    group.mkdir(parents=True)
    with ExitStack() as held:
        children = [started(held), started(held, 0.05)]
        pids = "\n".join(str(child.pid) for child in reversed(children))
        (group / "cgroup.procs").write_text(f"{pids}\n")
        assert unit.find() == children[0].pid
        assert unit.find() is None, "nothing has changed"
        assert unit.is_still(children[0].pid)
        assert not unit.is_still(children[1].pid)


def test_systemd_knows_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of the agent before may be older than the agent."""
    group = tmp_path / "own.slice" / "agent.service"
    group.mkdir(parents=True)
    with ExitStack() as held:
        children = [started(held), started(held, 0.05)]
        says = f"ControlGroup=/own.slice/agent.service\\nMainPID={children[1].pid}\\n"
        fake = tmp_path / "systemctl"
        fake.write_text(f"#!/bin/sh\nprintf '{says}'\n")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        (group / "cgroup.procs").write_text("".join(f"{c.pid}\n" for c in children))
        assert Unit("agent.service", tmp_path).find() == children[1].pid
        (group / "cgroup.procs").write_text(f"{children[0].pid}\n")
        assert Unit("agent.service", tmp_path).find() is None, "it is not in its group"


def started(held: ExitStack, later_s: float = 0.0) -> subprocess.Popen[bytes]:
    """The kernel tells births in steps of 10 ms."""
    time.sleep(later_s)
    child = subprocess.Popen([SLEEP, "1000"])
    held.callback(child.wait)
    held.callback(child.send_signal, signal.SIGKILL)
    return child


@pytest.mark.parametrize(
    "arguments",
    [
        ["--profile", "neutron"],
        ["--agent-unit", "x.service"],
        ["--profile", "neutron", "--agent-unit", "x.service", "--grace", "-1"],
    ],
)
def test_arguments_that_do_not_fit(arguments: list[str]) -> None:
    from vrha.watcher.main import main

    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


class Stopped(PidFile):
    """One that init was told to stop."""

    def is_stopped(self) -> bool:
        return True


def test_one_that_was_stopped_on_purpose_is_not_swept(stage: Stage) -> None:
    stage.grace_s = 0.05
    with stage.watching([Stopped(stage.files[0])]):
        until(lambda: (stage.agent()["missing_ms"] or 0) > 200, "more than the grace")
        told = stage.told()
        assert told["situation"]["agent"] == "stopped"
        assert (told["cleanup"]["choice"], told["cleanup"]["reason"]) == ("keep", "stopped-by-hand")
        assert stage.agent()["stopped"]
        child = stage.start()
        until(lambda: stage.agent()["pid"] == child.pid, "it is started again")
        assert not stage.agent()["stopped"]
    assert stage.sweeps() == 0


def test_a_unit_whose_systemd_does_not_answer_may_have_been_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "systemctl"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("vrha.watcher.unitstate.LIMIT_S", 0.2)
    unit = Unit("agent.service", tmp_path)
    assert unit.find() is None
    assert unit.is_stopped()
    program.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert unit.find() is None
    assert not unit.is_stopped(), "there is no systemd"
