"""Observed state: what a node reports to be there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vrha.model.spec import InstanceRef, InstanceSpec


class Activity(StrEnum):
    """Whether the kernel lets an instance's ports speak."""

    MUTED = "muted"
    ACTIVE = "active"
    RELAY = "relay"
    """Forwards what still reaches it, and answers nobody: it is not an owner."""
    PARTIAL = "partial"
    """Some port missing, or only some of them active: the remains of an interrupted step."""


@dataclass(frozen=True, slots=True)
class RulesDigest:
    """Rules as read back from the kernel: how many, and the sha256 (hex) over all of them."""

    count: int
    digest: str


class Upstream(StrEnum):
    """Whether the upstream gateway answers from this node's uplink bridge."""

    REACHABLE = "reachable"
    UNREACHABLE = "unreachable"
    NONE = "none"
    """The router has no uplink, or the uplink no gateway."""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What a replacement proves in its check-in."""

    forwarding: tuple[str, ...]
    """Ports whose bridge end is in state forwarding."""
    not_forwarding: tuple[str, ...]
    rules: RulesDigest
    dns_answered: bool
    upstream: Upstream


@dataclass(frozen=True, slots=True)
class Following:
    """A standby knows all that the serving instance `old` on another node knows, and what it costs.

    `connections` that it has now; `changes` it was told in `seconds` since it caught up;
    `memory_kib` of its processes.
    """

    old: InstanceRef
    connections: int
    changes: int
    seconds: float
    memory_kib: int = 0


@dataclass(frozen=True, slots=True)
class ObservedInstance:
    """One instance as found on a node."""

    ref: InstanceRef
    epoch: int
    activity: Activity
    dnsmasq_alive: bool
    follows: Following | None = None
    """A standby: whose connections it has. None: it follows nobody, or has not caught up yet."""
    sick: bool = False
    """Test packets do not come through any more."""


@dataclass(frozen=True, slots=True)
class RouterState:
    """What the orchestrator knows of one router beyond what is wanted.

    `epoch` and `generation` are the last ones handed out; they only ever grow, also over the
    removal and return of a router of that name (I6).
    """

    router: str
    epoch: int = 0
    generation: int = 0
    node: str = ""
    active: InstanceRef | None = None
    applied: InstanceSpec | None = None
    """What the active instance was built from, or last configured to."""
    failed: str = ""
    """Why the router is not served although it is wanted; empty when it is."""
    standby: InstanceRef | None = None
    """The muted instance that stands by on `standby_node`."""
    standby_node: str = ""
    standby_spec: InstanceSpec | None = None
    """What the standby was built from, or last configured to."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """What a node last said of itself; `seen_at` in seconds of the wall clock (Unix time)."""

    name: str
    agent: str
    version: str
    capabilities: tuple[str, ...]
    instances: tuple[ObservedInstance, ...]
    seen_at: float
    highest_epochs: tuple[tuple[str, int], ...] = ()
    sync_address: str = ""
    certificate: str = ""
    uplinks: tuple[tuple[str, Upstream], ...] = ()
