"""What is probed, and what came out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vrha.errors import InputError

Kind = Literal[
    "icmp", "udp", "udp-fresh", "tcp-connect", "tcp-echo", "tcp-push", "http", "https", "dns"
]
ESTABLISHED: frozenset[Kind] = frozenset({"tcp-echo", "tcp-push"})
"""Kinds that watch long connections; the others send probes."""

MIN_INTERVAL_MS = 0.1
MAX_INTERVAL_MS = 60_000.0
MAX_CONNECTIONS = 1000
MAX_TIMEOUT_MS = 10_000.0
RECORD_VERSION = 1


@dataclass(frozen=True, slots=True)
class Stream:
    """One flow of probes: `kind` to `target` (address or name; `port` for UDP and TCP).

    - `icmp`, `udp`: an echo per interval; `tcp-connect`: a connection per interval.
    - `udp-fresh`: as `udp`, each probe from a source port of its own, so that every one is a flow
      which NAT has not seen.
    - `tcp-echo`: `count` long connections; on each a message per interval, which must come back.
    - `tcp-push`: `count` long connections on which only the far end sends; `interval_ms` says
      nothing there.
    - `http`, `https`: a GET of `path` over a connection of its own per interval; `verify` False
      takes any certificate.
    - `dns`: a query over UDP per interval for `path`, as NAME or NAME/TYPE.

    `family` 4 or 6 takes only such an address of a name, 0 the first. `timeout_ms` is how long an
    answer may take: a later one is counted, and its probe is lost.
    `netns` is the path of the network namespace from which it is sent, None for the caller's own.
    """

    name: str
    kind: Kind
    target: str
    port: int = 7
    netns: str | None = None
    interval_ms: float = 1.0
    count: int = 1
    path: str = ""
    family: Literal[0, 4, 6] = 0
    timeout_ms: float = 1000.0
    verify: bool = True

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
        elif not 1 <= self.timeout_ms <= MAX_TIMEOUT_MS:
            problem = f"timeout {self.timeout_ms} ms is not in 1 ms..{MAX_TIMEOUT_MS:g} ms"
        elif self.count > 1 and self.kind not in ESTABLISHED:
            problem = f"{self.kind} has no connections of which there could be {self.count}"
        if problem:
            raise InputError("bad-stream", f"stream {self.name!r}: {problem}")


@dataclass(frozen=True, slots=True)
class Gap:
    """A run of one or more lost probes: a loss period of RFC 3357 section 4.

    `start_ms` is the send time of the first lost probe since t0. It ends at the send time of the
    next answered probe, or (`unrestored`) with the run when no later probe was answered.
    `lost_forth` of the `lost` never came to the far end, the others died on the way back; None
    where the far end did not say. `phases` are those of the marks during which it lasted.
    """

    start_ms: float
    length_ms: float
    lost: int
    unrestored: bool = False
    lost_forth: int | None = None
    phases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rtt:
    """Round-trip times of `count` answered probes in ms; None without any."""

    count: int = 0
    median_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """What a stream of probes tells. None stands for "not measured": too few replies.

    `outage_ms` is lost probes times interval, the loss-derived convergence time of RFC 6412
    section 3.5; `rate_outage_ms` the rate-derived one of section 3.6: the longest time in which the
    rate of replies was below that of probes, up to its return to stay; None when it did not return.
    `longest_silence_ms` is the longest time between two consecutive replies, which also sees
    packets that were held and not lost. `longest_pause_ms` is the longest time between two
    consecutive probes: a silence of that length is the prober's own. `late` probes were answered
    after their timeout and count as lost; `reordered` replies came after one to a later probe
    (RFC 4737). `lost_forth` as in Gap. `first_lost_ms` and `restored_ms` (after the last gap) are
    None without a gap, `restored_ms` also when it never was. Round-trip times are those before the
    first gap, from there to the end of the last one, and after it.
    """

    sent: int
    lost: int
    duplicates: int
    gaps: tuple[Gap, ...]
    longest_gap_ms: float
    outage_ms: float
    longest_silence_ms: float | None
    longest_pause_ms: float | None
    rtt_median_ms: float | None
    rtt_max_ms: float | None
    unrestored: bool
    late: int = 0
    reordered: int = 0
    rate_outage_ms: float | None = 0.0
    lost_forth: int | None = None
    first_lost_ms: float | None = None
    restored_ms: float | None = None
    rtt_before: Rtt = Rtt()
    rtt_during: Rtt = Rtt()
    rtt_after: Rtt = Rtt()


@dataclass(frozen=True, slots=True)
class Series:
    """A stream over time for a plot: bin i covers `bin_ms` from `i * bin_ms` after t0 on.

    By send time: probes `sent` and `lost`, and the round-trip times of those answered (None in a
    bin without any). All columns are of one length.
    """

    bin_ms: float
    sent: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()
    rtt_median_ms: tuple[float | None, ...] = ()
    rtt_max_ms: tuple[float | None, ...] = ()


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
    series: Series | None = None


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


@dataclass(frozen=True, slots=True)
class LiveStream:
    """A stream so far. `gap_ms` is the gap that goes on now, 0 when answers come; `rtt_ms` the
    median of the last moments. For long connections `sent` and `lost` count connections."""

    name: str
    sent: int
    lost: int
    gap_ms: float
    longest_gap_ms: float
    rtt_ms: float | None
    late_ticks: int


@dataclass(frozen=True, slots=True)
class Live:
    """All streams at `at_ms` after t0; a probe counts as lost once its gap is known to be one."""

    at_ms: float
    streams: tuple[LiveStream, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """An instant that somebody named, in ms after t0. What begins there lasts until the next mark;
    an empty text ends it."""

    at_ms: float
    text: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may show at most; None is no limit. `total_ms` is the sum of the gaps of a stream.

    A dead connection counts as one lost, a stall as a gap. `settle_ms` of full rate must follow the
    last gap, or else the run does not count.
    """

    gap_ms: float | None = None
    lost: int | None = None
    total_ms: float | None = None
    settle_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Record:
    """A run of ping-gap as it is kept: what `--json` writes and `ping-gap compare` reads.

    `result` holds the streams of all ends, on the time line of the one that began first. `control`
    is the noise floor: a stream to this machine itself, at the same time. `marks` as given;
    `settled` None when nothing was asked; `exceeded` and `notes` are the verdict in words.
    `version` changes when a field changes its meaning or goes.
    """

    result: Result
    control: StreamResult | None = None
    marks: tuple[Mark, ...] = ()
    limits: Limits = Limits()
    settled: bool | None = None
    exceeded: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    host: str = ""
    kernel: str = ""
    tool: str = ""
    began: str = ""
    title: str = ""
    version: int = RECORD_VERSION
