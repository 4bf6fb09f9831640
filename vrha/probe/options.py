"""Parts of the command line of ping-gap that are not commands."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from vrha.errors import InputError, VrhaError

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4, "": 1.0}
PORT = click.IntRange(1, 65535)


class Milliseconds(click.ParamType[float]):
    """A time like `1ms`, `0.5s`, `2m`; a bare number is in the unit given."""

    name = "TIME"

    def __init__(self, bare: str = "ms") -> None:
        self._bare = bare

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s|m|)", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no time; write it like 1ms, 0.5s or 2m", param, ctx)
        return float(match[1]) * _UNITS[match[2] or self._bare]


class Default(click.Group):
    """A group whose first argument may be a target instead of a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "--version"):
            args = ["measure", *args]
        return super().parse_args(ctx, args)


def seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


@contextmanager
def errors() -> Iterator[None]:
    """Ends the process with what an error says, 2 when the request was wrong, else 1."""
    try:
        yield
    except VrhaError as error:
        fail(error)


def fail(error: VrhaError) -> NoReturn:
    click.echo(f"ping-gap: {error}", err=True)
    sys.exit(2 if isinstance(error, InputError) else 1)
