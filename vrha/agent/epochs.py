"""The newest command that this node has seen of each router, for ever (I6)."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vrha.errors import PreconditionError, StepError

Mark = tuple[int, int]
"""Epoch, and the order of a command within it."""


class Epochs:
    """A small durable file: written and synced before a newer command takes effect."""

    def __init__(self, path: Path) -> None:
        """Read `path`.

        Raises PreconditionError: `state-damaged` when it is not what we wrote, `state-dir` when
        it cannot be read.
        """
        self._path = path
        try:
            loaded = json.loads(path.read_text()) if path.exists() else {}
            self._highest = {str(router): _mark(mark) for router, mark in loaded.items()}
        except OSError as error:
            raise PreconditionError(
                "state-dir", f"cannot read {path}: {error.strerror}", "Check the file and the disk."
            ) from error
        except (ValueError, AttributeError, TypeError) as error:
            raise PreconditionError(
                "state-damaged",
                f"{path} is damaged: {error}",
                "Without it an old command could win; remove it only when no command is under way.",
            ) from error

    def highest(self, router: str) -> Mark:
        return self._highest.get(router, (0, 0))

    def raise_to(self, router: str, mark: Mark) -> None:
        """Remember `mark`; lower and equal ones change nothing.

        Raises StepError (`no-space`, `state-dir`) when it cannot be kept; then nothing changed.
        """
        if mark <= self.highest(router):
            return
        wanted = {**self._highest, router: mark}
        try:
            self._write(wanted)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise StepError(
                "no-space" if full else "state-dir",
                f"cannot keep epoch {mark[0]} of {router} in {self._path}: {error.strerror}",
                "Free space and try again." if full else "Check the disk.",
            ) from error
        self._highest = wanted

    def _write(self, wanted: Mapping[str, Mark]) -> None:
        """Write and sync the file; raises OSError."""
        fresh = self._path.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump(wanted, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def all(self) -> tuple[tuple[str, int], ...]:
        """The highest epoch of every router, by name."""
        return tuple(sorted((router, epoch) for router, (epoch, _) in self._highest.items()))


def _mark(loaded: Any) -> Mark:
    epoch, order = loaded
    return int(epoch), int(order)
