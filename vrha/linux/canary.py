"""Probes of the node through one of its routers, to see what a change of instances costs.

Each tenant network gets a stream of ICMP echo requests to the upstream gateway, on the way of
`vrha.linux.canarypath`. IPv6 has none: the lowest address of a subnet is the routers' anycast
address there (RFC 4291 section 2.6.1).

A stream that does not answer completely before anything changes is unavailable and never
measured: a firewall or a gateway that limits ICMP must not look like a loss of ours. Whether a
probe was answered is all that counts, not when its reply was fetched, so a busy process shows as
`late_ticks` and never as a gap.
"""

from __future__ import annotations

import errno
import os
import secrets
import select
import socket
import threading
import time
from array import array
from collections.abc import Sequence

from vrha.core.gaps import NS_PER_MS, UNANSWERED, find_gaps
from vrha.errors import StepError
from vrha.linux import canarypath, frames, netns
from vrha.linux.canarypath import CanaryPath
from vrha.linux.closing import SlowCloser
from vrha.linux.names import namespace_name
from vrha.linux.netlink import Netlink
from vrha.linux.packetsocket import echo_reply, open_packets
from vrha.model.evidence import Measured
from vrha.model.spec import InstanceRef, InstanceSpec

BASELINE = 40
"""Probes of each stream that must all be answered: more than small token buckets hold."""
PENDING_MS = 100
"""How long a probe may be on its way before it counts as lost."""
MAX_S = 600
"""Seconds after which a canary that nobody has stopped sends no more."""
_STREAMS_PER_TICK = 4
_DRAIN_TICKS = 4
_NOT_SENT = frozenset({errno.EAGAIN, errno.ENOBUFS})


class _Stream:
    """One stream of probes. `answered[i]` belongs to probe i and is UNANSWERED until it is not."""

    def __init__(self, way: CanaryPath) -> None:
        self.way = way
        self.unavailable = way.unavailable
        self.sent = array("q")
        self.answered = array("b")
        self.open = 0
        self.duplicates = 0
        self.late = 0
        self.sock: socket.socket | None = None
        self._nonce = secrets.token_bytes(frames.NONCE_BYTES)
        self._ident = secrets.randbelow(0xFFFF) + 1
        self._frames = frames.EchoRequests(
            (way.mac, way.router_mac), way.source, way.target, self._ident, self._nonce
        )
        self._buffer = bytearray(128)

    def connect(self) -> None:
        """Open the socket on the bridge. Raises OSError."""
        self.sock = open_packets(self.way.bridge, frames.ETH_P_IP, echo_reply(self._ident))

    def probe(self) -> None:
        """Send the next probe; one that a full queue of the node refuses was never sent."""
        assert self.sock is not None
        now = time.monotonic_ns()
        try:
            self.sock.send(self._frames.numbered(len(self.sent)))
        except OSError as error:
            # Any other error, such as a bridge that is down, keeps the tenants' packets back too.
            if error.errno in _NOT_SENT:
                self.late += 1
                return
        self.sent.append(now)
        self.answered.append(UNANSWERED)
        self.open += 1

    def drain(self) -> None:
        """Take all replies that have arrived."""
        assert self.sock is not None
        while True:
            try:
                length = self.sock.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                # What happened to the bridge is told once; replies may still be waiting.
                continue
            number = frames.echo_number(self._buffer, length, self._nonce)
            if number is None or number >= len(self.answered):
                continue
            if self.answered[number] == UNANSWERED:
                self.answered[number] = 0
                self.open -= 1
            else:
                self.duplicates += 1


