"""An engine on a real store, and nodes: the real executor on kernels as a test wants them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import cast

from vrha import codec
from vrha.agent.epochs import Epochs
from vrha.agent.executor import Executor
from vrha.bus.topology import MAX_DOWN
from vrha.core.run import Limits
from vrha.errors import StepError
from vrha.linux.build import Timings
from vrha.linux.node import NodeKernel
from vrha.model.messages import CheckIn, Command, Inventory, Message
from vrha.model.runs import RunStatus, Strategy
from vrha.model.spec import (
    Desired,
    InstanceRef,
    InstanceSpec,
    Network,
    Node,
    Router,
    StaticNat,
    Subnet,
    Uplink,
)
from vrha.model.state import Activity, ObservedInstance, SelfTest, Upstream
from vrha.orchestrator.app import is_over
from vrha.orchestrator.engine import Engine
from vrha.orchestrator.metrics import Metrics
from vrha.orchestrator.service import OrchestratorService
from vrha.render.digest import expected_digest
from vrha.store import Store

BLUE = Network("blue", "br-blue", (Subnet(ip_network("10.1.1.0/24"), ip_address("10.1.1.1")),))
UPLINK = Uplink(
    "br-public",
    (ip_interface("203.0.113.10/24"), ip_interface("203.0.113.11/24")),
    (ip_address("203.0.113.1"),),
)
ROUTER = Router("r1", ("blue",), UPLINK, source_nat=(ip_address("203.0.113.10"),))
DESIRED = Desired((BLUE,), (ROUTER,), (Node("n1", "z1"), Node("n2", "z2")))
WITH_NAT = replace(
    ROUTER, static_nat=(StaticNat(ip_address("203.0.113.11"), ip_address("10.1.1.11")),)
)


class Killed(BaseException):
    """The agent was killed."""


class FakeKernel:
    """Instances by name and whether they are active; `broken` fails a kind of step.

    When `fuse` has burnt down, that many effects after it was lit, the agent is killed.
    """

    def __init__(self) -> None:
        self.instances: dict[InstanceRef, bool] = {}
        self.epochs: dict[InstanceRef, int] = {}
        self.broken: set[str] = set()
        self.fuse: int | None = None

    def build(self, spec: InstanceSpec, leases_from: InstanceRef | None = None) -> Timings:
        self._try("build")
        if self.instances.get(spec.ref):
            raise StepError("instance-active", f"{spec.ref} is active")
        self.instances[spec.ref] = False
        self.epochs[spec.ref] = spec.epoch
        return ()

    def configure(self, spec: InstanceSpec, previous: InstanceSpec) -> Timings:
        self._try("configure")
        self._need(spec.ref)
        self.epochs[spec.ref] = spec.epoch
        return ()

    def self_test(self, spec: InstanceSpec) -> SelfTest:
        self._need(spec.ref)
        ports = tuple(port.name for port in spec.ports)
        return SelfTest(ports, (), expected_digest(spec), True, Upstream.REACHABLE)

    def swap(self, old: InstanceRef, new: InstanceRef) -> None:
        self._try("swap")
        self._need(new)
        if old in self.instances:
            self.instances[old] = False
        self.instances[new] = True

    def mute(self, ref: InstanceRef) -> None:
        self._try("mute")
        if ref in self.instances:
            self.instances[ref] = False

    def unmute(self, ref: InstanceRef) -> None:
        self._try("unmute")
        self._need(ref)
        self.instances[ref] = True

    def announce(self, ref: InstanceRef) -> None:
        self._try("announce")
        self._need(ref)
        if not self.instances[ref]:
            raise StepError("not-active", f"{ref} is muted")

    def destroy(self, ref: InstanceRef) -> Timings:
        self._try("destroy")
        self.instances.pop(ref, None)
        return ()

    def _try(self, kind: str) -> None:
        if self.fuse is not None:
            if self.fuse == 0:
                raise Killed
            self.fuse -= 1
        if kind in self.broken:
            raise StepError("broken", f"{kind} is broken")

    def _need(self, ref: InstanceRef) -> None:
        if ref not in self.instances:
            raise StepError("no-instance", f"there is no {ref}")


class FakeNode:
    """The real executor on a fake kernel; `restart` loses all that is not on disk."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.kernel = FakeKernel()
        self.checks_in = True
        self.change_check_in: Callable[[CheckIn], CheckIn] = lambda message: message
        self.life = 0
        self._epochs = folder / f"epochs-{name}.json"
        self.restart()

    def restart(self) -> None:
        self.life += 1
        kernel = cast(NodeKernel, self.kernel)
        self._executor = Executor(self.name, kernel, Epochs(self._epochs))

    @property
    def instances(self) -> dict[InstanceRef, bool]:
        return self.kernel.instances

    def take(self, command: Command) -> list[bytes]:
        said: list[Message] = []
        for message in self._executor.execute(command, time.monotonic()):
            if not isinstance(message, CheckIn):
                said.append(message)
            elif self.checks_in:
                said.append(self.change_check_in(message))
        return [codec.encode(message) for message in said]

    def inventory(self) -> bytes:
        observed = tuple(
            ObservedInstance(
                ref,
                self.kernel.epochs.get(ref, 0),
                Activity.ACTIVE if active else Activity.MUTED,
                True,
            )
            for ref, active in self.instances.items()
        )
        life = f"life-{self.life}"
        return codec.encode(Inventory(self.name, life, "0.1.0", ("parallel",), observed))


