"""Data on standard output: a table for people, JSON or YAML for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from vrha.cli.settings import FORMATS, Settings

F = TypeVar("F", bound=Callable[..., Any])


def output_options(command: F) -> F:
    """Give a command `-o table|json|yaml` and `--json`."""

    def choose(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        settings = ctx.find_object(Settings)
        if value and settings:
            settings.output = value

    def choose_json(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        choose(ctx, parameter, "json" if value else None)

    with_json = click.option(
        "--json", is_flag=True, expose_value=False, callback=choose_json, help="Same as -o json."
    )
    with_output = click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        expose_value=False,
        callback=choose,
        help="Form of the data on standard output.",
    )
    return with_output(with_json(command))


def show(settings: Settings, value: object, text: Callable[[], str]) -> None:
    """Print `value` as the settings ask; `text` makes the form for people."""
    if settings.output == "table":
        click.echo(text())
        return
    from vrha.codec import plain

    if settings.output == "json":
        click.echo(json.dumps(plain(value), indent=2))
        return
    import yaml

    click.echo(yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True), nl=False)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns with two blanks between them, for people and for `awk`; empty cells are `-`."""
    cells = [list(header), *([clean(cell) or "-" for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def record(fields: Iterable[tuple[str, object]]) -> str:
    """One object as lines `name: value`; fields without a value are left out."""
    shown = [(name, clean(value)) for name, value in fields]
    width = max(len(name) for name, _ in shown) + 2
    return "\n".join(f"{name + ':':<{width}}{value}" for name, value in shown if value)


def clean(value: object) -> str:
    """The value as text in which no control character can play with the terminal."""
    if value is None:
        return ""
    if isinstance(value, (tuple, list)):
        return " ".join(clean(part) for part in value)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(value))
