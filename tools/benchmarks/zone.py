"""A measured zone: the lab with its daemons, its probes, and restarts under them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from vrha.cli.client import Client
from vrha.config.desired import load
from vrha.errors import DeadlineError, VrhaError
from vrha.lab.zone import Lab
from vrha.model.runs import RestartOptions, RunStatus, Strategy
from vrha.model.spec import Desired
from vrha.model.views import RouterStatus, RunView
from vrha.probe.process import ProbeProcess, serving
from vrha.probe.result import Stream

WARM_S = 0.5
SETTLE_S = 1.5
"""Probing before and after the operation; a longer outage shows as unrestored."""

Progress = Callable[[str], None]


@contextlib.contextmanager
def zone(scenario: str, name: str, progress: Progress) -> Iterator[MeasuredZone]:
    """A lab of `scenario` that serves; taken down at the end whatever happens."""
    with Lab.up(scenario, name, progress=progress, ephemeral=True) as lab:
        client = Client(str(lab.socket))
        lab.start_daemons(progress)
        desired = load(lab.zone_file)
        progress(f"applying {len(desired.networks)} networks, {len(desired.routers)} routers")
        client.apply(desired)
        _await_serving(client)
        with serving(7, [lab.netns_path(machine) for machine in lab.machines]):
            yield MeasuredZone(lab, client, desired, progress)


class MeasuredZone:
    """A zone that serves, with responders on every host."""

    def __init__(self, lab: Lab, client: Client, desired: Desired, progress: Progress) -> None:
        self.lab, self.client, self.progress = lab, client, progress
        self.network = desired.routers[0].networks[0]
        self.streams = _streams(lab, desired)

    def control(self, seconds: float = 1.5) -> dict[str, Any]:
        """The same probes without an operation: the noise of prober and machine."""
        with ProbeProcess(self.streams) as probes:
            time.sleep(WARM_S + seconds + SETTLE_S)
            return probes.stop().to_bench()

    def restart(self, strategy: Strategy) -> dict[str, Any]:
        """One measured restart. Raises VrhaError when the run does not end in `done`."""
        with ProbeProcess(self.streams) as probes:
            time.sleep(WARM_S)
            began = time.time_ns()
            run = self.client.restart_network(self.network, RestartOptions(strategy))
            run = _await_run(self.client, run.id)
            time.sleep(SETTLE_S)
            result = probes.stop()
        if run.status is not RunStatus.DONE:
            raise VrhaError("run-failed", f"run {run.id}: {run.status}: {run.reason} {run.detail}")
        row = result.to_bench()
        row["phases_ms"] = _phases(run)
        row["leaked"] = self.leaked()
        row["operation_at_ms"] = round((began - result.t0_realtime_ns) / 1e6, 1)
        return row

    def leaked(self) -> list[str]:
        """Instances on the nodes that no router names."""
        named = {(view.node, view.instance) for view in self.client.routers()}
        deadline = time.monotonic() + 10
        while True:
            extra = [
                f"{node.name}: {instance}"
                for node in self.client.nodes()
                for instance in node.instances
                if (node.name, instance) not in named
            ]
            if not extra or time.monotonic() > deadline:
                return extra
            time.sleep(0.1)


def _streams(lab: Lab, desired: Desired) -> tuple[Stream, ...]:
    """Both directions of the first machine with a 1:1 translated public address."""
    router = desired.routers[0]
    assert router.uplink is not None
    nat = router.static_nat[0]
    outside = str(router.uplink.gateways[0])
    hosts = (host for network in desired.networks for host in network.hosts)
    machine = next(host.name for host in hosts if nat.private in host.addresses)
    inner, outer = lab.netns_path(machine), lab.netns_path("outside")
    public = str(nat.public)
    return (
        Stream("egress_icmp", "icmp", outside, netns=inner),
        Stream("egress_udp", "udp", outside, netns=inner),
        Stream("ingress_icmp", "icmp", public, netns=outer),
        Stream("ingress_udp", "udp", public, netns=outer),
        Stream("egress_tcp_connect", "tcp-connect", outside, netns=inner, interval_ms=10),
        Stream("ingress_tcp_connect", "tcp-connect", public, netns=outer, interval_ms=10),
    )


def _await_serving(client: Client, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        routers = client.routers()
        if routers and all(view.status is RouterStatus.SERVING for view in routers):
            return
        if time.monotonic() > deadline:
            waiting = ", ".join(f"{v.name}: {v.status} {v.reason}" for v in routers)
            raise DeadlineError("not-serving", f"not all routers serve: {waiting}")
        time.sleep(0.1)


def _await_run(client: Client, run_id: str, timeout_s: float = 120) -> RunView:
    deadline = time.monotonic() + timeout_s
    while True:
        run = client.run(run_id)
        if run.status.terminal:
            return run
        if time.monotonic() > deadline:
            raise DeadlineError("run-not-ended", f"run {run_id} is still {run.status}")
        time.sleep(0.05)


PHASES = {
    "build": "build",
    "mute": "flip",
    "unmute": "flip",
    "swap": "flip",
    "announce": "announce",
    "destroy": "retire",
}
"""Kind of step to phase; in a serial restart retiring comes first."""


def _phases(run: RunView) -> dict[str, float]:
    """Milliseconds per phase, as the nodes measured them."""
    phases: dict[str, float] = {}
    for step in run.steps:
        total = dict(step.timings_ms).get("total")
        if total is not None and step.kind in PHASES:
            name = PHASES[step.kind]
            phases[name] = round(phases.get(name, 0.0) + total, 2)
    return phases
