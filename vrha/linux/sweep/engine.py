"""Finding everything of an agent on a node, and removing what a plan says, whatever fails."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

from vrha import failpoints
from vrha.core.cleanup.items import BAD, Item, Kind, Outcome, Result, worst
from vrha.core.cleanup.plan import ORDER, Plan
from vrha.core.cleanup.profile import Profile
from vrha.errors import VrhaError
from vrha.linux import rtnetlink
from vrha.linux.sweep import children, files, inner, namespaces, ports
from vrha.linux.sweep.journal import Journal
from vrha.linux.sweep.site import KindModule, Site

Progress = Callable[[str, int], None]
"""Told what comes next, and of how many items."""

_VANISH_S = 1.0
"""For ports that were not deleted to go with their namespaces."""
_LOOK_S = 0.005

_ALWAYS: Mapping[Kind, KindModule] = {
    Kind.PORT: ports,
    Kind.PROCESS: children,
    Kind.NAMESPACE: namespaces,
    Kind.FILE: files,
}


@dataclass(frozen=True, slots=True)
class Inventory:
    """What was found; `problems` says what could not be looked at."""

    items: tuple[Item, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a plan. `owners`: the worst result of each; `timings`: phases with their ms.

    `problems` are troubles of the sweep itself: with one it has not succeeded, though all items may
    be gone.
    """

    outcomes: tuple[Outcome, ...]
    owners: Mapping[str, Result]
    problems: tuple[str, ...]
    timings: tuple[tuple[str, float], ...] = field(default=())

    @property
    def succeeded(self) -> bool:
        return not self.problems and BAD.isdisjoint(self.owners.values())


def modules(profile: Profile) -> dict[Kind, KindModule]:
    """What finds and removes each kind that the profile has; others are not even loaded."""
    wanted = {
        Kind.RULES: ("rules", profile.chains),
        Kind.TABLE: ("rules", profile.tables),
        Kind.IPSET: ("sets", profile.sets),
        Kind.CONNTRACK: ("flows", profile.conntrack),
        Kind.OVS_PORT: ("ovs", profile.ovs_prefixes),
    }
    found = dict(_ALWAYS)
    for kind, (name, needed) in wanted.items():
        if needed:
            module = importlib.import_module(f"vrha.linux.sweep.{name}")
            found[kind] = cast(KindModule, module)
    return found


def find_all(at: Site) -> Inventory:
    """Everything that is ours by the profile; changes nothing. What cannot be looked at is told,
    the rest is found all the same."""
    items: list[Item] = []
    problems = []
    for name, module in _distinct(modules(at.profile)).items():
        try:
            items += module.find(at)
        # Profiles may be of others: a mistake in one must not hide the rest.
        except Exception as error:
            problems.append(f"{name} cannot be looked at: {_said(error)}")
    return Inventory(tuple(items), tuple(problems))


def _distinct(found: Mapping[Kind, KindModule]) -> dict[str, KindModule]:
    """One module may serve two kinds."""
    named: dict[int, tuple[str, KindModule]] = {}
    for kind, module in found.items():
        named.setdefault(id(module), (kind, module))
    return dict(named.values())


def sweep(
    at: Site,
    plan: Plan,
    journal: Journal,
    progress: Progress = lambda phase, count: None,
    problems: Sequence[str] = (),
) -> Report:
    """Carry out the plan; raises nothing. Doing it twice is harmless, also after half of it.

    The caller holds whatever keeps the agent from working meanwhile. `problems` are those of
    finding, which the report repeats.
    """
    return _Sweep(at, plan, journal, progress, problems).run()


