"""What an agent refuses, and that it says so."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from tests.unit.orchestrator.world import DESIRED, ROUTER, FakeInstance, FakeKernel
from vrha.agent.epochs import Epochs
from vrha.agent.executor import Executor, Hands
from vrha.core.instance import instance_spec
from vrha.errors import PreconditionError
from vrha.linux.node import NodeKernel
from vrha.model.messages import Command, Outcome, StepReport
from vrha.model.spec import InstanceRef
from vrha.model.steps import Announce, Build, Step, Swap

OLD, NEW = InstanceRef("r1", 1), InstanceRef("r1", 2)


def command(*steps: Step, epoch: int = 2, order: int = 1, undo: bool = False) -> Command:
    return Command("run", "r1", epoch, "n1", 1, 0, undo, steps, order=order)


@pytest.fixture
def kernel() -> FakeKernel:
    kernel = FakeKernel()
    kernel.instances.update({OLD: FakeInstance(active=True), NEW: FakeInstance()})
    return kernel


@pytest.fixture
def executor(kernel: FakeKernel, tmp_path: Path) -> Executor:
    return Executor("n1", Hands(cast(NodeKernel, kernel)), Epochs(tmp_path / "epochs.json"))


def outcomes(executor: Executor, what: Command, age: float = 0.0) -> list[tuple[Outcome, str]]:
    said = executor.execute(what, time.monotonic() - age)
    return [(m.outcome, m.code) for m in said if isinstance(m, StepReport)]


def test_a_command_that_was_overtaken_by_its_roll_back_is_refused(
    executor: Executor, kernel: FakeKernel, tmp_path: Path
) -> None:
    swap = command(Swap("n1", OLD, NEW), order=4)
    back = command(Swap("n1", NEW, OLD), Announce("n1", OLD), order=6, undo=True)
    assert outcomes(executor, back) == [(Outcome.DONE, "")] * 2
    assert outcomes(executor, swap) == [(Outcome.REFUSED, "stale-command")]
    again = Executor("n1", executor.hands, Epochs(tmp_path / "epochs.json"))
    assert outcomes(again, swap) == [(Outcome.REFUSED, "stale-command")]
    assert kernel.owners() == [OLD]


def test_a_command_that_comes_twice_is_taken_twice(executor: Executor) -> None:
    swap = command(Swap("n1", OLD, NEW))
    assert outcomes(executor, swap) == outcomes(executor, swap) == [(Outcome.DONE, "")]


def test_a_lower_epoch_is_refused_whatever_its_order(executor: Executor) -> None:
    outcomes(executor, command(Announce("n1", OLD), epoch=3))
    late = command(Swap("n1", OLD, NEW), epoch=2, order=99)
    assert outcomes(executor, late) == [(Outcome.REFUSED, "stale-epoch")]


def test_a_step_is_not_begun_after_the_command_has_expired(
    executor: Executor, kernel: FakeKernel
) -> None:
    swap = replace(command(Swap("n1", OLD, NEW)), valid_s=10.0)
    assert outcomes(executor, swap, age=11.0) == [(Outcome.REFUSED, "expired")]
    assert kernel.owners() == [OLD]
    assert outcomes(executor, swap, age=9.0) == [(Outcome.DONE, "")]


def test_a_bug_in_a_step_is_reported(executor: Executor, kernel: FakeKernel) -> None:
    def fails(old: InstanceRef, new: InstanceRef) -> None:
        raise KeyError("oops")

    kernel.swap = fails  # type: ignore[method-assign]
    assert outcomes(executor, command(Swap("n1", OLD, NEW))) == [(Outcome.FAILED, "internal")]


def test_without_a_durable_mark_nothing_is_done(
    executor: Executor, kernel: FakeKernel, tmp_path: Path
) -> None:
    (tmp_path / "epochs.new").mkdir()
    spec = instance_spec(DESIRED, ROUTER, InstanceRef("r1", 3), 2)
    assert outcomes(executor, command(Build("n1", spec))) == [(Outcome.FAILED, "state-dir")]
    assert set(kernel.instances) == {OLD, NEW}


@pytest.mark.parametrize("text", ["", "[]", '{"r1": 3}', '{"r1": [1]}', '{"r1": ["x", 1]}'])
def test_a_damaged_file_is_no_reason_to_forget(tmp_path: Path, text: str) -> None:
    (tmp_path / "epochs.json").write_text(text)
    with pytest.raises(PreconditionError, match="damaged"):
        Epochs(tmp_path / "epochs.json")
