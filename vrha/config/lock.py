"""One daemon per state folder: two agents of a node, or two orchestrators, would do work twice."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vrha.errors import PreconditionError, RefusedError


@contextmanager
def sole_user(state_dir: Path, what: str) -> Iterator[None]:
    """Hold `state_dir` for this process during the block; made with mode 0700 if it is missing.

    The lock is one of flock(2) on the folder itself: it leaves no file, needs no space, and the
    kernel gives it back however the process ends. `what` names the daemon in the message.
    Raises RefusedError (`already-running`), PreconditionError (`state-dir`).
    """
    try:
        if not state_dir.exists():
            state_dir.mkdir(mode=0o700, parents=True)
        folder = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PreconditionError(
            "state-dir",
            f"cannot use the state directory {state_dir}: {error.strerror}",
            "Run it as root (sudo), or set another state_dir.",
        ) from error
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RefusedError(
                "already-running",
                f"another {what} already works on {state_dir}",
                "Stop it first (`lslocks` shows its pid), or set another state_dir.",
            ) from error
        yield
    finally:
        os.close(folder)
