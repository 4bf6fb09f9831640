"""What `network restart` and `router move` share: options, and one run from start to end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vrha.cli.options import duration
from vrha.cli.output import show
from vrha.cli.settings import Settings
from vrha.model.rollouts import RolloutRequest
from vrha.model.runs import RestartOptions, Strategy

if TYPE_CHECKING:
    from vrha.cli.client import Client
    from vrha.cli.measuring import Measuring
    from vrha.model.views import RunView

F = TypeVar("F", bound=Callable[..., Any])

RUN_SECONDS = 90.0
ROLLOUT_SECONDS = 24 * 3600.0
"""How long a command waits for the end of a run, or of a rollout, unless told otherwise."""


def handover_options(command: F) -> F:
    """Give a command `--strategy`, `--hold` and `--max-lost`."""
    strategy = click.option(
        "--strategy",
        type=click.Choice([strategy.value for strategy in Strategy]),
        help="How to hand over; default: the best that the nodes are capable of.",
    )
    hold = click.option(
        "--hold", is_flag=True, help="Hold packets for a millisecond during a handover."
    )
    max_lost = click.option(
        "--max-lost",
        type=click.IntRange(0),
        help="Turn the traffic back when the node lost more probes than that; default: only when"
        " none comes through.",
    )
    return strategy(hold(max_lost(command)))


def waiting_options(command: F) -> F:
    """Give a command `--dry-run`, `--wait` and `--timeout`."""
    dry_run = click.option(
        "--dry-run", is_flag=True, help="Show the steps and their undo; start nothing."
    )
    wait = click.option(
        "--wait/--no-wait", default=True, show_default=True, help="Wait for the end."
    )
    timeout = click.option(
        "--timeout",
        type=duration,
        help="How long to wait; what was started goes on afterwards. Default: 90s for one router,"
        " 24h for many.",
    )
    return dry_run(wait(timeout(command)))


def rollout_options(command: F) -> F:
    """Give a command `--max-parallel`, `--stop-on-lost` and `--keep-going`."""
    max_parallel = click.option(
        "--max-parallel",
        type=click.IntRange(1, 1000),
        help="Routers at a time, once the first one alone is done; default: 4.",
    )
    stop_on_lost = click.option(
        "--stop-on-lost",
        type=click.IntRange(0),
        help="Go no further once the nodes lost more probes than that in all; default: no limit.",
    )
    keep_going = click.option(
        "--keep-going",
        is_flag=True,
        help="Go on after a run that was rolled back (but not when it was the first one).",
    )
    return max_parallel(stop_on_lost(keep_going(command)))


def options_of(
    strategy: str | None, hold: bool, max_lost: int | None, node: str = ""
) -> RestartOptions:
    """What the options of `handover_options` ask for."""
    return RestartOptions(Strategy(strategy) if strategy else None, node, hold, max_lost)


def show_plan(settings: Settings, plan: RunView) -> None:
    """Print a run that was only planned."""
    from vrha.cli import runview

    show(settings, plan, lambda: runview.plan(plan))


def see_through(
    settings: Settings,
    client: Client,
    run: RunView,
    wait: bool,
    timeout: float | None,
    probes: Measuring | None = None,
) -> None:
    """Show `run`, which has begun, to its end, and what `probes` measured meanwhile.

    Raises what `follow`, `demand_done` and `Measuring.keep` do.
    """
    from vrha.cli import progress

    if not wait:
        show(settings, run, lambda: progress.headline(run))
        return
    try:
        seconds = RUN_SECONDS if timeout is None else timeout
        ended = progress.follow(client, run.id, seconds, progress.progress())
    except KeyboardInterrupt:
        click.echo(f"run {run.id} goes on; `vrha run watch {run.id}` shows it", err=True)
        raise
    if probes is not None:
        ended = probes.keep(ended)
    show(settings, ended, lambda: _ended(ended))
    progress.demand_done([ended])


def _ended(run: RunView) -> str:
    from vrha.cli import progress

    if run.measurement is None:
        return progress.summary(run)
    from vrha.cli.runreport import measured
    from vrha.render.report import report

    hint = f"`vrha run report {run.id} --html FILE` draws it."
    return "\n".join([progress.summary(run), measured(report(run, time.time())), hint])


def start_rollout(
    settings: Settings, request: RolloutRequest, dry_run: bool, wait: bool, timeout: float | None
) -> None:
    """Plan a rollout, or start it and show it to its end; raises what `rolling` does."""
    from vrha.cli import rolling

    client = settings.client()
    if dry_run:
        plan = client.plan_rollout(request)
        show(settings, plan, lambda: rolling.plan(plan))
        return
    rolling.see_through(settings, client, client.start_rollout(request), wait, timeout)
