"""A measured zone: the lab with its daemons, its probes, and restarts under them."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vrha import codec
from vrha.cli.client import Client
from vrha.config.desired import load
from vrha.errors import DeadlineError, VrhaError
from vrha.lab.zone import Lab
from vrha.model.runs import RunStatus, Strategy
from vrha.model.spec import Desired
from vrha.model.views import RouterStatus, RunView
from vrha.probe.result import Result, Stream

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
        with responders(lab):
            yield MeasuredZone(lab, client, desired, progress)


class MeasuredZone:
    """A zone that serves, with responders on every host."""

    def __init__(self, lab: Lab, client: Client, desired: Desired, progress: Progress) -> None:
        self.lab, self.client, self.progress = lab, client, progress
        self.network = desired.routers[0].networks[0]
        self.streams = _streams(lab, desired)

    def control(self, seconds: float = 1.5) -> dict[str, Any]:
        """The same probes without an operation: the noise of prober and machine."""
        with probing(self.streams) as probes:
            time.sleep(WARM_S + seconds + SETTLE_S)
        return probes.result.to_bench()

    def restart(self, strategy: Strategy) -> dict[str, Any]:
        """One measured restart. Raises VrhaError when the run does not end in `done`."""
        with probing(self.streams) as probes:
            time.sleep(WARM_S)
            began = time.time_ns()
            run = self.client.restart_network(self.network, strategy)
            run = _await_run(self.client, run.id)
            time.sleep(SETTLE_S)
        if run.status is not RunStatus.DONE:
            raise VrhaError("run-failed", f"run {run.id}: {run.status}: {run.reason} {run.detail}")
        row = probes.result.to_bench()
        row["phases_ms"] = _phases(run)
        row["leaked"] = self.leaked()
        row["operation_at_ms"] = round((began - probes.result.t0_realtime_ns) / 1e6, 1)
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


class Probes:
    """A prober in a process of its own."""

    def __init__(self, streams: Sequence[Stream], folder: Path) -> None:
        self._out = folder / "result.json"
        config = folder / "streams.json"
        config.write_text(json.dumps([asdict(stream) for stream in streams]))
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vrha.probe", "run"),
                *("--streams", str(config), "--json", str(self._out)),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise VrhaError("probe-failed", "the prober did not start")
        self._result: Result | None = None

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=20)
        if self._out.exists():
            self._result = codec.decode(Result, self._out.read_bytes())

    @property
    def result(self) -> Result:
        if self._result is None:
            raise VrhaError("probe-failed", "the prober left no result")
        return self._result


@contextlib.contextmanager
def probing(streams: Sequence[Stream]) -> Iterator[Probes]:
    """Probes run inside the block; afterwards their result can be read."""
    with tempfile.TemporaryDirectory(prefix="vrha-probe-") as folder:
        probes = Probes(streams, Path(folder))
        try:
            yield probes
        finally:
            probes.stop()


@contextlib.contextmanager
def responders(lab: Lab) -> Iterator[None]:
    """UDP echo and TCP accept on port 7 of every host."""
    paths = [lab.netns_path(host) for host in lab.machines]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "vrha.probe", "serve", "--port", "7"),
            *(word for path in paths for word in ("--netns", path)),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=10)


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


def _phases(run: RunView) -> dict[str, float]:
    """Milliseconds per step, as its node measured them."""
    totals = ((step, dict(step.timings_ms).get("total")) for step in run.steps)
    return {
        f"{step.seq}-{step.what.split()[0].rstrip(',')}": round(ms, 2)
        for step, ms in totals
        if ms is not None
    }
