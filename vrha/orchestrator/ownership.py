"""The leader's side of ownership as a thread: datagrams in, grants out, rights in the store.

It votes too, if it is a voter, also while it stands by. What is granted follows from desired state
and journal, again and again; nothing here waits for a node. Nodes that fall silent are deposed as
soon as something is being built that can take over from them (`vrha.orchestrator.failover`), and
what they had is given away when it is certain that they are mute.
"""

from __future__ import annotations

import logging
import math
import select
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from vrha.config.settings import FailoverSettings, OwnershipSettings
from vrha.core.failover import by_priority
from vrha.core.judging import Judge, Judgement, Turn
from vrha.core.ownership.commands import Command, Commit, Right, Send, StepDown
from vrha.core.ownership.leader import Leader
from vrha.core.ownership.timing import PROFILES
from vrha.core.ownership.voter import Voter
from vrha.core.ownership.wanted import Claim, Claimant, wanted_rights
from vrha.errors import NotLeaderError, VrhaError
from vrha.fencing.clock import clock_ms
from vrha.fencing.endpoint import Endpoint
from vrha.fencing.keys import Keys
from vrha.model.ownership import Depose, Electorate, Message, NodeHealth, Renew
from vrha.orchestrator.engine import Engine
from vrha.orchestrator.failover import Failovers, Losses
from vrha.store import Store, Tx

log = logging.getLogger(__name__)

LOOK_S = 0.1
"""How often rights are compared with what is wanted, at least."""
RETRY_S = 0.5
"""Before the store is asked again after it failed."""
REST = 3
"""How many times as long as they took comparisons and takeovers rest at least: while hundreds of
runs go on, what is ready meanwhile shares one transaction."""
AT_ONCE = 100
"""Instances that take over in one transaction: the first should not wait for the last, nor nodes
for what they say meanwhile to be heard."""
STOOD_STILL_MS = 200.0
"""A turn of the loop that took longer makes this leader doubt what it has not heard."""
SILENT = "node-silent"


