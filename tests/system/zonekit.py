"""A lab that serves, for tests: probes, broken tools on a node, what is left behind."""

from __future__ import annotations

import contextlib
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.system.labkit import PATIENCE
from vrha import failpoints
from vrha.cli.client import Client
from vrha.config.desired import load
from vrha.core.names import namespace_name
from vrha.lab.owners import OwnerWatch
from vrha.lab.scenario import Scenario
from vrha.lab.zone import Lab
from vrha.model.probing import Result, Stream
from vrha.model.runs import RestartOptions, Strategy
from vrha.model.spec import Desired, InstanceRef
from vrha.model.views import RouterStatus, RouterView, RunView
from vrha.probe import process as probes
from vrha.probe.process import ProbeProcess

OUTSIDE, OUTSIDE6 = "203.0.113.1", "2001:db8:ffff::1"
VRHA = (sys.executable, "-m", "vrha.cli.main")


class Places:
    """Failpoints of a zone's daemons: give `env` to `zone`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.env = {failpoints.VARIABLE: str(folder)}

    @contextlib.contextmanager
    def stopped(self, place: str, meanwhile: Callable[[], object]) -> Iterator[None]:
        """Start something in the block; `meanwhile` runs while a daemon waits at `place`."""
        path, reached, go = (self._folder / f"{place}{end}" for end in ("", ".reached", ".go"))
        path.write_text("wait")
        try:
            yield
            wait_for(reached.exists, 30, f"a daemon at {place}")
            meanwhile()
        finally:
            path.unlink(missing_ok=True)
            go.touch()
            reached.unlink(missing_ok=True)

    @contextlib.contextmanager
    def failing(self, place: str) -> Iterator[None]:
        """A daemon that comes to `place` in the block has an error there, once."""
        path = self._folder / place
        path.write_text("error")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove what lets daemons go on; before the next use of a place."""
        for path in self._folder.iterdir():
            path.unlink()


