"""Programs that run in a lab until it ends: started through process 1, known by pid, kill -9 ready.

The record of each is a file in the lab's folder, so another process can kill and restart it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vrha.bus.processes import ProcessId
from vrha.errors import DeadlineError, NotFoundError, UnreachableError, VrhaError
from vrha.lab.anchor import MAX_REQUEST, SOCKET

_TIMEOUT = 10.0


def pid_of(pidfd: int) -> int:
    """The pid, in our own pid namespace, behind a pidfd (proc(5), fdinfo)."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    return -1


def identify(pidfd: int) -> ProcessId | None:
    """The process behind a pidfd; closes it."""
    try:
        return ProcessId.of(pid_of(pidfd))
    finally:
        os.close(pidfd)


def ask(folder: Path, request: Mapping[str, Any]) -> ProcessId | None:
    """Send one request to the process 1 of the lab in `folder`; the process it started, if any.

    Raises UnreachableError (`lab-gone`), VrhaError (`lab-spawn-failed`).
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_TIMEOUT)
        try:
            connection.connect(os.fspath(folder / SOCKET))
            connection.send(json.dumps(request).encode())
            body, fds, _flags, _address = socket.recv_fds(connection, MAX_REQUEST, 1)
        except OSError as error:
            raise UnreachableError(
                "lab-gone", f"the lab does not answer: {error}", "Take it down: `vrha lab down`."
            ) from error
    process = identify(fds[0]) if fds else None
    problem = json.loads(body or b"{}").get("error")
    if problem:
        raise VrhaError("lab-spawn-failed", f"{request['argv'][0]}: {problem}")
    return process


@dataclass(frozen=True, slots=True)
class Program:
    """How to start a daemon: `where` is a node, a machine, or empty for the lab's own network."""

    argv: tuple[str, ...]
    where: str
    env: Mapping[str, str]
    cwd: str = "/"


class Daemon:
    """One daemon of the lab in `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.log = folder / "logs" / f"{name}.log"
        self._record = folder / "daemons" / f"{name}.json"

    def start(self, program: Program | None = None) -> ProcessId:
        """Start `program`, or again the one last started under this name.

        Raises NotFoundError (`no-daemon`), VrhaError (`lab-spawn-failed`), UnreachableError.
        """
        program = program or self._load()[0]
        # Logs and environments may hold secrets.
        for folder in (self.log.parent, self._record.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
        request = {"op": "spawn", "log": str(self.log), **asdict(program)}
        process = ask(self.folder, request)
        if process is None:
            raise VrhaError("lab-spawn-failed", f"{self.name} ended at once", self.tail())
        record = {"program": asdict(program), "process": asdict(process)}
        self._record.write_text(json.dumps(record))
        return process

    @property
    def process(self) -> ProcessId:
        """The life last started. Raises NotFoundError (`no-daemon`)."""
        return self._load()[1]

    @property
    def pid(self) -> int:
        """Pid as seen from this process. Raises NotFoundError (`no-daemon`)."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self._record.exists() and self.process.alive

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; after SIGKILL and SIGTERM wait until it is gone.

        Raises DeadlineError (`daemon-not-gone`).
        """
        process = self.process
        process.kill(number)
        ends = number in (signal.SIGKILL, signal.SIGTERM)
        if ends and not process.wait_gone(_TIMEOUT):
            raise DeadlineError("daemon-not-gone", f"{self.name} (pid {process.pid}) does not end")

    def wait_for(self, path: Path, timeout: float = 20.0) -> None:
        """Wait until the daemon listens on `path`, a stream socket.

        Raises VrhaError (`daemon-died`), DeadlineError (`daemon-not-ready`).
        """
        deadline = time.monotonic() + timeout
        while not _listens(path):
            if not self.alive:
                raise VrhaError("daemon-died", f"{self.name} ended while starting", self.tail())
            if time.monotonic() > deadline:
                raise DeadlineError(
                    "daemon-not-ready", f"{self.name} is not ready after {timeout:g} s", self.tail()
                )
            time.sleep(0.01)

    def tail(self, lines: int = 10) -> str:
        """The last lines of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def _load(self) -> tuple[Program, ProcessId]:
        try:
            raw = json.loads(self._record.read_text())
        except FileNotFoundError as error:
            raise NotFoundError("no-daemon", f"{self.name} was never started here") from error
        raw["program"]["argv"] = tuple(raw["program"]["argv"])
        return Program(**raw["program"]), ProcessId(**raw["process"])


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The caller's environment for a daemon, with this very vrha importable."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    inherited = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
    path = os.pathsep.join(dict.fromkeys(p for p in paths if p))
    return {**inherited, "PYTHONPATH": path, **(extra or {})}


def toml(settings: Mapping[str, Any]) -> str:
    """A settings file; JSON strings, numbers and lists of strings are TOML ones too."""
    plain = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for table, values in settings.items():
        if isinstance(values, Mapping):
            lines += ["", f"[{table}]"]
            lines += [f"{key} = {_value(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if not isinstance(value, Mapping):
        return json.dumps(value)
    return "{" + ", ".join(f"{key} = {json.dumps(each)}" for key, each in value.items()) + "}"


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True