class Canary:
    """Streams of probes through the instance that serves now, and through its successor.

    One thread calls the methods; the probes go out from a thread of their own.
    """

    def __init__(
        self, spec: InstanceSpec, route: Netlink, home: int, interval_ms: float = 1.0
    ) -> None:
        """`spec`: the instance that serves; a successor on this node has the same MACs.

        `route`: a socket of the node's namespace, used by the caller's thread only; `home`: a
        file descriptor of that namespace. With more than four streams the interval of each is
        a multiple of `interval_ms`, so that the work of this process stays bounded.
        """
        self._route, self._home = route, home
        self._streams = [_Stream(way) for way in canarypath.paths(spec)]
        self._live = [stream for stream in self._streams if not stream.unavailable]
        self._turns = max(1, -(-len(self._live) // _STREAMS_PER_TICK))
        self._tick_ns = round(interval_ms * NS_PER_MS)
        self._interval_ms = interval_ms * self._turns
        self._prepared: list[InstanceRef] = []
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canary", daemon=True)

    def prepare(self, ref: InstanceRef) -> None:
        """Let replies find their way out of this instance; repeating it changes nothing.

        Raises StepError `no-instance`, `canary-failed`.
        """
        try:
            inner = netns.open_named(namespace_name(ref))
        except FileNotFoundError as error:
            raise StepError("no-instance", f"there is no namespace of {ref}") from error
        try:
            if ref not in self._prepared:
                self._prepared.append(ref)
            canarypath.lead_back(inner, self._home, [s.way for s in self._live])
        except OSError as error:
            raise StepError("canary-failed", f"cannot prepare {ref}: {error}") from error
        finally:
            os.close(inner)

    def start(self) -> None:
        """Send the baseline, then go on in the background; up to 150 ms without any reply.

        Never raises: a stream that cannot be opened (`no-bridge`) or is not answered completely
        (`no-reply`) is unavailable.
        """
        for stream in self._live:
            try:
                canarypath.occupy(self._route, stream.way)
                stream.connect()
            except (OSError, StepError):
                stream.unavailable = "no-bridge"
        self._sift()
        begin = time.monotonic_ns()
        for tick in range(BASELINE * self._turns if self._live else 0):
            _sleep_until(begin + tick * self._tick_ns)
            self._tick(tick)
        self._await_replies()
        for stream in self._live:
            if stream.open:
                stream.unavailable = "no-reply"
        self._sift()
        if self._live:
            self._thread.start()

    def distrust_lossy(self) -> None:
        """Give up the streams that have lost probes so far: call it before anything changes.

        They would charge the change with what a gateway that limits its replies does.
        """
        for stream, measured in zip(self._streams, self.measured(), strict=True):
            if measured.lost and not stream.unavailable:
                stream.unavailable = "lossy-before"
        with self._lock:
            self._sift()

    def measured(self) -> tuple[Measured, ...]:
        """What was measured so far, the baseline included.

        Probes of the last 100 ms do not count as lost yet.
        """
        return self._results(time.monotonic_ns() - PENDING_MS * NS_PER_MS)

    def stop(self) -> tuple[Measured, ...]:
        """End the probes, wait up to 100 ms for replies, and remove all that was installed.

        An instance that is gone is passed over. Raises StepError `canary-remains`.
        """
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._await_replies()
        results = self._results(time.monotonic_ns())
        closer = SlowCloser()
        for stream in self._streams:
            if stream.sock is not None:
                closer.close(stream.sock)
                stream.sock = None
        self._live = []
        try:
            self._remove_entries()
        finally:
            closer.drain()
        return results

    def _remove_entries(self) -> None:
        ways = [stream.way for stream in self._streams if not stream.way.unavailable]
        for ref in self._prepared:
            canarypath.forget(ref, self._home, ways)
        for way in ways:
            canarypath.vacate(self._route, way)

    def _sift(self) -> None:
        self._live = [stream for stream in self._live if not stream.unavailable]

    def _run(self) -> None:
        begin = time.monotonic_ns()
        tick, last = 0, MAX_S * 1_000_000_000 // self._tick_ns
        while tick < last and not self._ending.is_set():
            tick += 1
            missed = (time.monotonic_ns() - begin) // self._tick_ns - tick
            if missed > 0:
                tick += missed
                with self._lock:
                    for stream in self._live:
                        stream.late += -(-missed // self._turns)
            _sleep_until(begin + tick * self._tick_ns)
            with self._lock:
                self._tick(tick)

    def _tick(self, tick: int) -> None:
        turn = tick % self._turns
        for stream in self._live[turn :: self._turns]:
            stream.probe()
        if tick // self._turns % _DRAIN_TICKS == 0:
            self._drain()

    def _drain(self) -> None:
        for stream in self._live:
            stream.drain()

    def _await_replies(self) -> None:
        """Take replies until there are none left to come, or for 100 ms."""
        until = time.monotonic() + PENDING_MS / 1000
        while True:
            self._drain()
            waiting = [stream.sock for stream in self._live if stream.open]
            left = until - time.monotonic()
            if not waiting or left <= 0:
                return
            select.select(waiting, [], [], left)

    def _results(self, lost_before_ns: int) -> tuple[Measured, ...]:
        with self._lock:
            self._drain()
            end = time.monotonic_ns()
            copies = [
                (s, s.sent[:], s.answered[:], s.duplicates, s.late) for s in self._streams
            ]
        return tuple(self._result(*copy, lost_before_ns, end) for copy in copies)

    def _result(
        self,
        stream: _Stream,
        sent: Sequence[int],
        answered: array[int],
        duplicates: int,
        late: int,
        lost_before_ns: int,
        end: int,
    ) -> Measured:
        name = f"canary:{stream.way.network}"
        if stream.unavailable or not sent:
            began = (end + self._offset_ns) / 1e9
            reason = stream.unavailable or "not-started"
            return Measured(name, began, self._interval_ms, 0, 0, unavailable=reason)
        for index in range(len(sent) - 1, -1, -1):
            if sent[index] <= lost_before_ns:
                break
            answered[index] = 0
        gaps = find_gaps(sent, answered, sent[0], end)
        return Measured(
            name,
            (sent[0] + self._offset_ns) / 1e9,
            self._interval_ms,
            len(sent),
            sum(gap.lost for gap in gaps),
            duplicates,
            late,
            tuple((round(gap.start_ms, 3), round(gap.length_ms, 3)) for gap in gaps),
        )


def remove_leftovers(
    spec: InstanceSpec, refs: Sequence[InstanceRef], route: Netlink, home: int
) -> None:
    """Remove what a canary through `spec` has left when its process was killed.

    `refs` are the instances that it may have prepared. Raises StepError `canary-remains`.
    """
    ways = [way for way in canarypath.paths(spec) if not way.unavailable]
    for ref in refs:
        canarypath.forget(ref, home, ways)
    for way in ways:
        canarypath.vacate(route, way)


def _sleep_until(due_ns: int) -> None:
    wait = due_ns - time.monotonic_ns()
    if wait > 0:
        time.sleep(wait / 1e9)
