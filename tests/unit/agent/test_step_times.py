"""What a report of a step says about when it was taken."""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast

import pytest

from tests.unit.orchestrator.world import FakeInstance, FakeKernel
from vrha.agent.epochs import Epochs
from vrha.agent.executor import Executor, Hands
from vrha.linux.node import NodeKernel
from vrha.model.messages import Command, Outcome, StepReport
from vrha.model.spec import InstanceRef
from vrha.model.steps import Announce, Offer, Peer, Step, Swap

OLD, NEW = InstanceRef("r1", 1), InstanceRef("r1", 2)


@pytest.fixture
def executor(tmp_path: Path) -> Executor:
    kernel = FakeKernel()
    kernel.instances.update({OLD: FakeInstance(active=True), NEW: FakeInstance()})
    return Executor("n1", Hands(cast(NodeKernel, kernel)), Epochs(tmp_path / "epochs.json"))


def reports(executor: Executor, *steps: Step, age: float = 0.0) -> list[StepReport]:
    command = Command("run", "r1", 2, "n1", 1, 0, False, steps, order=1, valid_s=10.0)
    said = executor.execute(command, time.monotonic() - age)
    return [message for message in said if isinstance(message, StepReport)]


def test_every_step_says_when_it_began(executor: Executor) -> None:
    before = time.time()
    first, second = reports(executor, Swap("n1", OLD, NEW), Announce("n1", NEW))
    assert first.began is not None
    assert second.began is not None
    assert before <= first.began <= second.began <= time.time()


def test_a_step_that_failed_says_when_it_began_and_how_long_it_took(executor: Executor) -> None:
    (failed,) = reports(executor, Offer("n1", OLD, NEW, Peer("n2", "", "")))
    assert failed.outcome is Outcome.FAILED
    assert failed.began is not None
    assert [name for name, _ in failed.timings_ms] == ["total"]


def test_a_step_that_was_not_begun_has_no_beginning(executor: Executor) -> None:
    (refused,) = reports(executor, Swap("n1", OLD, NEW), age=11.0)
    assert (refused.outcome, refused.began) == (Outcome.REFUSED, None)
