"""What the watcher knows of its node that decides about a sweep, for the program that sweeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vrha.core.cleanup.decide import Agent, Situation, decide
from vrha.core.cleanup.profile import Profile
from vrha.core.names import folder_name
from vrha.errors import VrhaError
from vrha.model.ownership import Health
from vrha.model.spec import InstanceRef
from vrha.watcher.status import SOCKET, ask

KEY = "situation"
"""Under it the status has it."""


def agent_of(health: Health) -> Agent:
    """One that was never seen is as dead as another: it gets the same grace."""
    if health & Health.AGENT_HUNG:
        return Agent.HUNG
    return Agent.DEAD if health & (Health.AGENT_DEAD | Health.AGENT_UNKNOWN) else Agent.ALIVE


def owners(keys: Iterable[str]) -> frozenset[str]:
    """Owners, as a sweep names them, of rights."""
    parted = (key.rpartition("/") for key in keys)
    return frozenset(
        folder_name(InstanceRef(router, int(generation)))
        for router, _, generation in parted
        if generation.isdecimal()
    )


def told(now: Situation) -> dict[str, Any]:
    """As JSON; None stands for infinite times."""
    return {
        "agent": now.agent.value,
        "missing_ms": _finite(now.missing_ms),
        "grace_ms": now.grace_ms,
        "lease_ms": now.lease_ms,
        "lapsed_ms": _finite(now.lapsed_ms),
        "stand_in": now.stand_in,
        "revoked": sorted(now.revoked),
    }


def status(now: Situation, sweeps: Mapping[str, Any]) -> dict[str, Any]:
    """What both kinds of watcher say of a sweep: what they know, what follows, and `sweeps`."""
    decision = decide("", now)
    return {
        KEY: told(now),
        "cleanup": {
            "choice": decision.choice.value,
            "reason": decision.reason.value,
            "again_ms": decision.again_ms,
            **sweeps,
        },
    }


def parsed(said: Mapping[str, Any]) -> Situation:
    """Raises KeyError, ValueError, TypeError for what no watcher says."""
    return Situation(
        agent=Agent(said["agent"]),
        missing_ms=_infinite(said["missing_ms"]),
        grace_ms=float(said["grace_ms"]),
        lease_ms=None if said["lease_ms"] is None else float(said["lease_ms"]),
        lapsed_ms=_infinite(said["lapsed_ms"]),
        stand_in=bool(said["stand_in"]),
        revoked=frozenset(map(str, said["revoked"])),
    )


def socket_of(profile: Profile) -> Path:
    """The usual socket of the watcher whose sweeps are of that profile."""
    return SOCKET if profile.governed else SOCKET.with_name(f"watcher-{profile.name}.sock")


def of_node(socket: Path) -> Situation | None:
    """What the watcher behind `socket` knows; None where none answers (in time), or cannot tell."""
    try:
        return parsed(ask(socket)[KEY])
    except (VrhaError, KeyError, ValueError, TypeError):
        return None


def _finite(ms: float) -> float | None:
    return None if math.isinf(ms) else round(ms, 1)


def _infinite(ms: Any) -> float:
    return math.inf if ms is None else float(ms)
