"""An engine on a real store, and nodes that answer as a test wants them to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

from vrha import codec
from vrha.core.run import Limits
from vrha.model.messages import CheckIn, Command, Inventory, Outcome, StepReport
from vrha.model.runs import RunStatus, Strategy
from vrha.model.spec import (
    Desired,
    InstanceRef,
    Network,
    Node,
    Router,
    StaticNat,
    Subnet,
    Uplink,
)
from vrha.model.state import Activity, ObservedInstance, SelfTest, Upstream
from vrha.model.steps import Build, Destroy, Mute, Swap, Unmute
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


@dataclass
class FakeNode:
    """Instances by name and whether they are active; `broken` fails a kind of step."""

    name: str
    instances: dict[InstanceRef, bool] = field(default_factory=dict)
    broken: str = ""
    checks_in: bool = True
    change_check_in: Callable[[CheckIn], CheckIn] = lambda message: message
    highest: dict[str, int] = field(default_factory=dict)

    def take(self, command: Command) -> list[bytes]:
        if command.epoch < self.highest.get(command.router, 0):
            return [codec.encode(self._report(command, 0, "stale-epoch"))]
        self.highest[command.router] = command.epoch
        said: list[bytes] = []
        for index, step in enumerate(command.steps):
            if step.kind == self.broken:
                return [*said, codec.encode(self._report(command, index, "broken"))]
            if isinstance(step, Build):
                self.instances[step.spec.ref] = False
                if command.token and self.checks_in:
                    said.append(codec.encode(self.change_check_in(self._proof(command, step))))
            elif isinstance(step, Swap):
                self.instances[step.old], self.instances[step.new] = False, True
            elif isinstance(step, Mute | Unmute) and step.instance in self.instances:
                self.instances[step.instance] = isinstance(step, Unmute)
            elif isinstance(step, Destroy):
                self.instances.pop(step.instance, None)
            said.append(codec.encode(self._report(command, index)))
        return said

    def inventory(self, life: str = "life-1") -> bytes:
        observed = tuple(
            ObservedInstance(ref, 1, Activity.ACTIVE if active else Activity.MUTED, True)
            for ref, active in self.instances.items()
        )
        return codec.encode(Inventory(self.name, life, "0.1.0", ("parallel",), observed))

    def _report(self, command: Command, index: int, code: str = "") -> StepReport:
        return StepReport(
            command.run,
            command.router,
            command.epoch,
            self.name,
            command.attempt,
            command.first_seq + index,
            command.undo,
            Outcome.FAILED if code else Outcome.DONE,
            code,
        )

    def _proof(self, command: Command, step: Build) -> CheckIn:
        ports = tuple(port.name for port in step.spec.ports)
        test = SelfTest(ports, (), expected_digest(step.spec), True, Upstream.REACHABLE)
        return CheckIn(
            command.run,
            command.router,
            step.spec.ref,
            command.epoch,
            self.name,
            command.token,
            test,
            10.0,
        )


class World:
    """Engine, service and two nodes; `settle` carries messages until nobody has any."""

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.url = f"sqlite:///{folder}/store.db"
        self.limits = limits or Limits()
        self.nodes = {name: FakeNode(name) for name in ("n1", "n2")}
        self.reachable = {"n1", "n2"}
        self.start()

    def start(self) -> None:
        self.store = Store.open(self.url)
        self.metrics = Metrics()
        self.engine = Engine(self.store, self.limits, self.metrics, lambda: None)
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
            self.engine.receive(node.inventory())
        self.service.apply(DESIRED)
        self.settle()
        return self.owner()

    def step(self) -> bool:
        """Deliver one command and its answers; False when there was none."""
        with self.store.transaction() as tx:
            rows = [row for row in tx.unsent() if row.node in self.reachable]
        if not rows:
            return False
        with self.store.transaction() as tx:
            tx.mark_sent([rows[0].id])
        command = codec.decode_message(rows[0].body)
        assert isinstance(command, Command)
        for body in self.nodes[rows[0].node].take(command):
            self.engine.receive(body)
        return True

    def settle(self) -> None:
        for _ in range(100):
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
