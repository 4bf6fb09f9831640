"""Who leads, or waits to; the policy that moves routers."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

from tests.sim.machine import Clock
from tests.sim.process import Process
from tests.sim.watcher import FOR_VOTERS
from vrha.core.brake import BrakeEvent, Hold, Rules, share
from vrha.core.damping import (
    Damping,
    came_back,
    failed_over,
    fell_silent,
    is_delayed,
    is_suppressed,
)
from vrha.core.judging import Judge, Note, Turn
from vrha.core.ownership.commands import Command, Commit, Send, StepDown
from vrha.core.ownership.leader import Leader
from vrha.core.ownership.voter import Voter
from vrha.model.health import NodeHealth
from vrha.model.ownership import Deposed, Holding, Message, Refusal, Renew, Silenced
from vrha.model.spec import Node

if TYPE_CHECKING:
    from tests.sim.world import World

LEADER_TTL_MS = 500.0
LEADER_BEAT_MS = 100.0
FOR_LEADERS = (Renew, Holding, Deposed, Refusal, Silenced)
BY_TAKING = 0.1
"""Share of looks in which what is out is taken and given, not reassigned."""
OF_OLD = 0.3
"""Share of instances whose name has been used before."""
ALARM_MS = 2000.0


class Orchestrator(Process):
    """Leads, or waits for the leader's beat to stop; may be a voter."""

    def __init__(self, world: World, name: str, clock: Clock) -> None:
        super().__init__(world, name, clock)
        self.leader: Leader | None = None
        self.voter: Voter = world.parts.voter(name, world.setup.timing, self.now())
        self.seen = (0, 0)
        self.seen_at = self.now()
        self.beaten_at = self.now()
        self.coming: dict[str, tuple[str, str]] = {}
        self.watch = Watch(self)
        self.run()

    def restart(self) -> None:
        if self.alive:
            return
        self.alive = True
        self.leader = None
        self.voter = self.world.parts.voter(self.name, self.world.setup.timing, self.now())
        self.seen_at = self.now()
        self.run()

    def receive(self, message: Message) -> list[Command]:
        now = self.now()
        commands: list[Command] = []
        if isinstance(message, FOR_VOTERS) and self.name in self.world.can_vote:
            commands += self.vote(self.voter, message)
        if self.leader and isinstance(message, FOR_LEADERS):
            if isinstance(message, Renew):
                self.watch.heard[message.node] = self.world.now
            commands += self.leader.receive(message, now)
        return commands

    def carry_out(self, command: Command) -> bool:
        match command:
            case Commit():
                if self.leader is None or not self.world.parts.commit(self, command):
                    self.leader = None
                    return False
            case Send():
                self.world.send(self.name, command.to, command.message)
            case StepDown():
                self.leader = None
                return False
            case _:
                raise AssertionError(command)
        return True

    def woken(self) -> None:
        self.life += 1

    def run(self) -> None:
        life = self.life
        self.keep_leading()
        if self.leader is not None:
            self.decide(self.leader)
        every = self.world.setup.decide_ms * self.world.random.uniform(0.9, 1.1)
        self.world.after(every, lambda: self.again(life))

    def again(self, life: int) -> None:
        if self.alive and not self.paused and life == self.life:
            self.run()

    def keep_leading(self) -> None:
        store, now = self.world.store, self.now()
        if not store.up:
            return
        if self.leader is not None:
            if self.leader.epoch != store.epoch:
                self.leader = None
            elif now - self.beaten_at >= LEADER_BEAT_MS:
                store.beat += 1
                self.beaten_at = now
            return
        if (store.epoch, store.beat) != self.seen:
            self.seen, self.seen_at = (store.epoch, store.beat), now
        elif now - self.seen_at >= LEADER_TTL_MS:
            store.epoch += 1
            store.holder, store.beat = self.name, 0
            timing = self.world.setup.timing
            self.leader = self.world.parts.leader(self.name, store.epoch, timing, store.copy(), now)
            self.beaten_at = now
            self.coming.clear()
            self.watch = Watch(self)

    def decide(self, leader: Leader) -> None:
        """The policy: ask about the silent, depose the missed, and let new instances take over."""
        now = self.now()
        self.act(leader, leader.tick(now))
        for name in leader.silent(now):
            if leader.nodes[name].deposing is None:
                self.act(leader, leader.inquire(name, now))
        for name in self.given_up(leader, now):
            if leader.nodes[name].deposing is None and leader.is_missed(name, now):
                self.world.deposes(name, leader.book.electorates[-1])
                self.act(leader, leader.depose(name, now))
        if self.world.random.random() < BY_TAKING:
            for name in sorted(leader.nodes):
                self.act(leader, leader.take(name, now))
        self.place(leader, now)

    def given_up(self, leader: Leader, now: float) -> list[str]:
        """Whose routers go elsewhere."""
        if self.world.setup.braked:
            return self.watch.given_up(leader, now)
        return leader.silent(now)

    def place(self, leader: Leader, now: float) -> None:
        """Routers of nodes that are given up, and of nobody, are brought elsewhere."""
        living = self.watch.targets([n for n in sorted(leader.nodes) if leader.is_heard(n, now)])
        if not living:
            return
        for router in self.world.setup.routers:
            rights = leader.book.by_router.get(router, {}).values()
            stays = any(leader.nodes[r.node].deposing is None and not r.leaving for r in rights)
            if not rights and self.world.random.random() < 0.3:
                to = self.world.random.choice(living)
                self.act(leader, leader.give(self.instance(leader, router), to, now))
            elif not stays:
                self.bring(leader, router, living)
        self.reassign(leader, now)

    def bring(self, leader: Leader, router: str, targets: list[str]) -> None:
        """An instance is being built, and takes over when nothing else can speak."""
        if router not in self.coming or self.coming[router][1] not in targets:
            to = self.world.random.choice(targets)
            self.coming[router] = self.instance(leader, router), to

    def reassign(self, leader: Leader, now: float) -> None:
        moves = dict(self.coming.values())
        self.act(leader, leader.reassign(moves, now))
        for router, (key, name) in list(self.coming.items()):
            right = leader.book.rights.get(key)
            if right is not None and right.node == name and not right.leaving:
                del self.coming[router]

    def instance(self, leader: Leader, router: str) -> str:
        """One that never was, or the one that can be anywhere."""
        if self.world.random.random() < OF_OLD:
            return f"{router}/0"
        return f"{router}/{leader.book.epochs.get(router, 0) + 1}"

    def move(self, router: str) -> None:
        """A planned move: it is asked back and then given, or taken over from a living node."""
        leader, now = self.leader, self.now()
        if leader is None or not self.alive or self.paused:
            return
        if self.world.random.random() < 0.5:
            for key in sorted(leader.book.by_router.get(router, {})):
                self.act(leader, leader.revoke(key, now))
            return
        living = self.watch.targets([n for n in sorted(leader.nodes) if leader.is_heard(n, now)])
        if living:
            self.bring(leader, router, living)
            self.reassign(leader, now)

    def act(self, leader: Leader, commands: list[Command]) -> None:
        if self.leader is leader:
            self.perform(commands)


