"""A rollout while it goes on, its plan and its report."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import click

from vrha.cli import runview
from vrha.cli.output import clean, record, show, table
from vrha.cli.progress import headline
from vrha.cli.restarting import ROLLOUT_SECONDS
from vrha.cli.settings import Settings
from vrha.errors import DeadlineError, StepError, UnreachableError
from vrha.model.rollouts import (
    Member,
    MemberStatus,
    RolloutKind,
    RolloutPlan,
    RolloutRequest,
    RolloutStatus,
    RolloutView,
)

if TYPE_CHECKING:
    from rich.text import Text

    from vrha.cli.client import Client

POLL_SECONDS = 0.25
_SHOWN = 20
"""Routers that the live picture shows at most: running ones, then the last that failed."""
_STYLES = {
    MemberStatus.RUNNING: ("▶", "bold yellow"),
    MemberStatus.ROLLED_BACK: ("✗", "bold red"),
    MemberStatus.REFUSED: ("✗", "bold red"),
}


class Shown(Protocol):
    """Shows a rollout on standard error each time it is told how it stands."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def update(self, rollout: RolloutView) -> None: ...


def see_through(
    settings: Settings, client: Client, rollout: RolloutView, wait: bool, timeout: float | None
) -> None:
    """Show `rollout`, which has begun, to its end. Raises what `follow` and `demand_done` do."""
    if not wait:
        show(settings, rollout, lambda: title(rollout))
        return
    try:
        seconds = ROLLOUT_SECONDS if timeout is None else timeout
        shown = LiveRollout() if sys.stderr.isatty() else PlainRollout()
        ended = follow(client, rollout.id, seconds, shown)
    except KeyboardInterrupt:
        click.echo(
            f"rollout {rollout.id} goes on; `vrha rollout watch {rollout.id}` shows it,"
            f" `vrha rollout stop {rollout.id}` ends it",
            err=True,
        )
        raise
    show(settings, ended, lambda: report(ended))
    demand_done(ended)


def follow(client: Client, rollout_id: str, timeout: float, shown: Shown) -> RolloutView:
    """The rollout once it has ended, shown all along; `timeout` in seconds.

    An orchestrator that goes away is waited for: the rollout is in its journal. Raises
    DeadlineError (`still-running`), or UnreachableError when it has not come back by then.
    """
    deadline = time.monotonic() + timeout
    with shown:
        while True:
            gone: UnreachableError | None = None
            try:
                rollout = client.rollout(rollout_id)
            except UnreachableError as error:
                gone = error
            else:
                shown.update(rollout)
                if not rollout.status.open:
                    return rollout
            if time.monotonic() >= deadline:
                break
            time.sleep(POLL_SECONDS)
    if gone is not None:
        raise gone
    raise DeadlineError(
        "still-running",
        f"rollout {rollout_id} has not ended within {timeout:g} s and goes on",
        f"`vrha rollout watch {rollout_id}` shows it.",
    )


def demand_done(rollout: RolloutView) -> None:
    """Raise StepError (`rollout-stopped`) unless everything is done."""
    if rollout.status is RolloutStatus.DONE:
        return
    why = ": ".join(clean(word) for word in (rollout.reason, rollout.detail) if word)
    raise StepError(
        "rollout-stopped",
        f"rollout {rollout.id} {rollout.status}: {why}",
        f"`vrha rollout resume {rollout.id}` takes it up again with what is not done.",
    )


# --- as text ---------------------------------------------------------------------------------


def about(request: RolloutRequest) -> str:
    """What is done to which routers."""
    if request.kind is RolloutKind.DRAIN:
        return f"drain of node {request.node}"
    return f"restart of all routers{f' of zone {request.zone}' if request.zone else ''}"


def title(rollout: RolloutView) -> str:
    """What the rollout is about, in one line."""
    many = len(rollout.members)
    return clean(
        f"rollout {rollout.id}: {about(rollout.request)}, {many} router{'' if many == 1 else 's'},"
        f" one first, then up to {rollout.request.max_parallel} at a time"
    )


def tally(rollout: RolloutView) -> str:
    """How far it has come: `12/20 done, 4 running, 0 lost`."""
    counts = Counter(member.status for member in rollout.members)
    parts = [f"{counts[MemberStatus.DONE]}/{len(rollout.members)} done"]
    parts += [f"{counts[s]} {_words(s)}" for s in MemberStatus if s in counts and s != "done"]
    return ", ".join([*parts, f"{_lost(rollout)} lost"])


def report(rollout: RolloutView) -> str:
    """Every router with what became of it, and the whole in one line."""
    rows = table(
        ("ROUTER", "RUN", "STRATEGY", "FROM", "TO", "ENDED", "LOST", "DURATION", "REASON"),
        map(_row, rollout.members),
    )
    return f"{rows}\n\n{summary(rollout)}"


