"""Who hands routers to nodes: grants, planned moves with proof, forced moves after deposing.

What it decided stands in the store (`Book`), written before anybody hears of it; what it heard is
in memory, and lost with it. Times are in ms on its own clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace

from vrha.core.ownership.book import Book
from vrha.core.ownership.commands import Command, Commit, Right, Send, StepDown
from vrha.core.ownership.holder import held_of
from vrha.core.ownership.timing import Timing
from vrha.model.ownership import (
    AGENT_FAILS,
    WELL,
    Depose,
    Deposed,
    Electorate,
    Grant,
    Health,
    Held,
    Holding,
    Message,
    NodeHealth,
    Over,
    Refusal,
    Renew,
    Silenced,
    StandIn,
)

Content = tuple[int, Held, Held, Electorate]
"""Of a grant: incarnation, routers, revoked ones, electorate."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a voter answered to question `asked` of `asked_at`: when it acknowledged the node."""

    asked: int
    asked_at: float
    age_ms: float


@dataclass(slots=True)
class Deposing:
    """Of one incarnation: answers are the last acks of voters on the leader's clock."""

    incarnation: int
    attempt: int
    began: float
    answers: dict[str, float] = field(default_factory=dict)
    out_at: float | None = None


@dataclass(slots=True)
class Node:
    """What this leader heard of a node, and told it: `content` is that of grant `number`.

    `stale`: the content may have to be another now. `health` is as it is since `health_at`; its
    agent failed so often.
    """

    incarnation: int = 0
    seq: int = 0
    electorate: int = 0
    heard_at: float = 0.0
    granted_at: float = 0.0
    number: int = 0
    content: Content | None = None
    stale: bool = True
    answered: int = 0
    deposing: Deposing | None = None
    asked: int = 0
    asked_at: float = 0.0
    sightings: dict[str, Sighting] = field(default_factory=dict)
    """By voter, the newest of this silence."""
    unanswered_at: float | None = None
    """When it said last that the voters do not answer it; None if it said otherwise since."""
    health: Health = WELL
    health_at: float = 0.0
    failures: int = 0

    @property
    def may_be_granted(self) -> bool:
        """Whether it has been heard in a life that is not being ended."""
        return self.seq != 0 and self.deposing is None

    def ails(self, bits: int, now: float) -> None:
        """Remember what a renewal says of the node's health."""
        health = Health(bits) & ~Health.UNANSWERED
        if health & ~Health.STAND_IN != self.health & ~Health.STAND_IN or not self.health_at:
            self.health_at = now
        if health & AGENT_FAILS and not self.health & AGENT_FAILS:
            self.failures += 1
        self.health = health


