"""Probes that suit a lab: both directions through the first router that has them."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

from vrha.codec import encode
from vrha.config.desired import load
from vrha.lab.anchor import NETNS
from vrha.lab.daemons import Daemon, Program, environment
from vrha.lab.zone import Lab
from vrha.model.probing import Kind, Stream
from vrha.model.spec import Desired, Router

OUTSIDE = "outside"
"""The machine beyond the uplinks, by the custom of the shipped scenarios."""

_KINDS: tuple[Kind, ...] = ("icmp", "udp")


def prepare(lab: Lab) -> Path | None:
    """Write `streams.json` into the lab's folder and start the responders that it needs.

    They end with the lab. None when the scenario has nothing to measure: no machine `outside`, or
    no router with an uplink and a machine. Raises what `Daemon.start` and `load` raise.
    """
    found = ends(lab.machines, load(lab.zone_file))
    if found is None:
        return None
    machine, public, gateway = found
    inner, outer = lab.netns_path(machine), lab.netns_path(OUTSIDE)
    streams = [Stream(f"egress_{kind}", kind, gateway, netns=inner) for kind in _KINDS]
    if public:
        streams += [Stream(f"ingress_{kind}", kind, public, netns=outer) for kind in _KINDS]
    argv = [sys.executable, "-m", "vrha.probe", "serve"]
    for each in (machine, OUTSIDE):
        argv += ["--netns", str(NETNS / each)]
    Daemon(lab.folder, "responder").start(Program(tuple(argv), "", environment()))
    path = lab.folder / "streams.json"
    path.write_bytes(encode(streams, list[Stream]))
    return path


def ends(machines: Collection[str], desired: Desired) -> tuple[str, str, str] | None:
    """A machine, its public address (empty: none of its own) and what it reaches outside.

    None when `machines`, those of the lab, have nobody outside or inside.
    """
    if OUTSIDE not in machines:
        return None
    for router in desired.routers:
        machine, public = _machine(desired, router)
        if router.uplink is not None and router.uplink.gateways and machine in machines:
            return machine, public, str(router.uplink.gateways[0])
    return None


def _machine(desired: Desired, router: Router) -> tuple[str, str]:
    """The router's first machine, if possible with a public address of its own."""
    hosts = [h for n in desired.networks if n.name in router.networks for h in n.hosts]
    for nat in router.static_nat:
        for host in hosts:
            if nat.private in host.addresses:
                return host.name, str(nat.public)
    return (hosts[0].name if hosts else "", "")
