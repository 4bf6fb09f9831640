"""A private RabbitMQ node of the installed Debian package, everything of it in one folder."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import amqp

from vrha.bus.processes import ProcessId, wait_until_gone
from vrha.errors import DeadlineError, PreconditionError, RefusedError, VrhaError

Progress = Callable[[str], None]
Launch = Callable[[Sequence[str], Mapping[str, str], Path], ProcessId]
"""Starts a program with an environment, output appended to a log, in a session of its own."""

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Not the wrapper in /usr/sbin, which changes the user by su(1)."""
USER = "vrha"
_MARK = "VRHA_BROKER"
_RECORD = "broker.json"
_STOP_TIMEOUT = 15.0
_ADOPT_TIMEOUT = 15.0
_PROGRESS_EVERY = 2.0


def _silent(_message: str) -> None:
    """No progress wanted."""


def _here(function: Callable[[], Any]) -> Any:
    return function()


@dataclass(frozen=True, slots=True)
class _Record:
    """What a node needs to be found again; `mark` is in the environment of all its processes."""

    mark: str
    password: str
    port: int
    dist_port: int
    epmd_port: int
    process: ProcessId | None = None


class PrivateBroker:
    """One RabbitMQ node in `folder`, beside any other on the machine.

    `port` 0 picks a free one, kept over restarts. `launch` starts processes somewhere else than as
    our children, `inside` calls a function whose sockets belong to the broker's network: a lab
    gives both. Data in `folder` survive stop() and kill(); `cleanup` deletes everything.
    """

    def __init__(
        self,
        folder: Path,
        port: int = 0,
        listen: str = "127.0.0.1",
        progress: Progress = _silent,
        launch: Launch | None = None,
        inside: Callable[[Callable[[], Any]], Any] = _here,
    ) -> None:
        self.folder = folder.absolute()
        self.listen = listen
        self._wanted_port = port
        self._progress = progress
        self._launch = launch or self._launch_child
        self._inside = inside
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """AMQP URL with user and password. Raises PreconditionError (`broker-not-started`)."""
        record = self._need_record()
        return f"amqp://{USER}:{record.password}@{self.listen}:{record.port}//"

    @property
    def port(self) -> int:
        """AMQP port. Raises PreconditionError (`broker-not-started`)."""
        return self._need_record().port

    @property
    def pid(self) -> int:
        """Pid of the Erlang machine. Raises PreconditionError (`broker-not-started`)."""
        process = self._need_record().process
        return process.pid if process else -1

    @property
    def alive(self) -> bool:
        """Whether the node's process runs; it may not be ready yet."""
        return self.running(self.folder)

    @staticmethod
    def running(folder: Path) -> bool:
        """Whether a node started in `folder`, by whomever, runs."""
        record = _load(folder)
        return record is not None and record.process is not None and record.process.alive

    def start(self, timeout: float = 60.0) -> None:
        """Start the node and return as soon as an AMQP client can log in; `timeout` in seconds.

        Raises PreconditionError (`missing-tool`, `port-in-use`), RefusedError (`broker-running`),
        VrhaError (`broker-failed`) with its last log lines, DeadlineError (`broker-not-ready`).
        Whatever it raises, no process is left.
        """
        deadline = time.monotonic() + timeout
        epmd = _tools()
        if self.alive:
            raise RefusedError("broker-running", f"a broker already runs in {self.folder}")
        old = _load(self.folder)
        if old is not None and old.process is not None:
            # Killed a moment ago: other threads of it may still hold its ports.
            old.process.wait_gone(_STOP_TIMEOUT)
        _end_marked(old)
        record = self._inside(lambda: self._choose(_load(self.folder)))
        self._write_files(record)
        env = _environment(self.folder, record, self.listen)
        log = self.folder / "server.log"
        log.write_bytes(b"")
        try:
            # Our own, in the foreground: one that Erlang starts would detach itself.
            port_option = ["-port", str(record.epmd_port), "-address", "127.0.0.1"]
            self._launch([epmd, *port_option], env, log)
            process = self._launch([str(SERVER)], env, log)
            record = _Record(**{**_fields(record), "process": process})
            _save(self.folder, record)
            self._inside(lambda: self._wait_ready(record, process, deadline))
        except BaseException:
            _end_marked(record)
            self._collect()
            raise

    def resume(self, timeout: float = 60.0) -> None:
        """Use the node that a killed predecessor has left running, else start one.

        One that does not answer is ended first. The caller makes sure that the predecessor is
        gone. Raises what `start` raises.
        """
        record = _load(self.folder)
        if record is not None and record.process is not None and record.process.alive:
            process, deadline = record.process, time.monotonic() + min(timeout, _ADOPT_TIMEOUT)
            try:
                self._inside(lambda: self._wait_ready(record, process, deadline))
                return
            except VrhaError as error:
                self._progress(f"the RabbitMQ that was left running is ended: {error.message}")
                self.kill()
        self.start(timeout)

    def stop(self, timeout: float = _STOP_TIMEOUT) -> None:
        """End the node cleanly, by force after `timeout` seconds; its data stay."""
        record = _load(self.folder)
        if record is not None and record.process is not None:
            record.process.kill(signal.SIGTERM)
            record.process.wait_gone(timeout)
        _end_marked(record)
        self._collect()

    def kill(self) -> None:
        """End the node as kill -9 does; its data stay."""
        _end_marked(_load(self.folder))
        self._collect()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _need_record(self) -> _Record:
        record = _load(self.folder)
        if record is None:
            raise PreconditionError(
                "broker-not-started", f"no broker was started in {self.folder}", "Start it first."
            )
        return record

    def _choose(self, old: _Record | None) -> _Record:
        """Ports and secrets, those of the last start where there was one."""
        port = self._wanted_port or (old.port if old else 0)
        if old is not None and _bindable(self.listen, port):
            return _Record(**{**_fields(old), "process": None, "port": port})
        if port and not _bindable(self.listen, port):
            raise PreconditionError(
                "port-in-use",
                f"port {port} of {self.listen} is in use by another program",
                "Choose another port, or stop that program (`ss -ltnp` names it).",
            )
        free = _free_ports(self.listen, 3)
        secret = secrets.token_urlsafe(18)
        return _Record(secrets.token_hex(8), secret, port or free[0], free[1], free[2])

    def _write_files(self, record: _Record) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        cookie = home / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(16))
            cookie.chmod(0o400)
        (self.folder / "enabled_plugins").write_text("[].\n")
        config = self.folder / "rabbitmq.config"
        config.touch(mode=0o600)
        config.write_text(_config(record))
        _save(self.folder, record)

    def _wait_ready(self, record: _Record, process: ProcessId, deadline: float) -> None:
        began = said = time.monotonic()
        while not self._answers(record):
            now = time.monotonic()
            if not process.alive:
                raise self._failure()
            if now > deadline:
                raise DeadlineError(
                    "broker-not-ready",
                    f"RabbitMQ is not ready after {now - began:.0f} s",
                    _last_words(self.folder),
                )
            if now - said >= _PROGRESS_EVERY:
                said = now
                self._progress(f"RabbitMQ is starting ({now - began:.0f} s)")
            time.sleep(0.02)
        self._progress(f"RabbitMQ is ready after {time.monotonic() - began:.1f} s")

    def _answers(self, record: _Record) -> bool:
        try:
            # A refused TCP connection costs the starting node nothing, a half-done login does.
            socket.create_connection((self.listen, record.port), timeout=0.5).close()
        except OSError:
            return False
        connection = amqp.Connection(
            host=f"{self.listen}:{record.port}",
            userid=USER,
            password=record.password,
            connect_timeout=2,
            read_timeout=2,
        )
        try:
            connection.connect()
        except (OSError, amqp.AMQPError):
            return False
        with suppress(OSError, amqp.AMQPError):
            connection.close()
        return True

    def _failure(self) -> VrhaError:
        lines = _last_words(self.folder)
        if "eaddrinuse" in (self.folder / "server.log").read_text(errors="replace"):
            return PreconditionError(
                "port-in-use", "a port that RabbitMQ needs was taken meanwhile", lines
            )
        return VrhaError("broker-failed", "RabbitMQ ended while starting", lines)

    def _launch_child(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> ProcessId:
        with log.open("ab") as output:
            child = subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._children.append(child)
        found = ProcessId.of(child.pid)
        assert found is not None, "a child that was not waited for has an entry in /proc"
        return found

    def _collect(self) -> None:
        for child in self._children:
            child.wait(timeout=_STOP_TIMEOUT)
        self._children.clear()


def cleanup(folder: Path) -> None:
    """End whatever a broker in `folder` has left running, by whomever started, and delete it all.

    A process is ours when its environment carries the folder's mark. Raises DeadlineError
    (`broker-not-gone`).
    """
    _end_marked(_load(folder))
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _tools() -> str:
    """Path of epmd. Raises PreconditionError (`missing-tool`)."""
    epmd = shutil.which("epmd", path=os.environ.get("PATH", "") + ":/usr/bin:/usr/sbin")
    if not SERVER.exists() or epmd is None:
        raise PreconditionError(
            "missing-tool", "RabbitMQ is not installed", "apt-get install rabbitmq-server"
        )
    return epmd


def _bindable(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise PreconditionError(
                "bad-listen-address", f"cannot listen on {address}: {error.strerror}"
            ) from error
    return True


def _free_ports(address: str, count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((address, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _config(record: _Record) -> str:
    """In Erlang terms: the newer `.conf` format costs seconds of schema translation per start."""
    return f"""[{{rabbit, [
  {{default_user, <<"{USER}">>}},
  {{default_pass, <<"{record.password}">>}},
  {{loopback_users, []}},
  {{vm_memory_high_watermark, {{absolute, 536870912}}}},
  {{disk_free_limit, 50000000}}
]}}].
"""


def _environment(folder: Path, record: _Record, listen: str) -> Mapping[str, str]:
    no_busy_waiting = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
    local_distribution = "-kernel inet_dist_use_interface {127,0,0,1}"
    return {
        _MARK: record.mark,
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder),
        "ERL_CRASH_DUMP": str(folder / "erl_crash.dump"),
        "ERL_EPMD_PORT": str(record.epmd_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        # Lets the script become the Erlang machine instead of waiting for it as its parent.
        "RUNNING_UNDER_SYSTEMD": "true",
        "RABBITMQ_NODENAME": f"vrha-{record.mark}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": listen,
        "RABBITMQ_NODE_PORT": str(record.port),
        "RABBITMQ_DIST_PORT": str(record.dist_port),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "rabbitmq.pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.config"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{no_busy_waiting} {local_distribution}",
    }


def _fields(record: _Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in _Record.__slots__}


def _save(folder: Path, record: _Record) -> None:
    fresh = folder / f"{_RECORD}.new"
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps(asdict(record)))
    fresh.replace(folder / _RECORD)


def _load(folder: Path) -> _Record | None:
    try:
        raw = json.loads((folder / _RECORD).read_text())
        process = raw.pop("process")
        return _Record(**raw, process=ProcessId(**process) if process else None)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PreconditionError(
            "state-damaged",
            f"{folder / _RECORD} is damaged: {error}",
            f"End what still runs in {folder}, then remove that folder: a new broker is made.",
        ) from error


def _last_words(folder: Path, lines: int = 12) -> str:
    """Why the node did not start, as it says itself, else the end of its output."""
    output = (folder / "server.log").read_text(errors="replace").splitlines()
    text = [line for line in output if line.strip()]
    if "BOOT FAILED" in text:
        return "\n".join(text[text.index("BOOT FAILED") :][:lines])
    return "\n".join(text[-lines:])


def _end_marked(record: _Record | None) -> None:
    """Kill every process that carries the record's mark, until there is none.

    Raises DeadlineError (`broker-not-gone`).
    """
    if record is None:
        return
    deadline = time.monotonic() + _STOP_TIMEOUT
    while found := _marked(record.mark):
        for process in found:
            process.kill()
        if wait_until_gone(found, deadline - time.monotonic()):
            pids = ", ".join(str(process.pid) for process in found)
            raise DeadlineError("broker-not-gone", f"processes {pids} do not end")


def _marked(mark: str) -> list[ProcessId]:
    wanted = f"{_MARK}={mark}".encode()
    found: list[ProcessId] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        # Ended, or a process whose environment even root may not read: not ours.
        with suppress(OSError):
            process = ProcessId.of(int(entry.name))
            variables = (entry / "environ").read_bytes().split(b"\0")
            if process is not None and wanted in variables and process.alive:
                found.append(process)
    return found
