"""What the tests of the canary share: a router that serves, and a canary through it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.netns.conftest import sh
from tests.netns.nodekit import Machine, machine
from vrha.core import names
from vrha.linux import netns, rtnetlink
from vrha.linux.canary import Canary
from vrha.linux.node import NodeKernel
from vrha.model.spec import InstanceRef, InstanceSpec


@contextmanager
def canary_of(spec: InstanceSpec, prepared: bool = True) -> Iterator[Canary]:
    """A canary through the instance, stopped after the block whatever happens."""
    home = netns.current()
    try:
        with rtnetlink.open_route() as route:
            canary = Canary(spec, route, home)
            if prepared:
                canary.prepare(spec.ref)
            try:
                yield canary
            finally:
                canary.stop()
    finally:
        os.close(home)


def serving(kernel: NodeKernel, spec: InstanceSpec) -> InstanceSpec:
    kernel.build(spec)
    kernel.unmute(spec.ref)
    return spec


def gateway() -> Machine:
    return machine("gw", "br-up", "203.0.113.1/24")


def sent(canary: Canary) -> int:
    return min(measured.sent for measured in canary.measured())


def entries(ref: InstanceRef) -> list[str]:
    """What could be left of a canary: in the instance, and on the bridges."""
    inside = sh(f"ip -n {names.namespace_name(ref)} neigh show nud permanent")
    bridges = sh("bridge fdb show br br-a") + sh("bridge fdb show br br-b")
    return [
        *inside.splitlines(),
        *(line for line in bridges.splitlines() if line.startswith("fa:")),
    ]
