"""The times of the lease, how they depend on each other, and what they make of an outage.

A node asks for its lease every `renew_ms`; it lasts `lease_ms` from the instant at which the newest
renewal that a majority acknowledged was sent. The kernel lets routers speak for slices of
`slice_ms`. Whoever wants to give a silent node's routers away waits until all of that has passed
for certain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

LATE_MS = 25.0
"""By how much a timeout of nftables can be late on a virtual machine that stood still; 9.2 ms was
the worst of 300 that were measured."""
JIFFY_MS = 10.0
"""The coarsest tick of a kernel (HZ=100)."""
LOST_RENEWALS = 3
"""In a row that must not cost the lease."""


@dataclass(frozen=True, slots=True)
class Timing:
    """All in ms, but `drift`: how much faster or slower than another any clock may run (share).

    `delay_ms` is a round trip between machines, `pause_ms` how long a process may be kept from
    running without losing the lease, `suspect_ms` the silence after which a leader acts.
    """

    renew_ms: float = 150.0
    lease_ms: float = 580.0
    slice_ms: float = 100.0
    delay_ms: float = 30.0
    pause_ms: float = 100.0
    suspect_ms: float = 400.0
    drift: float = 0.01

    @property
    def margin(self) -> float:
        """By how much one's own clock must run longer, so that every other one has surely passed
        the same time."""
        return (1 + self.drift) / (1 - self.drift)

    @property
    def safe_ms(self) -> float:
        """After the last acknowledgement: no packet of the node passes any more."""
        return (self.lease_ms + self.slice_ms + LATE_MS) * self.margin

    @property
    def attempt_ms(self) -> float:
        """How long answers of voters to one question count: one that was restarted since might
        acknowledge again, see `quiet_ms`."""
        return self.safe_ms / 2

    @property
    def quiet_ms(self) -> float:
        """How long a restarted voter acknowledges nothing: it may have been deposing for a leader
        that still collects answers, and only after the last of them the lease runs out."""
        return (self.safe_ms + self.attempt_ms) * self.margin

    @property
    def missed_ms(self) -> float:
        """So long without a renewal: not one was lost, the node is missed."""
        return 2 * self.renew_ms + self.delay_ms

    @property
    def slice_every_ms(self) -> float:
        return self.slice_ms / 3

    @property
    def worst_outage_ms(self) -> float:
        """Of the routers of a node that loses its power, with a replacement that is built already.

        The last acknowledgement can have come just before; the leader's last heard renewal may be
        younger than that by a round trip. To ask the voters and to command the new owner takes one
        each, as does the first slice; 30 ms for a transaction, an announcement and the neighbours.
        """
        return self.safe_ms + 3 * self.delay_ms + self.slice_every_ms + 30.0


PROFILES = {
    "fast": Timing(
        renew_ms=50, lease_ms=225, slice_ms=60, delay_ms=10, pause_ms=50, suspect_ms=150
    ),
    "default": Timing(),
    "relaxed": Timing(
        renew_ms=1000, lease_ms=5000, slice_ms=500, delay_ms=500, pause_ms=1000, suspect_ms=3500
    ),
}


def problems(timing: Timing) -> Iterator[str]:
    """What is wrong with `timing`, in words for people; nothing when it holds together."""
    t = timing
    if not 0 < t.drift <= 0.1:
        yield f"drift {t.drift:g} must be above 0 and at most 0.1"
        return
    positive = (t.renew_ms, t.lease_ms, t.slice_ms, t.delay_ms, t.pause_ms, t.suspect_ms)
    if min(positive) <= 0:
        yield "every time must be above 0"
        return
    least = t.renew_ms * LOST_RENEWALS + t.delay_ms + t.pause_ms
    if least > t.lease_ms:
        yield (
            f"lease {t.lease_ms:g} ms is shorter than {LOST_RENEWALS} renewals of {t.renew_ms:g} ms"
            f" with a round trip of {t.delay_ms:g} ms and a pause of {t.pause_ms:g} ms:"
            f" {least:g} ms"
        )
    if t.slice_ms > t.lease_ms / 3:
        yield f"slice {t.slice_ms:g} ms is longer than a third of the lease, {t.lease_ms:g} ms"
    if t.slice_every_ms < JIFFY_MS * 2:
        yield f"slice {t.slice_ms:g} ms is too short: a third of it must be {JIFFY_MS * 2:g} ms"
    if not t.missed_ms <= t.suspect_ms <= t.lease_ms:
        yield (
            f"suspicion after {t.suspect_ms:g} ms must come after two renewals and a round trip, "
            f"{t.missed_ms:g} ms, and before the lease of {t.lease_ms:g} ms ends"
        )
