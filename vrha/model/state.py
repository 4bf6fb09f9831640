"""Observed state: what a node reports to be there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vrha.model.spec import InstanceRef


class Activity(StrEnum):
    """Whether the kernel lets an instance's ports speak."""

    MUTED = "muted"
    ACTIVE = "active"
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
class ObservedInstance:
    """One instance as found on a node."""

    ref: InstanceRef
    epoch: int
    activity: Activity
    dnsmasq_alive: bool
