"""The newest command that this node has seen of each router, for ever (I6)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vrha.errors import PreconditionError

Mark = tuple[int, int]
"""Epoch, and the order of a command within it."""


class Epochs:
    """A small durable file: written and synced before a newer command takes effect."""

    def __init__(self, path: Path) -> None:
        """Read `path`. Raises PreconditionError `state-damaged` when it is not what we wrote."""
        self._path = path
        try:
            loaded = json.loads(path.read_text()) if path.exists() else {}
            self._highest = {str(router): _mark(mark) for router, mark in loaded.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise PreconditionError(
                "state-damaged",
                f"{path} is damaged: {error}",
                "Without it an old command could win; remove it only when no command is under way.",
            ) from error

    def highest(self, router: str) -> Mark:
        return self._highest.get(router, (0, 0))

    def raise_to(self, router: str, mark: Mark) -> None:
        """Remember `mark`; lower and equal ones change nothing. Raises OSError."""
        if mark <= self.highest(router):
            return
        wanted = {**self._highest, router: mark}
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
        self._highest = wanted

    def all(self) -> tuple[tuple[str, int], ...]:
        """The highest epoch of every router, by name."""
        return tuple(sorted((router, epoch) for router, (epoch, _) in self._highest.items()))


def _mark(loaded: Any) -> Mark:
    epoch, order = loaded
    return int(epoch), int(order)
