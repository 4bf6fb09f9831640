"""Which faults there are, how they are drawn, and what is promised of each."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.sim.nemesis import Cut, Kill, Loss, Pause, Unplug
from tests.system.labfaults import (
    CrashLoop,
    Damage,
    DiskFull,
    DropSwitch,
    Freeze,
    LabFault,
    Lossy,
    Order,
    Reboot,
    Slow,
    Unmanaged,
)
from tools.soaking.scenario import NODES, ROUTERS, UPLINK

BLINK_MS = 60.0
"""What is not felt where a node has its own processor: here the watchers of five nodes, that feed
slices of 100 ms, share one with whatever starts."""
SHARED_MS = 2000.0
"""What a gap may be longer than promised: this machine does the work of five."""
PAIR_SHARE = 0.25
TOGETHER_MS = (0.0, 20.0, 100.0, 300.0, 800.0)


@dataclass(frozen=True, slots=True)
class Promise:
    """What holds for every stream of every router, or is None where nothing is promised.

    No gap is above `gap_ms` and what the machine stood still for, established connections are
    `alive`. In any case: never two owners, nothing left behind, and everything serves again when it
    is over; if `by_hand` only once somebody has restarted the router, for the product does not see
    it.
    """

    gap_ms: float | None = None
    alive: bool = False
    by_hand: bool = False


NOT_FELT = Promise(gap_ms=BLINK_MS, alive=True)
RECOVERED = Promise()
UNSEEN = Promise(by_hand=True)


def within(ms: float) -> Promise:
    return Promise(gap_ms=ms + SHARED_MS)


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of fault. `draw` makes one that hits the router of that name."""

    name: str
    draw: Callable[[random.Random, str], LabFault]
    promise: Promise
    about: str = ""
    """Of two faults at once only one may be about the same thing, if any is named."""


@dataclass(frozen=True, slots=True)
class Injection:
    """What is done in one round: one fault, or two of which the second comes `after_ms` later."""

    number: int
    kinds: tuple[str, ...]
    faults: tuple[LabFault, ...]
    after_ms: float
    pause_ms: float
    """Before the first: anywhere in the periods of those that watch."""
    promise: Promise

    @property
    def kind(self) -> str:
        return "+".join(self.kinds)


def kinds() -> dict[str, Kind]:
    """All of them by name."""
    return {kind.name: kind for kind in (*_of_nodes(), *_of_processes(), *_of_hands(), *_planned())}


def _of_nodes() -> Iterator[Kind]:
    yield Kind("node-lost-0.3s", lambda _, r: Loss(f"@{r}", 300), within(5000))
    yield Kind("node-lost-2s", lambda _, r: Loss(f"@{r}", 2000), within(5000))
    yield Kind("node-lost-10s", lambda _, r: Loss(f"@{r}", 10_000), within(5000))
    yield Kind("node-rebooted", lambda d, r: Reboot(f"@{r}", d.choice((500, 3000))), within(5000))
    yield Kind(
        "node-frozen", lambda d, r: Freeze(f"@{r}", d.choice((200, 1500, 5000))), within(5000)
    )
    yield Kind(
        "cut-off", lambda d, r: Cut((f"@{r}",), (), d.choice((400, 2500, 6000))), within(5000)
    )
    yield Kind(
        "cut-off-one-way",
        lambda d, r: Cut((f"@{r}",), (), d.choice((400, 2500, 6000)), both=False),
        within(5000),
    )
    yield Kind(
        "unheard-by-voters",
        lambda d, r: Cut((f"@{r}",), NODES, d.choice((400, 2500, 6000)), d.random() < 0.5),
        within(5000),
    )
    yield Kind("management-cable", lambda d, r: Unmanaged(f"@{r}", _long(d)), within(5000))
    yield Kind(
        "management-lossy", lambda d, r: Lossy(f"@{r}", d.uniform(0.1, 0.6), 4000), RECOVERED
    )
    yield Kind("management-slow", lambda d, r: Slow(f"@{r}", d.choice((64, 256)), 4000), RECOVERED)
    yield Kind("uplink-cable", lambda d, r: Unplug(f"@{r}", UPLINK, _long(d)), within(8000))
    yield Kind("tenant-cable", lambda d, r: Unplug(f"@{r}", f"br-t{r[1:]}", _long(d)), RECOVERED)


