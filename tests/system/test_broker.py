"""A private RabbitMQ of our own: real starts, ends, crashes and clashes."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import amqp
import kombu
import pytest

from tests.system.labkit import python, until, vrha
from vrha.bus import broker as module
from vrha.bus.broker import PrivateBroker, cleanup
from vrha.bus.processes import ProcessId
from vrha.errors import PreconditionError, RefusedError, VrhaError
from vrha.lab.zone import Lab

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.unhurried]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    folder = tmp_path_factory.mktemp("broker") / "one"
    with PrivateBroker(folder) as broker:
        yield broker
    assert not marked(folder)
    cleanup(folder)
    assert not folder.exists()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for a broker; at the end nothing that names it may run."""
    path = tmp_path / "rabbit"
    yield path
    left = marked(path)
    cleanup(path)
    assert not left


def marked(folder: Path) -> list[int]:
    """Processes with the broker's home in their environment: Erlang, epmd and helpers."""
    wanted = f"HOME={folder}/home".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            process = ProcessId.of(int(entry.name))
            if wanted in variables and process is not None and process.alive:
                found.append(process.pid)
    return found


def send_and_receive(url: str, text: str) -> str:
    with kombu.Connection(url, connect_timeout=5, transport_options={"confirm_publish": True}) as c:
        queue = kombu.Queue(
            "test", kombu.Exchange("test"), "key", queue_arguments={"x-queue-type": "quorum"}
        )
        received: list[str] = []

        def take(body: dict[str, str], message: kombu.Message) -> None:
            received.append(body["text"])
            message.ack()

        with c.Consumer(queue, callbacks=[take], accept=["json"]):
            c.Producer().publish(
                {"text": text}, exchange=queue.exchange, routing_key="key", timeout=10
            )
            # It may have come already, together with the confirmation.
            while not received:
                c.drain_events(timeout=10)
        return received[0]


def test_publish_and_consume(running: PrivateBroker) -> None:
    assert running.alive
    assert send_and_receive(running.url, "hello") == "hello"


def test_only_the_random_password_opens_it(running: PrivateBroker) -> None:
    for user, password in (("guest", "guest"), ("vrha", "wrong")):
        connection = amqp.Connection(
            f"127.0.0.1:{running.port}", userid=user, password=password, connect_timeout=5
        )
        with pytest.raises(amqp.AccessRefused):
            connection.connect()
        connection.collect()


def test_it_listens_on_loopback_only(running: PrivateBroker) -> None:
    inodes = set()
    for pid in marked(running.folder):
        with suppress(FileNotFoundError):
            descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
        for descriptor in descriptors:
            # The broker closes files while we look.
            with suppress(FileNotFoundError):
                match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor))
                if match:
                    inodes.add(match[1])
    listening = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                listening[int(port, 16)] = address
    assert running.port in listening
    local = {"0100007F", "0" * 24 + "01000000", "0" * 16 + "FFFF0000" + "0100007F"}
    assert set(listening.values()) <= local, listening


def test_everything_is_in_its_folder_and_closed(running: PrivateBroker) -> None:
    assert running.folder.stat().st_mode & 0o077 == 0
    for secret in ("broker.json", "rabbitmq.config", "home/.erlang.cookie"):
        assert (running.folder / secret).stat().st_mode & 0o077 == 0
    for pid in marked(running.folder):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(fd)
            except FileNotFoundError:
                continue
            if target.startswith("/") and not target.startswith(("/dev", "/usr", "/proc", "/sys")):
                assert target.startswith(str(running.folder)), target


def test_second_start_is_refused(running: PrivateBroker) -> None:
    with pytest.raises(RefusedError) as caught:
        PrivateBroker(running.folder).start()
    assert caught.value.code == "broker-running"
    assert send_and_receive(running.url, "still there") == "still there"


def test_port_in_use_is_told_before_anything_starts(running: PrivateBroker, folder: Path) -> None:
    began = time.monotonic()
    with pytest.raises(PreconditionError) as caught:
        PrivateBroker(folder, port=running.port).start()
    assert caught.value.code == "port-in-use"
    assert str(running.port) in caught.value.message
    assert time.monotonic() - began < 2
    assert not marked(folder)


def test_port_taken_while_it_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", 0))
        thief.listen()
        monkeypatch.setattr(module, "_bindable", lambda _address, _port: True)
        # The thief answers no AMQP: it must not be taken for the broker either.
        with pytest.raises(PreconditionError) as caught:
            PrivateBroker(folder, port=thief.getsockname()[1]).start(timeout=60)
    assert caught.value.code == "port-in-use"


