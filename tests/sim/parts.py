"""What a world is put together from, so that a mutant can put in a part of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vrha.core.judging import Judge
from vrha.core.ownership.holder import Holder, Life, first_incarnation
from vrha.core.ownership.leader import Leader
from vrha.core.ownership.timing import LATE_MS
from vrha.core.ownership.voter import Voter

if TYPE_CHECKING:
    from tests.sim.orchestrator import Orchestrator
    from tests.sim.process import Process
    from tests.sim.watcher import Watcher
    from vrha.core.ownership.commands import Commit


@dataclass(frozen=True)
class Parts:
    """The deciders, and what kernel and store promise: each promise can be broken by a subclass."""

    holder: type[Holder] = Holder
    voter: type[Voter] = Voter
    leader: type[Leader] = Leader
    judge: type[Judge] = Judge

    def fed_until(self, watcher: Watcher) -> float:
        """Until when slices follow each other while the process runs, in true time."""
        end = watcher.holder.lease_end
        return -1.0 if end is None else self.true(watcher, end)

    def slice_ends(self, watcher: Watcher) -> float:
        """When the kernel mutes a node whose process stops now: after the slice that is running,
        and up to a tick of the kernel late."""
        world, live_until = watcher.world, watcher.kernel.live_until
        if live_until <= world.now:
            return live_until
        late = LATE_MS * world.random.random()
        return min(live_until, world.now + world.setup.timing.slice_ms) + late

    def renew_late(self, watcher: Watcher) -> None:
        """A batch that was decided on before a pause: refused once the slice has ended."""
        now = watcher.world.now
        if now < watcher.kernel.live_until:
            watcher.kernel.live_until = now + watcher.world.setup.timing.slice_ms

    def now(self, process: Process) -> float:
        """The clock by which the deciders go."""
        clock = process.clock
        return clock.offset + clock.rate * process.world.now

    def true(self, process: Process, read: float) -> float:
        """When that clock will show `read`."""
        return process.clock.true(read)

    def first_incarnation(self, last: int, nonce: int) -> int:
        return first_incarnation(last, nonce)

    def begin(self, watcher: Watcher) -> None:
        """A process begins: it mutes whatever it finds."""
        self.mute(watcher)

    def mute(self, watcher: Watcher) -> None:
        watcher.kernel.granted = {}
        watcher.kernel.live_until = watcher.world.now

    def lease_of_grant(self, watcher: Watcher) -> Life | None:
        """What the next process may go on with, kept before anybody hears of the grant."""
        return watcher.holder.saved()

    def permit(self, watcher: Watcher, routers: dict[str, int]) -> None:
        """Just these, and no other."""
        watcher.kernel.granted = routers

    def commit(self, orchestrator: Orchestrator, commit: Commit) -> bool:
        """A transaction: refused to whoever leads no more."""
        assert orchestrator.leader is not None
        world = orchestrator.world
        return world.store.commit(orchestrator.leader.epoch, commit, world.random.random())
