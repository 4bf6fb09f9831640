"""Pauses: what vrha must not move by itself, because somebody said so."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class PauseScope(StrEnum):
    """What is paused."""

    ALL = "all"
    ZONE = "zone"
    NODE = "node"
    ROUTER = "router"


@dataclass(frozen=True, slots=True)
class PauseTarget:
    """Everything, or the zone, node or router `name`."""

    scope: PauseScope = PauseScope.ALL
    name: str = ""

    def __str__(self) -> str:
        return f"{self.scope} {self.name}" if self.name else str(self.scope)


@dataclass(frozen=True, slots=True)
class Pause:
    """No automatic move of `target` since then (ISO 8601 in UTC); who said so, and why.

    What people ask for goes on, and so does what mutes a node that lost its lease.
    """

    target: PauseTarget
    since: str
    by: str
    reason: str
