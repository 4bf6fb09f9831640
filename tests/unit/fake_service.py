"""A Service in memory: answers from its attributes, records calls, raises what it is told to."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

from vrha.errors import NotFoundError, RefusedError
from vrha.model.evidence import Measurement
from vrha.model.pauses import Pause, PauseTarget
from vrha.model.rollouts import (
    Member,
    MemberStatus,
    PlannedMember,
    RolloutBrief,
    RolloutPlan,
    RolloutRequest,
    RolloutStatus,
    RolloutView,
    StopReason,
)
from vrha.model.runs import AS_CONFIGURED, RestartOptions, RunKind, RunStatus, StepStatus, Strategy
from vrha.model.spec import Desired, Policy
from vrha.model.views import (
    ApplyResult,
    BrakeView,
    Change,
    ChangeKind,
    Event,
    Health,
    NetworkView,
    NodeCondition,
    NodeStatus,
    NodeView,
    OpenRun,
    RouterStatus,
    RouterView,
    RunView,
    SignalView,
    Status,
    StepView,
    WhyView,
)


def step(seq: int, what: str, undo: str = "", node: str = "node-1") -> StepView:
    return StepView(seq, what, node, StepStatus.PENDING, 0, "", undo)


def restart_of(router: str, strategy: Strategy | None, run_id: str = "r1") -> RunView:
    """A run of four steps that has just begun."""
    return RunView(
        id=run_id,
        kind=RunKind.RESTART,
        router=router,
        epoch=2,
        strategy=strategy or Strategy.PARALLEL,
        status=RunStatus.RUNNING,
        steps=(
            step(0, f"build {router}#2", f"destroy {router}#2"),
            step(1, f"wait for the check-in of {router}#2", node=""),
            step(2, f"swap {router}#1 for {router}#2", f"swap {router}#2 for {router}#1"),
            step(3, f"destroy {router}#1"),
        ),
        undo=(),
        point_of_no_return=3,
        old=f"{router}#1",
        new=f"{router}#2",
        reason="",
        detail="",
        leftovers=(),
        started_at="2026-03-01T10:00:00Z",
        ended_at="",
    )


def one_further(run: RunView) -> RunView:
    """The run after its next step; after the last one it is done."""
    steps = list(run.steps)
    for place, each in enumerate(steps):
        if each.status is not StepStatus.DONE:
            timings = (("build", 9.5),) if place == 0 else ()
            steps[place] = replace(each, status=StepStatus.DONE, attempt=1, timings_ms=timings)
            break
    else:
        return replace(run, status=RunStatus.DONE, ended_at="2026-03-01T10:00:01.250Z")
    return replace(run, steps=tuple(steps))


def rolled_back(run: RunView) -> RunView:
    """The run after a replacement that never checked in."""
    return replace(
        run,
        status=RunStatus.ROLLED_BACK,
        reason="check-in-deadline",
        detail="no check-in of web#2 within 10 s",
        steps=(replace(run.steps[0], status=StepStatus.UNDONE), *run.steps[1:]),
        undo=(replace(step(0, "destroy web#2"), status=StepStatus.DONE, attempt=1),),
        leftovers=("bridge port v0123",),
        ended_at="2026-03-01T10:00:11Z",
    )


def rollout_of(request: RolloutRequest, rollout_id: str = "x1") -> RolloutView:
    """A rollout of three routers that has just begun."""
    members = (Member("r1"), Member("r2"), Member("r3"))
    running = RolloutStatus.RUNNING
    return RolloutView(rollout_id, request, running, "", "", 1, members, "2026-03-01T10:00:00Z", "")


def one_router_further(rollout: RolloutView, ends_well: bool) -> RolloutView:
    """The rollout after its next router; with `ends_well` False the second is rolled back."""
    members = list(rollout.members)
    ended = sum(1 for member in members if member.ended)
    if ended == len(members):
        return replace(rollout, status=RolloutStatus.DONE, ended_at="2026-03-01T10:00:06Z")
    if members[ended].status is MemberStatus.RUNNING:
        bad = ended == 1 and not ends_well
        members[ended] = replace(
            members[ended],
            status=MemberStatus.ROLLED_BACK if bad else MemberStatus.DONE,
            lost=0,
            reason="check-in-deadline" if bad else "",
            ended_at=f"2026-03-01T10:00:0{ended + 1}.500Z",
        )
        if bad:
            why = "router r2, run a2: check-in-deadline"
            rollout = replace(
                rollout, status=RolloutStatus.STOPPED, reason=StopReason.ROLLED_BACK, detail=why
            )
        return replace(rollout, members=tuple(members))
    members[ended] = Member(
        members[ended].router,
        MemberStatus.RUNNING,
        rollout.round,
        f"a{ended + 1}",
        Strategy.HANDOVER,
        "node-1",
        "node-2",
        started_at=f"2026-03-01T10:00:0{ended + 1}Z",
    )
    return replace(rollout, members=tuple(members))


class FakeService:
    """One network `web-net` behind router `web` on `node-1`; each look at a run moves it on."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.state = Desired()
        self.open: dict[str, RunView] = {}
        self.asked: dict[str, RolloutView] = {}
        self.draining: set[str] = set()
        self.paused: dict[PauseTarget, Pause] = {}
        self.watched = True
        self.ends_well = True
        self.moves = True
        self.unplaced = 0
        self.error: Exception | None = None
        self.applied: list[Desired] = []
        self.set: dict[str, dict[str, Policy | int]] = {}
        self.moved: list[tuple[str, RestartOptions]] = []
        self.started: list[tuple[str, Strategy | None]] = []
        self.threads: set[str] = set()

    def _called(self) -> None:
        self.threads.add(threading.current_thread().name)
        if self.error is not None:
            raise self.error

    def desired(self) -> Desired:
        self._called()
        return self.state

    def diff(self, desired: Desired) -> tuple[Change, ...]:
        self._called()
        had = {n.name for n in self.state.networks}
        want = {n.name for n in desired.networks}
        return (
            *(Change(ChangeKind.ADD, "network", name) for name in sorted(want - had)),
            *(Change(ChangeKind.REMOVE, "network", name) for name in sorted(had - want)),
            *(Change(ChangeKind.CHANGE, "network", name, ("dns",)) for name in sorted(had & want)),
        )

    def apply(self, desired: Desired) -> ApplyResult:
        changes = self.diff(desired)
        self.applied.append(desired)
        self.state = desired
        self.open["r7"] = restart_of("web", None, "r7")
        return ApplyResult(len(self.applied), changes, ("r7",))

    def set_router(
        self, router: str, policy: Policy | None = None, priority: int | None = None
    ) -> ApplyResult:
        self._called()
        given = {"policy": policy, "priority": priority}
        fields = {name: value for name, value in given.items() if value is not None}
        self.set[router] = fields
        return ApplyResult(2, (Change(ChangeKind.CHANGE, "router", router, tuple(fields)),), ())

    def plan_restart(self, network: str, options: RestartOptions = AS_CONFIGURED) -> RunView:
        self._known(network)
        return restart_of("web", options.strategy, "")

    def restart_network(self, network: str, options: RestartOptions = AS_CONFIGURED) -> RunView:
        self._known(network)
        for run in self.open.values():
            if not run.status.terminal:
                raise RefusedError(
                    "run-in-progress",
                    f"router web has an open run: {run.id}",
                    f"`vrha run watch {run.id}` shows it.",
                )
        self.started.append((network, options.strategy))
        run = restart_of("web", options.strategy, f"r{len(self.started)}")
        self.open[run.id] = run
        return run

    def plan_move(self, router: str, options: RestartOptions) -> RunView:
        self._called()
        return restart_of(router, options.strategy, "")

    def move_router(self, router: str, options: RestartOptions) -> RunView:
        self._called()
        self.moved.append((router, options))
        run = restart_of(router, options.strategy, f"m{len(self.moved)}")
        self.open[run.id] = run
        return run

    def plan_rollout(self, request: RolloutRequest) -> RolloutPlan:
        self._called()
        refused = PlannedMember("r2", None, "no-node", "node-2: full")
        planned = PlannedMember("web", restart_of("web", request.options.strategy, ""))
        return RolloutPlan(request, (planned, refused))

    def start_rollout(self, request: RolloutRequest) -> RolloutView:
        self._called()
        for rollout in self.asked.values():
            if rollout.status.open:
                raise RefusedError("rollout-in-progress", f"rollout {rollout.id} has not ended")
        if request.node:
            self.draining.add(request.node)
        rollout = rollout_of(request, f"x{len(self.asked) + 1}")
        self.asked[rollout.id] = rollout
        return rollout

    def rollouts(self, limit: int = 50) -> tuple[RolloutBrief, ...]:
        self._called()
        return tuple(_brief(rollout) for rollout in self.asked.values())[:limit]

    def rollout(self, rollout_id: str) -> RolloutView:
        self._called()
        if rollout_id not in self.asked:
            raise NotFoundError("no-such-rollout", f"no rollout {rollout_id}")
        rollout = self.asked[rollout_id]
        if self.moves and rollout.status.open:
            self.asked[rollout_id] = one_router_further(rollout, self.ends_well)
        return self.asked[rollout_id]

    def stop_rollout(self, rollout_id: str) -> RolloutView:
        found = replace(self.rollout(rollout_id), status=RolloutStatus.STOPPING, reason="asked")
        self.asked[rollout_id] = found
        return found

    def resume_rollout(self, rollout_id: str) -> RolloutView:
        found = self.rollout(rollout_id)
        if found.status is not RolloutStatus.STOPPED:
            raise RefusedError("not-stopped", f"rollout {rollout_id} is {found.status}")
        members = tuple(m if m.status == "done" else Member(m.router) for m in found.members)
        running = RolloutStatus.RUNNING
        self.asked[rollout_id] = replace(
            found, status=running, members=members, round=2, reason="", detail=""
        )
        return self.asked[rollout_id]

    def undrain(self, node: str) -> NodeView:
        self.draining.discard(node)
        for view in self.nodes():
            if view.name == node:
                return view
        raise NotFoundError("no-such-node", f"no node {node}")

    def pauses(self) -> tuple[Pause, ...]:
        self._called()
        return tuple(self.paused.values())

    def pause(self, target: PauseTarget, by: str, reason: str) -> Pause:
        self._called()
        if target.name == "nope":
            raise NotFoundError(f"no-such-{target.scope}", f"no {target}")
        self.paused[target] = Pause(target, "2026-03-01T10:00:00.000+00:00", by, reason)
        return self.paused[target]

    def resume(self, target: PauseTarget, by: str) -> Pause:
        self._called()
        if target not in self.paused:
            raise NotFoundError("not-paused", f"{target} is not paused", "Paused: nothing.")
        return self.paused.pop(target)

    def status(self) -> Status:
        self._called()
        until = "2026-03-01T10:20:00.000+00:00"
        heard, silent = NodeCondition.SUPPRESSED, NodeCondition.SILENT
        since = "2026-03-01T10:00:00.000+00:00"
        return Status(
            leader="o2",
            leader_epoch=7,
            leads=self.watched,
            broker=True,
            brake=BrakeView(True, "mass-silence", since, 0, 1, 2, 1, True)
            if self.watched
            else None,
            pauses=tuple(self.paused.values()),
            nodes=(
                NodeStatus("node-1", "east", heard, 120.4, 0.25, 1, True, True, until, ""),
                NodeStatus("node-2", "west", silent, None, None, 0, False, False, "", "budget"),
            ),
            open_runs=tuple(
                OpenRun(run.id, run.kind, run.router, run.started_at)
                for run in self.open.values()
                if not run.status.terminal
            ),
            not_served=self.routers(),
        )

    def _known(self, network: str) -> None:
        self._called()
        if network != "web-net":
            raise NotFoundError("no-such-network", f"no network {network}")

    def networks(self) -> tuple[NetworkView, ...]:
        self._called()
        status = RouterStatus.SERVING
        subnets = ("10.1.0.0/24", "2001:db8:1::/64")
        return (NetworkView("web-net", "br-web", subnets, "web", status, "node-1", ""),)

    def routers(self) -> tuple[RouterView, ...]:
        self._called()
        status = RouterStatus.FAILED
        if self.unplaced > 0:
            self.unplaced -= 1
            reason = "no-node: node-1: silent"
            return (RouterView("web", ("web-net",), status, "", "", 0, "", reason),)
        return (
            RouterView("web", ("web-net",), status, "web#1", "node-1", 1, "", "check-in-deadline"),
        )

    def nodes(self) -> tuple[NodeView, ...]:
        self._called()
        return (
            NodeView("node-1", "east", ("web#1",), 500, 0.25, "0.1.0", "node-1" in self.draining),
            NodeView("node-2", "west", (), 500, None, ""),
        )

    def why_node(self, name: str) -> WhyView:
        if name not in (node.name for node in self.nodes()):
            raise NotFoundError("no-such-node", f"no node {name}")
        return self._why("node", name, "heard")

    def why_router(self, name: str) -> WhyView:
        found = next((router for router in self.routers() if router.name == name), None)
        if found is None:
            raise NotFoundError("no-such-router", f"no router {name}")
        state = f"{found.status}, instance {found.instance} on {found.node}: {found.reason}"
        return self._why("router", name, state)

    def _why(self, noun: str, name: str, state: str) -> WhyView:
        signals = (SignalView("the agent is dead\x1b", 2.0), SignalView("there is a broker"))
        events = tuple(self.events())[:1]
        return WhyView(
            noun, name, "node-1", state, "agent-dead", signals, "wait", "nothing hurries", events
        )

    def run(self, run_id: str) -> RunView:
        self._called()
        if run_id not in self.open:
            raise NotFoundError("no-such-run", f"no run {run_id}")
        run = self.open[run_id]
        if self.moves and not run.status.terminal:
            self.open[run_id] = one_further(run) if self.ends_well else rolled_back(run)
        return self.open[run_id]

    def keep_measurement(self, run_id: str, measurement: Measurement) -> RunView:
        self._called()
        if run_id not in self.open:
            raise NotFoundError("no-such-run", f"no run {run_id}")
        self.open[run_id] = replace(self.open[run_id], measurement=measurement)
        return self.open[run_id]

    def runs(self, open_only: bool = False, limit: int = 50) -> Sequence[RunView]:
        self._called()
        runs = [r for r in self.open.values() if not (open_only and r.status.terminal)]
        return runs[:limit]

    def events(self, after: int = 0, limit: int = 200) -> Sequence[Event]:
        self._called()
        at = "2026-03-01T10:00:00Z"
        events = [
            Event(1, at, "run-started", "r1", "web", "node-1", "operator", ""),
            Event(2, at, "check-in-refused", "r1", "web", "node-1", "wrong-token", "a\x1b[2Jb"),
        ]
        return [event for event in events if event.id > after][:limit]

    def health(self) -> Health:
        self._called()
        return Health("0.1.0", True, True, 1, 0, 0, False, "o2", 7)

    def metrics(self) -> bytes:
        self._called()
        return b"# TYPE vrha_runs gauge\nvrha_runs 1.0\n"


def _brief(rollout: RolloutView) -> RolloutBrief:
    request, members = rollout.request, rollout.members
    counts = tuple(
        (status, sum(1 for m in members if m.status is status)) for status in MemberStatus
    )
    return RolloutBrief(
        rollout.id,
        request.kind,
        request.zone,
        request.node,
        rollout.status,
        rollout.reason,
        rollout.detail,
        len(members),
        tuple((status, count) for status, count in counts if count),
        sum(m.lost or 0 for m in members),
        rollout.started_at,
        rollout.ended_at,
    )
