"""`vrha pause` and `vrha resume`: the kill switch of automatic moves."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from vrha.cli.output import clean, output_options, show
from vrha.cli.settings import Settings
from vrha.model.pauses import Pause, PauseScope, PauseTarget

F = TypeVar("F", bound=Callable[..., Any])


def _target_options(command: F) -> F:
    """Give a command `--zone`, `--node` and `--router`."""
    for scope in (PauseScope.ROUTER, PauseScope.NODE, PauseScope.ZONE):
        what = f"Only this {scope}."
        command = click.option(f"--{scope}", metavar=scope.upper(), default="", help=what)(command)
    return command


@click.command()
@_target_options
@click.option("--reason", default="", help="Why; shown in `vrha status`.")
@output_options
@click.pass_obj
def pause(settings: Settings, zone: str, node: str, router: str, reason: str) -> None:
    """Let vrha move nothing by itself: nowhere, or not in a zone, on a node, or one router.

    What you ask for (restart, move, drain) goes on. A node that loses its lease is muted all the
    same: that is what keeps two nodes from answering for one address.
    """
    target = _target(zone, node, router)
    paused = settings.client().pause(target, _who(), reason)
    show(settings, paused, lambda: f"paused: {describe(paused)}")


@click.command()
@_target_options
@output_options
@click.pass_obj
def resume(settings: Settings, zone: str, node: str, router: str) -> None:
    """End a pause: the one of everything, or that of a zone, a node, or a router."""
    client = settings.client()
    ended = client.resume(_target(zone, node, router), _who())

    def text() -> str:
        left = [f"still paused: {describe(each)}" for each in client.pauses()]
        return "\n".join([f"resumed: {clean(ended.target)}", *left])

    show(settings, ended, text)


def describe(pause: Pause) -> str:
    """One pause in one line."""
    by = f" by {clean(pause.by)}" if pause.by else ""
    why = f": {clean(pause.reason)}" if pause.reason else ""
    return f"{clean(pause.target)} since {clean(pause.since)}{by}{why}"


def _target(zone: str, node: str, router: str) -> PauseTarget:
    named = [
        PauseTarget(scope, name)
        for scope, name in (
            (PauseScope.ZONE, zone),
            (PauseScope.NODE, node),
            (PauseScope.ROUTER, router),
        )
        if name
    ]
    if len(named) > 1:
        raise click.UsageError("give one of --zone, --node and --router")
    return named[0] if named else PauseTarget()


def _who() -> str:
    """The person, also behind sudo."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