class Leader:
    """The leader of that epoch, from `now` on, with what the store said then."""

    def __init__(self, name: str, epoch: int, timing: Timing, book: Book, now: float) -> None:
        self.name = name
        self.epoch = epoch
        self.timing = timing
        self.book = book
        self.number = 0
        self.attempt = 0
        # The one before may have granted something a moment ago.
        self.nodes = {
            name: Node(book.incarnations.get(name, 0), heard_at=now, granted_at=now)
            for name in sorted(book.incarnations.keys() | book.by_node.keys())
        }

    def receive(self, message: Message, now: float) -> list[Command]:
        """Take a message whose sender has been proved."""
        match message:
            case Renew():
                return self._renewed(message, now)
            case Holding():
                return self._holding(message)
            case Deposed():
                return self._answered(message, now)
            case Refusal():
                stale = message.leader_epoch > self.epoch
                return [StepDown(message.leader_epoch)] if stale else []
            case Silenced():
                return [StepDown(message.leader_epoch)] if message.leader_epoch > self.epoch else []
            case _:
                return []

    def tick(self, now: float) -> list[Command]:
        """Ask voters again that have not answered; to be called every `delay_ms` or so."""
        return [
            command
            for name, node in self.nodes.items()
            if node.deposing and node.deposing.out_at is None
            for command in self._ask(name, node.deposing, now)
        ]

    # ---- who is where

    def silent(self, now: float) -> list[str]:
        """Nodes that have something and have not been heard of for `suspect_ms`, or are as good as
        that: without answers of voters they will have to be mute."""
        return [
            name
            for name, node in sorted(self.nodes.items())
            if self.book.by_node.get(name) and self.is_suspect(node, now)
        ]

    def is_suspect(self, node: Node, now: float) -> bool:
        """Whether it has not been heard of for `suspect_ms`, or says that nobody answers it."""
        return node.unanswered_at is not None or now - node.heard_at >= self.timing.suspect_ms

    def is_unanswered(self, name: str, now: float) -> bool:
        """Whether the node has just said that no majority of its voters answers it."""
        node = self.nodes.get(name)
        at = node.unanswered_at if node else None
        return at is not None and now - at < self.timing.missed_ms

    def inquire(self, name: str, now: float) -> list[Command]:
        """Ask the voters when they last acknowledged a silent node; that ends nothing. To be called
        for as long as it is silent: a new question every `renew_ms`.

        To depose incarnation 0, which nobody ever was, is a question only.
        """
        node = self.nodes[name]
        if node.asked == 0 or now - node.asked_at >= self.timing.renew_ms:
            # Who heard it then may not hear it now, and the other way round.
            self.attempt += 1
            node.asked, node.asked_at = self.attempt, now
        ask = Depose(self.name, self.epoch, node.asked, name, 0)
        answered = {v for v, each in node.sightings.items() if each.asked == node.asked}
        return [Send(voter, ask) for voter in self._voters() if voter not in answered]

    def is_missed(self, name: str, now: float) -> bool:
        """Whether a majority of the voters has not acknowledged the node either for as long as two
        renewals and a round trip take: then not only this leader cannot hear it. Or the node itself
        says that it has no answers."""
        if self.is_unanswered(name, now):
            return True
        ages = self.ages(name, now)
        return self.agree({v for v, age in ages.items() if age >= self.timing.missed_ms})

    def is_seen(self, name: str, now: float) -> bool:
        """Whether a majority of the voters has acknowledged the silent node within that time. Where
        voters do not answer it is neither missed nor seen."""
        return not self.is_unanswered(name, now) and self.agree(self.heard_by(name, now))

    def heard_by(self, name: str, now: float) -> set[str]:
        """Voters that have acknowledged the silent node within that time."""
        ages = self.ages(name, now)
        return {voter for voter, age in ages.items() if age < self.timing.missed_ms}

    def ages(self, name: str, now: float) -> dict[str, float]:
        """How long ago voters had acknowledged the node last when they said so. What was asked
        longer ago than `missed_ms` says nothing of now."""
        sightings = self.nodes[name].sightings
        return {
            voter: each.age_ms
            for voter, each in sightings.items()
            if now - each.asked_at <= self.timing.missed_ms
        }

    def agree(self, voters: Set[str]) -> bool:
        """Whether they are a majority."""
        newest = self.book.electorates[-1]
        return len(voters & set(newest.voters)) >= newest.majority

    def outs(self) -> list[float]:
        """The instants at which nodes are out, were it or will it be."""
        deposed = (node.deposing for node in self.nodes.values())
        return [each.out_at for each in deposed if each is not None and each.out_at is not None]

    def is_heard(self, name: str, now: float) -> bool:
        """Whether the node renews with success, and may be granted something."""
        node = self.nodes.get(name)
        return node is not None and node.may_be_granted and not self.is_suspect(node, now)

    def is_out(self, name: str, now: float) -> bool:
        """Whether nothing that was ever granted to the node can be active any more: it has been
        waited out, or has begun a life in which nothing was granted to it."""
        node = self.nodes.get(name)
        deposing = node.deposing if node else None
        if node is None or deposing is None:
            return False
        is_past = deposing.out_at is not None and now >= deposing.out_at
        return is_past or node.incarnation > deposing.incarnation

    # ---- agents

    def healths(self, now: float) -> list[NodeHealth]:
        """What the nodes that this leader has heard said of themselves; ages in ms."""
        return [
            NodeHealth(
                name,
                now - node.heard_at,
                node.health,
                now - node.health_at,
                node.failures,
                tuple(sorted(self.heard_by(name, now))),
                self.is_unanswered(name, now),
            )
            for name, node in sorted(self.nodes.items())
            if node.seq
        ]

    def stand_in(self, name: str, seconds: float) -> list[Command]:
        """Ask for a stand-in of the node's agent; nothing where the node is not heard."""
        node = self.nodes.get(name)
        if node is None or not node.may_be_granted:
            return []
        return [Send(name, StandIn(self.name, self.epoch, name, node.incarnation, seconds))]

    # ---- planned moves

    def revoke(self, router: str, now: float) -> list[Command]:
        """Ask the node of the router to give it up. It is free once the node has proved it."""
        right = self.book.rights.get(router)
        if right is None or right.leaving:
            return []
        leaving = Right(router, right.node, self.book.next_epoch(right), leaving=True)
        return [*self._commit(rights=(leaving,)), *self._grant(right.node, now)]

    def give(
        self, router: str, name: str, now: float, beside: Collection[str] = ()
    ) -> list[Command]:
        """Hand a free router, or a new one, to a node. Does nothing while somebody has it.

        `beside`: instances that may have a right on another node, since whoever asks sees to it
        that only one of them shows itself as the owner (a planned move). Any other instance of the
        router must have been given up first, by a node that can be asked.
        """
        given = Right(router, name, 0)
        others = self.book.by_router.get(given.owned, {}).values()
        if any(r.router == router or self._blocks(r, name, beside, now) for r in others):
            return []
        given = Right(router, name, self.book.next_epoch(given))
        self.nodes.setdefault(name, Node(heard_at=now, granted_at=now))
        return [*self._commit(rights=(given,)), *self._grant(name, now)]

    def _blocks(self, right: Right, name: str, beside: Collection[str], now: float) -> bool:
        if right.node == name or right.router in beside:
            return False
        node = self.nodes.get(right.node)
        is_silent = node is None or now - node.heard_at >= self.timing.suspect_ms
        return not beside or not is_silent

    # ---- forced moves

    def depose(self, name: str, now: float) -> list[Command]:
        """Begin to end the leases of what the node is known to be; repeating changes nothing."""
        node = self.nodes.setdefault(name, Node(heard_at=now, granted_at=now))
        if node.deposing is not None:
            return []
        newest = max(node.incarnation, self.book.incarnations.get(name, 0))
        self.attempt += 1
        node.deposing = Deposing(newest, self.attempt, now)
        return self._ask(name, node.deposing, now)

    def take(self, name: str, now: float) -> list[Command]:
        """Free the routers of a node that is out."""
        if not self.is_out(name, now):
            return []
        freed = tuple(Right(r.router, "", self.book.next_epoch(r)) for r in self.book.of(name))
        return self._commit(rights=freed) if freed else []

    def reassign(self, moves: Mapping[str, str], now: float) -> list[Command]:
        """Give instances to nodes, each in place of all others of its router: `moves` is instance
        to node. One commit for all of them, and then the grants.

        An instance is left out as long as another one of its router may still speak: what is on a
        node that is out is freed at once; what is on another node is asked back, and is free when
        that node has proved it. Of several for one router only the first counts.
        """
        rights: list[Right] = []
        asked: list[Right] = []
        routers: set[str] = set()
        for key, name in sorted(moves.items()):
            given = Right(key, name, 0)
            if given.owned in routers or not self.is_heard(name, now):
                continue
            routers.add(given.owned)
            others = self.others(given)
            in_the_way = [r for r in others if self.is_in_the_way(r, now)]
            asked += [
                replace(r, epoch=self.book.next_epoch(r), leaving=True)
                for r in in_the_way
                if not r.leaving
            ]
            if in_the_way:
                continue
            epoch = self.book.next_epoch(given)
            rights += [Right(r.router, "", epoch) for r in others if r.router != key]
            rights.append(replace(given, epoch=epoch + 1))
        if not rights and not asked:
            return []
        concerned = sorted({r.node for r in (*rights, *asked) if r.node})
        commands = self._commit(rights=(*rights, *asked))
        for name in concerned:
            commands += self._grant(name, now)
        return commands

    def others(self, given: Right) -> list[Right]:
        """All rights of its router but that very one; also that of this instance elsewhere."""
        rights = self.book.by_router.get(given.owned, {}).values()
        return [r for r in rights if (r.router, r.node) != (given.router, given.node)]

    def is_in_the_way(self, right: Right, now: float) -> bool:
        """Whether its instance may still speak."""
        return not self.is_out(right.node, now)

    # ---- voters

    def elect(self, voters: Iterable[str], now: float) -> list[Command]:
        """Let one voter come or go. Does nothing while the last change is not through."""
        if len(self.book.electorates) > 1:
            return []
        (current,) = self.book.electorates
        wanted = Electorate(current.version + 1, tuple(sorted(voters)))
        if len(set(current.voters) ^ set(wanted.voters)) != 1 or not wanted.voters:
            return []
        commands = self._commit(electorates=(current, wanted))
        for name in sorted(self.book.incarnations):
            commands += self._grant(name, now)
        return commands

    # ---- inside

    def _renewed(self, renew: Renew, now: float) -> list[Command]:
        node = self.nodes.setdefault(renew.node, Node(heard_at=now, granted_at=now))
        if renew.incarnation < node.incarnation:
            # A node that lost its disk counts from the beginning, and maybe by voters of old.
            return [self._over(renew, node.incarnation)]
        deposing = node.deposing
        if deposing is not None and renew.incarnation <= deposing.incarnation:
            return [self._over(renew, deposing.incarnation)]
        if renew.incarnation == node.incarnation and renew.seq <= node.seq:
            # Late or doubled, or replayed by somebody: no sign of life.
            return []
        if renew.incarnation > node.incarnation:
            node.incarnation, node.seq, node.electorate, node.stale = renew.incarnation, 0, 0, True
        if renew.electorate != node.electorate:
            node.electorate, node.stale = renew.electorate, True
        node.seq = renew.seq
        if self._is_in_vain(renew):
            node.unanswered_at = now
            return self._settle_electorate()
        node.unanswered_at = None
        # Whoever speaks in a new incarnation has muted everything before.
        node.deposing = None
        node.heard_at = now
        # The next silence is another one.
        node.asked = 0
        node.sightings.clear()
        node.ails(renew.health, now)
        commands = self._settle_electorate()
        if node.stale or node.answered != node.number:
            commands += self._grant(renew.node, now)
        return commands

    def _is_in_vain(self, renew: Renew) -> bool:
        """Whether a majority does not answer the node, though it asks whom it should: then it is no
        sign of life. One that asks others has to learn first, from a grant."""
        is_taught = renew.electorate == self.book.electorates[-1].tag
        return is_taught and bool(renew.health & Health.UNANSWERED)

    def _over(self, renew: Renew, newest: int) -> Command:
        return Send(renew.node, Over(self.name, renew.node, renew.incarnation, newest))

    def _told(self, name: str) -> Content:
        """What a grant to the node has to say now."""
        rights = self.book.of(name)
        routers = held_of({r.router: r.epoch for r in rights if not r.leaving})
        revoked = held_of({r.router: r.epoch for r in rights if r.leaving})
        electorate = self.book.electorates[-1]
        if not self._counts_with_us(name):
            # It may count the votes of those whom nobody would ask: first it has to learn better.
            routers = ()
        return self.nodes[name].incarnation, routers, revoked, electorate

    def _counts_with_us(self, name: str) -> bool:
        return self.nodes[name].electorate in {each.tag for each in self.book.electorates}

    def _grant(self, name: str, now: float) -> list[Command]:
        node = self.nodes[name]
        if not node.may_be_granted:
            return []
        commands: list[Command] = []
        if self.book.incarnations.get(name, 0) != node.incarnation:
            commands += self._commit(incarnations=((name, node.incarnation),))
        told = self._told(name) if node.stale or node.content is None else node.content
        if told != node.content:
            self.number += 1
            node.number, node.content = self.number, told
        node.stale = False
        node.granted_at = now
        incarnation, routers, revoked, electorate = told
        grant = Grant(
            leader=self.name,
            leader_epoch=self.epoch,
            number=node.number,
            node=name,
            incarnation=incarnation,
            seq=node.seq,
            electorate=electorate,
            routers=routers,
            revoked=revoked,
        )
        return [*commands, Send(name, grant)]

    def _holding(self, holding: Holding) -> list[Command]:
        node = self.nodes.get(holding.node)
        if node is None or not self.is_current(holding, node):
            return []
        node.answered = max(node.answered, holding.number)
        free = tuple(
            Right(right.router, "", right.epoch)
            for right in self.book.of(holding.node)
            if self.proves(holding, right)
        )
        return self._commit(rights=free) if free else []

    def is_current(self, holding: Holding, node: Node) -> bool:
        """Whether the node answers this leader, about its present life."""
        return holding.leader_epoch == self.epoch and holding.incarnation == node.incarnation

    def proves(self, holding: Holding, right: Right) -> bool:
        """Whether the node says that it has given up the router, at exactly this epoch."""
        if not right.leaving or right.router in dict(holding.routers):
            return False
        return dict(holding.epochs).get(right.router) == right.epoch

    def _ask(self, name: str, deposing: Deposing, now: float) -> list[Command]:
        if now - deposing.began >= self.timing.attempt_ms:
            self.attempt += 1
            deposing.attempt, deposing.began = self.attempt, now
            deposing.answers.clear()
        ask = Depose(self.name, self.epoch, deposing.attempt, name, deposing.incarnation)
        return [Send(voter, ask) for voter in self._voters() if voter not in deposing.answers]

    def _voters(self) -> list[str]:
        return sorted({voter for each in self.book.electorates for voter in each.voters})

    def _answered(self, answer: Deposed, now: float) -> list[Command]:
        node = self.nodes.get(answer.node)
        if node is not None and (answer.leader_epoch, answer.attempt) == (self.epoch, node.asked):
            node.sightings[answer.voter] = Sighting(node.asked, node.asked_at, answer.age_ms)
            return []
        deposing = node.deposing if node else None
        if node is None or deposing is None or deposing.out_at is not None:
            return []
        if (answer.leader_epoch, answer.attempt) != (self.epoch, deposing.attempt):
            return []
        if answer.incarnation != deposing.incarnation or self.is_late(deposing, now):
            return []
        deposing.answers[answer.voter] = now - answer.age_ms / self.timing.margin
        if self.is_deposed(deposing):
            deposing.out_at = self.waits_from(node, deposing) + self.waits_ms()
        return []

    def is_late(self, deposing: Deposing, now: float) -> bool:
        """Whether those who answered this attempt first may have been restarted since."""
        return now - deposing.began >= self.timing.attempt_ms

    def is_deposed(self, deposing: Deposing) -> bool:
        """Whether no majority is left by which the incarnation might count."""
        return all(
            len(deposing.answers.keys() & set(each.voters)) >= each.majority
            for each in self.book.electorates
        )

    def waits_from(self, node: Node, deposing: Deposing) -> float:
        """The last instant at which something can have been promised to the node."""
        return max(node.granted_at, *deposing.answers.values())

    def waits_ms(self) -> float:
        """How long after that the kernel of the node may still let something pass."""
        return self.timing.safe_ms

    def _settle_electorate(self) -> list[Command]:
        """The old voters are done with when every node that has anything counts by the new."""
        if len(self.book.electorates) == 1:
            return []
        newest = self.book.electorates[-1]
        for name, rights in self.book.by_node.items():
            if rights and self.nodes[name].electorate != newest.tag:
                return []
        return self._commit(electorates=(newest,))

    def _commit(
        self,
        rights: tuple[Right, ...] = (),
        incarnations: tuple[tuple[str, int], ...] = (),
        electorates: tuple[Electorate, ...] = (),
    ) -> list[Command]:
        commit = Commit(rights, incarnations, electorates)
        concerned = self.book.apply(commit)
        for name, node in self.nodes.items():
            node.stale |= name in concerned or bool(electorates)
        return [commit]