class World:
    """Engine, service and two nodes; `settle` carries messages until nobody has any."""

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/store.db"
        self.now = 1000.0
        self.limits = replace(limits or Limits(), retry_s=0.0)
        self.nodes = {name: FakeNode(name, folder) for name in ("n1", "n2")}
        self.reachable = {"n1", "n2"}
        self.start()

    def add_node(self, name: str) -> None:
        self.nodes[name] = FakeNode(name, self.folder)
        self.reachable.add(name)

    def start(self) -> None:
        self.store = Store.open(self.url)
        self.metrics = Metrics()
        self.engine = Engine(self.store, self.limits, self.metrics, lambda: None, lambda: self.now)
        self.service = OrchestratorService(
            self.store, self.engine, self.metrics, lambda: None, lambda: True, Strategy.PARALLEL
        )

    def restart_orchestrator(self) -> None:
        self.store.close()
        self.start()
        self.engine.resume()

    def serving(self) -> InstanceRef:
        """Bring the world to one serving router; its instance."""
        for node in self.nodes.values():
            self.receive(node.inventory())
        self.service.apply(DESIRED)
        self.settle()
        return self.owner()

    def step(self) -> bool:
        """Deliver one command and its answers; False when there was none."""
        with self.store.transaction() as tx:
            rows = [
                row
                for row in tx.unsent()
                if row.node in self.reachable and not is_over(row, self.now)
            ]
        if not rows:
            return False
        with self.store.transaction() as tx:
            tx.mark_sent([rows[0].id])
        command = codec.decode_message(rows[0].body, MAX_DOWN)
        assert isinstance(command, Command)
        for body in self.nodes[rows[0].node].take(command):
            self.receive(body)
        return True

    def receive(self, body: bytes) -> None:
        """A message as the node would send it that it claims to come from."""
        self.engine.receive(body, codec.decode_message(body).node)

    def pass_deadlines(self, rounds: int = 1) -> None:
        """Let the deadlines pass of what nobody answers, `rounds` times."""
        for _ in range(rounds):
            self.now += max(self.limits.step_s, self.limits.check_in_s)
            self.engine.tick()

    def heard(self, rounds: int = 1) -> None:
        """Every reachable node tells what is on it."""
        for _ in range(rounds):
            for name in sorted(self.reachable):
                self.receive(self.nodes[name].inventory())

    def settle(self) -> None:
        for _ in range(100):
            if not self.step():
                self.engine.tick()
                if not self.step():
                    return
        raise AssertionError("the world does not come to rest")

    def owners(self) -> list[InstanceRef]:
        return [ref for n in self.nodes.values() for ref, active in n.instances.items() if active]

    def owner(self) -> InstanceRef:
        (owner,) = self.owners()
        return owner

    def all_instances(self) -> set[InstanceRef]:
        return {ref for node in self.nodes.values() for ref in node.instances}

    def last_run(self) -> tuple[RunStatus, str]:
        run = self.service.runs()[0]
        return run.status, run.reason
