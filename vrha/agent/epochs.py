"""The highest epoch that this node has seen of each router, for ever (I6)."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path

from vrha.errors import PreconditionError, StepError


class Epochs:
    """A small durable file: written and synced before a higher epoch takes effect."""

    def __init__(self, path: Path) -> None:
        """Read `path`.

        Raises PreconditionError: `state-damaged` when it is not what we wrote, `state-dir` when
        it cannot be read.
        """
        self._path = path
        try:
            loaded = json.loads(path.read_text()) if path.exists() else {}
            self._highest = {str(router): int(epoch) for router, epoch in loaded.items()}
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

    def highest(self, router: str) -> int:
        return self._highest.get(router, 0)

    def raise_to(self, router: str, epoch: int) -> None:
        """Remember `epoch`; lower and equal ones change nothing.

        Raises StepError (`no-space`, `state-dir`) when it cannot be kept; then nothing changed.
        """
        if epoch <= self.highest(router):
            return
        wanted = {**self._highest, router: epoch}
        try:
            self._write(wanted)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise StepError(
                "no-space" if full else "state-dir",
                f"cannot keep epoch {epoch} of {router} in {self._path}: {error.strerror}",
                "Free space and try again." if full else "Check the disk.",
            ) from error
        self._highest = wanted

    def _write(self, wanted: Mapping[str, int]) -> None:
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
        return tuple(sorted(self._highest.items()))
