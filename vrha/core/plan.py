"""Plans: which steps a run consists of, as values that can be shown before anything is done."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vrha.model.runs import Run, RunKind, RunStatus, StepRecord, Strategy
from vrha.model.spec import InstanceRef, InstanceSpec
from vrha.model.steps import (
    Announce,
    AwaitCheckIn,
    Build,
    Configure,
    Confirm,
    Destroy,
    Flip,
    Mute,
    Offer,
    Peer,
    Relay,
    Step,
    Swap,
    Sync,
    TakeOver,
    Unmute,
    Verify,
)


@dataclass(frozen=True, slots=True)
class Live:
    """The instance that serves now, its node and what it was built from."""

    node: str
    spec: InstanceSpec

    @property
    def ref(self) -> InstanceRef:
        return self.spec.ref


def create(run_id: str, node: str, spec: InstanceSpec) -> Run:
    """First instance of a router."""
    steps = (
        Build(node, spec),
        AwaitCheckIn(spec.ref),
        Unmute(node, spec.ref),
        Announce(node, spec.ref),
    )
    return _run(run_id, RunKind.CREATE, spec, steps, new=spec.ref)


def failover(run_id: str, lost: InstanceRef, node: str, spec: InstanceSpec) -> Run:
    """`lost` is out of reach: it is built anew on `node`, and takes over when that is safe."""
    new = spec.ref
    steps = (
        Build(node, spec, ready=True),
        AwaitCheckIn(new),
        TakeOver(node, new),
        Confirm(node, new),
    )
    return _run(run_id, RunKind.FAILOVER, spec, steps, point_of_no_return=3, old=lost, new=new)


def promote(run_id: str, lost: InstanceRef, standby: Live, epoch: int) -> Run:
    """`lost` is out of reach, and an instance that was kept ready takes over when that is safe."""
    new = standby.ref
    steps = (TakeOver(standby.node, new, standby.spec), Confirm(standby.node, new))
    run = _run(
        run_id, RunKind.FAILOVER, standby.spec, steps, point_of_no_return=1, old=lost, new=new
    )
    return replace(run, epoch=epoch)


def update(run_id: str, live: Live, spec: InstanceSpec) -> Run:
    """The live instance becomes `spec` in place; its owner does not change."""
    steps = (Configure(live.node, spec, live.spec),)
    return _run(run_id, RunKind.UPDATE, spec, steps, old=live.ref, new=live.ref)


def delete(run_id: str, live: Live, epoch: int, standby: Live | None = None) -> Run:
    """The instance goes and nothing takes its place, nor does what stands by."""
    steps: tuple[Step, ...] = (Mute(live.node, live.ref), Destroy(live.node, live.ref))
    if standby is not None:
        steps = (*steps, Destroy(standby.node, standby.ref))
    return _removal(run_id, live.ref, epoch, steps, point_of_no_return=1)


def reap(run_id: str, node: str, instance: InstanceRef, epoch: int) -> Run:
    """An instance goes that nothing names. Never undone: it must not come back to life (I6)."""
    return _removal(run_id, instance, epoch, (Destroy(node, instance),), point_of_no_return=0)


def standby(run_id: str, node: str, spec: InstanceSpec, replaced: Live | None = None) -> Run:
    """A complete instance beside the serving one, muted; what stood by before it goes."""
    steps: tuple[Step, ...] = (Build(node, spec, ready=True), AwaitCheckIn(spec.ref))
    point = None
    if replaced is not None:
        point = len(steps)
        steps = (*steps, Destroy(replaced.node, replaced.ref))
    return _standby(run_id, spec.ref, spec.epoch, steps, point)


def follow(run_id: str, live: Live, standby: Live, epoch: int, peers: tuple[Peer, Peer]) -> Run:
    """The standby learns all that `live` knows, and goes on learning; `peers`: its agent, and
    that of the standby."""
    old, new = live.ref, standby.ref
    steps = (
        Offer(live.node, old, new, peers[1], standby=True),
        Sync(standby.node, old, new, peers[0], standby=True),
    )
    return _standby(run_id, new, epoch, steps)


def reconfigure(run_id: str, standby: Live, spec: InstanceSpec) -> Run:
    """The standby becomes `spec` in place."""
    return _standby(run_id, spec.ref, spec.epoch, (Configure(standby.node, spec, standby.spec),))


def stand_down(run_id: str, standby: Live, epoch: int) -> Run:
    """Nobody stands by any more."""
    return _standby(run_id, standby.ref, epoch, (Destroy(standby.node, standby.ref),), 0)


def _standby(
    run_id: str,
    instance: InstanceRef,
    epoch: int,
    steps: tuple[Step, ...],
    point_of_no_return: int | None = None,
) -> Run:
    return Run(
        id=run_id,
        kind=RunKind.STANDBY,
        router=instance.router,
        epoch=epoch,
        strategy=None,
        status=RunStatus.RUNNING,
        steps=tuple(StepRecord(seq, step) for seq, step in enumerate(steps)),
        point_of_no_return=point_of_no_return,
        new=instance,
    )


def _removal(
    run_id: str, instance: InstanceRef, epoch: int, steps: tuple[Step, ...], point_of_no_return: int
) -> Run:
    return Run(
        id=run_id,
        kind=RunKind.DELETE,
        router=instance.router,
        epoch=epoch,
        strategy=None,
        status=RunStatus.RUNNING,
        steps=tuple(StepRecord(seq, step) for seq, step in enumerate(steps)),
        point_of_no_return=point_of_no_return,
        old=instance,
    )


@dataclass(frozen=True, slots=True)
class Way:
    """How a replacement takes over, once it has been decided.

    `old_peer` and `new_peer` are the agents of the two nodes of a handover between them.
    `silence` others of the router first: a command of an earlier run may still make them owner.
    """

    strategy: Strategy
    hold: bool = False
    max_lost: int | None = None
    old_peer: Peer | None = None
    new_peer: Peer | None = None
    silence: tuple[Relay, ...] = ()


def restart(
    run_id: str,
    way: Way,
    live: Live,
    node: str,
    spec: InstanceSpec,
    kind: RunKind = RunKind.RESTART,
) -> Run:
    """`restart network with cleanup`: `live` is replaced by an instance of `spec` on `node`.

    A handover on one node needs a `spec` with the MACs of `live`.
    """
    match way.strategy:
        case Strategy.SERIAL:
            steps = (*way.silence, *_serial(live, node, spec))
        case Strategy.PARALLEL:
            steps = _parallel(way, live, node, spec)
        case Strategy.HANDOVER if node == live.node:
            steps = _handover(way, live, spec)
        case Strategy.HANDOVER:
            steps = _handover_to(node, way, live, spec)
    # Serial has no such point: its way back rebuilds the old instance from its spec.
    point = None if way.strategy is Strategy.SERIAL else len(steps) - 1
    return _run(run_id, kind, spec, steps, way.strategy, point, old=live.ref, new=spec.ref)


def _serial(live: Live, node: str, spec: InstanceSpec) -> tuple[Step, ...]:
    """Stop and destroy the old one, then build the new one: the baseline."""
    return (
        Mute(live.node, live.ref),
        Destroy(live.node, live.ref, live.spec),
        Build(node, spec),
        AwaitCheckIn(spec.ref),
        Unmute(node, spec.ref),
        Announce(node, spec.ref),
    )


def _parallel(way: Way, live: Live, node: str, spec: InstanceSpec) -> tuple[Step, ...]:
    """Start the new one beside the old one; on its check-in stop the old one, enable the new.

    Stopping is muting: instant, undoable, and on one node the same kernel transaction enables
    the new one, so no crash can leave neither of them serving. Destroying comes last.
    """
    if node == live.node:
        switch: tuple[Step, ...] = (Swap(node, live.ref, spec.ref), Announce(node, spec.ref))
        build = Build(node, spec, leases_from=live.ref)
    else:
        switch = (
            Mute(live.node, live.ref),
            Unmute(node, spec.ref),
            Announce(node, spec.ref),
        )
        build = Build(node, spec)
    destroy = Destroy(live.node, live.ref)
    return (build, AwaitCheckIn(spec.ref), *way.silence, *switch, destroy)


def _handover(way: Way, live: Live, spec: InstanceSpec) -> tuple[Step, ...]:
    """Everything is carried over while the old one serves; then one flip, nothing is lost."""
    node, old, new = live.node, live.ref, spec.ref
    return (
        Build(node, spec, leases_from=old),
        AwaitCheckIn(new),
        Sync(node, old, new),
        Flip(node, old, new, way.hold),
        Verify(node, old, new, way.max_lost),
        Destroy(node, old),
    )


def _handover_to(node: str, way: Way, live: Live, spec: InstanceSpec) -> tuple[Step, ...]:
    """As above between two nodes, whose agents speak to each other."""
    assert way.old_peer is not None
    assert way.new_peer is not None
    old, new = live.ref, spec.ref
    return (
        Build(node, spec),
        AwaitCheckIn(new),
        Offer(live.node, old, new, way.new_peer),
        Sync(node, old, new, way.old_peer),
        Flip(node, old, new, from_peer=live.node),
        Verify(node, old, new, way.max_lost),
        Destroy(live.node, old),
    )


def _run(
    run_id: str,
    kind: RunKind,
    spec: InstanceSpec,
    steps: tuple[Step, ...],
    strategy: Strategy | None = None,
    point_of_no_return: int | None = None,
    old: InstanceRef | None = None,
    new: InstanceRef | None = None,
) -> Run:
    return Run(
        id=run_id,
        kind=kind,
        router=spec.router.name,
        epoch=spec.epoch,
        strategy=strategy,
        status=RunStatus.RUNNING,
        steps=tuple(StepRecord(seq, step) for seq, step in enumerate(steps)),
        point_of_no_return=point_of_no_return,
        old=old,
        new=new,
    )
