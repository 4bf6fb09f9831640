"""Whoever is killed at whatever moment of a handover: it ends, one serves, nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.orchestrator.world import World
from vrha.model.runs import RestartOptions, RunStatus, Strategy
from vrha.model.spec import InstanceRef
from vrha.model.views import RouterStatus, RunView

OLD, NEW = InstanceRef("r1", 1), InstanceRef("r1", 2)


def on_one_node(world: World) -> RunView:
    return world.service.restart_network("blue", RestartOptions(Strategy.HANDOVER))


def to_another(world: World) -> RunView:
    return world.service.move_router("r1", RestartOptions(Strategy.HANDOVER, "n2"))


BEGIN = [on_one_node, to_another]
Begin = Callable[[World], RunView]


def watched(world: World) -> Iterator[None]:
    """Every command until nothing moves: there are never two, and somebody always forwards."""
    for _ in range(100):
        if not world.step():
            world.engine.tick()
            if not world.step():
                return
        assert len(world.owners()) <= 1
        assert world.forwarding() != []
        yield
    raise AssertionError("the world does not come to rest")


def check_the_end(world: World, run: RunView) -> None:
    status = world.service.run(run.id).status
    assert status.terminal
    owner = NEW if status is RunStatus.DONE else OLD
    assert world.owners() == [owner]
    assert world.all_instances() == {owner}
    assert world.forwarding() == [owner]
    (view,) = world.service.routers()
    assert (view.status, view.instance, view.reason) == (RouterStatus.SERVING, str(owner), "")


@pytest.mark.parametrize("begin", BEGIN)
@pytest.mark.parametrize("verified", [True, False])
def test_the_orchestrator_at_every_step(tmp_path: Path, begin: Begin, verified: bool) -> None:
    for moment in range(9):
        (tmp_path / str(moment)).mkdir()
        world = World(tmp_path / str(moment))
        world.serving()
        for node in world.nodes.values():
            node.kernel.broken = set() if verified else {"verify"}
        run = begin(world)
        for passed, _ in enumerate(watched(world)):
            if passed == moment:
                world.restart_orchestrator()
        check_the_end(world, run)
        assert world.last_run()[0] is (RunStatus.DONE if verified else RunStatus.ROLLED_BACK)
        world.store.close()


@pytest.mark.parametrize("begin", BEGIN)
@pytest.mark.parametrize("name", ["n1", "n2"])
@pytest.mark.parametrize("verified", [True, False])
def test_an_agent_before_every_effect(
    tmp_path: Path, begin: Begin, name: str, verified: bool
) -> None:
    """The kernel keeps what it has, memory is gone, the command comes again."""
    ends = set()
    for fuse in range(8):
        (tmp_path / str(fuse)).mkdir()
        world = World(tmp_path / str(fuse))
        world.serving()
        for node in world.nodes.values():
            node.kernel.broken = set() if verified else {"verify"}
        run = begin(world)
        world.nodes[name].kernel.fuse = fuse
        for _ in watched(world):
            pass
        check_the_end(world, run)
        ends.add(world.last_run())
        world.store.close()
    assert ends <= {
        (RunStatus.DONE if verified else RunStatus.ROLLED_BACK, "" if verified else "broken"),
        (RunStatus.ROLLED_BACK, "no-sync"),
        (RunStatus.ROLLED_BACK, "not-offered"),
    }


@pytest.mark.parametrize("begin", BEGIN)
def test_an_agent_between_any_two_commands(tmp_path: Path, begin: Begin) -> None:
    for moment in range(6):
        (tmp_path / str(moment)).mkdir()
        world = World(tmp_path / str(moment))
        world.serving()
        run = begin(world)
        for passed, _ in enumerate(watched(world)):
            if passed == moment:
                for node in world.nodes.values():
                    node.restart()
        check_the_end(world, run)
        world.store.close()


@pytest.mark.parametrize("begin", BEGIN)
@pytest.mark.parametrize("verified", [True, False])
def test_every_message_twice(tmp_path: Path, begin: Begin, verified: bool) -> None:
    world = World(tmp_path)
    world.serving()
    for node in world.nodes.values():
        node.kernel.broken = set() if verified else {"verify"}
        take = node.take
        node.take = lambda command, take=take: take(command) + take(command)  # type: ignore
    run = begin(world)
    for _ in watched(world):
        pass
    check_the_end(world, run)
    assert world.last_run()[0] is (RunStatus.DONE if verified else RunStatus.ROLLED_BACK)