class Zone:
    """One lab with its client."""

    def __init__(self, lab: Lab, client: Client, desired: Desired) -> None:
        self.lab, self.client, self.desired = lab, client, desired

    def router(self, name: str = "") -> RouterView:
        """The router of that name, else the first."""
        routers = self.client.routers()
        return next(r for r in routers if r.name == name) if name else routers[0]

    def apply(self, desired: Desired, timeout_s: float = 60) -> list[RunView]:
        """Apply and wait for all that it starts."""
        result = self.client.apply(desired)
        return [self.await_run(run, timeout_s) for run in result.runs]

    def ref(self, name: str = "") -> InstanceRef:
        """The instance that serves the router."""
        router, generation = self.router(name).instance.split("#")
        return InstanceRef(router, int(generation))

    def in_instance(self, name: str, *argv: str) -> str:
        """Run a program in the namespace that serves the router."""
        netns = namespace_name(self.ref(name))
        return self.lab.run(self.router(name).node, ["ip", "netns", "exec", netns, *argv])

    def unreached(self, pings: Mapping[str, Sequence[str]], wait_s: int = 3) -> list[str]:
        """Which targets a machine cannot ping; all machines in parallel, `machine: target`."""
        asked = [
            (f"{machine}: {target}", ["ping", "-n", "-c", "1", "-W", str(wait_s), target], machine)
            for machine, targets in pings.items()
            for target in targets
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        children = [(name, self.lab.exec(where, argv, **quiet)) for name, argv, where in asked]
        return [name for name, child in children if child.wait(wait_s + 30) != 0]

    def await_run(self, run_id: str, timeout_s: float = 60) -> RunView:
        wait_for(lambda: self.client.run(run_id).status.terminal, timeout_s, f"end of {run_id}")
        return self.client.run(run_id)

    def restart(
        self, strategy: Strategy | None = None, timeout_s: float = 60, network: str = ""
    ) -> RunView:
        run = self.client.restart_network(network or self.network, RestartOptions(strategy))
        return self.await_run(run.id, timeout_s)

    @property
    def network(self) -> str:
        return self.desired.routers[0].networks[0]

    def namespaces(self, node: str) -> list[str]:
        """Named namespaces of a node."""
        return sorted(self.lab.run(node, ["ls", "/run/netns"]).split())

    def objects(self) -> dict[str, list[str]]:
        """Everything on every node that belongs to an instance."""
        found = {}
        for node in self.lab.nodes:
            links = self.lab.run(node, ["ip", "-o", "link", "show"]).splitlines()
            ports = sorted(line.split(": ")[1].split("@")[0] for line in links)
            folder = self.lab.folder / "state" / f"agent-{node}" / "instances"
            folders = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
            dnsmasqs = self.dnsmasqs(node)
            found[node] = [
                *self.namespaces(node),
                *(port for port in ports if port.startswith("vr")),
                *folders,
                *(f"dnsmasq of {name}" for name in dnsmasqs),
            ]
        return found

    def dnsmasqs(self, node: str) -> list[str]:
        """Instances whose dnsmasq runs, by the folder in its arguments."""
        marker = f"/agent-{node}/instances/"
        lines = self.lab.run(node, ["ps", "-ww", "-eo", "args"]).splitlines()
        found = {line.split(marker)[1].split("/")[0] for line in lines if marker in line}
        return sorted(found)

    def expected_objects(self) -> int:
        """Namespace, ports, folder and dnsmasq of one instance of the first router."""
        return 3 + len(self.desired.routers[0].networks) + 1

    def all_streams(self, inside: str = "vm1", masked: str = "vm11") -> tuple[Stream, ...]:
        """Probes both ways, fresh flows and long connections through both kinds of NAT.

        `inside` has a public address of its own, `masked` none. Responders must be `serving`.
        """
        public = str(self.desired.routers[0].static_nat[0].public)
        vm, hidden, outside = map(self.lab.netns_path, (inside, masked, "outside"))
        return (
            Stream("egress", "icmp", OUTSIDE, netns=vm),
            Stream("ingress", "icmp", public, netns=outside),
            Stream("fresh", "udp-fresh", OUTSIDE, netns=hidden, interval_ms=2),
            Stream("egress6", "icmp", OUTSIDE6, netns=vm),
            Stream("static", "tcp-echo", public, 8, netns=outside, interval_ms=5, count=5),
            Stream("echo", "tcp-echo", OUTSIDE, 8, netns=hidden, interval_ms=5, count=5),
            Stream("push", "tcp-push", OUTSIDE, 9, netns=hidden, count=5),
            Stream("echo6", "tcp-echo", OUTSIDE6, 8, netns=vm, interval_ms=5, count=3),
        )

    @contextlib.contextmanager
    def responding(self, inside: str = "vm1") -> Iterator[None]:
        """The far ends of `all_streams`."""
        with probes.serving(7, [self.lab.netns_path(where) for where in ("outside", inside)]):
            yield

    @contextlib.contextmanager
    def asking(self, machine: str, *addresses: str) -> Iterator[OwnerWatch]:
        """Asks the machine's segment, every millisecond, who has the addresses."""
        with self.lab.call(machine, lambda: OwnerWatch(addresses)) as watch:
            yield watch

    def streams(self) -> tuple[Stream, ...]:
        nat = self.desired.routers[0].static_nat[0]
        outside = self.lab.netns_path("outside")
        inside = self.lab.netns_path("vm1")
        return (
            Stream("egress_icmp", "icmp", "203.0.113.1", netns=inside),
            Stream("ingress_icmp", "icmp", str(nat.public), netns=outside),
        )

    @contextlib.contextmanager
    def broken_tool(self, node: str, tool: str, script: str) -> Iterator[None]:
        """On `node`, and nowhere else, `tool` is `script` (its real path in $REAL)."""
        path = self.lab.run(node, ["sh", "-c", f"command -v {tool}"]).strip()
        with tempfile.TemporaryDirectory(prefix="vrha-test-") as folder:
            Path(folder).chmod(0o755)
            fake = Path(folder) / tool
            # The kernel names a process after the file: the real one keeps its name.
            real = Path(folder) / "real" / tool
            real.parent.mkdir()
            real.touch()
            fake.write_text(f"#!/bin/sh\nREAL={real}\n{script}\n")
            fake.chmod(fake.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
            self.lab.run(node, ["mount", "--bind", path, str(real)])
            self.lab.run(node, ["mount", "--bind", str(fake), path])
            try:
                yield
            finally:
                self.lab.run(node, ["umount", "-l", path])
                self.lab.run(node, ["umount", "-l", str(real)])


@contextlib.contextmanager
def zone(
    scenario: str | Scenario,
    name: str,
    run: dict[str, float] | None = None,
    env: dict[str, str] | None = None,
    watched: bool = False,
    failover: dict[str, Any] | None = None,
    cleanup: dict[str, Any] | None = None,
) -> Iterator[Zone]:
    """A lab of `scenario`, applied and serving; the rest as in `Lab.start_daemons`."""
    with Lab.up(scenario, name, ephemeral=True) as lab:
        client = Client(str(lab.socket))
        lab.start_daemons(run=run, env=env, watched=watched, failover=failover, cleanup=cleanup)
        desired = load(lab.zone_file)
        nodes = len(desired.nodes)
        client.apply(Desired((), (), desired.nodes))
        wait_for(lambda: client.health().nodes_heard == nodes, 20, "all agents")
        client.apply(desired)
        made = Zone(lab, client, desired)
        wait_for(lambda: serving(client), 30, "serving routers")
        yield made


def with_router(desired: Desired, name: str, **fields: Any) -> Desired:
    """`desired` with other fields of one router."""
    routers = tuple(replace(r, **fields) if r.name == name else r for r in desired.routers)
    return replace(desired, routers=routers)


def with_network(desired: Desired, name: str, **fields: Any) -> Desired:
    """`desired` with other fields of one network."""
    networks = tuple(replace(n, **fields) if n.name == name else n for n in desired.networks)
    return replace(desired, networks=networks)


def with_node(desired: Desired, name: str, **fields: Any) -> Desired:
    """`desired` with other fields of one node."""
    nodes = tuple(replace(n, **fields) if n.name == name else n for n in desired.nodes)
    return replace(desired, nodes=nodes)


def serving(client: Client) -> bool:
    routers = client.routers()
    return bool(routers) and all(r.status is RouterStatus.SERVING for r in routers)


def agents_started(made: Zone) -> int:
    """How many lives of agents the orchestrator has heard of."""
    return len([e for e in made.client.events(limit=1000) if e.kind == "agent-started"])


def wait_for(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Poll until `condition` holds; AssertionError at `PATIENCE` times the deadline."""
    deadline = time.monotonic() + PATIENCE * timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} times {timeout_s} s for {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def probing(streams: Sequence[Stream]) -> Iterator[list[Result]]:
    """1 ms probes during the block; the list holds the result afterwards."""
    results: list[Result] = []
    with ProbeProcess(streams, require_reply_s=5) as child:
        yield results
        results.append(child.stop())


def assert_nothing_lost(result: Result) -> None:
    """Every probe was answered and every connection lives."""
    lost = {one.stream.name: one.loss.gaps for one in result.streams if one.loss.lost}
    assert lost == {}, f"{lost} of {result.duration_ms:.0f} ms"
    assert dead(result) == {}


def dead(result: Result) -> dict[str, int]:
    """Connections of each stream that did not live to the end."""
    found = {c.stream.name: c.total - c.alive for c in result.connections}
    return {name: count for name, count in found.items() if count}
