"""Who keeps leases going: acknowledges renewals until the leader asks to stop.

It remembers two numbers and an instant of each node, in memory only: after a restart it keeps quiet
until whatever it may have said before is over. Times are in ms on its own clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from vrha.core.ownership.commands import Command, Send
from vrha.core.ownership.timing import Timing
from vrha.model.ownership import Ack, Depose, Deposed, Message, Over, Renew, Silenced


@dataclass(slots=True)
class Known:
    """Of one node: the `newest` incarnation heard of, the highest `deposed` one, the last ack."""

    newest: int = 0
    deposed: int = 0
    acked_at: float | None = None


class Voter:
    """A voter of that name, which has been running since `now`."""

    def __init__(self, name: str, timing: Timing, now: float) -> None:
        self.name = name
        self.timing = timing
        self.started = now
        self.leader_epoch = 0
        self.nodes: dict[str, Known] = {}

    def receive(self, message: Message, now: float) -> list[Command]:
        """Take a message whose sender has been proved; others than a voter's change nothing."""
        match message:
            case Renew():
                return self._renewed(message, now)
            case Depose():
                return self._deposed(message, now)
            case _:
                return []

    def is_silent(self, now: float) -> bool:
        """Whether it may have forgotten what it promised before it was restarted."""
        return now - self.started < self.timing.quiet_ms

    def _renewed(self, renew: Renew, now: float) -> list[Command]:
        known = self.nodes.setdefault(renew.node, Known())
        if renew.incarnation <= known.deposed or renew.incarnation < known.newest:
            newest = max(known.deposed, known.newest)
            return [Send(renew.node, Over(self.name, renew.node, renew.incarnation, newest))]
        known.newest = renew.incarnation
        if self.is_silent(now):
            return []
        known.acked_at = now
        return [Send(renew.node, Ack(self.name, renew.node, renew.incarnation, renew.seq))]

    def _deposed(self, ask: Depose, now: float) -> list[Command]:
        if ask.leader_epoch < self.leader_epoch:
            return [Send(ask.leader, Silenced(self.name, self.leader_epoch))]
        self.leader_epoch = ask.leader_epoch
        known = self.nodes.setdefault(ask.node, Known())
        known.deposed = max(known.deposed, ask.incarnation)
        answer = Deposed(
            self.name,
            ask.leader_epoch,
            ask.attempt,
            ask.node,
            ask.incarnation,
            self.age(known, now),
            known.newest,
        )
        return [Send(ask.leader, answer)]

    def age(self, known: Known, now: float) -> float:
        """Since when nothing of the node has been acknowledged, in ms."""
        return now - (self.started if known.acked_at is None else known.acked_at)
