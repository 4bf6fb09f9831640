"""System calls for namespaces and mounts that Python 3.11 lacks.

Standard library only: process 1 of a lab imports this without site-packages.
All functions raise OSError with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

CLONE_FS = 0x00000200
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
"""include/uapi/linux/sched.h"""

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
"""include/uapi/linux/mount.h"""

_SYS_CLONE3 = {"alpha": 545}.get(platform.machine(), 435)
_CLONE_ARGS_VER0 = 64

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, flags: int) -> None:
    """setns(2); `fd` is a namespace file or (Linux 5.8) a pidfd."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)), "setns")


def mount(source: str, target: str | Path, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    done = _libc.mount(
        source.encode(),
        os.fsencode(target),
        kind.encode(),
        ctypes.c_ulong(flags),
        data.encode(),
    )
    _check(done, f"mount {kind or source} on {target}")


def bind(source: str | Path, target: str | Path) -> None:
    """Make `source` appear at `target`."""
    mount(os.fspath(source), target, "", MS_BIND)


def fork_as_pid_1() -> int:
    """Fork into a new pid namespace; the child becomes a child of *our parent*, as its process 1.

    The parent can so reap it, and nobody has to stay between the two (clone(2), CLONE_PARENT;
    clone3 because its arguments are the same on every architecture; Linux 5.3).
    Only for single-threaded processes. Returns 0 in the child.
    """
    arguments = (ctypes.c_uint64 * (_CLONE_ARGS_VER0 // 8))(CLONE_NEWPID | CLONE_PARENT)
    result: int = _libc.syscall(
        ctypes.c_long(_SYS_CLONE3), ctypes.byref(arguments), ctypes.c_size_t(_CLONE_ARGS_VER0)
    )
    return _check(result, "clone3")