def test_second_instance_beside_the_first_stop_start_kill(
    running: PrivateBroker, folder: Path
) -> None:
    said: list[str] = []
    broker = PrivateBroker(folder, progress=said.append)
    broker.start()
    assert said
    assert "ready after" in said[-1]
    assert send_and_receive(broker.url, "second") == "second"
    confirm = {"confirm_publish": True}
    with kombu.Connection(broker.url, transport_options=confirm) as connection:
        queue = kombu.Queue("kept", durable=True, channel=connection)
        queue.declare()
        connection.Producer().publish({"n": 1}, routing_key="kept", delivery_mode=2)

    # Killed: restarted in place, same port, password and data.
    url, first = broker.url, broker.pid
    os.kill(first, signal.SIGKILL)
    until(lambda: not broker.alive, "its death")
    broker.start()
    assert broker.url == url
    assert broker.pid != first
    with kombu.Connection(url) as connection:
        assert kombu.Queue("kept", channel=connection.channel()).get() is not None

    broker.stop()
    assert not broker.alive
    assert not marked(folder)
    assert send_and_receive(running.url, "first") == "first"
    cleanup(folder)


def test_one_left_running_is_used_again_unless_it_hangs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starter = PrivateBroker(folder)
    starter.start()
    first = starter.pid
    heir = PrivateBroker(folder)
    heir.resume()
    assert heir.pid == first

    os.kill(first, signal.SIGSTOP)
    monkeypatch.setattr("vrha.bus.broker._ADOPT_TIMEOUT", 0.5)
    heir.resume()
    assert heir.pid != first
    assert send_and_receive(heir.url, "again") == "again"
    heir.stop()
    starter.stop()
    assert not marked(folder)


def test_cleanup_after_its_starter_was_killed(running: PrivateBroker, folder: Path) -> None:
    code = """if True:
        import sys, time
        from pathlib import Path
        from vrha.bus.broker import PrivateBroker
        PrivateBroker(Path(sys.argv[1])).start()
    """
    with python(code, str(folder)) as starter:
        # While Erlang boots: the record of the node is there, its port is not.
        until(lambda: PrivateBroker.running(folder), "its process", 30)
        until(lambda: len(marked(folder)) >= 3, "Erlang, epmd, a helper", 30)
        starter.kill()
    assert marked(folder)
    cleanup(folder)
    assert not marked(folder)
    assert not folder.exists()
    assert running.alive
    cleanup(folder)


def test_broken_configuration_shows_the_last_lines(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_config", lambda _record: "[{rabbit, oops")
    with pytest.raises(VrhaError) as caught:
        PrivateBroker(folder).start()
    assert caught.value.code == "broker-failed"
    assert caught.value.hint.startswith("BOOT FAILED")
    assert "configuration" in caught.value.hint
    assert not marked(folder)


def test_without_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SERVER", Path("/usr/lib/rabbitmq/bin/none"))
    with pytest.raises(PreconditionError) as caught:
        PrivateBroker(folder).start()
    assert caught.value.code == "missing-tool"
    assert caught.value.hint == "apt-get install rabbitmq-server"
    assert not folder.exists()


STAND_IN = """
import pathlib, socket, sys, time, tomllib
kind, _run, _config, path = sys.argv[1:]
settings = tomllib.loads(pathlib.Path(path).read_text())
import kombu
with kombu.Connection(settings["bus"]["urls"][0], connect_timeout=5) as connection:
    connection.connect()
    print(socket.gethostname(), "connected", flush=True)
    if kind == "orchestrator":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(settings["api"]["socket"])
        listener.listen()
    time.sleep(600)
"""


def test_daemons_of_a_lab(tmp_path: Path) -> None:
    script = tmp_path / "daemon.py"
    script.write_text(STAND_IN)
    with Lab.up("seed-10x10", f"t{os.getpid()}-daemons", ephemeral=True) as lab:
        lab.start_daemons(vrha=[*_interpreter(), str(script)])
        assert lab.socket.exists()
        for node in lab.nodes:
            agent = lab.agent(node)
            until(lambda a=agent, n=node: f"{n} connected" in a.tail(), "its connection")
        assert all(lab.status().daemons.values())

        def tcp(address: str) -> bool:
            with socket.socket() as probe:
                probe.settimeout(1)
                return probe.connect_ex((address, 5672)) == 0

        assert lab.call("n1", lambda: tcp("172.31.255.1"))
        assert not lab.call("vm1", lambda: tcp("172.31.255.1"))

        broker = lab.broker()
        first = broker.pid
        broker.kill()
        assert not lab.status().daemons["broker"]
        broker.start()
        assert broker.pid != first
        until(lambda: lab.call("n2", lambda: tcp("172.31.255.1")), "the port")
        processes = [ProcessId.of(broker.pid), *(lab.agent(n).process for n in lab.nodes)]
        folder = lab.folder / "broker"
    assert not any(process and process.alive for process in processes)
    assert not marked(folder)


def _interpreter() -> list[str]:
    return [sys.executable]


def test_interrupted_up_with_broker_leaves_nothing() -> None:
    name = f"t{os.getpid()}-int"
    code = "import sys; from vrha.cli.main import run; sys.exit(run(sys.argv[1:]))"
    with python(code, "lab", "up", "--name", name) as up:
        folder = Path("/run/vrha-lab") / name / "broker"
        until(lambda: PrivateBroker.running(folder), "the broker's process", 30)
        up.send_signal(signal.SIGINT)
        _out, err = up.communicate(timeout=30)
        assert up.returncode == 130, err
    assert not folder.parent.exists()
    assert not marked(folder)
    assert vrha("lab", "status", "--name", name).returncode == 2
