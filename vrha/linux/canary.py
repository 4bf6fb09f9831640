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
import threading
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from vrha.core.gaps import NS_PER_MS, UNANSWERED, find_gaps
from vrha.core.names import namespace_name
from vrha.errors import StepError
from vrha.linux import canarypath, frames, netns
from vrha.linux.canarypath import CanaryPath
from vrha.linux.closing import SlowCloser
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
        """Raises OSError when there is no such bridge."""
        self.way = way
        self.sent = array("q")
        self.answered = array("b")
        self.open = 0
        self.duplicates = 0
        self.late = 0
        ident = secrets.randbelow(0xFFFF) + 1
        self._nonce = secrets.token_bytes(frames.NONCE_BYTES)
        self._frames = frames.EchoRequests(
            (way.mac, way.router_mac), way.source, way.target, ident, self._nonce
        )
        self._buffer = bytearray(128)
        self.sock = open_packets(way.bridge, frames.ETH_P_IP, echo_reply(ident))

    def probe(self) -> None:
        """Send the next probe; one that a full queue of the node refuses was never sent."""
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
        while True:
            try:
                length = self.sock.recv_into(self._buffer)
            except OSError:
                # Nothing is waiting, or the bridge is down, which is told once.
                return
            number = frames.echo_number(self._buffer, length, self._nonce)
            if number is None or number >= len(self.answered):
                continue
            if self.answered[number] == UNANSWERED:
                self.answered[number] = 0
                self.open -= 1
            else:
                self.duplicates += 1

    def copy(self) -> _Counted:
        """What was counted so far."""
        return _Counted(self.sent[:], self.answered[:], self.duplicates, self.late)


@dataclass(frozen=True, slots=True)
class _Counted:
    """What a stream had counted at one moment."""

    sent: array[int]
    answered: array[int]
    duplicates: int
    late: int


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
        self._all = canarypath.paths(spec)
        self._ways = [way for way in self._all if not way.unavailable]
        self._unavailable = {way.network: way.unavailable for way in self._all}
        self._opened: list[_Stream] = []
        self._live: list[_Stream] = []
        self._turns = max(1, -(-len(self._ways) // _STREAMS_PER_TICK))
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
            canarypath.lead_back(inner, self._home, self._ways)
        except OSError as error:
            raise StepError("canary-failed", f"cannot prepare {ref}: {error}") from error
        finally:
            os.close(inner)

    def start(self) -> None:
        """Send the baseline, then go on in the background; up to 150 ms without any reply.

        Never raises: a stream that cannot be opened (`no-bridge`) or is not answered completely
        (`no-reply`) is unavailable.
        """
        for way in self._ways:
            try:
                canarypath.occupy(self._route, way)
                self._opened.append(_Stream(way))
            except (OSError, StepError):
                self._unavailable[way.network] = "no-bridge"
        self._live = list(self._opened)
        for tick in range(BASELINE * self._turns if self._live else 0):
            self._tick(tick)
            time.sleep(self._tick_ns / 1e9)
        self._await_replies()
        self._give_up([stream for stream in self._live if stream.open], "no-reply")
        if self._live:
            self._thread.start()

    def distrust_lossy(self) -> None:
        """Give up the streams that have lost probes so far: call it before anything changes.

        They would charge the change with what a gateway that limits its replies does.
        """
        lossy = {measured.stream for measured in self.measured() if measured.lost}
        with self._lock:
            self._give_up([s for s in self._live if _name(s.way) in lossy], "lossy-before")

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
        for stream in self._opened:
            closer.close(stream.sock)
        self._opened, self._live = [], []
        try:
            for way in self._ways:
                canarypath.vacate(self._route, way)
            # Last, since they tell the next life of the process that something was left.
            for ref in self._prepared:
                canarypath.forget(ref, self._home, self._ways)
        finally:
            closer.drain()
        return results

    def _give_up(self, streams: Sequence[_Stream], reason: str) -> None:
        self._unavailable |= {stream.way.network: reason for stream in streams}
        self._live = [stream for stream in self._live if stream not in streams]

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
            found = {stream.way.network: stream.copy() for stream in self._live}
        return tuple(
            self._loss(way, found[way.network], lost_before_ns)
            if way.network in found
            else self._nothing(way)
            for way in self._all
        )

    def _nothing(self, way: CanaryPath) -> Measured:
        reason = self._unavailable[way.network] or "not-running"
        return Measured(_name(way), time.time(), self._interval_ms, 0, 0, unavailable=reason)

    def _loss(self, way: CanaryPath, counted: _Counted, lost_before_ns: int) -> Measured:
        sent, answered = counted.sent, counted.answered
        for index in range(len(sent) - 1, -1, -1):
            if sent[index] <= lost_before_ns:
                break
            answered[index] = 0
        end = sent[-1] + round(self._interval_ms * NS_PER_MS)
        gaps = find_gaps(sent, answered, sent[0], end)
        return Measured(
            _name(way),
            (sent[0] + self._offset_ns) / 1e9,
            self._interval_ms,
            len(sent),
            sum(gap.lost for gap in gaps),
            counted.duplicates,
            counted.late,
            tuple((round(gap.start_ms, 3), round(gap.length_ms, 3)) for gap in gaps),
        )


def remove_leftovers(
    spec: InstanceSpec, refs: Sequence[InstanceRef], route: Netlink, home: int
) -> None:
    """Remove what a canary through `spec` has left when its process was killed.

    `refs` are the instances that it may have prepared. Raises StepError `canary-remains`.
    """
    ways = [way for way in canarypath.paths(spec) if not way.unavailable]
    for way in ways:
        canarypath.vacate(route, way)
    for ref in refs:
        canarypath.forget(ref, home, ways)


def _name(way: CanaryPath) -> str:
    return f"canary:{way.network}"


def _sleep_until(due_ns: int) -> None:
    wait = due_ns - time.monotonic_ns()
    if wait > 0:
        time.sleep(wait / 1e9)
