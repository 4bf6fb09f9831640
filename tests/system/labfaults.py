"""Faults that only a real lab has; those of the simulator are in tests.sim.nemesis.

A node may be given as `@ROUTER`: the one that serves that router when the fault comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tests.sim.nemesis import (
    Cut,
    Delay,
    Echo,
    Fault,
    Move,
    Noise,
    StoreDown,
    StoreUnsure,
    Stumble,
)


@dataclass(frozen=True, slots=True)
class Freeze:
    """All processes of a node are stopped for `ms`; its kernel goes on."""

    name: str
    ms: float


@dataclass(frozen=True, slots=True)
class Reboot:
    """A node loses its power, and with it all that its kernel had; its disk stays. Back after
    `ms`."""

    name: str
    ms: float


@dataclass(frozen=True, slots=True)
class CrashLoop:
    """The agent of a node is killed every `life_ms`, and started at once, for `ms`."""

    name: str
    life_ms: float
    ms: float


@dataclass(frozen=True, slots=True)
class Unmanaged:
    """The management cable of a node carries nothing for `ms`."""

    name: str
    ms: float


@dataclass(frozen=True, slots=True)
class Lossy:
    """This share of packets is lost on the management cable of a node, each way, for `ms`."""

    name: str
    share: float
    ms: float


@dataclass(frozen=True, slots=True)
class Slow:
    """The management cable of a node carries `kbit` a second towards it for `ms`: what comes
    waits in a queue of up to 300 ms, or is lost."""

    name: str
    kbit: int
    ms: float


@dataclass(frozen=True, slots=True)
class DiskFull:
    """The file system with the state of the agent of a node is full for `ms`."""

    name: str
    ms: float


Part = Literal["dnsmasq", "namespace", "mount", "port", "rules", "folder"]


@dataclass(frozen=True, slots=True)
class Damage:
    """Somebody kills or removes, by hand, a part of what serves a router; nothing undoes it.

    `namespace` is its name and all processes in it, `mount` only what is behind the name, `port`
    that of its first network, `rules` the firewall and NAT within, `folder` all that the agent
    keeps of it on disk.
    """

    router: str
    part: Part


@dataclass(frozen=True, slots=True)
class DropSwitch:
    """Somebody deletes the table of nftables by which a node is muted."""

    name: str


@dataclass(frozen=True, slots=True)
class Order:
    """A planned operation begins. Not a fault, but in the way of them."""

    what: Literal["restart", "move", "drain"]
    router: str
    """`drain` empties the node that serves it."""


LabFault = (
    Fault | Freeze | Reboot | CrashLoop | Unmanaged | Lossy | Slow | DiskFull | Damage
    | DropSwitch | Order
)  # fmt: skip

_OF_NO_NODE = (Damage, Order, Delay, Echo, Noise, Stumble, StoreDown, StoreUnsure, Move)
"""Or of several: those are given by their names."""


def resolved(fault: LabFault, serves: dict[str, str], taken: Sequence[str] = ()) -> LabFault:
    """The fault with real names of nodes: `serves` has that of each router. A node that is `taken`
    gives way to the next one."""
    if isinstance(fault, Cut):
        return replace(fault, these=tuple(_node(name, serves, taken) for name in fault.these))
    if isinstance(fault, _OF_NO_NODE):
        return fault
    return replace(fault, name=_node(fault.name, serves, taken))


def node_of(fault: LabFault) -> str:
    """The node that the fault is about; empty when it is about none."""
    name = fault.these[0] if isinstance(fault, Cut) else str(getattr(fault, "name", ""))
    return name.removeprefix("agent-") if name not in ("orchestrator", "broker") else ""


def _node(name: str, serves: dict[str, str], taken: Sequence[str]) -> str:
    prefix = "agent-" if name.startswith("agent-") else ""
    plain = name.removeprefix(prefix)
    if not plain.startswith("@"):
        return name
    nodes = [serves[plain[1:]], *sorted(set(serves.values()))]
    free = [node for node in nodes if node and node not in taken]
    return prefix + (free[0] if free else nodes[0])
