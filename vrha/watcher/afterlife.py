"""What becomes of what a dead agent left: the node's side of the decision, for the loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

from vrha.core.cleanup.decide import Agent, Choice, Situation, decide
from vrha.core.ownership.holder import Holder
from vrha.model.ownership import Health
from vrha.watcher import situation
from vrha.watcher.agents import Agents
from vrha.watcher.settings import CleanupTable
from vrha.watcher.sweeps import Sweeps

_LOOK_MS = 100.0


class Afterlife:
    """Fed with the clock; readable (`fileno`) when a sweep has ended."""

    def __init__(self, settings: CleanupTable, agents: Agents, now: float) -> None:
        self._grace_ms = settings.grace_s * 1000
        self._agents = agents
        self._sweeps = Sweeps(settings.command, settings.pause_s)
        self._live_at = now
        """When the lease was last seen to last: never before this process began."""
        self._revoked_at: dict[str, float] = {}
        self._due = now

    def fileno(self) -> int:
        return self._sweeps.fileno()

    def close(self) -> None:
        self._sweeps.close()

    def look(self, holder: Holder, now: float) -> None:
        """Begin a sweep when it is time for one. Nothing is waited for."""
        if holder.lease_end is not None and now < holder.lease_end:
            self._live_at = now
        if now < self._due:
            return
        self._due = now + _LOOK_MS
        self._follow(holder, now)
        found = self.situation(holder, now)
        if found.agent is Agent.HUNG and decide("", as_dead(found)).choice is Choice.SWEEP:
            # Nothing of it serves, and while it is there nothing can be done about the rest.
            self._agents.end_stuck(self._grace_ms, now)
        self._sweeps.look(self._case(found, holder), now)

    def situation(self, holder: Holder, now: float) -> Situation:
        """As of the last look at the agent."""
        health = self._agents.health(now)
        end = holder.lease_end or now
        long_ago = now - self._grace_ms
        return Situation(
            agent=situation.agent_of(health),
            missing_ms=self._agents.missing_ms(now),
            grace_ms=self._grace_ms,
            lease_ms=max(0.0, end - now),
            lapsed_ms=now - self._live_at,
            stand_in=bool(health & Health.STAND_IN),
            # One that was given away may be of use for some time, as a relay.
            revoked=situation.owners(k for k, at in self._revoked_at.items() if at <= long_ago),
        )

    def tell(self, holder: Holder, now: float) -> Mapping[str, Any]:
        """For `vrha watcher status`, and for the program that sweeps."""
        return situation.status(self.situation(holder, now), self._sweeps.tell(now))

    def _follow(self, holder: Holder, now: float) -> None:
        kept = {key: at for key, at in self._revoked_at.items() if key in holder.revoked}
        self._revoked_at = dict.fromkeys(holder.revoked, now) | kept

    def _case(self, found: Situation, holder: Holder) -> Hashable:
        """A new death, another lease that ended, another right that was taken back: a new case."""
        due = [o for o in ("", *found.revoked) if decide(o, found).choice is Choice.SWEEP]
        return (self._agents.agent, holder.incarnation, frozenset(due)) if due else None


def as_dead(now: Situation) -> Situation:
    """What would be if the agent that is stuck had been dead for ever."""
    return dataclasses.replace(now, agent=Agent.DEAD, missing_ms=float("inf"))
