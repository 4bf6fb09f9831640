"""The protocol with one rule taken out or weakened: each must be caught.

A mutant that lives means that its rule is not needed, or that the simulator does not see why it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tests.sim.parts import Parts
from tests.sim.scripts import (
    Script,
    at_random,
    deaf_leader,
    echoes,
    elections,
    forgetful_witness,
    forgotten,
    half_silent,
    late_answer,
    moves_in_noise,
    old_voters,
    power_lost,
    short_lives,
    slow_grant,
    split_answers,
    still_deaf,
    to_the_edge,
    unanswered,
    unleased,
    upgrades,
    voters_silent,
)
from vrha.core.brake import Rules, SeenNode
from vrha.core.judging import Judge
from vrha.core.ownership.commands import Command, Commit, Right, Send
from vrha.core.ownership.holder import Holder, Life
from vrha.core.ownership.leader import Deposing, Leader, Node
from vrha.core.ownership.timing import LATE_MS, Timing
from vrha.core.ownership.voter import Known, Voter
from vrha.model.ownership import Ack, Electorate, Grant, Holding, Renew
from vrha.model.spec import Node as SpecNode

if TYPE_CHECKING:
    from tests.sim.orchestrator import Orchestrator
    from tests.sim.process import Process
    from tests.sim.watcher import Watcher


Harm = Literal["two owners", "nobody", "needless", "unbraked"]


@dataclass(frozen=True)
class Mutant:
    """`rule` is what is gone. `script` draws the faults; `seeds` is how many it may take until the
    `harm` is done: two owners, nobody owns a router though all has been well for long, a node is
    deposed that voters heard, or the brake does not hold."""

    name: str
    rule: str
    parts: Parts
    script: Script = at_random
    seeds: int = 500
    harm: Harm = "two owners"


# ---- the node


class LeaseFromReceipt(Holder):
    def counted_from(self, seq: int, now: float) -> float | None:
        return now


class LeaseFromNewest(Holder):
    def counted_from(self, seq: int, now: float) -> float | None:
        return self.sent[self.seq]


class OneVoterIsEnough(Holder):
    def _majority_seq(self) -> int:
        return max(self.acked.values())


class LapseGoesOn(Holder):
    def _expire(self, now: float) -> list[Command]:
        if not self.lapsed(now):
            return []
        self.lease_end = self.unleased_end = None
        return []


class GrantsWithoutLease(Holder):
    def _granted(self, grant: Grant, now: float) -> list[Command]:
        commands = super()._granted(grant, now)
        self.unleased_end = None
        return commands


class AnyGrant(Holder):
    """For whatever incarnation, however old."""

    def refuses(self, grant: Grant, now: float) -> str:
        reason = super().refuses(replace(grant, incarnation=self.incarnation), now)
        return "" if reason == "late-grant" else reason


class OldGrant(Holder):
    def refuses(self, grant: Grant, now: float) -> str:
        reason = super().refuses(grant, now)
        return "" if reason == "late-grant" else reason


class AcksOfAnyIncarnation(Holder):
    def _count(self, ack: Ack, now: float) -> None:
        super()._count(replace(ack, incarnation=self.incarnation), now)


class AnyLeader(Holder):
    def refuses(self, grant: Grant, now: float) -> str:
        reason = super().refuses(grant, now)
        return "" if reason == "stale-leader" else reason

    def accepts(self, router: str, epoch: int) -> bool:
        return True


class NoEpochs(Holder):
    def refuses(self, grant: Grant, now: float) -> str:
        reason = super().refuses(grant, now)
        return "" if reason in ("stale-leader", "stale-grant") else reason

    def accepts(self, router: str, epoch: int) -> bool:
        return True


# ---- voters


class VoterForgetsDeposed(Voter):
    def _renewed(self, renew: Renew, now: float) -> list[Command]:
        self.nodes.setdefault(renew.node, Known()).deposed = 0
        return super()._renewed(renew, now)


class VoterNeverSpeaks(Voter):
    """Once restarted, it keeps quiet for good."""

    def is_silent(self, now: float) -> bool:
        return True


class VoterSpeaksAtOnce(Voter):
    def is_silent(self, now: float) -> bool:
        return False


class VoterForgetsAcks(Voter):
    def age(self, known: Known, now: float) -> float:
        return 1e6 if known.acked_at is None else now - known.acked_at


class VoterKnowsNoAge(Voter):
    def age(self, known: Known, now: float) -> float:
        return 1e6


# ---- the leader


class NoMargin(Leader):
    def waits_ms(self) -> float:
        return self.timing.lease_ms + self.timing.slice_ms + LATE_MS


class WaitsTooShort(Leader):
    def waits_ms(self) -> float:
        return self.timing.lease_ms * 0.9


class WaitsNoSlice(Leader):
    def waits_ms(self) -> float:
        return self.timing.lease_ms


class ForgetsTheAcks(Leader):
    def waits_from(self, node: Node, deposing: Deposing) -> float:
        return node.granted_at


class OneVoterDeposes(Leader):
    def is_deposed(self, deposing: Deposing) -> bool:
        return bool(deposing.answers)


class AsksNobody(Leader):
    """Silence to the leader is silence."""

    def is_missed(self, name: str, now: float) -> bool:
        return True


class AnswersLastForEver(AsksNobody):
    def is_late(self, deposing: Deposing, now: float) -> bool:
        return False

    def _ask(self, name: str, deposing: Deposing, now: float) -> list[Command]:
        deposing.began = now
        return super()._ask(name, deposing, now)


class GrantsByOldVoters(Leader):
    def _counts_with_us(self, name: str) -> bool:
        return True


class ChangesAllVoters(Leader):
    """Any number of voters at once, and only the new ones are asked. Each of both rules covers for
    the other."""

    def elect(self, voters: Iterable[str], now: float) -> list[Command]:
        (current, *more) = self.book.electorates
        if more:
            return []
        apart = Electorate(current.version + 1, self.apart(current.voters))
        commands = self._commit(electorates=(current, apart))
        for name in sorted(self.book.incarnations):
            commands += self._grant(name, now)
        return commands

    def apart(self, voters: tuple[str, ...]) -> tuple[str, ...]:
        """Nobody of those."""
        return ("o1",) if "o1" not in voters else ("n1", "n2", "n3")

    def _ask(self, name: str, deposing: Deposing, now: float) -> list[Command]:
        asked = self.book.electorates[-1].voters
        commands = super()._ask(name, deposing, now)
        return [each for each in commands if isinstance(each, Send) and each.to in asked]

    def is_deposed(self, deposing: Deposing) -> bool:
        newest = self.book.electorates[-1]
        return len(deposing.answers.keys() & set(newest.voters)) >= newest.majority


class SettlesAtOnce(Leader):
    def _settle_electorate(self) -> list[Command]:
        if len(self.book.electorates) == 1:
            return []
        return self._commit(electorates=(self.book.electorates[-1],))


class DeposesNobody(Leader):
    """A node that is silent is as good as dead."""

    def is_out(self, name: str, now: float) -> bool:
        return name in self.nodes


class MovesWithoutProof(Leader):
    def revoke(self, router: str, now: float) -> list[Command]:
        commands = super().revoke(router, now)
        right = self.book.rights[router]
        free = self._commit(rights=(Right(router, "", right.epoch),)) if right.node else []
        return [*commands, *free]


class AnyProof(Leader):
    def is_current(self, holding: Holding, node: Node) -> bool:
        return True

    def proves(self, holding: Holding, right: Right) -> bool:
        return right.leaving and right.router not in dict(holding.routers)


class SameEpoch(Leader):
    """A change of owner does not raise the epoch."""

    def _commit(
        self,
        rights: tuple[Right, ...] = (),
        incarnations: tuple[tuple[str, int], ...] = (),
        electorates: tuple[Electorate, ...] = (),
    ) -> list[Command]:
        return super()._commit(
            tuple(replace(right, epoch=1) for right in rights), incarnations, electorates
        )


class GrantsBeforeTheStore(Leader):
    """A new incarnation is granted what the old one had without a word to the store."""

    def _grant(self, name: str, now: float) -> list[Command]:
        self.book.incarnations[name] = self.nodes[name].incarnation
        return super()._grant(name, now)


class GrantsFirst(Leader):
    """Whoever gets a router hears of it before the store does."""

    def give(
        self, router: str, name: str, now: float, beside: Collection[str] = ()
    ) -> list[Command]:
        return self.first(super().give(router, name, now, beside))

    def reassign(self, moves: Mapping[str, str], now: float) -> list[Command]:
        return self.first(super().reassign(moves, now))

    @staticmethod
    def first(commands: list[Command]) -> list[Command]:
        return sorted(commands, key=lambda each: isinstance(each, Commit))


class TakesTooSoon(Leader):
    """Takes over from a node as soon as its lease is being ended."""

    def is_in_the_way(self, right: Right, now: float) -> bool:
        return self.nodes[right.node].deposing is None


class TakesFromTheLiving(Leader):
    """Asks back nothing of a node that is heard."""

    def is_in_the_way(self, right: Right, now: float) -> bool:
        return super().is_in_the_way(right, now) and not self.is_heard(right.node, now)


class TakesTheSameElsewhere(Leader):
    """Does not ask back an instance that goes from one node to another."""

    def others(self, given: Right) -> list[Right]:
        return [right for right in super().others(given) if right.router != given.router]


class OneVoterMisses(Leader):
    def agree(self, voters: Set[str]) -> bool:
        return bool(voters)


class SightingsLastForEver(Leader):
    """What voters said of a silence is kept as long as nothing newer comes."""

    def inquire(self, name: str, now: float) -> list[Command]:
        return [] if self.is_missed(name, now) else super().inquire(name, now)

    def ages(self, name: str, now: float) -> dict[str, float]:
        return {voter: each.age_ms for voter, each in self.nodes[name].sightings.items()}


class SightingsOfBefore(Leader):
    """What voters said of the last silence counts in this one."""

    def _renewed(self, renew: Renew, now: float) -> list[Command]:
        known = self.nodes.get(renew.node)
        before = dict(known.sightings) if known else {}
        commands = super()._renewed(renew, now)
        self.nodes[renew.node].sightings.update(before)
        return commands

    def ages(self, name: str, now: float) -> dict[str, float]:
        return {voter: each.age_ms for voter, each in self.nodes[name].sightings.items()}


class TrustsTheUnanswered(Leader):
    """A node that is heard is well, whatever it says."""

    def _is_in_vain(self, renew: Renew) -> bool:
        return False


class UnansweredIsMute(Leader):
    """A node that says so is not waited for."""

    def is_out(self, name: str, now: float) -> bool:
        return super().is_out(name, now) or (
            self.is_unanswered(name, now) and self.nodes[name].deposing is not None
        )


# ---- the brake


class NoBudget(Judge):
    def __init__(self, rules: Rules, timing: Timing) -> None:
        super().__init__(replace(rules, budget=1.0), timing)


class NoMassStop(Judge):
    def __init__(self, rules: Rules, timing: Timing) -> None:
        super().__init__(replace(rules, mass_silence=1.0), timing)


class NoHaste(Judge):
    """The first of many is given up before the others are silent."""

    def __init__(self, rules: Rules, timing: Timing) -> None:
        super().__init__(replace(rules, look_s=0.0), timing)

    def _seen(self, leader: Leader, node: SpecNode, now: float) -> SeenNode:
        return replace(super()._seen(leader, node, now), unconfirmed=False)


class OnlyTheConfirmedCount(Judge):
    """Silence of which nobody else can tell is none."""

    @property
    def _doubt_s(self) -> float:
        return float("inf")


class AsksOnce(AsksNobody):
    """Voters that did not answer are not asked again."""

    def tick(self, now: float) -> list[Command]:
        return []


# ---- kernel, store and process


class UserSpaceFence(Parts):
    """No dead-man switch: a stopped process mutes nothing."""

    def slice_ends(self, watcher: Watcher) -> float:
        return float("inf")

    def fed_until(self, watcher: Watcher) -> float:
        return float("inf") if watcher.holder.lease_end is not None else -1.0


class LateRenewalRevives(Parts):
    def renew_late(self, watcher: Watcher) -> None:
        now = watcher.world.now
        watcher.kernel.live_until = now + watcher.world.setup.timing.slice_ms
        watcher.world.check(watcher)


class LongSlices(Parts):
    """As long as the lease."""

    def slice_ends(self, watcher: Watcher) -> float:
        world, live_until = watcher.world, watcher.kernel.live_until
        if live_until <= world.now:
            return live_until
        timing = world.setup.timing
        # The last of them begins when one of the right length would.
        return min(live_until - timing.slice_ms, world.now) + timing.lease_ms


class StartsSpeaking(Parts):
    """A process that begins leaves what it finds."""

    def begin(self, watcher: Watcher) -> None:
        """Nothing is muted."""


class LeaseOfBefore(Parts):
    """A process that follows goes on with what was granted before the last grant."""

    def lease_of_grant(self, watcher: Watcher) -> Life | None:
        return watcher.lease


class KeepsOldRouters(Parts):
    """A grant adds to what the kernel lets pass."""

    def permit(self, watcher: Watcher, routers: dict[str, int]) -> None:
        watcher.kernel.granted = watcher.kernel.granted | routers


class WallClock(Parts):
    def now(self, process: Process) -> float:
        return super().now(process) + process.clock.jump

    def true(self, process: Process, read: float) -> float:
        return super().true(process, read - process.clock.jump)


class NoFence(Parts):
    """The store takes what any leader writes."""

    def commit(self, orchestrator: Orchestrator, commit: Commit) -> bool:
        orchestrator.world.store.book.apply(commit)
        return True


class SameNumberAgain(Parts):
    """A process whose disk lost its last write takes a number that was used before."""

    def first_incarnation(self, last: int, nonce: int) -> int:
        return super().first_incarnation(last, 0)


def _mutant(
    rule: str, gone: type, script: Script = at_random, harm: Harm = "two owners", seeds: int = 500
) -> Mutant:
    if issubclass(gone, Holder):
        parts = Parts(holder=gone)
    elif issubclass(gone, VoterSpeaksAtOnce):
        # The inquiry covers for it: a leader that alone hears nothing deposes nobody.
        parts = Parts(voter=gone, leader=AsksNobody)
    elif issubclass(gone, Voter):
        parts = Parts(voter=gone)
    elif issubclass(gone, Leader):
        parts = Parts(leader=gone)
    elif issubclass(gone, Judge):
        parts = Parts(judge=gone)
    else:
        parts = gone()
    return Mutant(gone.__name__, rule, parts, script, seeds, harm)


MUTANTS: tuple[Mutant, ...] = (
    _mutant("the lease counts from sending", LeaseFromReceipt),
    _mutant("the lease counts from the renewal that was acknowledged", LeaseFromNewest),
    _mutant("a majority has to acknowledge", OneVoterIsEnough),
    _mutant("a lapse begins a new incarnation", LapseGoesOn, forgotten),
    _mutant("a grant does not wait for a lease", GrantsWithoutLease, unleased),
    _mutant("a grant is for one incarnation, and fresh", AnyGrant, short_lives),
    _mutant("a grant is fresh", OldGrant, slow_grant),
    _mutant("an acknowledgement is for one incarnation", AcksOfAnyIncarnation, echoes),
    _mutant("a leader of the past is refused", AnyLeader),
    _mutant("lower epochs and numbers are refused", NoEpochs),
    _mutant("a deposed incarnation is never acknowledged again", VoterForgetsDeposed),
    _mutant("a restarted voter keeps quiet", VoterSpeaksAtOnce, split_answers),
    _mutant("a restarted voter says its uptime", VoterForgetsAcks, forgetful_witness),
    _mutant("the answer says when the last acknowledgement was", VoterKnowsNoAge),
    _mutant("the wait has a margin for clocks", NoMargin, to_the_edge),
    _mutant("the wait is as long as the lease", WaitsTooShort),
    _mutant("the wait has the slice in it", WaitsNoSlice, to_the_edge),
    _mutant("the wait counts from the last acknowledgement", ForgetsTheAcks),
    _mutant("a majority has to depose", OneVoterDeposes),
    _mutant("answers of voters get old", AnswersLastForEver, late_answer),
    _mutant("one voter at a time, and those of old are asked too", ChangesAllVoters, elections),
    _mutant("who counts by unknown voters gets nothing", GrantsByOldVoters, old_voters),
    _mutant("old voters count until every node has learned", SettlesAtOnce, elections),
    _mutant("silence is no proof", DeposesNobody),
    _mutant("a planned move needs a proof", MovesWithoutProof),
    _mutant("a proof is of this leader, life and epoch", AnyProof, moves_in_noise),
    _mutant("every change of owner raises the epoch", SameEpoch, moves_in_noise),
    _mutant("the store knows an incarnation before it is granted anything", GrantsBeforeTheStore),
    _mutant("the store knows a right before its node does", GrantsFirst),
    _mutant("a takeover waits until the node is out", TakesTooSoon),
    _mutant("a takeover from a living node needs its proof", TakesFromTheLiving),
    _mutant("so does one of the same instance", TakesTheSameElsewhere),
    _mutant("silence to the leader alone ends no lease", AsksNobody, deaf_leader, "needless"),
    _mutant("a majority has to miss the node", OneVoterMisses, deaf_leader, "needless"),
    _mutant("what voters saw gets old", SightingsLastForEver, still_deaf, "needless"),
    _mutant("what they saw is of one silence", SightingsOfBefore, deaf_leader, "needless"),
    _mutant("few are under recovery at a time", NoBudget, half_silent, "unbraked"),
    _mutant("nothing begins while many are silent", NoMassStop, half_silent, "unbraked"),
    _mutant("the first of many waits for the others", NoHaste, half_silent, "unbraked"),
    _mutant(
        "silence counts that nobody confirms", OnlyTheConfirmedCount, voters_silent, "unbraked"
    ),
    _mutant("a restarted voter speaks again", VoterNeverSpeaks, harm="nobody"),
    _mutant("voters are asked until they answer", AsksOnce, power_lost, "nobody"),
    _mutant("a node without answers is given up", TrustsTheUnanswered, unanswered, "nobody"),
    _mutant("only its next life proves that it is mute", UnansweredIsMute, unanswered),
    _mutant("the kernel mutes when nobody renews", UserSpaceFence),
    _mutant("a late renewal is refused", LateRenewalRevives),
    _mutant("slices are short", LongSlices, to_the_edge),
    _mutant("a process begins muted", StartsSpeaking),
    _mutant("a grant is kept before it is answered", LeaseOfBefore, upgrades),
    _mutant("a grant names everything", KeepsOldRouters),
    _mutant("no wall clock", WallClock),
    _mutant("the store refuses a leader of the past", NoFence),
    _mutant("no incarnation is used twice", SameNumberAgain, echoes),
)
