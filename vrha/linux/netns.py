"""Named network namespaces, as `ip netns` makes them, without its processes.

Entering is `setns(2)` of the calling thread only; other threads are not touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vrha.errors import PreconditionError, StepError

NETNS_DIR = Path("/run/netns")

_CLONE_FS, _CLONE_NEWNS, _CLONE_NEWNET = 0x00000200, 0x00020000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 1 << 18, 1 << 20, 2
_libc = ctypes.CDLL(None, use_errno=True)


def current() -> int:
    """A new file descriptor of the calling thread's network namespace.

    Keep it as the way home: /proc/1/ns/net is not readable everywhere.
    """
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def path_of(name: str) -> Path:
    """Where a namespace of this name is mounted."""
    return NETNS_DIR / name


def open_named(name: str) -> int:
    """A file descriptor of the named namespace; the caller closes it.

    Raises FileNotFoundError when there is no such name, or a dead file without a namespace.
    """
    fd = os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    if os.fstat(fd).st_dev != os.stat("/proc/thread-self/ns/net").st_dev:
        os.close(fd)
        raise FileNotFoundError(f"{path_of(name)} is a file without a namespace")
    return fd


@contextmanager
def entered(target: int, home: int) -> Iterator[None]:
    """The calling thread is in namespace `target` inside the block, and back in `home` after it.

    Open sockets and start processes inside; close the sockets soon, each keeps the namespace
    alive. Do not nest.
    """
    _setns(target)
    try:
        yield
    finally:
        _setns(home)


@contextmanager
def entered_named(name: str, home: int) -> Iterator[int]:
    """`entered` by name; yields the namespace's file descriptor, closed after the block."""
    fd = open_named(name)
    try:
        with entered(fd, home):
            yield fd
    finally:
        os.close(fd)


def create(name: str, home: int) -> int:
    """Make a namespace, name it, and return a file descriptor of it; the thread stays in `home`.

    Raises StepError `namespace-exists` when the name is taken, be it by a leftover plain file
    (a second mount would be stacked on it and never go away).
    """
    path = path_of(name)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except FileExistsError as error:
        raise StepError(
            "namespace-exists", f"{path} exists already", "Destroy the instance first."
        ) from error
    try:
        _check(_libc.unshare(_CLONE_NEWNET), "unshare")
        try:
            _mount("/proc/thread-self/ns/net", str(path), _MS_BIND)
            return current()
        finally:
            _setns(home)
    except BaseException:
        remove(name)
        raise


def remove(name: str) -> None:
    """Unmount and unlink the name; nothing happens when it is not there.

    The namespace itself lives on as long as processes, sockets or file descriptors hold it.
    """
    path = path_of(name)
    while _libc.umount2(os.fsencode(path), _MNT_DETACH) == 0:
        pass
    path.unlink(missing_ok=True)


def remove_hidden(name: str) -> None:
    """As `remove` for a name that is mounted below something that was mounted on /run/netns later.

    unlink(2) refuses such a name (EBUSY), and umount(2) does not reach it. From a mount namespace
    in which all of it is taken apart the file can be removed, which detaches it everywhere
    (fs/namespace.c, __detach_mounts). Raises OSError.
    """
    failed: list[OSError] = []

    def work() -> None:
        try:
            _remove_apart(name)
        except OSError as error:
            failed.append(error)

    # A mount namespace is entered for good, by a thread that ends.
    thread = threading.Thread(target=work, name="hidden")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _remove_apart(name: str) -> None:
    _check(_libc.unshare(_CLONE_FS | _CLONE_NEWNS), "unshare")
    _mount("", "/", _MS_REC | _MS_PRIVATE)
    folder = os.open(NETNS_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while _libc.umount2(os.fsencode(path_of(name)), _MNT_DETACH) == 0:
            pass
        while _is_mounted(NETNS_DIR):
            _check(_libc.umount2(os.fsencode(NETNS_DIR), _MNT_DETACH), f"umount {NETNS_DIR}")
            while _libc.umount2(os.fsencode(path_of(name)), _MNT_DETACH) == 0:
                pass
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
    finally:
        os.close(folder)


def _is_mounted(path: Path) -> bool:
    mounts = Path("/proc/thread-self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(path) for line in mounts)


def names() -> list[str]:
    """Names of all named namespaces."""
    try:
        return sorted(os.listdir(NETNS_DIR))
    except FileNotFoundError:
        return []


def prepare_directory() -> None:
    """Make /run/netns a shared mount of its own, as `ip netns add` does.

    Without it a name removed here would stay mounted in copied mount namespaces. Raises
    PreconditionError `netns-dir` when that is not possible.
    """
    try:
        NETNS_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            _mount("", str(NETNS_DIR), _MS_SHARED | _MS_REC)
        except OSError:
            _mount(str(NETNS_DIR), str(NETNS_DIR), _MS_BIND | _MS_REC)
            _mount("", str(NETNS_DIR), _MS_SHARED | _MS_REC)
    except OSError as error:
        raise PreconditionError(
            "netns-dir",
            f"cannot prepare {NETNS_DIR}: {error.strerror}",
            "Named network namespaces need a writable /run/netns and CAP_SYS_ADMIN.",
        ) from error


def _mount(source: str, target: str, flags: int) -> None:
    _check(
        _libc.mount(os.fsencode(source), os.fsencode(target), b"none", flags, None),
        f"mount {target}",
    )


def _setns(fd: int) -> None:
    _check(_libc.setns(fd, _CLONE_NEWNET), "setns")


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
