"""One fault under probes: how long each stream was out, what was announced, who ever answered."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tools.benchmarks import instants
from tools.benchmarks.announcements import Announcements, Heard, first
from tools.benchmarks.probing import OUTSIDE, WARM_S
from tools.benchmarks.streams import streams_of
from vrha.errors import InputError, VrhaError
from vrha.lab.owners import OwnerWatch
from vrha.lab.zone import Lab
from vrha.model.probing import Stream
from vrha.model.spec import Desired
from vrha.probe.process import ProbeProcess

LEAST_S = 2.0
"""How long a fault is watched at least: longer than any lease of the profiles measured."""
PERIOD_S = 1.0
"""The fault comes anywhere within the longest period of those that watch: what is prepared before
it takes about the same time in every run."""
LIMIT_S = 12.0
"""How long it is waited until the router is reached again."""
SETTLE_S, MOST_SETTLE_S = 1.5, 6.0
_ASK_MS = 2.0
_REPLIED_S = 5.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A lab whose first router serves, with responders on every machine.

    `guest` is a machine of its first network; `gateway` and `public` are addresses of the router
    on the guest's segment and on that of the uplink.
    """

    lab: Lab
    streams: Sequence[Stream]
    guest: str
    gateway: str
    public: str

    @classmethod
    def of(cls, lab: Lab, desired: Desired) -> Scene:
        """Raises InputError `no-public-address` where no machine has one."""
        router = desired.routers[0]
        network = next(n for n in desired.networks if n.name == router.networks[0])
        gateways = [s.gateway for s in network.subnets if s.gateway.version == 4]
        if not router.static_nat or not network.hosts or not gateways:
            raise InputError("no-public-address", "the first router has no machine to reach")
        public = str(router.static_nat[0].public)
        guest = network.hosts[-1].name
        return cls(lab, streams_of(lab, desired), guest, str(gateways[0]), public)


def under_fault(
    scene: Scene, strike: Callable[[], float], back: Callable[[], bool]
) -> tuple[dict[str, Any], float, dict[str, float]]:
    """Fields of a run, when the fault began, and instants that the wire shows (Unix time, s).

    `strike` does it and says when it began; `back` blocks until the router is thought to serve
    again and says whether it is. Raises what they and ProbeProcess raise.
    """
    lab = scene.lab
    with contextlib.ExitStack() as stack:
        inner = stack.enter_context(lab.call(scene.guest, Announcements))
        outer = stack.enter_context(lab.call(OUTSIDE, Announcements))
        probes = stack.enter_context(ProbeProcess(scene.streams, require_reply_s=_REPLIED_S))
        watches = (_watch(lab, scene.guest, scene.gateway), _watch(lab, OUTSIDE, scene.public))
        with watches[0], watches[1]:
            time.sleep(WARM_S + random.uniform(0, PERIOD_S))
            fault = strike()
            served = back()
            reached = _reached(scene, max(fault + LEAST_S, time.time()), time.time() + LIMIT_S)
            # A connection sends again after twice the time that it has waited for.
            time.sleep(min(max(SETTLE_S, 1.0 + time.time() - fault), MOST_SETTLE_S))
        result = probes.stop()
        seen = _seen(inner.heard(), scene.gateway, outer.heard(), scene.public, fault)
        adverts = [h for h in inner.heard() if h.kind == "advert" and h.at >= fault]
    row = result.to_bench()
    at_ms = (fault - result.t0_realtime_ns / 1e9) * 1000
    row |= timed(row["gaps_ms"], at_ms)
    row["back"] = served and reached
    row["adverts"] = {h.address: round((h.at - fault) * 1000, 3) for h in reversed(adverts)}
    answers = [watch.results() for watch in watches]
    overlaps = [one.overlap_ms for found in answers for one in found.values()]
    row["owners_overlap_ms"] = round(max(overlaps), 3)
    row["owners_asked"] = sum(one.asked for found in answers for one in found.values())
    if (restored := instants.restored_ms(row["gaps_ms"], at_ms)) is not None and reached:
        seen["restored"] = fault + (restored - at_ms) / 1000
    return row, fault, seen


def timed(gaps_ms: dict[str, list[list[float]]], fault_ms: float) -> dict[str, Any]:
    """What the gaps say about a fault: `outage_ms` of each stream and `worst_ms` of all."""
    outages = instants.outages(gaps_ms, fault_ms)
    return {
        "fault_at_ms": round(fault_ms, 1),
        "outage_ms": outages,
        "worst_ms": max(outages.values(), default=0.0),
    }


def _watch(lab: Lab, machine: str, address: str) -> OwnerWatch:
    return lab.call(machine, lambda: OwnerWatch([address], interval_ms=_ASK_MS))


def _seen(
    inner: list[Heard], gateway: str, outer: list[Heard], public: str, fault: float
) -> dict[str, float]:
    """When both addresses had been announced; nothing when one was not."""
    moments = (
        first(inner, "announced", gateway, fault),
        first(outer, "announced", public, fault),
    )
    known = [moment for moment in moments if moment is not None]
    return {"announced": max(known)} if len(known) == len(moments) else {}


def _reached(scene: Scene, not_before: float, deadline: float) -> bool:
    """Whether the router answers for its machine from outside and the other way round."""
    time.sleep(max(0.0, not_before - time.time()))
    outside = scene.streams[0].target
    machine = next(s.netns for s in scene.streams if s.name == "egress_icmp")
    inner = next(m for m in scene.lab.machines if scene.lab.netns_path(m) == machine)
    while time.time() < deadline:
        if _pings(scene.lab, OUTSIDE, scene.public) and _pings(scene.lab, inner, outside):
            return True
    return False


def _pings(lab: Lab, machine: str, target: str) -> bool:
    try:
        lab.run(machine, ["ping", "-n", "-c", "1", "-W", "0.2", target])
    except VrhaError:
        return False
    return True