def full(rollout: RolloutView) -> str:
    """The rollout and all its routers."""
    request = rollout.request
    facts = record(
        (
            ("rollout", rollout.id),
            ("kind", request.kind),
            ("zone", request.zone),
            ("node", request.node),
            ("status", rollout.status),
            ("reason", rollout.reason),
            ("detail", rollout.detail),
            ("at a time", request.max_parallel),
            ("stop on lost", request.stop_on_lost),
            ("keep going", "yes" if request.keep_going else ""),
            ("round", rollout.round),
            ("started", rollout.started_at),
            ("ended", rollout.ended_at),
        )
    )
    return f"{facts}\n\n{report(rollout)}"


def summary(rollout: RolloutView) -> str:
    """How the rollout stands or ended, in one line."""
    seconds = _seconds(rollout.started_at, rollout.ended_at)
    took = "" if seconds is None else f" after {seconds:.2f} s"
    why = ": ".join(word for word in (rollout.reason, rollout.detail) if word)
    end = f": {why}" if why else ""
    return clean(f"rollout {rollout.id} {rollout.status}{took}, {tally(rollout)}{end}")


def plan(planned: RolloutPlan) -> str:
    """The steps of every router, or why there are none."""
    return "\n".join([*_planned(planned), "Dry run: nothing was started."])


def _planned(planned: RolloutPlan) -> Iterator[str]:
    for member in planned.members:
        if member.run is None:
            why = ": ".join(word for word in (member.reason, member.detail) if word)
            yield clean(f"router {member.router}: no run: {why}")
        else:
            yield headline(member.run).partition(": ")[2]
            yield from runview.planned(member.run)
        yield ""
    runs = sum(1 for member in planned.members if member.run is not None)
    refused = len(planned.members) - runs
    without = f", {refused} without a run" if refused else ""
    yield (
        f"{about(planned.request)}: {runs} runs{without}; one first, then up to"
        f" {planned.request.max_parallel} at a time"
    )


def _row(member: Member) -> tuple[object, ...]:
    seconds = _seconds(member.started_at, member.ended_at)
    return (
        member.router,
        member.run,
        member.strategy,
        member.from_node,
        member.to_node,
        _words(member.status),
        member.lost,
        "" if seconds is None else f"{seconds:.2f} s",
        ": ".join(word for word in (member.reason, member.detail) if word),
    )


def _line(member: Member) -> str:
    """One router and what became of it."""
    run = f" run {member.run}" if member.run else ""
    way = f" {member.from_node} -> {member.to_node}" if member.to_node else ""
    by = f" by strategy {member.strategy}" if member.strategy else ""
    lost = "" if member.lost is None else f", {member.lost} lost"
    seconds = _seconds(member.started_at, member.ended_at)
    took = "" if seconds is None else f", {seconds:.2f} s"
    why = ": ".join(word for word in (member.reason, member.detail) if word)
    end = f": {why}" if why else ""
    return clean(f"{member.router}{run}{way}{by}: {_words(member.status)}{lost}{took}{end}")


def _words(status: MemberStatus) -> str:
    return status.replace("_", " ")


def _lost(rollout: RolloutView) -> int:
    return sum(member.lost or 0 for member in rollout.members)


def _seconds(started_at: str, ended_at: str) -> float | None:
    if not started_at or not ended_at:
        return None
    begin, end = map(datetime.fromisoformat, (started_at, ended_at))
    return (end - begin).total_seconds()


class PlainRollout:
    """One line for each router that changed, with how far the whole has come."""

    def __init__(self) -> None:
        self._seen: dict[str, Member] = {}
        self._said_title = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, rollout: RolloutView) -> None:
        if not self._said_title:
            self._said_title = True
            click.echo(title(rollout), err=True)
        total = len(rollout.members)
        width = len(str(total))
        for member in rollout.members:
            known = self._seen.get(member.router)
            self._seen[member.router] = member
            if member == known or member.status is MemberStatus.PENDING:
                continue
            ended = sum(1 for each in self._seen.values() if each.ended)
            click.echo(f"[{ended:>{width}}/{total}] {_line(member)}", err=True)


class LiveRollout:
    """A bar, and what is going on, redrawn in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._begin = time.monotonic()
        self._live = Live(console=Console(stderr=True), refresh_per_second=10)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, rollout: RolloutView) -> None:
        self._live.update(self._draw(rollout))

    def _draw(self, rollout: RolloutView) -> Text:
        from rich.text import Text

        width = 40
        total = max(1, len(rollout.members))
        filled = width * sum(1 for member in rollout.members if member.ended) // total
        picture = Text(f"{title(rollout)}  {time.monotonic() - self._begin:.1f} s\n  ")
        picture.append("█" * filled, "green")
        picture.append("░" * (width - filled), "dim")
        picture.append(f" {tally(rollout)}")
        running = [m for m in rollout.members if m.status is MemberStatus.RUNNING]
        failed = [
            m
            for m in rollout.members
            if m.status in (MemberStatus.ROLLED_BACK, MemberStatus.REFUSED)
        ]
        room = max(0, _SHOWN - len(running))
        for member in [*running[:_SHOWN], *(failed[-room:] if room else [])]:
            mark, style = _STYLES[member.status]
            picture.append(f"\n  {mark} ", style)
            picture.append(_line(member))
        return picture
