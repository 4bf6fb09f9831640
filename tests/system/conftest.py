"""A real RabbitMQ for the whole session, in folders, ports and with a cookie of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
CTL = "/usr/lib/rabbitmq/bin/rabbitmqctl"
START_TIMEOUT_S = 90.0


@dataclass
class Broker:
    """A private broker; `url` is the URL of its default virtual host."""

    folder: Path
    port: int
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    @property
    def erlang(self) -> int:
        """Pid of the Erlang machine, which is the broker itself."""
        return int((self.folder / "pid").read_text())

    def ctl(self, *arguments: str) -> str:
        done = subprocess.run(
            [CTL, "-q", "-n", self.environment["RABBITMQ_NODENAME"], *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=True,
        )
        return done.stdout

    def start(self) -> None:
        log = (self.folder / "stdout").open("ab")
        with log:
            self.process = subprocess.Popen(
                [SERVER],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._listens, START_TIMEOUT_S)
        self.ctl("await_startup")

    def stop(self) -> None:
        """Clean stop; nothing is left running, epmd included."""
        assert self.process is not None
        os.kill(self.erlang, signal.SIGTERM)
        self.process.wait(30)

    def kill(self) -> None:
        """Crash."""
        assert self.process is not None
        os.kill(self.erlang, signal.SIGKILL)
        self.process.wait(30)

    def vhost(self, name: str) -> str:
        """A new virtual host; returns its URL."""
        self.ctl("add_vhost", name)
        self.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{name}"

    def _listens(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"RabbitMQ ended: {(self.folder / 'stdout').read_text()[-2000:]}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def wait_until(condition, timeout_s: float = 10.0, what: str = "") -> None:  # type: ignore[no-untyped-def]
    """Wait for `condition()` to be true. Fails the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s} s: {what or condition}")
        time.sleep(0.01)


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def private_broker(folder: Path) -> Broker:
    """A broker in `folder`, not yet started; nothing of an installed one is touched."""
    port, distribution, epmd, tool = free_ports(4)
    home = folder / "home"
    home.mkdir()
    cookie = home / ".erlang.cookie"
    cookie.write_text(secrets.token_hex(16))
    cookie.chmod(0o400)
    (folder / "plugins").write_text("[].")
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.default = {port}\n"
        "vm_memory_high_watermark.absolute = 512MB\n"
        "disk_free_limit.absolute = 50MB\n"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "ERL_EPMD_PORT": str(epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_CTL_DIST_PORT_MIN": str(tool),
        "RABBITMQ_CTL_DIST_PORT_MAX": str(tool),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
    }
    return Broker(folder, port, environment)


def end_of(broker: Broker) -> None:
    """Stop what is left of the broker: the Erlang machine and its epmd, by their environment."""
    mark = f"ERL_EPMD_PORT={broker.environment['ERL_EPMD_PORT']}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    if broker.process is not None:
        broker.process.wait(10)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    if not Path(SERVER).exists():
        pytest.skip("RabbitMQ is not installed")
    folder = Path(tempfile.mkdtemp(prefix="vrha-broker-"))
    one = private_broker(folder)
    try:
        one.start()
        yield one
    finally:
        end_of(one)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def eventually():  # type: ignore[no-untyped-def]
    """`eventually(condition, timeout_s)` waits for a condition instead of sleeping."""
    return wait_until
