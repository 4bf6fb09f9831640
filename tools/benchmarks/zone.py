"""A measured zone: the lab with its daemons, its probes, and operations under them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv4Address
from typing import Any

from tools.benchmarks import entries, phases
from tools.benchmarks.probing import under_probes
from tools.benchmarks.streams import ANSWER, streams_of
from vrha.cli.client import Client
from vrha.config.desired import load
from vrha.core.names import namespace_name
from vrha.errors import DeadlineError, InputError, StepError
from vrha.lab import enter
from vrha.lab.scenario import Scenario
from vrha.lab.zone import Lab
from vrha.model.runs import RestartOptions, RunStatus, Strategy
from vrha.model.spec import Desired, InstanceRef
from vrha.model.views import RouterStatus, RouterView, RunView
from vrha.probe.process import serving

CONTROL_S = 1.0
"""How long nothing is done in a control run: about as long as a handover takes."""
SERVING_S = 60.0
LOG_LINES = 20

Progress = Callable[[str], None]


@contextlib.contextmanager
def daemons(
    scenario: str | Scenario, name: str, progress: Progress
) -> Iterator[tuple[Lab, Client]]:
    """A lab of `scenario` with its daemons, and responders on every host; nothing is applied.

    Taken down at the end whatever happens.
    """
    with Lab.up(scenario, name, progress=progress, ephemeral=True) as lab:
        client = Client(str(lab.socket))
        lab.start_daemons(progress)
        with serving(ANSWER, [lab.netns_path(machine) for machine in lab.machines]):
            yield lab, client


@contextlib.contextmanager
def zone(scenario: str, name: str, progress: Progress) -> Iterator[MeasuredZone]:
    """A lab of `scenario` that serves; taken down at the end whatever happens."""
    with daemons(scenario, name, progress) as (lab, client):
        desired = load(lab.zone_file)
        progress(f"applying {len(desired.networks)} networks, {len(desired.routers)} routers")
        client.apply(desired)
        await_serving(client)
        yield MeasuredZone(lab, client, desired, progress)


class MeasuredZone:
    """A zone that serves, with responders on every host.

    Before each run all connections are forgotten, so that runs of one row start alike; `others`
    are entries of other traffic that are made then.
    """

    def __init__(self, lab: Lab, client: Client, desired: Desired, progress: Progress) -> None:
        self.lab, self.client, self.progress = lab, client, progress
        self.desired = desired
        self.router = desired.routers[0]
        self.network = self.router.networks[0]
        self.streams = streams_of(lab, desired)
        self._public = str(self.router.static_nat[0].public)

    def control(self) -> dict[str, Any]:
        """The same probes without an operation: the noise of prober and machine."""
        self._reset(0)
        row, _ = self._under_probes(lambda: time.sleep(CONTROL_S))
        row["count"] = self._entries()
        return row

    def restart(self, strategy: Strategy, others: int = 0) -> dict[str, Any]:
        """One measured restart. Raises VrhaError when the run does not end in `done`."""
        options = RestartOptions(strategy)
        return self._measured(lambda: self.client.restart_network(self.network, options), others)

    def move(self, others: int = 0) -> dict[str, Any]:
        """One measured move to the next node; raises as `restart`."""
        nodes = self.lab.nodes
        to = nodes[(nodes.index(self.view().node) + 1) % len(nodes)]
        options = RestartOptions(Strategy.HANDOVER, node=to)
        return self._measured(lambda: self.client.move_router(self.router.name, options), others)

    def view(self) -> RouterView:
        """The measured router as it stands."""
        return next(view for view in self.client.routers() if view.name == self.router.name)

    def _measured(self, start: Callable[[], RunView], others: int) -> dict[str, Any]:
        self._reset(others)
        row, run = self._under_probes(lambda: await_run(self.client, start().id))
        if run.status is not RunStatus.DONE:
            raise self._failed(run)
        row["run"], row["from"], row["to"] = run.id, run.old, run.new
        row["strategy"] = run.strategy
        row["phases_ms"] = phases.of_run(run)
        row["timings_ms"] = phases.details(run)
        row["carried"] = phases.carried(run)
        row["count"] = self._entries()
        row["leaked"] = leaked(self.client)
        return row

    def _under_probes(self, operate: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
        return under_probes(self.lab, self.streams, self._public, operate)

    def _reset(self, others: int) -> None:
        await_serving(self.client)
        sources = [a for a in self.router.source_nat if isinstance(a, IPv4Address)]
        if others and not sources:
            raise InputError("no-source-nat", f"router {self.router.name} has no source NAT")
        private = next(n.private for n in self.router.static_nat)
        public = sources[0] if sources else IPv4Address(0)
        assert isinstance(private, IPv4Address)
        entries.reset(partial(enter.in_network, self._place()), private, public, others)

    def _entries(self) -> int:
        return enter.in_network(self._place(), entries.present)

    def _place(self) -> enter.Place:
        """Inside the instance that serves."""
        view = self.view()
        router, _, generation = view.instance.rpartition("#")
        name = namespace_name(InstanceRef(router, int(generation)))
        pid = self.lab.place(view.node).pid
        return enter.Place(pid, f"/proc/{pid}/root/run/netns/{name}")

    def _failed(self, run: RunView) -> StepError:
        """With the last words of the agents, whose logs go with the lab."""
        nodes = sorted({step.node for step in run.steps if step.node})
        words = "\n".join(f"{node}: {self.lab.agent(node).tail(LOG_LINES)}" for node in nodes)
        return StepError(
            "run-failed", f"run {run.id}: {run.status}: {run.reason} {run.detail}", words
        )


def leaked(client: Client) -> list[str]:
    """Instances on the nodes that no router names."""
    named = {(view.node, view.instance) for view in client.routers()}
    deadline = time.monotonic() + 10
    while True:
        extra = [
            f"{node.name}: {instance}"
            for node in client.nodes()
            for instance in node.instances
            if (node.name, instance) not in named
        ]
        if not extra or time.monotonic() > deadline:
            return extra
        time.sleep(0.1)


def await_serving(client: Client, timeout_s: float = SERVING_S) -> None:
    """Wait until every router serves. Raises DeadlineError `not-serving`."""
    deadline = time.monotonic() + timeout_s
    while True:
        routers = client.routers()
        if routers and all(view.status is RouterStatus.SERVING for view in routers):
            return
        if time.monotonic() > deadline:
            waiting = ", ".join(f"{v.name}: {v.status} {v.reason}" for v in routers)
            raise DeadlineError("not-serving", f"not all routers serve: {waiting}")
        time.sleep(0.1)


def await_run(client: Client, run_id: str, timeout_s: float = 120) -> RunView:
    """The run once it has ended. Raises DeadlineError `run-not-ended`."""
    deadline = time.monotonic() + timeout_s
    while True:
        run = client.run(run_id)
        if run.status.terminal:
            return run
        if time.monotonic() > deadline:
            raise DeadlineError("run-not-ended", f"run {run_id} is still {run.status}")
        time.sleep(0.05)
