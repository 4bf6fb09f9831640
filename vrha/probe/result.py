"""What is probed, and what came out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vrha.core.gaps import Loss
from vrha.errors import InputError

Kind = Literal["icmp", "udp", "udp-fresh", "tcp-connect", "tcp-echo", "tcp-push"]
ESTABLISHED: frozenset[Kind] = frozenset({"tcp-echo", "tcp-push"})
"""Kinds that watch long connections; the others send probes."""

MIN_INTERVAL_MS = 0.1
MAX_INTERVAL_MS = 60_000.0
MAX_CONNECTIONS = 1000


@dataclass(frozen=True, slots=True)
class Stream:
    """One flow of probes: `kind` to `target` (address or name; `port` for UDP and TCP).

    - `icmp`, `udp`: an echo per interval; `tcp-connect`: a connection per interval.
    - `udp-fresh`: as `udp`, each probe from a source port of its own, so that every one is a flow
      which NAT has not seen.
    - `tcp-echo`: `count` long connections; on each a message per interval, which must come back.
    - `tcp-push`: `count` long connections on which only the far end sends; `interval_ms` says
      nothing there.

    `netns` is the path of the network namespace from which it is sent, None for the caller's own.
    """

    name: str
    kind: Kind
    target: str
    port: int = 7
    netns: str | None = None
    interval_ms: float = 1.0
    count: int = 1

    def check(self) -> None:
        """Raises InputError (`bad-stream`) when a field is out of range."""
        problem = ""
        if self.kind not in get_args(Kind):
            problem = f"unknown kind {self.kind!r}"
        elif not self.name or not self.target:
            problem = "name and target must not be empty"
        elif not 1 <= self.port <= 65535:
            problem = f"port {self.port} is not in 1..65535"
        elif not (
            math.isfinite(self.interval_ms)
            and MIN_INTERVAL_MS <= self.interval_ms <= MAX_INTERVAL_MS
        ):
            problem = f"interval {self.interval_ms} ms is not in 0.1 ms..60 s"
        elif not 1 <= self.count <= MAX_CONNECTIONS:
            problem = f"{self.count} connections are not in 1..{MAX_CONNECTIONS}"
        elif self.count > 1 and self.kind not in ESTABLISHED:
            problem = f"{self.kind} has no connections of which there could be {self.count}"
        if problem:
            raise InputError("bad-stream", f"stream {self.name!r}: {problem}")


@dataclass(frozen=True, slots=True)
class StreamResult:
    """Outcome of one stream of probes.

    A probe of `udp-fresh` is lost when it was not answered within 1 s. For `tcp-connect` a probe is
    one attempt, lost means refused or not connected within 1 s, and the round-trip time is the time
    to connect. `late_ticks` are probes that were never sent because the prober was late. `errors`
    counts what the kernel said (errno names). `receive_drops` are replies that overran the socket
    buffer: they are not the network's loss.
    """

    stream: Stream
    address: str
    loss: Loss
    late_ticks: int
    errors: tuple[tuple[str, int], ...]
    receive_drops: int


@dataclass(frozen=True, slots=True)
class ConnectionsResult:
    """Outcome of the long connections of one stream.

    Alive is one that has carried something, on which the kernel reports no error and no end, and
    whose last message came at most 1 s before the end of the run. `longest_stall_ms` is the longest
    time between two messages of a living connection (from t0, up to the end of the run), hardly
    less than the interval; None when none is alive. `messages` came back or in; `errors` counts
    what ended connections.
    """

    stream: Stream
    address: str
    total: int
    alive: int
    longest_stall_ms: float | None
    messages: int
    errors: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """Outcome of one run. `t0_*` is the instant of the first tick on two clocks, in ns.

    `streams` are those of probes, `connections` those of long connections.

    `realtime` and `memory_locked` say what the kernel permitted; `late_ticks` is the most that any
    stream missed; `clock_steps` counts settings of the realtime clock during the run.
    `cpu_us_per_probe` is the CPU time of the probing thread per probe and per message of a
    connection, the path of the packets included as far as the kernel runs it in the sender's
    context.
    """

    streams: tuple[StreamResult, ...]
    t0_realtime_ns: int
    t0_monotonic_ns: int
    duration_ms: float
    late_ticks: int
    realtime: bool
    memory_locked: bool
    clock_steps: int
    cpu_us_per_probe: float
    connections: tuple[ConnectionsResult, ...] = ()

    def stream(self, name: str) -> StreamResult:
        """The stream of that name. Raises KeyError."""
        for one in self.streams:
            if one.stream.name == name:
                return one
        raise KeyError(name)

    @property
    def longest_gap_ms(self) -> float:
        """The longest gap of the streams that have the shortest interval: the others see less."""
        shortest = min((one.stream.interval_ms for one in self.streams), default=0.0)
        fastest = (one.loss for one in self.streams if one.stream.interval_ms == shortest)
        return max((loss.longest_gap_ms for loss in fastest), default=0.0)

    @property
    def longest_stall_ms(self) -> float | None:
        """The longest stall of all living connections; None without any."""
        stalls = (one.longest_stall_ms for one in self.connections)
        return max((stall for stall in stalls if stall is not None), default=None)

    @property
    def lost(self) -> int:
        return sum(one.loss.lost for one in self.streams)

    @property
    def unrestored(self) -> bool:
        """Some stream had no answer any more when the run ended."""
        return any(one.loss.unrestored for one in self.streams)

    def to_bench(self) -> dict[str, Any]:
        """The fields of a run in the JSON of the bench commands, keyed by stream name.

        The `tcp_` fields sum up all long connections; without any they are absent.
        """
        by_name = {one.stream.name: one.loss for one in self.streams}
        fields: dict[str, Any] = {
            "sent": {name: loss.sent for name, loss in by_name.items()},
            "lost": {name: loss.lost for name, loss in by_name.items()},
            "gaps_ms": {
                name: [[round(gap.start_ms, 3), round(gap.length_ms, 3)] for gap in loss.gaps]
                for name, loss in by_name.items()
            },
            "longest_gap_ms": round(self.longest_gap_ms, 3),
            "late_ticks": self.late_ticks,
            "unrestored": sorted(name for name, loss in by_name.items() if loss.unrestored),
        }
        if self.connections:
            fields["tcp_total"] = sum(one.total for one in self.connections)
            fields["tcp_alive"] = sum(one.alive for one in self.connections)
            stall = self.longest_stall_ms
            fields["tcp_longest_stall_ms"] = None if stall is None else round(stall, 3)
        return fields
