"""What a handover carried over and what it cost, as counted and measured on the nodes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Carried:
    """State moved from the old instance into its replacement.

    `what` is "conntrack", "neighbours" or "leases". Each of the `sent` objects was taken, or
    refused for one of the reasons, which are kebab-case words with how often each occurred.
    """

    what: str
    sent: int
    taken: int
    refused: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """One stream of probes that a node sent through an instance while traffic changed over.

    `began` in seconds of the wall clock (Unix time); `interval_ms` between probes; `gaps_ms` are
    times without a reply as (start after `began`, length) in milliseconds, as in RFC 3357 loss
    periods. `duplicates`: replies beyond the first of a probe, which would mean two owners.
    """

    stream: str
    began: float
    interval_ms: float
    sent: int
    lost: int
    duplicates: int = 0
    late_ticks: int = 0
    gaps_ms: tuple[tuple[float, float], ...] = ()
    unavailable: str = ""
    """Why nothing was measured; empty when it was."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that one step carried and measured."""

    carried: tuple[Carried, ...] = ()
    measured: tuple[Measured, ...] = ()
    announced_at: float | None = None
    """When an instance that was granted to its node first announced itself there (Unix time, s)."""


NO_EVIDENCE = Evidence()


@dataclass(frozen=True, slots=True)
class Connections:
    """Long connections that were watched: how many, and how many carried data to the end.

    `longest_stall_ms`: the longest time between two messages of a living one; None without any.
    """

    stream: str
    total: int
    alive: int
    longest_stall_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What somebody outside of the nodes measured during a run, by the clock of his machine.

    `gaps_left_out`: gaps of the streams, shorter than those that they have, which are counted as
    lost probes and not listed.
    """

    streams: tuple[Measured, ...] = ()
    connections: tuple[Connections, ...] = ()
    gaps_left_out: int = 0
