"""Where marks come from while a run lasts: a file that grows, stdin, or a socket."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

from vrha.core.marks import parse_mark
from vrha.errors import InputError, PreconditionError

SOCKET = "unix:"
MOST_MARKS = 10_000
MOST_BYTES = 1 << 16
"""Of a line without an end, and of a datagram."""
POLL_S = 0.02


class _Source(Protocol):
    def read(self) -> bytes | None:
        """What came, after at most about POLL_S; None at the end of all."""

    def close(self) -> None: ...


class Marks:
    """Collects marks from `--mark-from` in a thread, at most MOST_MARKS.

    Use as a context manager. Raises InputError (`unreadable`), PreconditionError
    (`socket-in-use`, `socket-not-permitted`).
    """

    def __init__(self, where: str) -> None:
        self._source = _source_of(where)
        self._lock = threading.Lock()
        self._marks: list[tuple[float, str]] = []
        self._bad: list[str] = []
        self._bad_count = 0
        self._left_out = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def __enter__(self) -> Marks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(5)
        self._source.close()

    def taken(self) -> tuple[tuple[float, str], ...]:
        """The marks so far in order of time: Unix seconds and text."""
        with self._lock:
            return tuple(sorted(self._marks, key=lambda mark: mark[0]))

    def notes(self) -> tuple[str, ...]:
        """What came and is no mark."""
        lines = []
        if self._bad_count:
            lines.append(f"warning: {self._bad_count} lines were no marks, first {self._bad[0]!r}")
        if self._left_out:
            lines.append(f"warning: {self._left_out} marks above {MOST_MARKS} were left out")
        return tuple(lines)

    def _collect(self) -> None:
        rest = b""
        while not self._stop.is_set():
            try:
                came = self._source.read()
            except OSError:
                return
            if came is None:
                if rest:
                    self._take(rest)
                return
            *lines, rest = (rest + came).split(b"\n")
            for line in lines:
                self._take(line)
            if len(rest) > MOST_BYTES:
                self._refuse(rest)
                rest = b""

    def _take(self, line: bytes) -> None:
        now = time.time()
        try:
            mark = parse_mark(line.decode(), now)
        except (InputError, UnicodeError):
            self._refuse(line)
            return
        with self._lock:
            if len(self._marks) < MOST_MARKS:
                self._marks.append(mark)
            else:
                self._left_out += 1

    def _refuse(self, line: bytes) -> None:
        self._bad_count += 1
        if not self._bad:
            self._bad.append(line[:80].decode(errors="replace"))


def _source_of(where: str) -> _Source:
    if where == "-":
        return _Stdin()
    if where.startswith(SOCKET):
        return _Socket(where.removeprefix(SOCKET))
    return _Followed(where)


def _readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], POLL_S)[0])


class _Stdin:
    def read(self) -> bytes | None:
        if not _readable(sys.stdin.fileno()):
            return b""
        return os.read(sys.stdin.fileno(), MOST_BYTES) or None

    def close(self) -> None:
        pass


class _Socket:
    """A datagram socket that only this user may write to, and that is removed at the end."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._remove_abandoned()
            # bind(2) gives the file the mode of the socket: 0600 from the first moment on.
            os.fchmod(self._socket.fileno(), stat.S_IRUSR | stat.S_IWUSR)
            self._socket.bind(path)
            self._inode = self._path.stat().st_ino
        except OSError as error:
            self._socket.close()
            raise PreconditionError(
                "socket-not-permitted", f"cannot make the socket {path}: {error.strerror or error}"
            ) from error
        except BaseException:
            self._socket.close()
            raise

    def _remove_abandoned(self) -> None:
        """A socket to which nobody listens any more is one that a killed run has left."""
        if not self._path.is_socket():
            return
        try:
            self._socket.connect(str(self._path))
        except ConnectionRefusedError:
            self._path.unlink()
            return
        raise PreconditionError("socket-in-use", f"another process listens on {self._path}")

    def read(self) -> bytes | None:
        if not _readable(self._socket.fileno()):
            return b""
        return self._socket.recv(MOST_BYTES).rstrip(b"\n") + b"\n"

    def close(self) -> None:
        self._socket.close()
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()


class _Followed:
    """A file from its present end on, as `tail -F`: also one that comes later, or anew."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._pause = threading.Event()
        try:
            if Path(path).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._open()
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError("unreadable", f"cannot read {path}: {error.strerror}") from error
        # A FIFO has no end to go to.
        with suppress(OSError):
            os.lseek(self._fd, 0, os.SEEK_END)

    def _open(self) -> None:
        # Without O_NONBLOCK a FIFO would hold us up until somebody writes.
        self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def read(self) -> bytes | None:
        if self._fd >= 0:
            with suppress(BlockingIOError):
                came = os.read(self._fd, MOST_BYTES)
                if came:
                    return came
        self._pause.wait(POLL_S)
        return self._look_again()

    def _look_again(self) -> bytes:
        """Go on with the new file where there is one, or at the begin of one cut short; gives what
        was still written to the old one."""
        came = b""
        try:
            there = os.stat(self._path)
            if self._fd < 0:
                self._open()
                return came
            ours = os.fstat(self._fd)
            if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
                with suppress(BlockingIOError):
                    came = os.read(self._fd, MOST_BYTES)
                os.close(self._fd)
                self._fd = -1
                self._open()
            elif stat.S_ISREG(ours.st_mode) and ours.st_size < os.lseek(self._fd, 0, os.SEEK_CUR):
                os.lseek(self._fd, 0, os.SEEK_SET)
        except OSError:
            pass
        return came

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def send_mark(where: str, text: str) -> None:
    """Give a mark of now to the run that listens at `where`.

    Raises InputError (`bad-socket`), PreconditionError (`no-listener`).
    """
    if not where.startswith(SOCKET):
        raise InputError("bad-socket", f"{where!r} does not begin with {SOCKET}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(f"{time.time():.6f} {text}".encode(), where.removeprefix(SOCKET))
        except OSError as error:
            raise PreconditionError(
                "no-listener", f"no run of ping-gap listens at {where}: {error.strerror or error}"
            ) from error