def _of_processes() -> Iterator[Kind]:
    yield Kind("watcher-killed-0.1s", lambda _, r: Kill(f"@{r}", 100), RECOVERED)
    yield Kind("watcher-killed-3s", lambda _, r: Kill(f"@{r}", 3000), within(5000))
    yield Kind(
        "watcher-frozen", lambda d, r: Pause(f"@{r}", d.choice((300, 1000, 4000))), within(5000)
    )
    yield Kind(
        "agent-killed", lambda d, r: Kill(f"agent-@{r}", d.choice((10, 300, 3000))), NOT_FELT
    )
    yield Kind("agent-frozen", lambda d, r: Pause(f"agent-@{r}", _long(d)), NOT_FELT)
    yield Kind("agent-crash-loop", lambda d, r: CrashLoop(f"@{r}", 700, 8000), NOT_FELT)
    orchestrator, broker = "orchestrator", "broker"
    yield Kind(
        "orchestrator-killed", lambda d, _: Kill(orchestrator, _long(d)), NOT_FELT, orchestrator
    )
    yield Kind(
        "orchestrator-frozen", lambda d, _: Pause(orchestrator, _long(d)), NOT_FELT, orchestrator
    )
    # Its start takes all processors for seconds, also from the watchers.
    started = Promise(gap_ms=500, alive=True)
    yield Kind("broker-killed", lambda d, _: Kill(broker, d.choice((10, 2000))), started, broker)
    yield Kind("broker-frozen", lambda d, _: Pause(broker, _long(d)), NOT_FELT, broker)


def _of_hands() -> Iterator[Kind]:
    yield Kind("dnsmasq-killed", lambda _, r: Damage(r, "dnsmasq"), NOT_FELT, "damage")
    yield Kind("namespace-deleted", lambda _, r: Damage(r, "namespace"), within(12_000), "damage")
    yield Kind("port-deleted", lambda _, r: Damage(r, "port"), within(12_000), "damage")
    yield Kind("namespace-unmounted", lambda _, r: Damage(r, "mount"), RECOVERED, "damage")
    yield Kind("folder-deleted", lambda _, r: Damage(r, "folder"), RECOVERED, "damage")
    yield Kind("rules-flushed", lambda _, r: Damage(r, "rules"), UNSEEN, "damage")
    yield Kind("switch-deleted", lambda _, r: DropSwitch(f"@{r}"), within(12_000))
    yield Kind("disk-full", lambda d, r: DiskFull(f"@{r}", 4000), NOT_FELT)


def _planned() -> Iterator[Kind]:
    yield Kind("restart", lambda _, r: Order("restart", r), NOT_FELT, "order")
    yield Kind("move", lambda _, r: Order("move", r), NOT_FELT, "order")
    yield Kind("drain", lambda _, r: Order("drain", r), NOT_FELT, "order")


ORDERS = ("restart", "move", "drain")


def _long(dice: random.Random) -> float:
    return dice.choice((300.0, 2000.0, 6000.0))


def sequence(seed: int, names: Sequence[str] = ()) -> Iterator[Injection]:
    """Without end: the same from the same seed and names, whatever happens. Every kind comes once
    before any comes again, but for those that come second in a pair."""
    known = kinds()
    chosen = [known[name] for name in (names or known)]
    dice = random.Random(seed)
    number = 0
    while True:
        for kind in dice.sample(chosen, len(chosen)):
            number += 1
            yield _injection(number, dice, kind, chosen)


def _injection(number: int, dice: random.Random, kind: Kind, chosen: Sequence[Kind]) -> Injection:
    router, other = dice.sample(ROUTERS, 2)
    pause_ms = round(dice.uniform(0, 1000), 1)
    first = kind.draw(dice, router)
    partners = [k for k in chosen if k is not kind and not (k.about and k.about == kind.about)]
    if not partners or dice.random() >= PAIR_SHARE:
        return Injection(number, (kind.name,), (first,), 0, pause_ms, kind.promise)
    second = dice.choice(partners)
    # What was just begun is hit itself; of two faults each has its own node.
    second_fault = second.draw(dice, router if kind.name in ORDERS else other)
    return Injection(
        number,
        (kind.name, second.name),
        (first, second_fault),
        dice.choice(TOGETHER_MS),
        pause_ms,
        _of_both(kind, second),
    )


def _of_both(first: Kind, second: Kind) -> Promise:
    """Two at once may take more than half of those that vote; only the end is promised."""
    promises = (first.promise, second.promise)
    by_hand = any(promise.by_hand for promise in promises)
    if all(promise == NOT_FELT for promise in promises):
        return NOT_FELT
    return UNSEEN if by_hand else RECOVERED
