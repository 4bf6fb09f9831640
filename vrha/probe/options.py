"""What the commands of `ping-gap` share: times, errors, and the end by a signal."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


def seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


@contextmanager
def errors() -> Iterator[None]:
    """Say what went wrong in one line, and exit as the module says."""
    try:
        yield
    except VrhaError as error:
        _fail(error)


def _fail(error: VrhaError) -> NoReturn:
    click.echo(f"ping-gap: {error}", err=True)
    sys.exit(2 if isinstance(error, InputError) else 1)


def stop_on_signal(parent: int | None = None) -> threading.Event:
    """An event set by the first SIGINT, SIGTERM or SIGHUP, or when process `parent` has gone.

    A second signal raises SystemExit in the main thread, so that nothing is left behind.
    """
    stop = threading.Event()

    def handle(number: int, _: object) -> None:
        if stop.is_set():
            sys.exit(128 + number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # What nohup(1) has set stays.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)
    if parent is not None:
        threading.Thread(target=_stop_with, args=(parent, stop), daemon=True).start()
    return stop


def _stop_with(parent: int, stop: threading.Event) -> None:
    # PR_SET_PDEATHSIG would fire when the thread that forked us ends, not its process.
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(parent)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.poll()
        os.close(fd)
    stop.set()
