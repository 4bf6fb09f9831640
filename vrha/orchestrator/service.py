"""What the HTTP API offers, on top of store and engine. Implements `vrha.ports.Service`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import vrha
from vrha.core.diff import diff
from vrha.core.instance import instance_spec
from vrha.core.standby import is_wanted
from vrha.errors import NotFoundError, RefusedError, UnreachableError
from vrha.model.evidence import Measurement
from vrha.model.pauses import Pause, PauseTarget
from vrha.model.rollouts import RolloutBrief, RolloutPlan, RolloutRequest, RolloutView
from vrha.model.runs import AS_CONFIGURED, RestartOptions, Run, RunKind, Strategy
from vrha.model.spec import Desired, InstanceRef, Policy, Router
from vrha.model.views import (
    ApplyResult,
    BrakeView,
    Change,
    Event,
    Health,
    NetworkView,
    NodeSight,
    NodeView,
    RouterView,
    RunView,
    Status,
    WhyView,
)
from vrha.orchestrator import pauses, reconcile, rollouts, status, views, why
from vrha.orchestrator.engine import Engine
from vrha.orchestrator.metrics import Metrics
from vrha.orchestrator.reconcile import Wanted
from vrha.orchestrator.why import Insight
from vrha.store import Store, Tx

RECONNECT_S = 3.0
"""How long a request that needs the broker waits for a connection that is just being made."""


class OrchestratorService:
    """Every method is one transaction, or a few; all are safe from any thread."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        metrics: Metrics,
        outbox_filled: Callable[[], None],
        broker_connected: Callable[[], bool],
        preferred: Strategy,
        sights: Callable[[], Mapping[str, NodeSight]] = dict,
        brake: Callable[[], BrakeView | None] = lambda: None,
        insight: Insight | None = None,
    ) -> None:
        """`sights` and `brake`: what leases show now; nothing where this one watches none."""
        self._insight = insight or Insight()
        self._store = store
        self._engine = engine
        self._metrics = metrics
        self._outbox_filled = outbox_filled
        self._broker_connected = broker_connected
        self._preferred = preferred
        self._sights = sights
        self._brake = brake

    # --- desired state ----------------------------------------------------------------------

    def desired(self) -> Desired:
        with self._store.reading() as tx:
            return tx.desired()[1]

    def diff(self, desired: Desired) -> tuple[Change, ...]:
        return diff(self.desired(), desired)

    def apply(self, desired: Desired) -> ApplyResult:
        with self._store.transaction() as tx:
            result = self._apply(tx, desired)
        self._outbox_filled()
        return result

    def set_router(
        self, router: str, policy: Policy | None = None, priority: int | None = None
    ) -> ApplyResult:
        with self._store.transaction() as tx:
            desired = tx.desired()[1]
            old = _known_router(desired, router)
            new = replace(
                old,
                policy=old.policy if policy is None else policy,
                priority=old.priority if priority is None else priority,
            )
            routers = tuple(new if each is old else each for each in desired.routers)
            result = self._apply(tx, replace(desired, routers=routers))
        self._outbox_filled()
        return result

    def _apply(self, tx: Tx, desired: Desired) -> ApplyResult:
        version, old = tx.desired()
        changes = diff(old, desired)
        _refuse_busy(tx, desired)
        if changes:
            version = tx.put_desired(desired)
            tx.add_event("applied", "desired-state", detail=f"{len(changes)} changes")
        runs = reconcile.converge(tx, desired)
        for run in runs:
            self._engine.start(tx, run)
        runs += self._engine.look_at_standbys(tx)
        return ApplyResult(version, changes, tuple(run.id for run in runs))

    # --- restart ----------------------------------------------------------------------------

    def plan_restart(self, network: str, options: RestartOptions = AS_CONFIGURED) -> RunView:
        with self._store.transaction() as tx:
            return views.run_view(self._restart(tx, network, options, dry_run=True))

    def restart_network(self, network: str, options: RestartOptions = AS_CONFIGURED) -> RunView:
        self._demand_broker()
        with self._store.transaction() as tx:
            view = self._begin(tx, self._restart(tx, network, options, dry_run=False))
        self._outbox_filled()
        return view

    def plan_move(self, router: str, options: RestartOptions) -> RunView:
        with self._store.transaction() as tx:
            return views.run_view(self._move(tx, router, options, dry_run=True))

    def move_router(self, router: str, options: RestartOptions) -> RunView:
        self._demand_broker()
        with self._store.transaction() as tx:
            view = self._begin(tx, self._move(tx, router, options, dry_run=False))
        self._outbox_filled()
        return view

    # --- rollouts ---------------------------------------------------------------------------

    def plan_rollout(self, request: RolloutRequest) -> RolloutPlan:
        with self._store.transaction() as tx:
            routers = rollouts.routers_of(tx, tx.desired()[1], request)
        planned: list[Run] = []
        members = []
        # One transaction each: the plans of 500 routers must not hold up what is going on.
        for router in routers:
            with self._store.transaction() as tx:
                members.append(rollouts.plan_one(tx, request, self._preferred, router, planned))
        return RolloutPlan(request, tuple(members))

    def start_rollout(self, request: RolloutRequest) -> RolloutView:
        self._demand_broker()
        with self._store.transaction() as tx:
            rollout = rollouts.begin(tx, request, self._preferred)
        self._engine.rollouts_changed()
        return self.rollout(rollout.id)

    def rollouts(self, limit: int = 50) -> tuple[RolloutBrief, ...]:
        with self._store.reading() as tx:
            return rollouts.briefs(tx, limit)

    def rollout(self, rollout_id: str) -> RolloutView:
        with self._store.reading() as tx:
            return rollouts.view_of(tx, rollout_id)

    def stop_rollout(self, rollout_id: str) -> RolloutView:
        with self._store.transaction() as tx:
            rollouts.stop(tx, rollout_id)
        self._engine.rollouts_changed()
        return self.rollout(rollout_id)

    def resume_rollout(self, rollout_id: str) -> RolloutView:
        self._demand_broker()
        with self._store.transaction() as tx:
            rollouts.resume(tx, rollout_id)
        self._engine.rollouts_changed()
        return self.rollout(rollout_id)

    def undrain(self, node: str) -> NodeView:
        with self._store.transaction() as tx:
            rollouts.undrain(tx, node)
        return next(view for view in self.nodes() if view.name == node)

    # --- pauses -----------------------------------------------------------------------------

    def pauses(self) -> tuple[Pause, ...]:
        with self._store.reading() as tx:
            return tx.pauses.all()

    def pause(self, target: PauseTarget, by: str, reason: str) -> Pause:
        with self._store.transaction() as tx:
            return pauses.pause(tx, target, by, reason)

    def resume(self, target: PauseTarget, by: str) -> Pause:
        with self._store.transaction() as tx:
            ended = pauses.resume(tx, target, by)
        # What waited for it may go on.
        self._outbox_filled()
        return ended

    def _begin(self, tx: Tx, run: Run) -> RunView:
        run = self._engine.start(tx, run)
        return views.run_view(run, tx.run_times(run.id))

    def _demand_broker(self) -> None:
        """Raises UnreachableError: better told at once than by a run that is rolled back later.

        NotLeaderError where there is no need of a broker.
        """
        self._store.demand_lead()
        deadline = time.monotonic() + RECONNECT_S
        while not self._broker_connected():
            if time.monotonic() > deadline:
                raise UnreachableError(
                    "broker-unreachable",
                    "the orchestrator is not connected to its broker; nothing was started",
                    "Is RabbitMQ running, and the bus URL right? The orchestrator's log says more;"
                    " routers serve on meanwhile.",
                )
            time.sleep(0.05)

    def _restart(self, tx: Tx, network: str, options: RestartOptions, dry_run: bool) -> Run:
        desired = tx.desired()[1]
        router = _router_of(desired, network)
        _refuse_open_run(tx, router.name)
        wanted = Wanted(self._preferred, options, dry_run=dry_run)
        return reconcile.restart(tx, desired, router, wanted)

    def _move(self, tx: Tx, name: str, options: RestartOptions, dry_run: bool) -> Run:
        desired = tx.desired()[1]
        router = _known_router(desired, name)
        _refuse_open_run(tx, name)
        reconcile.refuse_target(tx, desired, router, options.node)
        wanted = Wanted(Strategy.HANDOVER, options, RunKind.MOVE, dry_run)
        return reconcile.restart(tx, desired, router, wanted)

    # --- what is ----------------------------------------------------------------------------

    def networks(self) -> tuple[NetworkView, ...]:
        with self._store.reading() as tx:
            desired = tx.desired()[1]
            routers = {view.name: view for view in self._routers(tx, desired)}
        return tuple(views.network_view(n, desired, routers) for n in desired.networks)

    def routers(self) -> tuple[RouterView, ...]:
        with self._store.reading() as tx:
            return self._routers(tx, tx.desired()[1])

    def nodes(self) -> tuple[NodeView, ...]:
        with self._store.reading() as tx:
            desired = tx.desired()[1]
            states = {state.name: state for state in tx.node_states()}
            draining = tx.rollouts.cordoned()
        now = time.time()
        return tuple(
            views.node_view(n, states.get(n.name), now, n.name in draining) for n in desired.nodes
        )

    def why_node(self, name: str) -> WhyView:
        with self._store.reading() as tx:
            return why.node(tx, name, self._insight, self._broker_connected())

    def why_router(self, name: str) -> WhyView:
        with self._store.reading() as tx:
            view = next((r for r in self._routers(tx, tx.desired()[1]) if r.name == name), None)
            if view is None:
                raise NotFoundError(
                    "no-such-router", f"no router {name}", "See `vrha router list`."
                )
            return why.router(tx, view, self._insight, self._broker_connected())

    def run(self, run_id: str) -> RunView:
        with self._store.reading() as tx:
            return _run_view(tx, run_id)

    def keep_measurement(self, run_id: str, measurement: Measurement) -> RunView:
        with self._store.transaction() as tx:
            _existing(tx, run_id)
            tx.reports.put_measurement(run_id, measurement)
            return _run_view(tx, run_id)

    def runs(self, open_only: bool = False, limit: int = 50) -> Sequence[RunView]:
        with self._store.reading() as tx:
            return tuple(views.run_view(run, times) for run, times in tx.runs(limit, open_only))

    def events(self, after: int = 0, limit: int = 200) -> Sequence[Event]:
        with self._store.reading() as tx:
            return tx.events(after, limit)

    def status(self) -> Status:
        lead, sights = self._store.lead(), self._sights()
        with self._store.reading() as tx:
            desired = tx.desired()[1]
            routers = self._routers(tx, desired)
            return Status(
                leader=lead.holder,
                leader_epoch=lead.epoch,
                leads=self._store.leader_epoch == lead.epoch,
                broker=self._broker_connected(),
                brake=self._brake(),
                pauses=tx.pauses.all(),
                nodes=status.nodes(tx, desired, routers, sights, time.time()),
                open_runs=status.open_runs(tx),
                not_served=status.not_served(routers, sights),
            )

    def health(self) -> Health:
        with self._store.reading() as tx:
            desired = tx.desired()[1]
            heard = reconcile.candidates(desired, tx.node_states(), frozenset())
            open_runs = len(tx.open_run_ids())
        lead = self._store.lead()
        return Health(
            version=vrha.__version__,
            store=True,
            broker=self._broker_connected(),
            nodes_heard=sum(1 for candidate in heard if candidate.heard),
            open_runs=open_runs,
            check_ins_refused=self._metrics.check_ins_refused(),
            leads=self._store.leader_epoch == lead.epoch,
            leader=lead.holder,
            leader_epoch=lead.epoch,
        )

    def _routers(self, tx: Tx, desired: Desired) -> tuple[RouterView, ...]:
        states = {state.router: state for state in tx.router_states()}
        runs = tx.busy()
        standing = [
            state
            for r in desired.routers
            if (state := states.get(r.name)) is not None and (state.standby or is_wanted(r))
        ]
        standbys = self._engine.standbys.views(tx, standing) if standing else {}
        return tuple(
            views.router_view(
                r,
                states.get(r.name),
                runs.get(r.name, ""),
                instance_spec(desired, r, InstanceRef(r.name, 0), 0),
                standbys.get(r.name),
            )
            for r in desired.routers
        )

    def metrics(self) -> bytes:
        return self._metrics.text()


