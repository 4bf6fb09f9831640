"""One zone, and one fault after the other in it."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from tests.system.labfaults import Damage, LabFault, node_of, resolved
from tests.system.labhands import LabHands, small_disks
from tools.soaking import watch
from tools.soaking.audit import differences, inventory
from tools.soaking.kinds import Injection, Promise
from tools.soaking.scenario import FORGIVING, NODES, scenario
from tools.soaking.stall import measured
from vrha.cli.client import Client
from vrha.config.desired import load
from vrha.errors import VrhaError
from vrha.lab.owners import Answers
from vrha.lab.zone import Lab
from vrha.model.probing import Result
from vrha.model.runs import RestartOptions, Strategy
from vrha.model.spec import Desired, Policy
from vrha.model.views import Event, RouterStatus
from vrha.probe.process import ProbeProcess, serving

_UP_S, _CALM_S, _FAULT_S = 60.0, 60.0, 60.0
_UNSEEN_S = 12.0
"""Two inventories and a build: who has seen a damage has undone it by then."""
_STAYS_S = 2.0
"""All leases that a fault has ended are over by then, and it is known who is out."""
_WARM_S, _SETTLE_S = 0.4, 0.5
_TOLD = ("brake-on", "brake-off", "failover-decided", "instance-missing", "node-silent")


@dataclass
class Outcome:
    """What came of an injection. Times in ms; counts of all routers together."""

    number: int
    kind: str
    faults: list[str]
    after_ms: float
    began_s: float
    gap_ms: float = 0.0
    stall_ms: float = 0.0
    """The longest time in which this machine ran nobody."""
    lost: int = 0
    lost_by: dict[str, int] = field(default_factory=dict)
    tcp_total: int = 0
    tcp_alive: int = 0
    doubles: int = 0
    overlap_ms: float = 0.0
    by_hand: str = ""
    calm_s: float = 0.0
    decided: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Stage:
    """A zone at rest, as `inventory` shows it."""

    def __init__(self, lab: Lab, client: Client, hands: LabHands) -> None:
        self.lab, self.client, self.hands = lab, client, hands
        self._streams = watch.streams(lab)
        if not _wait(lambda: self._is_calm() and self._all_reached(), _CALM_S):
            raise AssertionError(f"a new zone is not calm: {self._unrest()}")
        self.guest = watch.Guest(lab)
        self._rest = inventory(lab, client)
        self._began = time.monotonic()

    def play(self, injection: Injection) -> Outcome:
        """Do it, wait until it is over, and look at everything. Raises VrhaError, OSError where
        not even that was possible."""
        faults: list[LabFault] = []
        out = Outcome(
            injection.number,
            injection.kind,
            [],
            injection.after_ms,
            round(time.monotonic() - self._began, 1),
        )
        serves = {router.name: router.node for router in self.client.routers()}
        runs, event = {run.id for run in self.client.runs()}, self._latest_event()
        with (
            ProbeProcess(self._streams, require_reply_s=5) as probes,
            watch.owners(self.lab) as ask,
            measured() as stall,
        ):
            time.sleep(_WARM_S + injection.pause_ms / 1000)
            for number, fault in enumerate(injection.faults):
                if number:
                    time.sleep(injection.after_ms / 1000)
                faults.append(self._strike(fault, faults, serves))
                out.faults.append(str(faults[-1]))
            self._await_end(out, injection, faults)
            time.sleep(_SETTLE_S)
            result = probes.stop()
        out.stall_ms = stall.longest_ms
        self._account(out, result, watch.doubles(ask), injection.promise)
        self._look(out)
        out.decided = self._decided(runs, event)
        return out

    def _strike(self, fault: LabFault, before: list[LabFault], serves: dict[str, str]) -> LabFault:
        taken = [node_of(each) for each in before]
        real = resolved(fault, serves, [node for node in taken if node])
        self.hands.strike(real)
        return real

    def _await_end(self, out: Outcome, injection: Injection, faults: list[LabFault]) -> None:
        _wait(lambda: not self.hands.pending, _FAULT_S)
        _wait(lambda: not any(r.status.open for r in self.client.rollouts()), _FAULT_S)
        self.hands.heal()
        began = time.monotonic()
        if injection.promise.by_hand:
            self._by_hand(out, [f.router for f in faults if isinstance(f, Damage)])
        if not self._settles():
            why = self._unrest() or f"not reached: {', '.join(watch.unreached(self.lab))}"
            out.violations.append(f"not calm after {_CALM_S:g} s: {why}")
        out.calm_s = round(time.monotonic() - began - _STAYS_S, 1)

    def _settles(self) -> bool:
        """Wait until all is well and stays so: a fault may be over before anybody has seen it."""
        deadline = time.monotonic() + _CALM_S
        since = time.monotonic()
        while time.monotonic() < since + _STAYS_S:
            if not _holds(lambda: self._is_calm() and self._all_reached()):
                since = time.monotonic()
            if time.monotonic() > deadline:
                return False
        return True

    def _by_hand(self, out: Outcome, routers: list[str]) -> None:
        """What an operator does whose router serves nobody, and vrha says nothing of it."""
        if _wait(lambda: self._all_reached() and self._is_calm(), _UNSEEN_S):
            return
        for name in routers:
            for strategy in (None, Strategy.SERIAL):
                if name not in watch.unreached(self.lab):
                    break
                out.by_hand = f"restart {strategy or ''}".strip()
                with contextlib.suppress(VrhaError):
                    view = next(r for r in self.client.routers() if r.name == name)
                    run = self.client.restart_network(view.networks[0], RestartOptions(strategy))
                    _wait(partial(self._has_ended, run.id), _CALM_S)

    def _has_ended(self, run_id: str) -> bool:
        return self.client.run(run_id).status.terminal

    def _all_reached(self) -> bool:
        return not watch.unreached(self.lab)

    def _account(
        self, out: Outcome, result: Result, doubles: dict[str, Answers], promise: Promise
    ) -> None:
        out.gap_ms = round(watch.longest_gap(result), 1)
        out.lost_by = {s.stream.name: s.loss.lost for s in result.streams if s.loss.lost}
        out.lost = sum(out.lost_by.values())
        out.tcp_total = sum(one.total for one in result.connections)
        out.tcp_alive = sum(one.alive for one in result.connections)
        out.doubles = sum(answers.doubles for answers in doubles.values())
        out.overlap_ms = round(max((a.overlap_ms for a in doubles.values()), default=0.0), 1)
        for address, answers in doubles.items():
            out.violations.append(f"{address} had two owners for {answers.overlap_ms:.0f} ms")
        for one in result.streams:
            if one.loss.unrestored:
                out.violations.append(f"{one.stream.name} has no answer any more")
        if promise.gap_ms is not None and out.gap_ms > promise.gap_ms + out.stall_ms:
            out.violations.append(
                f"gap of {out.gap_ms:.0f} ms, {promise.gap_ms:.0f} promised,"
                f" machine stood still for {out.stall_ms:.0f}"
            )
        if promise.alive and out.tcp_alive < out.tcp_total:
            out.violations.append(f"{out.tcp_total - out.tcp_alive} connections broke")

    def _look(self, out: Outcome) -> None:
        """The audit: what is there is what was there at the beginning."""
        deadline = time.monotonic() + 20
        while (left := self.changed()) and time.monotonic() < deadline:
            time.sleep(0.1)
        out.left = left
        if out.left:
            out.violations.append(f"{len(out.left)} differences in the inventory")
        problem = self.guest.problem()
        if problem:
            out.violations.append(f"guest: {problem}")
        out.violations += [f"undoing it: {error}" for error in self.hands.errors]
        self.hands.errors.clear()

    def changed(self) -> list[str]:
        """What is not as it was at the beginning."""
        return differences(self._rest, inventory(self.lab, self.client))

    def _is_calm(self) -> bool:
        return not self._unrest()

    def _unrest(self) -> str:
        """What is not as it should be; empty at rest."""
        health = self.client.health()
        if not health.broker or health.nodes_heard != len(NODES):
            return f"{health.nodes_heard} nodes heard, broker {health.broker}"
        mute = [node for node in NODES if not self.lab.watcher_status(node)["live_ms"]]
        routers = self.client.routers()
        odd = [r for r in routers if r.status is not RouterStatus.SERVING]
        alone = [
            r.name
            for r in routers
            if r.policy is Policy.STANDBY and not (r.standby and r.standby.in_sync)
        ]
        busy = [run.id for run in self.client.runs(open_only=True)]
        words = [*(f"{node} is mute" for node in mute), *(f"run {run}" for run in busy)]
        words += [f"{r.name} {r.status} {r.reason}" for r in odd]
        return ", ".join([*words, *(f"the standby of {name} is not in sync" for name in alone)])

    def _latest_event(self) -> int:
        events = self._events(0)
        return events[-1].id if events else 0

    def _events(self, after: int) -> list[Event]:
        found: list[Event] = []
        while more := self.client.events(found[-1].id if found else after, limit=1000):
            found += more
        return found

    def _decided(self, runs: set[str], event: int) -> list[str]:
        """What the product did about it."""
        new = [run for run in self.client.runs() if run.id not in runs]
        words = Counter(
            f"{run.kind} {run.router} {run.status}" + (f" ({run.reason})" if run.reason else "")
            for run in reversed(new)
        )
        words.update(e.kind + (f" {e.reason}" if e.reason else "") for e in self._events(event)
                     if e.kind in _TOLD)  # fmt: skip
        return [f"{count} x {word}" if count > 1 else word for word, count in words.items()]


@contextlib.contextmanager
def stage(name: str, tell: Callable[[str], None]) -> Iterator[Stage]:
    """A lab of that name whose routers all serve. Raises VrhaError, AssertionError."""
    with Lab.up(scenario(), name, ephemeral=True) as lab:
        small_disks(lab)
        tell("starting a zone")
        lab.start_daemons(watched=True, failover=FORGIVING)
        client = Client(str(lab.socket))
        desired = load(lab.zone_file)
        client.apply(Desired((), (), desired.nodes))
        if not _wait(lambda: client.health().nodes_heard == len(NODES), _UP_S):
            raise AssertionError("not all agents are heard")
        client.apply(desired)
        hands = LabHands(lab, client)
        _wait(lambda: all(r.status is RouterStatus.SERVING for r in client.routers()), _UP_S)
        with serving(7, [lab.netns_path(machine) for machine in lab.machines]):
            try:
                yield Stage(lab, client, hands)
            finally:
                # The lab goes as a whole: there is nothing to heal.
                hands.abandon()


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it comes true in time; who does not answer says no."""
    deadline = time.monotonic() + timeout_s
    while True:
        if _holds(condition):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def _holds(condition: Callable[[], bool]) -> bool:
    """Whether it is true now; who does not answer says no."""
    with contextlib.suppress(VrhaError):
        return condition()
    return False
