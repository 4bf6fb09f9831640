"""The newest command that this node has seen of each router, for ever (I6)."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vrha.errors import PreconditionError, StepError

Mark = tuple[int, int]
"""Epoch, and the order of a command within it."""

_NONE: Mark = (0, 0)


class Epochs:
    """A small durable file: written and synced before a newer command takes effect."""

    def __init__(self, path: Path) -> None:
        """Read `path`.

        Raises PreconditionError: `state-damaged` when it is not what we wrote, `state-dir` when
        it cannot be read.
        """
        self._path = path
        self._changed = threading.Condition()
        self._is_writing = False
        try:
            loaded = json.loads(path.read_text()) if path.exists() else {}
            self._kept = {str(router): _mark(mark) for router, mark in loaded.items()}
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
        self._wanted = dict(self._kept)

    def highest(self, router: str) -> Mark:
        """The newest mark that is kept."""
        with self._changed:
            return self._kept.get(router, _NONE)

    def raise_to(self, router: str, mark: Mark) -> Mark:
        """Remember `mark`, unless a newer one is known; the newest, which is on the disk.

        Threads that come at the same time share one write. Raises StepError (`no-space`,
        `state-dir`) when it cannot be kept; then nothing changed.
        """
        with self._changed:
            while (kept := self._kept.get(router, _NONE)) < mark:
                self._wanted[router] = max(mark, self._wanted.get(router, _NONE))
                if self._is_writing:
                    self._changed.wait()
                else:
                    self._keep(router, mark)
            return kept

    def _keep(self, router: str, mark: Mark) -> None:
        """Write all that is wanted, also by others; called with the lock, which is free meanwhile.

        Raises StepError: `mark` is wanted no longer then, and the others try for themselves.
        """
        written = dict(self._wanted)
        self._is_writing = True
        self._changed.release()
        trouble: OSError | None = None
        try:
            self._write(written)
        except OSError as error:
            trouble = error
        finally:
            self._changed.acquire()
            self._is_writing = False
            self._changed.notify_all()
        if trouble is None:
            self._kept = written
            return
        if self._wanted.get(router) == mark:
            self._wanted = dict(self._kept) | {r: m for r, m in self._wanted.items() if r != router}
        full = trouble.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StepError(
            "no-space" if full else "state-dir",
            f"cannot keep epoch {mark[0]} of {router} in {self._path}: {trouble.strerror}",
            "Free space and try again." if full else "Check the disk.",
        ) from trouble

    def _write(self, wanted: Mapping[str, Mark]) -> None:
        """Write and sync the file; raises OSError."""
        fresh = self._path.with_suffix(".new")
        with fresh.open("w") as file:
            file.write(json.dumps(wanted))
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
        with self._changed:
            kept = self._kept
        return tuple(sorted((router, epoch) for router, (epoch, _) in kept.items()))


def _mark(loaded: Any) -> Mark:
    epoch, order = loaded
    return int(epoch), int(order)