def _existing(tx: Tx, run_id: str) -> Run:
    run = tx.run(run_id)
    if run is None:
        raise NotFoundError("no-such-run", f"no run {run_id}", "`vrha run list` shows the runs.")
    return run


def _run_view(tx: Tx, run_id: str) -> RunView:
    """The run with all that is known about it."""
    return views.run_view(
        _existing(tx, run_id),
        tx.run_times(run_id),
        tx.step_timings(run_id),
        tx.step_evidence(run_id),
        tx.reports.begins(run_id),
        tx.reports.measurement(run_id),
    )


def _known_router(desired: Desired, name: str) -> Router:
    router = desired.router(name)
    if router is None:
        raise NotFoundError("no-such-router", f"no router {name}", "See `vrha router list`.")
    return router


def _router_of(desired: Desired, network: str) -> Router:
    if desired.network(network) is None:
        known = ", ".join(n.name for n in desired.networks) or "none"
        raise NotFoundError("no-such-network", f"no network {network}", f"Networks: {known}.")
    router = desired.router_of(network)
    if router is None:
        raise RefusedError("no-router", f"network {network} has no router", "Nothing to restart.")
    return router


def _refuse_open_run(tx: Tx, router: str) -> None:
    run = tx.open_run_of(router)
    if run is not None and run.kind is not RunKind.STANDBY:
        raise RefusedError(
            "run-in-progress",
            f"router {router} has run {run.id} ({run.kind}, {run.status})",
            f"`vrha run watch {run.id}` follows it.",
        )


def _refuse_busy(tx: Tx, desired: Desired) -> None:
    """An apply is carried out or refused as a whole: no open run may lead elsewhere."""
    for run in tx.open_runs():
        if reconcile.leads_elsewhere(desired, run):
            _refuse_open_run(tx, run.router)
