"""Holding the packets to an instance for about a millisecond, while the last of its state arrives.

A token bucket (net/sched/sch_tbf.c) on the host-side end of each port keeps what comes, in order,
until it is opened wide. It then stays for the life of the port: taking a queue away from a live
port loses packets. A child process opens it too when its time is over, so that an agent that dies
or stops in between leaves no router deaf.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vrha.errors import StepError
from vrha.linux import release, rtnetlink
from vrha.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Netlink,
    NetlinkError,
    attr,
    nest,
    text,
    u32,
)
from vrha.linux.tools import ENVIRONMENT

_TCA_KIND, _TCA_OPTIONS = 1, 2
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_TC_H_ROOT = 0xFFFF_FFFF
_LINKLAYER_ETHERNET = 1
_LOOPBACK = 1
_TCMSG = struct.Struct("=BBHiIII")
_RATESPEC = struct.Struct("=BBHhHI")
_LIMIT = 20_000_000
"""Bytes that one port may hold; 10 Gbit/s for 16 ms."""
_HELD_RATE, _SPARE = 1, 8
"""Bytes per second while holding; burst beyond the largest frame, in bytes: less than a packet."""
_OPEN_RATE, _OPEN_BURST = 125_000_000_000, 4_000_000
"""Bytes per second (1 Tbit/s) and bytes: never a limit."""
_START_S, _END_S = 5.0, 5.0


class Hold:
    """The hold of some ports (host-side names).

    When it is engaged they must still be muted, or `lossless`.
    """

    def __init__(self, route: Netlink, ports: Sequence[str]) -> None:
        """Prepare; the calling thread and `route` are in the namespace of the ports.

        Raises StepError `hold-failed` when a port is missing.
        """
        self._route = route
        links = [rtnetlink.link(route, port) for port in ports]
        missing = [port for port, link in zip(ports, links, strict=True) if link is None]
        if missing:
            raise _failed(f"no port {', '.join(missing)}")
        self._links = [link for link in links if link is not None]
        self._sockets: list[socket.socket] = []
        self._guard: subprocess.Popen[bytes] | None = None

    @staticmethod
    def available() -> str:
        """Why packets cannot be held here; empty when they can.

        The kernel is asked for a token bucket without parameters: one that has it complains about
        these, and nothing is made.
        """
        try:
            with rtnetlink.open_route() as route:
                route.talk([_qdisc(_LOOPBACK, NLM_F_CREATE | NLM_F_EXCL, b"")])
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EEXIST):
                return ""
            return f"the kernel has no token bucket queue (sch_tbf): {error.strerror}"
        return ""

    @property
    def lossless(self) -> bool:
        """Whether the ports, even live ones, can be held: giving a live port a queue loses
        packets (dev_deactivate, net/sched/sch_generic.c), changing the one it has does not."""
        return all(link.qdisc == "tbf" for link in self._links)

    def engage(self, limit_s: float = 0.03) -> None:
        """Hold what is sent to the ports from now on, for at most `limit_s` seconds.

        Takes some 20 ms before the time begins to run. The guard is armed last: whoever stops
        before that has switched no traffic to the ports. Raises StepError `hold-failed`; then
        nothing is held.
        """
        self.close()
        try:
            self._sockets = [_sender(link.index) for link in self._links]
            self._guard = self._start_guard(limit_s)
            held = NLM_F_CREATE | NLM_F_REPLACE
            self._route.talk([_held(link.index, link.mtu, held) for link in self._links])
            for link, sock in zip(self._links, self._sockets, strict=True):
                # The bucket begins full: one largest frame leaves less than any packet needs.
                sock.send(release.FRAME.ljust(link.mtu + len(release.FRAME), b"\0"))
            self._tell(release.ARMED)
        except OSError as error:
            with contextlib.suppress(StepError):
                self.release()
            self.close()
            raise _failed(error.strerror or str(error)) from error
        except BaseException:
            self.close()
            raise

    def release(self) -> None:
        """Let everything through, what was held first; again does no harm.

        Raises StepError `hold-failed`: the guard tries again then. A port that is gone holds
        nothing.
        """
        try:
            try:
                self._route.talk([_opened(link.index) for link in self._links])
            except NetlinkError as error:
                if error.errno not in (errno.ENODEV, errno.ENOENT):
                    raise
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.send(release.FRAME)
        except OSError as error:
            raise _failed(error.strerror or str(error)) from error
        self._tell(release.DONE)

    def close(self) -> None:
        """End the guard, which releases first unless that was done, and give back all files."""
        for sock in self._sockets:
            sock.close()
        self._sockets = []
        guard, self._guard = self._guard, None
        if guard is None:
            return
        for pipe in (guard.stdin, guard.stdout):
            if pipe is not None:
                pipe.close()
        try:
            guard.wait(_END_S)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()

    def _tell(self, word: bytes) -> None:
        """Say it to the guard, if there is one that has not ended."""
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.write(word)

    def _start_guard(self, limit_s: float) -> subprocess.Popen[bytes]:
        """The child that releases after `limit_s`, or at once when this process is dead."""
        requests = [f"{link.index}:{_opened(link.index).body.hex()}" for link in self._links]
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(release.__file__)), str(limit_s), *requests],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=ENVIRONMENT,
            # Signals to the agent's process group must not reach it.
            start_new_session=True,
        )
        self._guard = guard
        assert guard.stdout is not None
        ready, _, _ = select.select([guard.stdout], [], [], _START_S)
        if not ready or guard.stdout.read(1) != release.READY:
            raise _failed("the process that guards it did not start")
        return guard


def _failed(why: str) -> StepError:
    return StepError(
        "hold-failed", f"cannot hold packets: {why}", "Hand over without a hold; that is allowed."
    )


def _sender(index: int) -> socket.socket:
    """A raw socket that sends to a port and receives nothing."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        sock.bind((socket.if_indextoname(index), 0))
    except BaseException:
        sock.close()
        raise
    return sock


def _held(index: int, mtu: int, flags: int) -> Message:
    """A bucket that lets one largest frame through and then hardly anything."""
    return _qdisc(index, flags, _bucket(_HELD_RATE, mtu + len(release.FRAME) + _SPARE))


def _opened(index: int) -> Message:
    """The same bucket without any limit that matters."""
    return _qdisc(index, 0, _bucket(_OPEN_RATE, _OPEN_BURST))


def _bucket(rate: int, burst: int) -> bytes:
    """Options of a bucket of `rate` bytes per second and `burst` bytes.

    A link layer that is given saves the rate table of old (tbf_change).
    """
    ratespec = _RATESPEC.pack(0, _LINKLAYER_ETHERNET, 0, 0, 0, min(rate, 0xFFFF_FFFF))
    parameters = ratespec + bytes(_RATESPEC.size) + struct.pack("=III", _LIMIT, 0, 0)
    return nest(
        _TCA_OPTIONS,
        attr(_TBF_PARMS, parameters),
        attr(_TBF_RATE64, struct.pack("=Q", rate)),
        u32(_TBF_BURST, burst),
    )


def _qdisc(index: int, flags: int, options: bytes) -> Message:
    body = _TCMSG.pack(socket.AF_UNSPEC, 0, 0, index, 0, _TC_H_ROOT, 0)
    return Message(release.RTM_NEWQDISC, flags, body + text(_TCA_KIND, "tbf") + options)
