"""A sweep as a whole: the lock, the look, the decision, the work. Light: it must start fast."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vrha.config.lock import is_used, sole_sweeper
from vrha.core.cleanup import plan as plans
from vrha.core.cleanup.decide import Agent, Choice, Decision, Reason, Situation, decide
from vrha.core.cleanup.items import Kind
from vrha.core.cleanup.keepers import keepers
from vrha.core.cleanup.plan import Plan
from vrha.core.cleanup.profile import Profile
from vrha.core.cleanup.profiles import load
from vrha.errors import PreconditionError, StepError, VrhaError
from vrha.linux.deadman import DeadMan
from vrha.linux.sweep import agents, engine, ports
from vrha.linux.sweep.engine import Inventory, Progress, Report
from vrha.linux.sweep.journal import Journal, told, unfinished
from vrha.linux.sweep.leaked import records_of
from vrha.linux.sweep.site import Site, opened
from vrha.watcher import situation

WAIT_S = 30.0
"""For another sweep of the same agent to end."""

_REFUSED = frozenset((Reason.AGENT_LIVES, Reason.STOPPED_BY_HAND))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a sweep is asked for. `only`: routers, empty for all."""

    profile: Profile
    state_dir: Path
    only: frozenset[str] = frozenset()
    force: bool = False
    watcher: Path | None = None
    """Its socket, if not the usual one of the profile."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A plan, what could not be looked at, and owners of which a sweep was begun and not ended."""

    plan: Plan
    problems: tuple[str, ...]
    unfinished: frozenset[str]


@dataclass(frozen=True, slots=True)
class Done:
    """A plan and what became of it."""

    plan: Plan
    report: Report

    @property
    def exit_code(self) -> int:
        """0 when all that may go is gone, 1 when something would not, 4 when nothing may go yet."""
        if not self.report.succeeded:
            return 1
        decisions = [share.decision for share in self.plan.shares]
        waits = any(
            decision.choice is Choice.WAIT or decision.reason in _REFUSED for decision in decisions
        )
        return 4 if waits and not self.plan.to_sweep else 0


def wanted(
    profile: str,
    state_dir: Path | None,
    only: Sequence[str] = (),
    force: bool = False,
    watcher: Path | None = None,
) -> Wanted:
    """Raises NotFoundError `no-profile`."""
    found = load(profile)
    return Wanted(found, state_dir or Path(found.state_dir), frozenset(only), force, watcher)


def look(what: Wanted) -> Seen:
    """The plan as of now. Changes nothing, waits for nobody.

    Raises StepError `no-rtnetlink`, `switch-unreadable`, `dead-man-failed`, `kernel-timeout`.
    """
    with contextlib.suppress(OSError):
        if what.profile.governed and is_used(what.state_dir):
            return _look(what, Agent.ALIVE)
    return _look(what, Agent.DEAD)


def _look(what: Wanted, agent: Agent) -> Seen:
    with opened(what.profile, what.state_dir) as at:
        found = engine.find_all(at)
        seen = _planned(what, at, found, agent)
        return Seen(seen, found.problems, unfinished(at.records))


def run(what: Wanted, progress: Progress = lambda phase, count: None) -> Done:
    """Sweep what may go. The agent is kept from starting meanwhile, one that comes waits.

    Raises RefusedError `agent-lives`, `already-running`; PreconditionError `state-dir`;
    StepError `no-rtnetlink`, and as `look` when it cannot be told whether anything serves.
    """
    with sole_sweeper(_locked(what), WAIT_S), opened(what.profile, what.state_dir) as at:
        _mute_early(what, at)
        found = engine.find_all(at)
        plan = _planned(what, at, found, Agent.DEAD)
        return Done(plan, _swept(at, plan, found, progress))


def _locked(what: Wanted) -> Path:
    """Agents that know nothing of the lock must not find it among their files."""
    if what.profile.governed:
        return what.state_dir
    return records_of(what.profile, what.state_dir)


def _mute_early(what: Wanted, at: Site) -> None:
    """Looking at all processes takes longer than all else on a busy node: silence does not wait
    for it. What fails here is tried again, and told, by the sweep itself."""
    if what.profile.governed:
        with contextlib.suppress(OSError, VrhaError):
            found = Inventory(tuple(ports.find(at)))
            silent = _planned(what, at, found, Agent.DEAD).items(Kind.PORT)
            if silent:
                ports.silence(at, silent)


def _swept(at: Site, plan: Plan, found: Inventory, progress: Progress) -> Report:
    if not plan.to_sweep:
        with contextlib.suppress(OSError):
            engine.tidy_marks(at, {})
        return Report((), {}, found.problems)
    journal = Journal(at.records, os.urandom(8).hex())
    return engine.sweep(at, plan, journal, progress, found.problems)


def _planned(what: Wanted, at: Site, found: Inventory, agent: Agent) -> Plan:
    situation = _situation(what, found, agent)
    kept_by = keepers(what.profile, found.items)
    living = agents.living(at).keys()

    def decision(owner: str) -> Decision:
        lives = kept_by[owner] & living
        return decide(owner, replace(situation, agent=Agent.ALIVE) if lives else situation)

    plan = plans.make(what.profile.name, found.items, decision)
    if not what.only:
        return plan
    router_of = what.profile.router_of
    return plans.only(plan, lambda owner: {owner, router_of(owner)} & what.only != set())


def _situation(what: Wanted, found: Inventory, agent: Agent) -> Situation:
    """What the watcher knows of the past, and this process of the present."""
    past = situation.of_node(what.watcher or situation.socket_of(what.profile))
    if not what.profile.governed:
        return replace(past or Situation(agent), forced=what.force)
    lease = _lease_ms()
    serving: frozenset[str] = frozenset()
    if lease is None:
        try:
            serving = ports.speaking(item for item in found.items if item.kind is Kind.PORT)
        except OSError as error:
            raise StepError(
                "switch-unreadable", f"who still serves cannot be told: {error.strerror}"
            ) from error
    return replace(
        past or Situation(agent),
        agent=agent,
        lease_ms=lease,
        serving=serving,
        forced=what.force,
    )


def _lease_ms() -> float | None:
    """For how long the kernel still lets the node speak; None where no watcher governs it."""
    try:
        with contextlib.closing(DeadMan()) as kernel:
            return float(kernel.remaining_ms())
    except PreconditionError:
        return None


def plan_told(seen: Seen) -> dict[str, Any]:
    """A plan as plain data."""
    return {
        "profile": seen.plan.profile,
        "owners": [
            {
                "owner": share.owner,
                "choice": share.decision.choice,
                "reason": share.decision.reason,
                "again_ms": share.decision.again_ms,
                "items": [
                    {"kind": i.kind, "name": i.name, "why": i.why, **i.detail} for i in share.items
                ],
            }
            for share in seen.plan.shares
        ],
        "unfinished": sorted(seen.unfinished),
        "problems": list(seen.problems),
    }


def report_told(done: Done) -> dict[str, Any]:
    """A report as plain data."""
    kept = {
        s.owner: s.decision.reason
        for s in done.plan.shares
        if s.decision.choice is not Choice.SWEEP
    }
    return {
        "profile": done.plan.profile,
        "owners": dict(done.report.owners),
        "kept": kept,
        "outcomes": [told(outcome) for outcome in done.report.outcomes],
        "problems": list(done.report.problems),
        "ms": dict(done.report.timings),
        "exit_code": done.exit_code,
    }