class Ownership:
    """One orchestrator's part. `run` returns when `stop` is set."""

    def __init__(
        self,
        store: Store,
        name: str,
        settings: OwnershipSettings,
        engine: Engine,
        failovers: Failovers,
        failover: FailoverSettings | None = None,
    ) -> None:
        """Raises InputError (`bad-address`), PreconditionError (`address-in-use`, `no-key`)."""
        self._store = store
        self._name = name
        self._engine = engine
        self._failovers = failovers
        self._settings = failover or FailoverSettings()
        self._timing = PROFILES[settings.profile]
        self._first = Electorate(1, tuple(sorted(settings.voters)))
        self._endpoint = Endpoint(name, settings.listen, settings.peers, Keys(settings.keys))
        self._voter = Voter(name, self._timing, clock_ms())
        self._leader: Leader | None = None
        self._numbers = 0
        self._looked = self._rested = self._handed = 0.0
        self._retry_at = 0.0
        self._is_handing_over = False
        """Whether more is ready than went into the last transaction."""
        self._nudged = threading.Event()
        self._judge = self._new_judge()
        self.judgement: Judgement | None = None
        """What was seen and decided last, while this one leads."""
        self._turned = self._doubt_until = 0.0
        self._claimants: tuple[Claimant, ...] = ()
        self._out: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self._healths: tuple[float, tuple[NodeHealth, ...]] = (0.0, ())
        self._relieved: dict[str, float] = {}

    def nudge(self) -> None:
        """Something may be wanted now that was not before."""
        self._nudged.set()

    def healths(self) -> dict[str, NodeHealth]:
        """What the watchers said last, by node; empty while another one leads. From any thread."""
        with self._lock:
            at, known = self._healths
        passed = clock_ms() - at
        return {
            each.node: replace(
                each, heard_ms_ago=each.heard_ms_ago + passed, since_ms=each.since_ms + passed
            )
            for each in known
        }

    def stand_in(self, node: str, seconds: float) -> None:
        """Ask the node's watcher soon to let a stand-in run. From any thread."""
        with self._lock:
            self._relieved[node] = seconds

    def run(self, stop: threading.Event) -> None:
        """Work until `stop`."""
        poll = select.poll()
        poll.register(self._endpoint.fileno(), select.POLLIN)
        while not stop.is_set():
            poll.poll(self._wait_ms())
            try:
                for _, message in self._endpoint.receive():
                    self._take(message)
                self._lead()
                self._share()
            except NotLeaderError:
                self._leader = None
            except VrhaError as error:
                # What was decided and not written is forgotten with the leader that decided it.
                log.error("ownership: %s", error)
                self._leader = None
                self._retry_at = time.monotonic() + RETRY_S

    def close(self) -> None:
        self._endpoint.close()

    def _wait_ms(self) -> float:
        """Until the next look; not beyond the instant at which a node is out."""
        longest = 0.0 if self._is_handing_over else self._timing.delay_ms / 2
        if self._leader is None:
            return longest
        now = clock_ms()
        return min([longest, *(at - now for at in self._leader.outs() if at > now)])

    def _share(self) -> None:
        """What other threads want to know, and what they asked for."""
        leader, now = self._leader, clock_ms()
        known = tuple(leader.healths(now)) if leader is not None else ()
        with self._lock:
            self._healths = (now, known)
            asked, self._relieved = self._relieved, {}
        for node, seconds in asked.items():
            if leader is not None:
                self._perform(leader.stand_in(node, seconds))

    def _take(self, message: Message) -> None:
        now = clock_ms()
        voters = self._leader.book.electorates[-1] if self._leader else self._first
        if isinstance(message, Renew | Depose) and self._name in voters.voters:
            self._perform(self._voter.receive(message, now))
        if self._leader is not None:
            self._perform(self._leader.receive(message, now))

    def _lead(self) -> None:
        """Take up or leave off leading as the store says, and keep rights as they are wanted."""
        epoch = self._store.leader_epoch
        if self._leader is not None and self._leader.epoch != (epoch or 0):
            self._leader = None
        now = time.monotonic()
        if epoch is None or now < self._retry_at:
            return
        leader = self._leader = self._leader or self._begin(epoch)
        self._perform(leader.tick(clock_ms()))
        is_nudged = self._nudged.is_set() and now >= self._rested
        is_time = is_nudged or now - self._looked >= LOOK_S
        if is_time and not self._is_handing_over:
            self._nudged.clear()
            self._looked = now
            self._compare(leader)
            ended = time.monotonic()
            self._rested = ended + REST * (ended - now)
        self._look_for_losses(leader)
        self._hand_over(leader)

    def _begin(self, epoch: int) -> Leader:
        with self._store.transaction() as tx:
            book = tx.book(self._first)
            # From the first day on it is the store that knows who votes, and not the settings.
            tx.commit_rights(Commit(electorates=book.electorates))
        leader = Leader(self._name, epoch, self._timing, book, clock_ms())
        # Nodes know numbers of this leader epoch, when it is taken up again after an error.
        self._numbers += 1_000_000
        leader.number = leader.attempt = self._numbers
        self._judge = self._new_judge()
        # What else there is to know is read before anything is judged.
        self._looked = -math.inf
        self._out = frozenset()
        return leader

    def _new_judge(self) -> Judge:
        return Judge(self._settings.rules(look_s=self._timing.renew_ms / 1000), self._timing)

    def _teach(self, tx: Tx) -> None:
        self._judge.learn(
            tx.desired()[1].nodes,
            tx.pauses.all(),
            tx.rollouts.cordoned(),
            tx.node_health.all(),
            time.time(),
        )

    def _compare(self, leader: Leader) -> None:
        with self._store.reading() as tx:
            states = tx.router_briefs()
            self._claimants = tx.claimants()
            self._teach(tx)
        self._perform(self._elect(leader))
        wanted = wanted_rights(states, self._claimants)
        leader.book.epochs |= {state.router: state.epoch for state in states}
        now = clock_ms()
        # What they have been asked to give up is for those that take over.
        taking = {c.instance.router for c in self._claimants if c.claim is Claim.NOW}
        for key, right in list(leader.book.rights.items()):
            if not right.leaving and wanted.get(key) != right.node:
                self._perform(leader.revoke(key, now))
        for key, node in wanted.items():
            if key not in leader.book.rights and Right(key, node, 0).owned not in taking:
                self._perform(leader.give(key, node, now, beside=wanted.keys()))

    def _look_for_losses(self, leader: Leader) -> None:
        """Ask about the silent; depose those that are given up, once somebody can take over."""
        now = clock_ms()
        if self._is_in_doubt(now):
            return
        for name in leader.silent(now):
            if leader.nodes[name].deposing is None:
                self._perform(leader.inquire(name, now))
        self.judgement = self._judge.judge(leader, now)
        lost = dict.fromkeys(self._judge.recovering, SILENT)
        for name in sorted(lost):
            if leader.nodes[name].deposing is not None or not leader.is_missed(name, now):
                continue
            if self._can_be_replaced(leader, name):
                log.warning("node %s is silent: its lease is being ended", name)
                self._perform(leader.depose(name, now))
        living = frozenset(name for name in leader.nodes if leader.is_heard(name, now))
        notes, self._judge.notes = self._judge.notes, []
        self._failovers.note(notes)
        self._failovers.tell(Losses(lost, living))

    def _is_in_doubt(self, now: float) -> bool:
        """Whether this process, or its machine, has just stood still: then others may seem silent
        that have not had the time to be heard again."""
        stood_still, self._turned = now - self._turned > STOOD_STILL_MS, now
        if stood_still:
            self._doubt_until = now + self._timing.renew_ms + self._timing.delay_ms
        return now < self._doubt_until

    def _can_be_replaced(self, leader: Leader, name: str) -> bool:
        """Whether something is being built for one of its routers: nothing is muted for nobody."""
        owned = {right.owned for right in leader.book.of(name)}
        return any(c.waits and c.instance.router in owned for c in self._claimants)

    def _hand_over(self, leader: Leader) -> None:
        """Give what is complete in place of what is out, as many as go into one transaction."""
        self._tell_who_is_out(leader)
        began = time.monotonic()
        self._is_handing_over = False
        if began < self._handed:
            return
        ready = self._ready()
        for start in range(0, len(ready), AT_ONCE):
            some = ready[start : start + AT_ONCE]
            commands = leader.reassign({each.key: each.node for each in some}, clock_ms())
            if not commands:
                continue
            commit, *others = commands
            assert isinstance(commit, Commit)
            given = {right.router for right in commit.rights if right.node and not right.leaving}
            taking = [each for each in some if each.key in given]
            self._engine.take_over(commit, taking)
            self._perform(others)
            self._met(taking)
            # Renewals that came meanwhile are heard first: what nobody hears is given nothing.
            self._is_handing_over = bool(taking) and start + AT_ONCE < len(ready)
            break
        if not self._is_handing_over:
            ended = time.monotonic()
            self._handed = ended + REST * (ended - began)

    def _ready(self) -> list[Claimant]:
        """Claims that are still there, as a run may have been withdrawn since they were read; those
        of higher priority first."""
        ready = [each for each in self._claimants if each.claim is Claim.NOW]
        if not ready:
            return []
        with self._store.reading() as tx:
            current = set(tx.claimants())
            turns = {router.name: by_priority(router) for router in tx.desired()[1].routers}
        return sorted(
            (each for each in ready if each in current),
            key=lambda each: turns.get(each.instance.router, (0, each.instance.router)),
        )

    def _met(self, taken: Sequence[Claimant]) -> None:
        """Known at once, and not only when the store is read again."""
        runs = {each.run for each in taken}
        self._claimants = tuple(
            replace(each, claim=Claim.MET) if each.run in runs else each for each in self._claimants
        )

    def _tell_who_is_out(self, leader: Leader) -> None:
        now = clock_ms()
        out = frozenset(name for name in leader.nodes if leader.is_out(name, now))
        new, self._out = out - self._out, out
        for name in sorted(new):
            log.warning("node %s is mute for certain", name)
            # What was looked at in vain until now may be given at once.
            self._handed = 0.0
            self._failovers.note([(Turn.OUT, name)])

    def _elect(self, leader: Leader) -> list[Command]:
        """One step towards the voters of the settings: first who comes, then who goes."""
        voters = set(leader.book.electorates[-1].voters)
        coming, going = set(self._first.voters) - voters, voters - set(self._first.voters)
        if len(leader.book.electorates) > 1 or not coming | going:
            return []
        changed = voters | {min(coming)} if coming else voters - {min(going)}
        log.info("voters from now on: %s", ", ".join(sorted(changed)))
        return leader.elect(changed, clock_ms())

    def _perform(self, commands: list[Command]) -> None:
        """In order; nothing after a commit that failed. Raises as `Store.transaction`."""
        for command in commands:
            match command:
                case Send():
                    self._endpoint.send(command.to, command.message)
                case Commit():
                    with self._store.transaction() as tx:
                        tx.commit_rights(command)
                case StepDown():
                    log.warning("somebody leads with epoch %d", command.leader_epoch)
                    self._leader = None
                    return
                case _:
                    raise AssertionError(command)