class _Sweep:
    def __init__(
        self,
        at: Site,
        plan: Plan,
        journal: Journal,
        progress: Progress,
        problems: Sequence[str],
    ) -> None:
        self._at = at
        self._plan = plan
        self._journal = journal
        self._progress = progress
        self._outcomes: dict[tuple[Kind, str], Outcome] = {}
        self._problems = list(problems)
        self._timings: list[tuple[str, float]] = []

    def run(self) -> Report:
        shares = self._plan.to_sweep
        # Silence waits for nothing, least of all for a disk.
        self._timed("mute", self._mute)
        count = sum(len(share.items) for share in shares)
        self._journal.begin(self._plan.profile, [share.owner for share in shares], count)
        numbered = self._numbered()
        available = modules(self._at.profile)
        for kind in ORDER:
            items = numbered if kind is Kind.NAMESPACE else self._plan.items(kind)
            if items:
                self._timed(kind, partial(self._remove, available[kind], kind, items))
        self._timed("verify", self._verify)
        by_owner: dict[str, list[Outcome]] = {share.owner: [] for share in shares}
        for outcome in self._outcomes.values():
            by_owner.setdefault(outcome.item.owner, []).append(outcome)
        owners = {owner: worst(outcomes) for owner, outcomes in by_owner.items()}
        self._timed("marks", partial(tidy_marks, self._at, owners))
        self._journal.end({owner: str(result) for owner, result in owners.items()}, self._problems)
        if self._journal.trouble:
            self._problems.append(f"the journal is incomplete: {self._journal.trouble}")
        outcomes = tuple(self._outcomes.values())
        return Report(outcomes, owners, tuple(self._problems), tuple(self._timings))

    def _timed(self, phase: str, work: Callable[[], None]) -> None:
        begin = time.monotonic()
        failpoints.reach(f"sweep-{phase}")
        try:
            work()
        # Profiles may be of others: a mistake in one must not keep the rest from being removed.
        except Exception as error:
            self._problems.append(f"{phase}: {_said(error)}")
        self._timings.append((phase, round((time.monotonic() - begin) * 1000, 3)))

    def _mute(self) -> None:
        items = self._plan.items(Kind.PORT)
        self._progress("mute", len(items))
        try:
            if self._plan.to_sweep:
                ports.silence(self._at, items)
        finally:
            inner.silence(self._at, self._plan.items(Kind.NAMESPACE))

    def _numbered(self) -> list[Item]:
        items = self._plan.items(Kind.NAMESPACE)
        try:
            return namespaces.numbered(self._at, items)
        except (VrhaError, OSError) as error:
            self._problems.append(f"whether namespaces end cannot be told: {_said(error)}")
            return items

    def _remove(self, module: KindModule, kind: Kind, items: Sequence[Item]) -> None:
        self._progress(kind, len(items))
        left = {item.name: item for item in items}
        reason = "no answer"
        try:
            for outcome in module.remove(self._at, items):
                self._outcomes[kind, outcome.item.name] = outcome
                left.pop(outcome.item.name, None)
        except Exception as error:
            reason = _said(error)
            raise
        finally:
            for item in left.values():
                self._outcomes[kind, item.name] = Outcome(item, Result.FAILED, reason)
            self._journal.note(o for (k, _), o in self._outcomes.items() if k is kind)

    def _verify(self) -> None:
        """A port that was not deleted goes with its namespace."""
        failed = {
            key: outcome
            for key, outcome in self._outcomes.items()
            if key[0] is Kind.PORT and outcome.result is Result.FAILED
        }
        until = time.monotonic() + _VANISH_S
        while failed:
            there = {link.name for link in rtnetlink.links(self._at.route)}
            gone = {key: o for key, o in failed.items() if key[1] not in there}
            now_removed = {key: replace(o, result=Result.REMOVED) for key, o in gone.items()}
            self._outcomes |= now_removed
            self._journal.note(now_removed.values())
            failed = {key: o for key, o in failed.items() if key not in gone}
            if time.monotonic() > until:
                return
            time.sleep(_LOOK_S)


def tidy_marks(at: Site, owners: Mapping[str, Result]) -> None:
    """Forget what had leaked and has ended; `owners` says how it went this time. Raises OSError."""
    leaking = {leak.owner for leak in at.leaking}
    for owner in {leak.owner for leak in at.leaks.read()}:
        result = owners.get(owner, Result.LEAKED if owner in leaking else Result.GONE)
        if result not in BAD:
            at.leaks.clear(owner)


def _said(error: BaseException) -> str:
    if isinstance(error, VrhaError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"
