"""Protocols between halves that must not import each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vrha.model.evidence import Measurement
from vrha.model.pauses import Pause, PauseTarget
from vrha.model.rollouts import RolloutBrief, RolloutPlan, RolloutRequest, RolloutView
from vrha.model.runs import AS_CONFIGURED, RestartOptions
from vrha.model.spec import Desired, Policy
from vrha.model.views import (
    ApplyResult,
    Change,
    Event,
    Health,
    NetworkView,
    NodeView,
    RouterView,
    RunView,
    Status,
    WhyView,
)


class Service(Protocol):
    """What the HTTP API needs of the orchestrator. All methods are safe from any thread.

    Every method may raise UnreachableError (store); those that name an object NotFoundError.
    """

    def desired(self) -> Desired: ...

    def diff(self, desired: Desired) -> tuple[Change, ...]: ...

    def apply(self, desired: Desired) -> ApplyResult:
        """Make `desired` the desired state and start the runs that carry it out.

        Raises RefusedError (`run-in-progress`) when a router to be changed has an open run.
        """

    def set_router(
        self, router: str, policy: Policy | None = None, priority: int | None = None
    ) -> ApplyResult:
        """Change what is given of one router in the desired state; as `apply`.

        Raises NotFoundError (`no-such-router`).
        """

    def plan_restart(self, network: str, options: RestartOptions = AS_CONFIGURED) -> RunView:
        """The run that `restart_network` would start, its steps and their undo; starts nothing."""

    def restart_network(self, network: str, options: RestartOptions = AS_CONFIGURED) -> RunView:
        """Start `restart network with cleanup`.

        Raises RefusedError: `run-in-progress` (the message names the open run), `no-instance`
        (nothing to restart), `no-node` (placement found none), `strategy-impossible` (the one
        that was asked for, and why).
        """

    def plan_move(self, router: str, options: RestartOptions) -> RunView:
        """The run that `move_router` would start; starts nothing."""

    def move_router(self, router: str, options: RestartOptions) -> RunView:
        """Move the router to node `options.node`; errors as `restart_network`.

        Raises NotFoundError (`no-such-node`), RefusedError (`already-there`).
        """

    def plan_rollout(self, request: RolloutRequest) -> RolloutPlan:
        """The runs that `start_rollout` would start, router by router; starts nothing."""

    def start_rollout(self, request: RolloutRequest) -> RolloutView:
        """Restart many routers, or move all routers away from a node, which takes no new ones.

        Raises InputError (`rollout-request`), NotFoundError (`no-such-node`, `no-such-zone`),
        RefusedError (`rollout-in-progress`, naming the one that has a router of it).
        """

    def rollouts(self, limit: int = 50) -> tuple[RolloutBrief, ...]:
        """The newest rollouts, newest first."""

    def rollout(self, rollout_id: str) -> RolloutView:
        """Raises NotFoundError (`no-such-rollout`), as the next two do."""

    def stop_rollout(self, rollout_id: str) -> RolloutView:
        """Take up no further router; open runs go on. Raises RefusedError (`not-running`)."""

    def resume_rollout(self, rollout_id: str) -> RolloutView:
        """Take a stopped rollout up again with what is not done, what had failed included.

        Raises RefusedError: `not-stopped`, `rollout-in-progress`.
        """

    def undrain(self, node: str) -> NodeView:
        """The node takes instances again.

        Raises NotFoundError (`no-such-node`), RefusedError (`rollout-in-progress`).
        """

    def pauses(self) -> tuple[Pause, ...]:
        """What must not be moved automatically, oldest first."""

    def pause(self, target: PauseTarget, by: str, reason: str) -> Pause:
        """No automatic moves of `target` any more; replaces an earlier pause of the same.

        Raises InputError (`pause-target`), NotFoundError (`no-such-zone`, `no-such-node`,
        `no-such-router`).
        """

    def resume(self, target: PauseTarget, by: str) -> Pause:
        """End the pause of `target`; the pause it was. Raises NotFoundError (`not-paused`)."""

    def status(self) -> Status:
        """Everything at a glance."""

    def networks(self) -> tuple[NetworkView, ...]: ...

    def routers(self) -> tuple[RouterView, ...]: ...

    def nodes(self) -> tuple[NodeView, ...]: ...

    def why_node(self, name: str) -> WhyView:
        """Its verdict, signals, action and last events. Raises NotFoundError (`no-such-node`)."""

    def why_router(self, name: str) -> WhyView:
        """As `why_node`, by the node that serves it. Raises NotFoundError (`no-such-router`)."""

    def run(self, run_id: str) -> RunView: ...

    def keep_measurement(self, run_id: str, measurement: Measurement) -> RunView:
        """Keep with the run what was measured outside meanwhile; the last one counts."""

    def runs(self, open_only: bool = False, limit: int = 50) -> Sequence[RunView]: ...

    def events(self, after: int = 0, limit: int = 200) -> Sequence[Event]: ...

    def health(self) -> Health: ...

    def metrics(self) -> bytes:
        """Prometheus text exposition."""
