"""Who of several orchestrators leads: the decision to take over, without a common clock.

The store holds one row. The leader raises `beat` as long as it lives. Somebody who has seen the
same row for a whole TTL of its own monotonic clock may try to raise `epoch`; the store lets one
win. No two clocks are ever compared, so clocks may be set to anything.
"""

from __future__ import annotations

from dataclasses import dataclass

DRIFT = 0.02
"""By how much the rates of two monotonic clocks may differ; NTP slews by at most 0.0005."""


@dataclass(frozen=True, slots=True)
class Lead:
    """The row: who leads (nobody when empty), which leadership it is, and its sign of life."""

    holder: str = ""
    epoch: int = 0
    beat: int = 0


@dataclass(frozen=True, slots=True)
class Watch:
    """What somebody who does not lead has seen: seconds of its own monotonic clock."""

    lead: Lead
    since: float
    """When `lead` was first seen as it is."""
    looked: float


def look(watch: Watch | None, lead: Lead, now: float, ttl_s: float) -> Watch:
    """The watch after `lead` was read at `now`.

    Who has not looked for half a TTL begins anew: it, or the store, may have stood still, and
    then the leader had no chance to show itself.
    """
    stood_still = watch is not None and now - watch.looked > ttl_s / 2
    if watch is None or watch.lead != lead or stood_still:
        return Watch(lead, now, now)
    return Watch(lead, watch.since, now)


def may_take(watch: Watch, ttl_s: float, sole: bool = False) -> bool:
    """Whether to try for the lead now.

    `sole`: nobody else can be working on this store, so whoever the row names is dead.
    """
    return sole or not watch.lead.holder or watch.looked - watch.since >= ttl_s


def sure_until(confirmed: float, ttl_s: float) -> float:
    """Until when nobody can have taken the lead from who began to write its last beat at
    `confirmed` (seconds of its own monotonic clock).

    An observer sees that beat later than it was begun, and then waits for `ttl_s` by a clock that
    runs differently by DRIFT at most.
    """
    return confirmed + ttl_s * (1 - DRIFT)
