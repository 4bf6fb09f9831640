"""Two real orchestrators on one PostgreSQL and one RabbitMQ; nodes with the real executor.

The kernels of the nodes are fakes: what matters is which command reached whom, and when.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.system.conftest import wait_until
from tests.unit.orchestrator.world import DESIRED, FakeNode
from vrha import codec, failpoints
from vrha.bus import topology
from vrha.bus.consumer import Consumer, Headers
from vrha.bus.publisher import Publisher
from vrha.cli.client import Client
from vrha.errors import UnreachableError, VrhaError
from vrha.lab.daemons import environment, toml
from vrha.model.messages import Command
from vrha.model.views import Health, RunView

BEAT_S, TTL_S = 0.2, 1.2
INVENTORY_S = 0.5
START_S, END_S = 40.0, 40.0


@dataclass(frozen=True)
class Taken:
    """A command that reached a node, and from which life of an orchestrator."""

    life: str
    command: Command


class BusNode:
    """A node on the real bus: takes commands, answers, tells what is on it."""

    _one_at_a_time = threading.Lock()
    """The fake actions of `FakeNode.take` are put into the module that all nodes share."""

    def __init__(self, fake: FakeNode, url: str, stop: threading.Event) -> None:
        self.fake = fake
        self.taken: list[Taken] = []
        self._reports, self._inventories = Publisher((url,)), Publisher((url,))
        queue = topology.node_queue(fake.name)
        self._consumer = Consumer((url,), queue, self._take, declare=(queue,))
        self._stop = stop
        works = (lambda: self._consumer.run(stop), self._tell)
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for thread in self._threads:
            thread.join(20)
        self._reports.close()
        self._inventories.close()

    def _take(self, body: bytes, headers: Headers) -> None:
        command = codec.decode_message(body, topology.MAX_DOWN)
        assert isinstance(command, Command)
        self.taken.append(Taken(headers.message_id.partition("-")[0], command))
        with self._one_at_a_time:
            said = self.fake.take(command)
        for answer in said:
            self._publish(self._reports, answer)

    def _tell(self) -> None:
        while not self._stop.wait(INVENTORY_S):
            with suppress(UnreachableError):
                self._publish(self._inventories, self.fake.inventory())

    def _publish(self, publisher: Publisher, body: bytes) -> None:
        key = topology.up_key(self.fake.name, codec.decode_message(body).type)
        publisher.publish(topology.UP.name, key, body, message_id=uuid.uuid4().hex)


class Process:
    """One orchestrator, `vrha orchestrator run`; failpoints in a folder of its own."""

    def __init__(self, folder: Path, name: str, broker: str, store: str, ttl_s: float) -> None:
        self.name = name
        self.failpoints = folder / f"{name}.failpoints"
        self.failpoints.mkdir()
        self._socket = folder / f"{name}.sock"
        self._log = folder / f"{name}.log"
        self._config = folder / f"{name}.toml"
        secret = folder / f"{name}.url"
        secret.touch(0o600)
        secret.write_text(store + "\n")
        tables = {
            "api": {"socket": str(self._socket)},
            "bus": {"urls": [broker]},
            "store": {"url_file": str(secret)},
            "leader": {"beat_s": BEAT_S, "ttl_s": ttl_s},
            "run": {"step_s": 4.0, "check_in_s": 4.0, "strategy": "parallel"},
        }
        self._config.write_text(toml({"name": name, "state_dir": str(folder / name), **tables}))
        self._config.chmod(0o600)
        self.client = Client(str(self._socket))
        self.start()

    def start(self) -> None:
        argv = (sys.executable, "-m", "vrha.cli.main", "orchestrator", "run", "--config")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*argv, str(self._config)],
                env=environment({failpoints.VARIABLE: str(self.failpoints)}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait_gone(self) -> None:
        self._process.wait(END_S)

    def end(self) -> None:
        """Whatever state it is in."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(END_S)

    def health(self) -> Health | None:
        """None while nobody answers."""
        try:
            return self.client.health()
        except VrhaError:
            return None

    @property
    def leads(self) -> bool:
        health = self.health()
        return health is not None and health.leads and health.leader == self.name

    @property
    def works(self) -> bool:
        """Whether it leads, and has heard all nodes over the broker."""
        health = self.health()
        return self.leads and health is not None and health.broker and health.nodes_heard == 2

    def arm(self, place: str, action: str) -> None:
        (self.failpoints / place).write_text(action)

    def reached(self, place: str) -> bool:
        return (self.failpoints / f"{place}.reached").exists()

    def go(self, place: str) -> None:
        (self.failpoints / f"{place}.go").touch()

    def said(self, words: str) -> bool:
        """Whether its log has these words."""
        return words in self._log.read_text()


@dataclass
class Pair:
    """`first` leads, `second` stands by, router r1 of network `blue` serves."""

    first: Process
    second: Process
    nodes: tuple[BusNode, ...]

    def commands(self) -> list[Taken]:
        """What reached the nodes."""
        return [taken for node in self.nodes for taken in node.taken]

    def instances(self) -> set[str]:
        return {str(ref) for node in self.nodes for ref in node.fake.instances}

    def owners(self) -> list[str]:
        return [str(ref) for node in self.nodes for ref in node.fake.kernel.owners()]

    def ended(self, by: Process, run: str) -> RunView:
        """The run at its end, as `by` tells it."""
        wait_until(lambda: by.client.run(run).status.terminal, END_S, f"end of {run}")
        return by.client.run(run)


@contextmanager
def pair(folder: Path, broker: str, store: str, ttl_s: float = TTL_S) -> Iterator[Pair]:
    stop = threading.Event()
    fakes: dict[str, FakeNode] = {}
    with ExitStack() as stack:
        nodes = []
        for name in ("n1", "n2"):
            fakes[name] = FakeNode(name, folder, fakes)
            node = BusNode(fakes[name], broker, stop)
            stack.callback(node.close)
            nodes.append(node)
        stack.callback(stop.set)
        processes = []
        for name in ("o1", "o2"):
            process = Process(folder, name, broker, store, ttl_s)
            stack.callback(process.end)
            processes.append(process)
            # The second one only then: so it is known who leads.
            wait_until(process.health, START_S, f"{name} answers")
            if name == "o1":
                wait_until(lambda: processes[0].leads, START_S, "o1 leads")
                processes[0].client.apply(DESIRED)
        made = Pair(processes[0], processes[1], tuple(nodes))
        wait_until(lambda: made.first.works, START_S, "all nodes are heard")
        wait_until(made.owners, START_S, "the router serves")
        wait_until(
            lambda: not made.first.client.runs(open_only=True), START_S, "nothing is under way"
        )
        yield made