class Watch:
    """What one leadership sees of silence, and what must hold for it whatever it decides."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        self.world = orchestrator.world
        self.orchestrator = orchestrator
        setup = self.world.setup
        self.rules = Rules(look_s=setup.timing.renew_ms / 1000)
        self.judge: Judge = self.world.parts.judge(self.rules, setup.timing)
        self.began = self.world.now
        self.heard: dict[str, float] = {}
        self.over_since: float | None = None

    def given_up(self, leader: Leader, now: float) -> list[str]:
        """As the judge has it; what it says is noted."""
        names, health = self.world.setup.nodes, self.world.store.health
        unix = self.world.now / 1000
        self.judge.learn([Node(name) for name in names], (), frozenset(), health, unix)
        before = self.judge.recovering
        judgement = self.judge.judge(leader, now)
        self.check(leader, self.judge.recovering - before)
        for note in self.judge.notes:
            self.keep(note, unix)
        self.judge.notes = []
        self.check_alarm(leader, judgement.decided.brake.reason)
        return sorted(self.judge.recovering)

    def keep(self, note: Note, unix: float) -> None:
        store = self.world.store
        if isinstance(note, BrakeEvent):
            self.world.alarms.append((self.world.now, note))
            self.world.tell(self.orchestrator.name, "alarms", note)
            return
        turn, name = note
        self.world.tell(self.orchestrator.name, f"sees {turn}", name)
        changed = DAMPING.get(turn)
        if changed is not None:
            known = store.health.get(name, NodeHealth(name))
            store.health[name] = changed(known, unix, Damping())

    def targets(self, living: list[str]) -> list[str]:
        """Those that are to be trusted; of the others only where there is none."""
        if not self.world.setup.braked:
            return living
        unix, health = self.world.now / 1000, self.world.store.health
        bad = {n for n, h in health.items() if is_suppressed(h, unix) or is_delayed(h, unix)}
        return [name for name in living if name not in bad] or living

    # ---- what must hold

    def silent(self, leader: Leader, since_ms: float) -> int:
        """How many that had something to lose are silent for so long, by what has arrived, and not
        only to this leader."""
        voters = leader.book.electorates[-1]
        now, count = self.world.now, 0
        for name in self.world.setup.nodes:
            heard = self.heard.get(name, self.began)
            is_news = name in self.heard and now - heard < self.rules.window_s * 1000
            concerns = is_news or leader.book.by_node.get(name)
            if now - heard >= since_ms and concerns and not self.world.is_seen(name, voters):
                count += 1
        return count

    def check(self, leader: Leader, new: Set[str]) -> None:
        """Never more than the budget, and nobody new while too many are silent."""
        nodes = len(self.world.setup.nodes)
        if len(self.judge.recovering) > share(nodes, self.rules.budget):
            self.world.breaks("budget", sorted(self.judge.recovering))
        slack = self.world.setup.timing.suspect_ms * 1.05
        too_many = self.silent(leader, slack) > share(nodes, self.rules.mass_silence)
        if (new and too_many) or new & self.world.silenced:
            self.world.breaks("mass silence", sorted(new))

    def check_alarm(self, leader: Leader, reason: Hold | None) -> None:
        """People know within two seconds."""
        nodes = len(self.world.setup.nodes)
        least = self.world.setup.timing.renew_ms * 2
        if self.silent(leader, least) <= share(nodes, self.rules.mass_silence):
            self.over_since = None
            return
        if self.over_since is None:
            self.over_since = self.world.now - least
        if self.world.now - self.over_since > ALARM_MS and reason is not Hold.MASS_SILENCE:
            self.world.breaks("no alarm", [self.orchestrator.name])


DAMPING = {Turn.SILENT: fell_silent, Turn.GIVEN_UP: failed_over, Turn.BACK: came_back}
