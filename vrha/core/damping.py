"""Flap damping and the delay of fail-back: nodes that are up again and not yet trusted.

A node that falls silent again and again must lose its routers, and then get none: it would take
them down with it each time. So a silence is never a reason to leave routers where they are; it is
one to give no others to that node. Every silence counts, also of a node that hosts nothing: else a
node that flaps while it is empty would look well when the delay is over.

The figures are those usual for routes (RFC 2439, section 4.2), a penalty for each flap that fades
by half-lives, with one threshold to be suppressed and a lower one to be used again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vrha.model.health import NodeHealth

PENALTY = 1000.0
"""Of one silence."""
LONGEST_S = 86_400.0
"""No time lies further ahead than that, unless the clock was set back."""


@dataclass(frozen=True, slots=True)
class Damping:
    """`suppress` is the penalty from which on a node takes no routers, `reuse` the one below which
    it takes some again, after `longest_s` at the latest. `fail_back_s`: for so long a node that
    was failed over and came back takes none."""

    half_life_s: float = 600.0
    suppress: float = 2000.0
    reuse: float = 750.0
    longest_s: float = 3600.0
    fail_back_s: float = 900.0


def penalty_at(health: NodeHealth, now: float, damping: Damping) -> float:
    """What is left of the penalty; `now` is Unix time."""
    elapsed = max(0.0, now - health.penalised_at)
    return float(health.penalty * 2.0 ** (-elapsed / damping.half_life_s))


def fell_silent(health: NodeHealth, now: float, damping: Damping) -> NodeHealth:
    """The node fell silent; to be called once for each silence. `now` is Unix time."""
    penalty = penalty_at(health, now, damping) + PENALTY
    until = health.suppressed_until
    if penalty >= damping.suppress or is_suppressed(health, now):
        fades_s = damping.half_life_s * math.log2(max(penalty / damping.reuse, 1.0))
        until = now + min(fades_s, damping.longest_s)
    # A delay that a silence cuts short begins anew: it asks for that long of health.
    away = health.away or is_delayed(health, now)
    return replace(health, penalty=penalty, penalised_at=now, suppressed_until=until, away=away)


def failed_over(health: NodeHealth, now: float, damping: Damping) -> NodeHealth:
    """Routers of the node were given to others; `now` is Unix time."""
    until = now + damping.fail_back_s
    return replace(health, failed_over_at=now, fail_back_until=until, away=True)


def came_back(health: NodeHealth, now: float, damping: Damping) -> NodeHealth:
    """The node is heard again; `now` is Unix time. The delay counts from here."""
    if not health.away:
        return health
    return replace(health, fail_back_until=now + damping.fail_back_s, away=False)


def is_suppressed(health: NodeHealth, now: float) -> bool:
    """Whether the node flaps; `now` is Unix time."""
    return 0 < health.suppressed_until - now <= LONGEST_S


def is_delayed(health: NodeHealth, now: float) -> bool:
    """Whether the node has not been back for long enough; `now` is Unix time."""
    return 0 < health.fail_back_until - now <= LONGEST_S
