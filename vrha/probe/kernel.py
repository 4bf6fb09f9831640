"""Calls that Python 3.11 lacks: setns, timerfd, recvmmsg, sendmmsg, mlockall; by ctypes."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import resource
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from vrha.errors import NotFoundError, PreconditionError

CLONE_NEWNET = 0x40000000
CLOCK_MONOTONIC = 1
TFD_NONBLOCK_CLOEXEC = 0o4000 | 0o2000000
TFD_TIMER_ABSTIME = 1
MCL_CURRENT_FUTURE = 1 | 2
CAP_IPC_LOCK = 14
MSG_DONTWAIT = 0x40
NS_PER_S = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


class Namespace:
    """A network namespace held open by its file; `with` puts the calling thread into it.

    `path` None is the namespace of the caller: entering does nothing. Raises NotFoundError when
    the file is missing, PreconditionError when it is no network namespace or may not be entered.
    See setns(2): entering needs CAP_SYS_ADMIN.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        self._home = -1
        self._fd = -1
        if path is None:
            return
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFoundError(
                "netns-not-found", f"no network namespace at {path}", "See `ip netns list`."
            ) from error
        except OSError as error:
            raise PreconditionError("netns-not-permitted", f"{path}: {error.strerror}") from error

    def __enter__(self) -> Namespace:
        if self._fd >= 0:
            home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _check(_libc.setns(self._fd, CLONE_NEWNET), "setns")
            except OSError as error:
                os.close(home)
                raise PreconditionError(
                    "netns-not-permitted",
                    f"cannot enter network namespace {self.path}: {error.strerror}",
                    "It needs root (CAP_SYS_ADMIN) and the file of a network namespace.",
                ) from error
            self._home = home
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._home >= 0:
            home, self._home = self._home, -1
            try:
                _check(_libc.setns(home, CLONE_NEWNET), "setns")
            finally:
                os.close(home)

    def close(self) -> None:
        """Let go of the namespace: an open file keeps a removed one alive."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Timer:
    """Periodic timerfd on CLOCK_MONOTONIC whose ticks lie at fixed absolute times."""

    def __init__(self) -> None:
        self.fd = _check(_libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK_CLOEXEC), "timerfd")

    def start(self, first_ns: int, interval_ns: int) -> None:
        """Tick at `first_ns` of CLOCK_MONOTONIC and every `interval_ns` from there."""
        spec = struct.pack("@qqqq", *divmod(interval_ns, NS_PER_S), *divmod(first_ns, NS_PER_S))
        _check(_libc.timerfd_settime(self.fd, TFD_TIMER_ABSTIME, spec, None), "timerfd_settime")

    def stop(self) -> None:
        _check(_libc.timerfd_settime(self.fd, 0, bytes(32), None), "timerfd_settime")

    def expirations(self) -> int:
        """Ticks since the last call; more than one: the process was late."""
        try:
            return int.from_bytes(os.read(self.fd, 8), "little")
        except BlockingIOError:
            return 0

    def close(self) -> None:
        os.close(self.fd)


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _MsgHdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _MMsgHdr(ctypes.Structure):
    _fields_ = (("hdr", _MsgHdr), ("len", ctypes.c_uint))


_HEADER_BYTES = ctypes.sizeof(_MMsgHdr)
_HEADER_WORDS = _HEADER_BYTES // 4
_LENGTH_WORD = _MMsgHdr.len.offset // 4
_TIME_WORD = 2
"""The first word behind the header of a control message."""


class Batch:
    """Buffers for many datagrams per system call; message i begins at `i * SLOT` of `data`.

    Its first control message begins at `i * CONTROL` of `control` (CMSG header of 16 bytes, see
    cmsg(3)). It has `lengths[i]` bytes, of which no more than SLOT are kept: longer ones are cut.
    Where the first control message is a struct timespec, it is in `seconds[i]` and `nanos[i]`.
    """

    SLOT = 128
    CONTROL = 64
    NAME = 32

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self._data = ctypes.create_string_buffer(size * self.SLOT)
        self.data = memoryview(self._data).cast("B")
        self._control = ctypes.create_string_buffer(size * self.CONTROL)
        self.control = memoryview(self._control).cast("B")
        self._names = ctypes.create_string_buffer(size * self.NAME)
        self._vectors = (_IoVec * size)()
        self.headers = (_MMsgHdr * size)()
        data = ctypes.addressof(self._data)
        for i in range(size):
            self._vectors[i].base = data + i * self.SLOT
            self._vectors[i].len = self.SLOT
            header = self.headers[i].hdr
            header.name = ctypes.addressof(self._names) + i * self.NAME
            header.namelen = self.NAME
            header.iov = ctypes.addressof(self._vectors[i])
            header.iovlen = 1
            header.control = ctypes.addressof(self._control) + i * self.CONTROL
            header.controllen = self.CONTROL
        # Reading a field of a structure of ctypes costs several times as much.
        self._bytes = memoryview(self.headers).cast("B")
        self._fresh = memoryview(bytes(self._bytes))
        self._used = 0
        self.lengths = self._bytes.cast("I")[_LENGTH_WORD::_HEADER_WORDS]
        words = self.control.cast("q")
        self.seconds = words[_TIME_WORD :: self.CONTROL // 8]
        self.nanos = words[_TIME_WORD + 1 :: self.CONTROL // 8]

    def receive(self, fd: int) -> int:
        """Number of datagrams taken from socket `fd`, 0 when there is none.

        Raises OSError for an error that is pending on the socket (it is cleared by that).
        """
        if self._used:
            # The kernel has overwritten lengths; without this the next datagrams come truncated.
            self._bytes[: self._used] = self._fresh[: self._used]
        count = int(_libc.recvmmsg(fd, self.headers, self.size, MSG_DONTWAIT, None))
        if count < 0:
            self._used = 0
            code = ctypes.get_errno()
            if code == errno.EAGAIN:
                return 0
            raise OSError(code, os.strerror(code))
        self._used = count * _HEADER_BYTES
        return count

    def send_back(self, fd: int, first: int, end: int) -> list[int]:
        """Send the received datagrams `first`..`end` - 1 to where they came from.

        The control messages go along, so that PKTINFO picks the source address. What the kernel
        refuses is dropped, as a network would; their numbers are given.
        """
        refused: list[int] = []
        whole = range(first, end)
        for i in whole:
            self._vectors[i].len = self.lengths[i]
        while first < end:
            rest = ctypes.byref(self.headers[first])
            done = int(_libc.sendmmsg(fd, rest, end - first, MSG_DONTWAIT))
            if done < 1:
                refused.append(first)
            first += max(done, 1)
        for i in whole:
            self._vectors[i].len = self.SLOT
        return refused


@dataclass(frozen=True, slots=True)
class Privileges:
    """What the kernel allowed for steady timing."""

    realtime: bool
    memory_locked: bool


@contextmanager
def steady(priority: int) -> Iterator[Privileges]:
    """Run the calling thread under SCHED_FIFO, memory locked and without garbage collection, as
    far as permitted; all is undone at the end. See sched(7), mlockall(2)."""
    collecting = gc.isenabled()
    policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
    realtime = locked = False
    with suppress(PermissionError):
        # Children (there are none of ours) must not inherit a realtime priority.
        fifo = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, fifo, os.sched_param(priority))
        realtime = True
    if _may_lock_memory():
        locked = _libc.mlockall(MCL_CURRENT_FUTURE) == 0
    gc.collect()
    gc.disable()
    try:
        yield Privileges(realtime, locked)
    finally:
        if collecting:
            gc.enable()
        if locked:
            _libc.munlockall()
        if realtime:
            os.sched_setscheduler(0, policy, param)


def _may_lock_memory() -> bool:
    """Whether CAP_IPC_LOCK is held: without it memory that is allocated later may fail to lock,
    and so to be allocated, in mid-run."""
    status = Path("/proc/thread-self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> CAP_IPC_LOCK & 1)


def allow_open_files(need: int) -> int:
    """Raise the limit of open files to `need` as far as permitted; the limit now in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= need:
        return need
    allowed = need if hard == resource.RLIM_INFINITY else min(need, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


class Clock:
    """Turns CLOCK_REALTIME (kernel receive timestamps) into CLOCK_MONOTONIC.

    The difference is sampled anew at each use, so a slewed clock does no harm; a stepped one is
    counted in `steps`. `sampled_at` and `before` are the last two samples, on CLOCK_MONOTONIC.
    """

    STEP_NS = 1_000_000

    def __init__(self) -> None:
        self.steps = 0
        self.offset, self.sampled_at = self._sample()
        self.before = self.sampled_at

    @staticmethod
    def _sample() -> tuple[int, int]:
        best: tuple[int, int, int] | None = None
        for _ in range(5):
            before = time.monotonic_ns()
            real = time.time_ns()
            after = time.monotonic_ns()
            if best is None or after - before < best[0]:
                best = (after - before, real - (before + after) // 2, after)
            if best[0] < 20_000:
                break
        assert best is not None
        return best[1], best[2]

    def stepped(self) -> bool:
        """Sample again; True when the realtime clock was set since the last sample."""
        offset, now = self._sample()
        # A clock may be slewed by up to 500 ppm (adjtimex(2)); twice that is no step.
        allowed = self.STEP_NS + (now - self.sampled_at) // 1000
        step = abs(offset - self.offset) > allowed
        self.offset, self.before, self.sampled_at = offset, self.sampled_at, now
        self.steps += step
        return step
