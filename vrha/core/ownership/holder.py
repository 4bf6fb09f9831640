"""The node's side: keeps its lease going, and knows which routers it may have active.

Times are in ms on the node's own clock, which counts suspended time too (CLOCK_BOOTTIME) and knows
nothing of the wall clock. The object is fed by the watcher and does nothing by itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from vrha.core.ownership.commands import Command, Mute, Permit, Relieve, Send, Tell
from vrha.core.ownership.timing import Timing
from vrha.model.ownership import (
    Ack,
    Electorate,
    Grant,
    Health,
    Held,
    Holding,
    Message,
    Over,
    Refusal,
    Renew,
    StandIn,
)

_COUNT_SHIFT = 32
SKIPPED = 1000
UNANSWERED = 2
"""Renewals that were sent and not acknowledged by a majority: one may be under way."""
_NONCE = (1 << _COUNT_SHIFT) - 1


@dataclass(frozen=True, slots=True)
class Life:
    """Of an incarnation, on the clock of its boot: what outlives a process."""

    incarnation: int
    seq: int
    lease_end: float
    leader_epoch: int
    number: int
    routers: Held


class Holder:
    """One life of a watcher: begins muted, in an incarnation that nobody has heard of.

    `lease_end` is None while there is none. `epochs` are the highest ones ever heard of. `revoked`
    is what this incarnation was told to give up, and has not been granted again. `health` is what
    renewals say of the node (bits of Health).
    """

    def __init__(
        self,
        node: str,
        timing: Timing,
        electorate: Electorate,
        incarnation: int,
        epochs: Mapping[str, int],
        now: float,
    ) -> None:
        self.node = node
        self.timing = timing
        self.electorate = electorate
        self.incarnation = incarnation
        self.epochs = dict(epochs)
        self.routers: dict[str, int] = {}
        self.revoked: set[str] = set()
        self.lease_end: float | None = None
        self.leader_epoch = 0
        self.number = 0
        self.health = 0
        self.next_renewal = now
        self.answered_at = now
        self.unanswered = 0
        self._begin_lease()

    def saved(self) -> Life | None:
        """What the next process needs to go on as this one; None without a lease."""
        if self.lease_end is None:
            return None
        return Life(
            incarnation=self.incarnation,
            seq=self.seq,
            lease_end=self.lease_end,
            leader_epoch=self.leader_epoch,
            number=self.number,
            routers=held_of(self.routers),
        )

    def resume(self, life: Life, now: float) -> bool:
        """Go on as the process before did, if its lease has not ended; whether that is so.

        What it sent last may not have been kept: later numbers stay clear of that, so that no
        answer to it counts.
        """
        if now >= life.lease_end:
            return False
        self.incarnation = life.incarnation
        self.lease_end = life.lease_end
        self.seq = life.seq + SKIPPED
        self.leader_epoch, self.number = life.leader_epoch, life.number
        self.routers = dict(life.routers)
        return True

    def _begin_lease(self) -> None:
        self.seq = 0
        self.sent: OrderedDict[int, float] = OrderedDict()
        self.acked: dict[str, int] = {}
        self.lease_end = None
        self.unleased_end: float | None = None

    def tick(self, now: float) -> list[Command]:
        """To be called when `due`, and as often as one likes."""
        commands = self._expire(now)
        if now >= self.next_renewal:
            commands.append(self._renew(now))
        return commands

    def receive(self, message: Message, now: float) -> list[Command]:
        """Take a message whose sender has been proved."""
        # Before all else: what waited while this process did not run must not find an old lease.
        commands = self._expire(now)
        match message:
            case Ack():
                self._count(message, now)
            case Over():
                commands += self._end(message)
            case Grant():
                commands += self._granted(message, now)
            case StandIn():
                commands += self._relieved(message)
            case _:
                pass
        return commands

    def may_extend(self, now: float) -> bool:
        """Whether the kernel may be given a slice that begins now."""
        return self.lease_end is not None and now + self.timing.slice_ms <= self.lease_end

    def lapsed(self, now: float) -> bool:
        """Whether this incarnation is over. One that was granted something and never got a lease
        is over when the lease would be that began with the renewal which the grant echoed."""
        end = self.unleased_end if self.lease_end is None else self.lease_end
        return end is not None and now >= end

    @property
    def due(self) -> float:
        """When `tick` has something to do."""
        ends = (self.next_renewal, self.lease_end, self.unleased_end)
        return min(end for end in ends if end is not None)

    def _expire(self, now: float) -> list[Command]:
        # Also where nothing is held: what is granted later would fall under a lease that had ended.
        return [self._begin(self.incarnation + 1)] if self.lapsed(now) else []

    def _begin(self, incarnation: int) -> Command:
        self.incarnation = incarnation
        self.routers.clear()
        self.revoked.clear()
        self._begin_lease()
        return Mute(incarnation)

    def _renew(self, now: float) -> Command:
        self.seq += 1
        self.sent[self.seq] = now
        health = self.health | (Health.UNANSWERED if self._is_unanswered(now) else 0)
        self.unanswered += 1
        while now - next(iter(self.sent.values())) > self.timing.lease_ms:
            self.sent.popitem(last=False)
        behind = now - self.next_renewal
        every = self.timing.renew_ms
        # After a pause the schedule goes on from now: no burst.
        self.next_renewal += every if behind < every else behind + every
        return Tell(Renew(self.node, self.incarnation, self.seq, self.electorate.tag, int(health)))

    def _count(self, ack: Ack, now: float) -> None:
        if ack.incarnation != self.incarnation or ack.voter not in self.electorate.voters:
            return
        if not self.acked.get(ack.voter, 0) < ack.seq <= self.seq:
            return
        self.acked[ack.voter] = ack.seq
        sent = self.counted_from(self._majority_seq(), now)
        if sent is None:
            return
        end = sent + self.timing.lease_ms
        if end > now and (self.lease_end is None or end > self.lease_end):
            self.lease_end, self.unleased_end = end, None
            self._answered(now)

    def _answered(self, now: float) -> None:
        if self._is_unanswered(now):
            # The leader is to know at once that it is not so any more.
            self.next_renewal = now
        self.answered_at, self.unanswered = now, 0

    def _is_unanswered(self, now: float) -> bool:
        """Whether it is the voters that do not answer, and not this process that did not run."""
        is_long = now - self.answered_at >= self.timing.missed_ms
        return is_long and self.unanswered >= UNANSWERED

    def _majority_seq(self) -> int:
        """The newest renewal that a majority has acknowledged, it or a later one; 0 for none."""
        acked = sorted((self.acked.get(voter, 0) for voter in self.electorate.voters), reverse=True)
        return acked[self.electorate.majority - 1]

    def counted_from(self, seq: int, now: float) -> float | None:
        """When the renewal was sent: the voters saw it later, so they end the lease later."""
        return self.sent.get(seq)

    def _end(self, over: Over) -> list[Command]:
        if over.incarnation != self.incarnation:
            return []
        return [self._begin(above(over.newest, self.incarnation))]

    def _granted(self, grant: Grant, now: float) -> list[Command]:
        reason = self.refuses(grant, now)
        if reason:
            if reason == "other-incarnation":
                return []
            answer = Refusal(self.node, self.incarnation, self.leader_epoch, grant.number, reason)
            return [Send(grant.leader, answer)]
        self.leader_epoch, self.number = grant.leader_epoch, grant.number
        self._use(grant.electorate)
        if self.lease_end is None:
            self.unleased_end = self.sent.get(grant.seq, now) + self.timing.lease_ms
        for router, epoch in grant.routers + grant.revoked:
            self.epochs[router] = max(epoch, self.epochs.get(router, 0))
        self.revoked |= self.routers.keys() | dict(grant.revoked).keys()
        self.revoked -= dict(grant.routers).keys()
        self.routers = {r: epoch for r, epoch in grant.routers if self.accepts(r, epoch)}
        named = {router for router, _ in grant.routers + grant.revoked}
        held = held_of(self.routers)
        return [
            Permit(held, held_of(self.epochs), self.electorate),
            Send(grant.leader, self._holding(held, named)),
        ]

    def _relieved(self, ask: StandIn) -> list[Command]:
        if ask.incarnation != self.incarnation:
            return []
        if ask.leader_epoch < self.leader_epoch:
            epoch = self.leader_epoch
            return [
                Send(ask.leader, Refusal(self.node, self.incarnation, epoch, 0, "stale-leader"))
            ]
        return [Relieve(ask.seconds)]

    def _use(self, electorate: Electorate) -> None:
        # Of two with one version the leader has the right one: settings of nodes may differ.
        if electorate.version >= self.electorate.version:
            self.electorate = electorate

    def _holding(self, held: Held, named: set[str]) -> Holding:
        epochs = held_of({router: self.epochs[router] for router in named})
        return Holding(self.node, self.incarnation, self.leader_epoch, self.number, held, epochs)

    def refuses(self, grant: Grant, now: float) -> str:
        """Why the grant is not taken; empty when it is."""
        if grant.incarnation != self.incarnation:
            return "other-incarnation"
        if grant.leader_epoch < self.leader_epoch:
            return "stale-leader"
        if (grant.leader_epoch, grant.number) < (self.leader_epoch, self.number):
            return "stale-grant"
        # A grant that was under way for long may be of a leader that has let others have all this.
        sent = self.sent.get(grant.seq)
        return "late-grant" if sent is None or now - sent > self.timing.lease_ms else ""

    def accepts(self, router: str, epoch: int) -> bool:
        """Whether no higher epoch of the router is known."""
        return epoch >= self.epochs.get(router, 0)


def first_incarnation(last: int, nonce: int) -> int:
    """Of a process that begins: above `last`, which was kept durably (0: nothing was).

    `nonce` (random, 32 bits) tells it from an earlier life whose number was not kept, so that
    answers to that one are not taken for answers to this.
    """
    return ((last >> _COUNT_SHIFT) + 1) << _COUNT_SHIFT | nonce


def above(newest: int, own: int) -> int:
    """The incarnation to go on with where somebody knows a newer one, of a life before."""
    return first_incarnation(max(newest, own), own & _NONCE)


def held_of(routers: Mapping[str, int]) -> Held:
    """As in messages: by name."""
    return tuple(sorted(routers.items()))
