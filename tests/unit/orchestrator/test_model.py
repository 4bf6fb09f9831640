"""Random faults on a whole world: never two owners, and in the end one, on which all agree.

The engine, its store, two agents' executors and the fence on their disks are the real ones. The
broker is a list per node that keeps its order, drops what expired, and loses and repeats messages.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.orchestrator.world import DESIRED, ROUTER, WITH_NAT, Killed, World
from vrha import codec
from vrha.bus.topology import MAX_DOWN
from vrha.errors import NotFoundError, RefusedError
from vrha.model.messages import Command
from vrha.model.runs import RestartOptions, Strategy
from vrha.model.spec import Desired
from vrha.model.views import RouterStatus
from vrha.orchestrator.app import is_over
from vrha.store import OutboxRow

NODES = ("n1", "n2")
KINDS = (
    *("build", "swap", "mute", "unmute", "announce", "configure", "destroy"),
    *("offer", "sync", "flip", "verify", "relay"),
)
DESIREDS = (
    DESIRED,
    replace(DESIRED, routers=(WITH_NAT,)),
    replace(DESIRED, routers=(replace(ROUTER, zone="z1"),)),
    replace(DESIRED, routers=(replace(ROUTER, zone="z2"),)),
    replace(DESIRED, routers=(replace(ROUTER, uplink=None, source_nat=(), zone="z2"),)),
    Desired(DESIRED.networks, (), DESIRED.nodes),
)


class Faults(RuleBasedStateMachine):
    """Users, nodes, time and faults in any order."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.folder = tempfile.mkdtemp(dir=memory if memory.is_dir() else None)
        self.world = World(Path(self.folder))
        self.down: dict[str, list[OutboxRow]] = {name: [] for name in NODES}
        self.up: dict[str, list[bytes]] = {name: [] for name in NODES}

    @initialize()
    def serve(self) -> None:
        self.world.serving()

    # --- users ------------------------------------------------------------------------------

    @rule(strategy=st.sampled_from(Strategy))
    def restart(self, strategy: Strategy) -> None:
        with suppress(RefusedError):
            self.world.service.restart_network("blue", RestartOptions(strategy))

    @rule(name=st.sampled_from(NODES), strategy=st.sampled_from((None, *Strategy)))
    def move(self, name: str, strategy: Strategy | None) -> None:
        with suppress(RefusedError, NotFoundError):
            self.world.service.move_router("r1", RestartOptions(strategy, name))

    @rule(which=st.integers(0, len(DESIREDS) - 1))
    def apply(self, which: int) -> None:
        with suppress(RefusedError):
            self.world.service.apply(DESIREDS[which])

    # --- messages ---------------------------------------------------------------------------

    @rule(copies=st.sampled_from((1, 1, 1, 1, 0, 2)))
    def publish(self, copies: int) -> None:
        """The outbox is sent; some of it is lost, or comes twice."""
        with self.world.store.transaction() as tx:
            rows = tx.outbox.unsent(limit=1)
            if not rows:
                return
            (row,) = rows
            tx.outbox.mark_sent([row.id])
        if not is_over(row, self.world.now):
            self.down[row.node] += [row] * copies

    @rule(name=st.sampled_from(NODES), fuse=st.sampled_from((None, None, None, 0, 1, 2, 3)))
    def take(self, name: str, fuse: int | None) -> None:
        """The agent takes its next command; `fuse`: it is killed after so many effects."""
        queue, node = self.down[name], self.world.nodes[name]
        while queue and is_over(queue[0], self.world.now):
            queue.pop(0)
        if not queue:
            return
        command = codec.decode_message(queue[0].body, MAX_DOWN)
        assert isinstance(command, Command)
        node.kernel.fuse = fuse
        try:
            said = node.take(command)
        except Killed:
            node.restart()
            return
        finally:
            node.kernel.fuse = None
        self.up[name] += said
        queue.pop(0)

    @rule(name=st.sampled_from(NODES), copies=st.sampled_from((1, 1, 1, 1, 0, 2)))
    def hear(self, name: str, copies: int) -> None:
        if self.up[name]:
            body = self.up[name].pop(0)
            for _ in range(copies):
                self.world.receive(body)

    @rule(name=st.sampled_from(NODES))
    def look(self, name: str) -> None:
        self.up[name].append(self.world.nodes[name].inventory())

    @rule()
    def flow(self) -> None:
        """For a while everything works."""
        for _ in range(20):
            self.publish(1)
            for name in NODES:
                self.take(name, None)
                while self.up[name]:
                    self.hear(name, 1)
            with self.world.store.transaction() as tx:
                at_rest = tx.outbox.unsent(limit=1) == ()
            if at_rest and not any(self.down.values()):
                return

    # --- faults -----------------------------------------------------------------------------

    @rule(times=st.integers(1, 12))
    def wait(self, times: int) -> None:
        self.world.pass_deadlines(times)

    @rule()
    def kill_the_orchestrator(self) -> None:
        self.world.restart_orchestrator()

    @rule(name=st.sampled_from(NODES), kinds=st.sets(st.sampled_from(KINDS), max_size=3))
    def break_or_mend(self, name: str, kinds: set[str]) -> None:
        self.world.nodes[name].kernel.broken = kinds

    @rule(reach=st.booleans())
    def cut_or_join_the_agents(self, reach: bool) -> None:
        """Streams between agents; what they say to the broker goes on."""
        for node in self.world.nodes.values():
            node.reaches_peers = reach

    # --- what must hold ---------------------------------------------------------------------

    @invariant()
    def at_most_one_owner(self) -> None:
        assert len(self.world.owners()) <= 1, self.world.owners()

    @invariant()
    def a_run_has_an_end_in_sight(self) -> None:
        """Whoever is dead or broken: an open run waits for a command, an answer or a deadline."""
        with self.world.store.transaction() as tx:
            for run in tx.open_runs():
                assert any(r.deadline is not None for r in (*run.steps, *run.undo)), run

    def teardown(self) -> None:
        try:
            self._mend()
            self._come_to_rest()
            self._check_the_end()
        finally:
            self.world.store.close()
            shutil.rmtree(self.folder)

    def _mend(self) -> None:
        for node in self.world.nodes.values():
            node.kernel.broken = set()
            node.reaches_peers = True

    def _come_to_rest(self) -> None:
        """Three rounds in which nothing happens: orphans go when they were seen twice."""
        quiet = 0
        for _ in range(60):
            before = self._journal()
            self.flow()
            self.world.pass_deadlines()
            for name in NODES:
                self.look(name)
            self.flow()
            self.at_most_one_owner()
            quiet = quiet + 1 if self._journal() == before else 0
            if quiet == 3:
                return
        raise AssertionError("the world does not come to rest")

    def _journal(self) -> tuple[object, ...]:
        runs = self.world.service.runs()
        return tuple((run.id, run.status, run.steps, run.undo) for run in runs)

    def _check_the_end(self) -> None:
        world = self.world
        assert world.service.runs(open_only=True) == ()
        wanted = world.service.desired().routers
        if wanted and world.service.routers()[0].status is not RouterStatus.SERVING:
            # What failed for good while it was broken needs a user; then it must work.
            if world.owners() or world.service.routers()[0].instance:
                world.service.restart_network("blue")
            else:
                world.service.apply(world.service.desired())
            self._come_to_rest()
        if not wanted and world.owners():
            world.service.apply(world.service.desired())
            self._come_to_rest()
        assert world.service.runs(open_only=True) == ()
        named = {view.instance for view in world.service.routers() if view.instance}
        assert {str(ref) for ref in world.all_instances()} == named
        assert [str(ref) for ref in world.owners()] == sorted(named)
        assert len(named) == len(wanted)


class Handovers(Faults):
    """Only what must not interrupt: handovers, moves and changes in place. Any fault may happen."""

    @rule(strategy=st.just(Strategy.HANDOVER))
    def restart(self, strategy: Strategy) -> None:
        super().restart(strategy)

    @rule(name=st.sampled_from(NODES), strategy=st.just(Strategy.HANDOVER))
    def move(self, name: str, strategy: Strategy | None) -> None:
        super().move(name, strategy)

    @rule(which=st.integers(0, 1))
    def apply(self, which: int) -> None:
        super().apply(which)

    @invariant()
    def somebody_forwards(self) -> None:
        assert self.world.forwarding() != []


_SETTINGS = settings(
    max_examples=15,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestFaults = Faults.TestCase
TestFaults.settings = _SETTINGS
TestHandovers = Handovers.TestCase
TestHandovers.settings = _SETTINGS
