"""Other probers: how they are called, and what their output says.

Who does not say when a lost probe was sent gets the benefit of the doubt: one interval after the
last one that was answered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools.benchmarks.gapscore import NS_PER_MS, Outage, Way

TIMEOUT_MS = 500
"""Of fping and irtt: how long they wait for a reply."""

FPING_PROBES = 60_000
"""It keeps each of its 65,535 sequence numbers for 10 s, and ends when it has none left
(src/seqmap.c of fping 5.1): a run at a higher rate must be shorter."""

_PING_LINE = re.compile(r"^\[(\d+\.\d+)\] \d+ bytes from .*icmp_seq=(\d+) .*time=([\d.]+) ms")
_PING_SUMMARY = re.compile(r"^(\d+) packets transmitted, (\d+) received", re.MULTILINE)
_PING_SEQUENCES = 1 << 16
_FPING_LINE = re.compile(r"^\[(\d+\.\d+)\] \S+ : \[(\d+)\], (?:\d+ bytes, ([\d.]+) ms|timed out)")
_FPING_SUMMARY = re.compile(r"^\S+ +: xmt/rcv/%loss = (\d+)/(\d+)/", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe by number; `sent` in ns of the realtime clock, None if nobody said so."""

    number: int
    sent: int | None
    answered: bool
    way: Way = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What a tool said: its summary, and what its lines tell of each probe."""

    sent: int
    lost: int
    probes: tuple[Probe, ...]


def ping_command(address: str) -> list[str]:
    return ["ping", "-n", "-D", "-i", "0.001", address]


def fping_command(addresses: Sequence[str], seconds: int, *, quiet: bool) -> list[str]:
    """1 ms for each address, and `-i 0` since any other value is a pause that it spins away.

    By a count that it does not reach: in its loop mode (`-l`) fping 5.1 forgets probes that are
    not answered when an outage is longer than its timeout.
    """
    how = ["-q"] if quiet else ["-D"]
    count, timeout = str(seconds * 1000), str(TIMEOUT_MS)
    return ["fping", *how, "-c", count, "-p", "1", "-i", "0", "-t", timeout, *addresses]


def irtt_command(address: str, seconds: int, out: str) -> list[str]:
    """Its JSON goes to the file `out`: when it is interrupted it writes none to stdout."""
    wait = f"--wait={TIMEOUT_MS}ms"
    return ["irtt", "client", "-Q", "-i", "1ms", "-d", f"{seconds}s", wait, "-o", out, address]


def irtt_server() -> list[str]:
    """No limits: its own least interval is 10 ms."""
    return ["irtt", "server", "-i", "0", "-d", "0"]


def parse_ping(text: str) -> Told:
    """Of `ping -D`: only replies have a line, with the time at which it was printed."""
    probes: list[Probe] = []
    laps = 0
    for line in text.splitlines():
        if found := _PING_LINE.match(line):
            # The number in the packet has 16 bits.
            number = int(found[2]) + laps * _PING_SEQUENCES
            if probes and number < probes[-1].number - _PING_SEQUENCES // 2:
                laps += 1
                number += _PING_SEQUENCES
            probes.append(Probe(number, _sent(found[1], found[3]), True))
    sent, received = _summary(_PING_SUMMARY, text)
    return Told(sent, sent - received, tuple(probes))


def parse_fping(text: str) -> Told:
    """Of `fping -D`: a probe without a reply has a line when its time is over."""
    probes = []
    for line in text.splitlines():
        if found := _FPING_LINE.match(line):
            sent = None if found[3] is None else _sent(found[1], found[3])
            probes.append(Probe(int(found[2]), sent, sent is not None))
    sent, received = _summary(_FPING_SUMMARY, text)
    return Told(sent, sent - received, tuple(sorted(probes, key=lambda probe: probe.number)))


def parse_irtt(text: str) -> Told:
    """Of `irtt client -o FILE`: every probe with its send time, and the way on which it was lost as
    far as the next replies told (they know of 64 probes back)."""
    told: dict[str, Any] = json.loads(text)
    ways: dict[str, Way] = {"true_up": "forth", "true_down": "back"}
    probes = tuple(
        Probe(
            trip["seqno"],
            trip["timestamps"]["client"]["send"]["wall"],
            trip["lost"] == "false",
            ways.get(trip["lost"], ""),
        )
        for trip in told["round_trips"]
    )
    stats = told["stats"]
    return Told(stats["packets_sent"], stats["packets_sent"] - stats["packets_received"], probes)


def fping_totals(text: str) -> tuple[int, int]:
    """Probes sent and received of all targets together."""
    found = _FPING_SUMMARY.findall(text)
    return sum(int(sent) for sent, _ in found), sum(int(received) for _, received in found)


def outages(probes: Sequence[Probe], interval_ms: float, realtime_offset: int) -> list[Outage]:
    """What lies between two answered probes with lost ones between.

    `realtime_offset` is the realtime clock minus the monotonic one, in ns. What was lost before the
    first answer and after the last one is left out.
    """
    found = []
    before: Probe | None = None
    lost: list[Probe] = []
    for probe in probes:
        if not probe.answered:
            lost.append(probe)
            continue
        if before is not None and probe.number > before.number + 1:
            found.append(_outage(before, lost, probe, interval_ms, realtime_offset))
        before, lost = probe, []
    return found


def _outage(
    before: Probe, lost: Sequence[Probe], after: Probe, interval_ms: float, offset: int
) -> Outage:
    assert before.sent is not None
    assert after.sent is not None
    start = lost[0].sent if lost and lost[0].sent is not None else None
    if start is None:
        start = before.sent + round(interval_ms * NS_PER_MS)
    length = max(0.0, (after.sent - start) / NS_PER_MS)
    ways = {probe.way for probe in lost if probe.way}
    way: Way = "both" if len(ways) > 1 else next(iter(ways), "")
    return Outage(start - offset, length, after.number - before.number - 1, way)


def _sent(printed: str, trip_ms: str) -> int:
    seconds, _, fraction = printed.partition(".")
    at = int(seconds) * 10**9 + int(fraction.ljust(9, "0")[:9])
    return at - round(float(trip_ms) * NS_PER_MS)


def _summary(pattern: re.Pattern[str], text: str) -> tuple[int, int]:
    """Raises ValueError when the tool ended without one."""
    found = pattern.search(text)
    if found is None:
        raise ValueError(f"no summary in what it said: {text[-200:]!r}")
    return int(found[1]), int(found[2])
