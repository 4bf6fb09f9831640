"""One daemon per state folder: two agents of a node, or two orchestrators, would do work twice.

A sweep holds the folder of a dead agent in its place, and shows by a second lock that it is one:
an agent that comes back meanwhile waits for it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vrha.errors import PreconditionError, RefusedError

SWEEPS = "cleanup"
"""Folder in the state folder that a sweep holds as well; its journal lies there."""
_LOOK_S = 0.05


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


@contextmanager
def sole_sweeper(state_dir: Path, wait_s: float) -> Iterator[None]:
    """Hold `state_dir` in place of an agent that is gone; another sweep is waited for.

    A missing folder is made as an agent needs it. Raises RefusedError `agent-lives`, or
    `already-running` when another sweep takes longer than `wait_s`; PreconditionError `state-dir`.
    """
    with suppress(OSError):
        # dnsmasq, a user of its own, must be able to pass through.
        state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    until = time.monotonic() + wait_s
    with ExitStack() as held:
        while not _show(state_dir, held):
            if time.monotonic() > until:
                raise RefusedError(
                    "already-running",
                    f"another sweep of {state_dir} takes long",
                    "`lslocks` shows its pid.",
                )
            time.sleep(_LOOK_S)
        try:
            held.enter_context(sole_user(state_dir, "agent"))
        except RefusedError as error:
            raise RefusedError(
                "agent-lives",
                f"the agent of {state_dir} lives: nothing of it is swept",
                "Stop it first (`lslocks` shows its pid).",
            ) from error
        yield


def is_used(state_dir: Path) -> bool:
    """Whether anybody holds the folder. Raises OSError when there is no such folder."""
    return _is_locked(state_dir)


def is_swept(state_dir: Path) -> bool:
    """Whether a sweep is what holds the folder."""
    with suppress(OSError):
        return _is_locked(state_dir / SWEEPS)
    return False


def _show(state_dir: Path, held: ExitStack) -> bool:
    """Take the second lock; False when another sweep has it. On a full disk it is done without."""
    try:
        (state_dir / SWEEPS).mkdir(mode=0o700, exist_ok=True)
        folder = os.open(state_dir / SWEEPS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return True
    held.callback(os.close, folder)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # A shared one, for the shortest time: who wants it for itself meanwhile tries again.
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(folder)
    return False
