"""`vrha doctor`: whether this machine can run vrha."""

from __future__ import annotations

import click

from vrha.cli.output import clean, output_options, show
from vrha.cli.settings import Settings
from vrha.errors import PreconditionError


@click.command()
@output_options
@click.pass_obj
def doctor(settings: Settings) -> None:
    """Check whether this machine can run vrha; fails when something needed is missing."""
    from vrha.linux.doctor import checks

    found = checks()

    def text() -> str:
        lines = []
        for check in found:
            lines.append(clean(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}"))
            if not check.ok and check.hint:
                lines.append(clean(f"        {check.hint}"))
        return "\n".join(lines)

    show(settings, found, text)
    failed = [check.name for check in found if not check.ok]
    if failed:
        raise PreconditionError(
            "machine-not-ready",
            f"this machine lacks: {', '.join(failed)}",
            "The hints above say how to get it.",
        )
