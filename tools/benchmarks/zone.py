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
from vrha.model.spec import Address, Desired, Router
from vrha.model.views import RouterStatus, RunView
from vrha.probe.process import ProbeProcess, serving
from vrha.probe.responder import Services
from vrha.probe.result import Kind, Stream

WARM_S = 0.5
SETTLE_S = 1.5
"""Probing before and after the operation; a longer outage shows as unrestored."""

ANSWER, ECHO, PUSH = Services().ports
PUBLIC_ADDRESSES = 10

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
        with serving(ANSWER, [lab.netns_path(machine) for machine in lab.machines]):
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
    """Probes of both directions and long connections, by 1:1 and by source NAT of one router.

    With ten 1:1 addresses and a machine without one: 12 streams of probes, 31 connections.
    """
    router = desired.routers[0]
    assert router.uplink is not None
    outside = str(router.uplink.gateways[0])
    outer = lab.netns_path("outside")
    inners = [
        (str(nat.public), lab.netns_path(_machine(desired, nat.private)))
        for nat in router.static_nat[:PUBLIC_ADDRESSES]
    ]
    public, inner = inners[0]
    streams = [
        Stream("egress_icmp", "icmp", outside, netns=inner),
        Stream("egress_udp", "udp", outside, netns=inner),
        Stream("ingress_icmp", "icmp", public, netns=outer),
        Stream("ingress_udp", "udp", public, netns=outer),
        Stream("fresh_egress", "udp-fresh", outside, ECHO, netns=inner),
        Stream("fresh_ingress", "udp-fresh", public, ECHO, netns=outer),
        Stream("egress_tcp_connect", "tcp-connect", outside, netns=inner, interval_ms=10),
        Stream("ingress_tcp_connect", "tcp-connect", public, netns=outer, interval_ms=10),
    ]
    for number, (address, path) in enumerate(inners, 1):
        streams.append(_long(f"tcp_in_{number}", "tcp-echo", address, outer))
        if number <= len(inners) // 2:
            streams.append(_long(f"tcp_out_{number}", "tcp-echo", outside, path))
            streams.append(_long(f"tcp_push_{number}", "tcp-push", outside, path))
    hidden = _hidden(router, desired)
    if hidden is not None:
        path = lab.netns_path(hidden)
        streams += [
            Stream("snat_udp", "udp", outside, netns=path),
            Stream("fresh_snat", "udp-fresh", outside, ECHO, netns=path),
            Stream("snat_tcp_connect", "tcp-connect", outside, netns=path, interval_ms=10),
            _long("tcp_snat", "tcp-echo", outside, path, 6),
            _long("tcp_snat_push", "tcp-push", outside, path, 5),
        ]
    return tuple(streams)


def _long(name: str, kind: Kind, target: str, netns: str, count: int = 1) -> Stream:
    """Long connections to the responder."""
    port = ECHO if kind == "tcp-echo" else PUSH
    return Stream(name, kind, target, port, netns, interval_ms=10, count=count)


def _machine(desired: Desired, address: Address) -> str:
    hosts = (host for network in desired.networks for host in network.hosts)
    return next(host.name for host in hosts if address in host.addresses)


def _hidden(router: Router, desired: Desired) -> str | None:
    """A machine of the router that source NAT hides; None when there is none."""
    translated = {nat.private for nat in router.static_nat}
    hosts = (
        host
        for network in desired.networks
        if network.name in router.networks
        for host in network.hosts
    )
    return next((h.name for h in hosts if not translated.intersection(h.addresses)), None)


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
