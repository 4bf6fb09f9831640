"""An engine on a real store, and nodes: the real executor on kernels as a test wants them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any, cast
from unittest import mock

from vrha import codec
from vrha.agent import executor
from vrha.agent.epochs import Epochs
from vrha.agent.executor import Done, Executor, Hands
from vrha.bus.topology import MAX_DOWN
from vrha.core.happenings import Limits
from vrha.errors import StepError
from vrha.linux.build import Timings
from vrha.linux.node import NodeKernel
from vrha.model.evidence import NO_EVIDENCE
from vrha.model.messages import CheckIn, Command, Inventory, Message, PutLeases
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
from vrha.model.state import Activity, Following, ObservedInstance, SelfTest, Upstream
from vrha.model.steps import Flip, Offer, Relay, Step, Sync, Verify
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


@dataclass
class FakeInstance:
    """What the kernel knows: the two sets of ports, and the MACs that neighbours send to."""

    active: bool = False
    relay: bool = False
    epoch: int = 0
    macs: tuple[str, ...] = ()
    leases: str = ""
    """What it was built with."""
    damaged: bool = False
    """It lacks a port or its namespace."""

    @property
    def activity(self) -> Activity:
        if self.damaged:
            return Activity.PARTIAL
        if not self.active:
            return Activity.MUTED
        return Activity.RELAY if self.relay else Activity.ACTIVE


class FakeKernel:
    """Instances by name; `broken` fails a kind of step.

    When `fuse` has burnt down, that many effects after it was lit, the agent is killed. What the
    agent only holds in memory, offers and syncs, is in `FakeSessions` and goes with it.
    """

    def __init__(self) -> None:
        self.instances: dict[InstanceRef, FakeInstance] = {}
        self.fdb: dict[str, InstanceRef] = {}
        """Sticky entries by MAC; they go with the instance that they point at."""
        self.broken: set[str] = set()
        self.fuse: int | None = None

    def build(
        self, spec: InstanceSpec, leases_from: InstanceRef | None = None, leases: str = ""
    ) -> Timings:
        self.effect("build")
        if spec.ref in self.instances and self.instances[spec.ref].active:
            raise StepError("instance-active", f"{spec.ref} is active")
        macs = tuple(port.mac for port in spec.ports)
        self.instances[spec.ref] = FakeInstance(epoch=spec.epoch, macs=macs, leases=leases)
        return ()

    def await_permission(self, ref: InstanceRef) -> None:
        """Nobody governs a fake."""

    def ready(self, ref: InstanceRef) -> None:
        """It stays muted where nobody governs."""

    def configure(self, spec: InstanceSpec, previous: InstanceSpec) -> Timings:
        self.effect("configure")
        self.need(spec.ref).epoch = spec.epoch
        return ()

    def self_test(self, spec: InstanceSpec) -> SelfTest:
        self.need(spec.ref)
        ports = tuple(port.name for port in spec.ports)
        return SelfTest(ports, (), expected_digest(spec), True, Upstream.REACHABLE)

    def swap(self, old: InstanceRef, new: InstanceRef) -> None:
        self.effect("swap")
        fresh = self.need(new)
        if old in self.instances:
            self.instances[old].active = False
        fresh.active, fresh.relay = True, False

    def mute(self, ref: InstanceRef) -> None:
        self.effect("mute")
        if ref in self.instances:
            self.instances[ref].active = False

    def unmute(self, ref: InstanceRef) -> None:
        self.effect("unmute")
        instance = self.need(ref)
        instance.active, instance.relay = True, False

    def announce(self, ref: InstanceRef) -> None:
        self.effect("announce")
        if not self.need(ref).active:
            raise StepError("not-active", f"{ref} is muted")

    def relay(self, ref: InstanceRef) -> None:
        """Of an instance that is muted nothing is heard all the same."""
        self.effect("relay")
        if ref in self.instances:
            self.instances[ref].relay = True

    def turn(self, old: InstanceRef, new: InstanceRef) -> None:
        """The two halves of a flip on one node; the agent may be killed between them."""
        self.effect("flip")
        fresh = self.need(new)
        if old in self.instances:
            self.instances[old].relay = True
        fresh.active, fresh.relay = True, False
        self.effect("flip")
        self.fdb |= dict.fromkeys(fresh.macs, new)

    def destroy(self, ref: InstanceRef) -> Timings:
        self.effect("destroy")
        self.instances.pop(ref, None)
        self.fdb = {mac: to for mac, to in self.fdb.items() if to != ref}
        return ()

    def owners(self) -> list[InstanceRef]:
        return [r for r, i in self.instances.items() if i.activity is Activity.ACTIVE]

    def forwards(self, ref: InstanceRef) -> bool:
        """Whether frames to the MACs of `ref` reach an instance that forwards them."""
        instance = self.instances[ref]
        reached = {self.fdb.get(mac, ref) for mac in instance.macs}
        return instance.active and all(self.instances[r].active for r in reached)

    def effect(self, kind: str) -> None:
        if self.fuse is not None:
            if self.fuse == 0:
                raise Killed
            self.fuse -= 1
        if kind in self.broken:
            raise StepError("broken", f"{kind} is broken")

    def need(self, ref: InstanceRef) -> FakeInstance:
        if ref not in self.instances:
            raise StepError("no-instance", f"there is no {ref}")
        return self.instances[ref]


@dataclass
class FakeSessions:
    """What an agent holds in memory: tokens it has offered, and syncs it keeps up."""

    offers: set[str] = field(default_factory=set)
    syncs: set[tuple[InstanceRef, InstanceRef]] = field(default_factory=set)
    follows: dict[InstanceRef, InstanceRef] = field(default_factory=dict)
    """Whom the standbys here follow."""


class FakeNode:
    """The real executor on a fake kernel; `restart` loses all that is not on disk."""

    def __init__(self, name: str, folder: Path, others: Mapping[str, FakeNode]) -> None:
        self.name = name
        self.kernel = FakeKernel()
        self.capabilities: tuple[str, ...] = ("serial", "parallel", "handover", "move", "standby")
        self.checks_in = True
        self.change_check_in: Callable[[CheckIn], CheckIn] = lambda message: message
        self.life = 0
        self.reaches_peers = True
        self._others = others
        self._epochs = folder / f"epochs-{name}.json"
        self.restart()

    def restart(self) -> None:
        self.life += 1
        self.sessions = FakeSessions()
        kernel = cast(NodeKernel, self.kernel)
        self._executor = Executor(self.name, Hands(kernel), Epochs(self._epochs))

    @property
    def instances(self) -> dict[InstanceRef, FakeInstance]:
        return self.kernel.instances

    def take(self, command: Command) -> list[bytes]:
        said: list[Message] = []
        with mock.patch.dict(executor.ACTIONS, self._actions()):
            taken = self._executor.execute(command, time.monotonic())
        for message in taken:
            if not isinstance(message, CheckIn):
                said.append(message)
            elif self.checks_in:
                said.append(self.change_check_in(message))
        return [codec.encode(message) for message in said]

    def _actions(self) -> dict[type[Step], Callable[[Hands, Any], Done]]:
        """How the steps of a handover are taken here."""
        actions = (self._offer, self._sync, self._flip, self._verify, self._relay)
        kinds = (Offer, Sync, Flip, Verify, Relay)
        return {k: partial(_ignore_kernel, a) for k, a in zip(kinds, actions, strict=True)}

    def _offer(self, step: Offer) -> None:
        self.kernel.effect("offer")
        self.kernel.need(step.old)
        self.sessions.offers.add(step.peer.token)

    def _sync(self, step: Sync) -> None:
        self.kernel.effect("sync")
        self.kernel.need(step.new)
        pair = (step.old, step.new)
        if step.peer is None:
            self.kernel.need(step.old)
        else:
            other = self._other(step.peer.node)
            other.kernel.need(step.old)
            if pair in self.sessions.syncs & other.sessions.syncs:
                return
            if step.peer.token not in other.sessions.offers:
                raise StepError("not-offered", "the other end knows nothing of it")
            other.sessions.offers.remove(step.peer.token)
            if step.standby:
                self.sessions.follows[step.new] = step.old
                return
            other.sessions.syncs.add(pair)
        self.sessions.syncs.add(pair)

    def _flip(self, step: Flip) -> None:
        """Whose new one serves already needs no sync: it may be a flip back, or a repetition."""
        new, pair = self.kernel.need(step.new), (step.old, step.new)
        if not new.active and pair not in self.sessions.syncs:
            raise StepError("no-sync", f"nothing was carried over into {step.new}")
        if not step.from_peer:
            self.kernel.turn(step.old, step.new)
            return
        if new.activity is Activity.ACTIVE:
            return
        other = self._other(step.from_peer)
        if pair not in other.sessions.syncs:
            raise StepError("no-sync", "the stream is closed")
        self.kernel.effect("flip")
        other.kernel.need(step.old).relay = True
        self.kernel.effect("flip")
        new.active, new.relay = True, False

    def _verify(self, step: Verify) -> None:
        self.kernel.effect("verify")
        if self.kernel.need(step.new).activity is not Activity.ACTIVE:
            raise StepError("not-active", f"{step.new} does not serve")
        if not self.kernel.forwards(step.new):
            raise StepError("probes-lost", f"nothing passes through {step.new}")

    def _relay(self, step: Relay) -> None:
        self.kernel.relay(step.instance)

    def _following(self, ref: InstanceRef) -> Following | None:
        """A stream lasts as long as both of its ends."""
        old = self.sessions.follows.get(ref)
        if not any(old in node.instances for node in self._others.values()):
            return None
        return Following(old, 5, 0, 1.0) if old is not None else None

    def _other(self, name: str) -> FakeNode:
        if not self.reaches_peers:
            raise StepError("peer-unreachable", f"no stream to {name}")
        return self._others[name]

    def inventory(self) -> bytes:
        observed = tuple(
            ObservedInstance(ref, instance.epoch, instance.activity, True, self._following(ref))
            for ref, instance in self.instances.items()
        )
        message = Inventory(
            self.name,
            f"life-{self.life}",
            "0.1.0",
            self.capabilities,
            observed,
            sync_address=f"{self.name}:4711" if "move" in self.capabilities else "",
            certificate=f"PEM of {self.name}" if "move" in self.capabilities else "",
        )
        return codec.encode(message)


def _ignore_kernel(action: Callable[[Any], None], hands: Hands, step: Step) -> Done:
    action(step)
    return (), NO_EVIDENCE


class World:
    """Engine, service and two nodes; `settle` carries messages until nobody has any."""

    def __init__(
        self,
        folder: Path,
        limits: Limits | None = None,
        preferred: Strategy = Strategy.PARALLEL,
    ) -> None:
        self.preferred = preferred
        self.folder = folder
        self.url = f"sqlite:///{folder}/store.db"
        self.now = 1000.0
        self.limits = replace(limits or Limits(), retry_s=0.0)
        self.nodes: dict[str, FakeNode] = {}
        self.reachable: set[str] = set()
        for name in ("n1", "n2"):
            self.add_node(name)
        self.start()

    def add_node(self, name: str) -> None:
        self.nodes[name] = FakeNode(name, self.folder, self.nodes)
        self.reachable.add(name)

    def start(self) -> None:
        self.store = Store.open(self.url)
        self.metrics = Metrics()
        self.engine = Engine(self.store, self.limits, self.metrics, lambda: None, lambda: self.now)
        self.service = OrchestratorService(
            self.store, self.engine, self.metrics, lambda: None, lambda: True, self.preferred
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
                for row in tx.outbox.unsent()
                if row.node in self.reachable and not is_over(row, self.now)
            ]
        if not rows:
            return False
        with self.store.transaction() as tx:
            tx.outbox.mark_sent([rows[0].id])
        command = codec.decode_message(rows[0].body, MAX_DOWN)
        if isinstance(command, PutLeases):
            return True
        assert isinstance(command, Command)
        node = self.nodes[rows[0].node]
        try:
            said = node.take(command)
        except Killed:
            # Its command was not acknowledged: it comes again.
            node.kernel.fuse = None
            node.restart()
            said = node.take(command)
        for body in said:
            self.receive(body)
        return True

    def receive(self, body: bytes) -> None:
        """A message as the node would send it that it claims to come from."""
        self.engine.receive(body, codec.decode_message(body).node)

    def pass_deadlines(self, rounds: int = 1, sync: bool = False) -> None:
        """Let the deadlines pass of what nobody answers, `rounds` times; also that of a `sync`."""
        for _ in range(rounds):
            limits = self.limits
            self.now += max(limits.step_s, limits.check_in_s, limits.sync_s if sync else 0.0)
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
        """Who answers for the addresses: relays only forward."""
        return [ref for node in self.nodes.values() for ref in node.kernel.owners()]

    def owner(self) -> InstanceRef:
        (owner,) = self.owners()
        return owner

    def forwarding(self) -> list[InstanceRef]:
        """Instances through which packets to their MACs pass, relays as well."""
        kernels = [node.kernel for node in self.nodes.values()]
        return [ref for k in kernels for ref in k.instances if k.forwards(ref)]

    def home_of(self, ref: InstanceRef) -> FakeNode:
        (node,) = (node for node in self.nodes.values() if ref in node.instances)
        return node

    def all_instances(self) -> set[InstanceRef]:
        return {ref for node in self.nodes.values() for ref in node.instances}

    def last_run(self) -> tuple[RunStatus, str]:
        run = self.service.runs()[0]
        return run.status, run.reason
