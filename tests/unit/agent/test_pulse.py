"""When an agent beats, and when a stand-in goes."""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path
from typing import cast

import pytest

from tests.unit.orchestrator.world import DESIRED, ROUTER, FakeInstance, FakeKernel
from vrha.agent.epochs import Epochs
from vrha.agent.executor import Executor, Hands
from vrha.agent.pulse import TURN_S, WORK_S, Pulse
from vrha.agent.standin import GO_S, IDLE_S, QUIET_S, STEPS, Leave, sole_agent
from vrha.config.lock import sole_user
from vrha.core.instance import instance_spec
from vrha.errors import RefusedError
from vrha.linux.beats import Ear, Mouth
from vrha.linux.node import NodeKernel
from vrha.linux.notify import Init
from vrha.model.messages import Command, Outcome, StepReport
from vrha.model.spec import InstanceRef
from vrha.model.steps import Build, Mute, Unmute

OLD, NEW = InstanceRef("r1", 1), InstanceRef("r1", 2)


def test_it_gets_on_while_the_main_loop_turns_and_work_ends() -> None:
    pulse = Pulse("agent", Init({}))
    now = time.monotonic()
    assert pulse.gets_on(now)
    assert not pulse.gets_on(now + TURN_S + 1)
    with pulse.working():
        assert pulse.gets_on(now + TURN_S - 1)
        pulse._turned = now + WORK_S
        assert pulse.gets_on(now + WORK_S - 1), "a long step is no stuck one"
        assert not pulse.gets_on(now + WORK_S + 1)
    assert pulse.gets_on(now + WORK_S + 1)
    pulse.stop()


def test_a_name_is_had_by_one() -> None:
    name = f"vrha-test-{uuid.uuid4().hex}"
    ear, mouth = Ear(name), Mouth()
    with pytest.raises(OSError, match="in use"):
        Ear(name)
    assert mouth.say(name, b"x")
    assert [said for _, said in ear.receive()] == [b"x"]
    ear.close()
    assert not mouth.say(name, b"x")
    mouth.close()


def test_a_stand_in_goes_when_it_is_idle_or_asked_to() -> None:
    busy: list[bool] = []
    name = f"vrha-test-{uuid.uuid4().hex}"
    leave = Leave(lambda: bool(busy), name)
    now = time.monotonic()
    assert not leave.goes(now + IDLE_S - 1)
    assert leave.goes(now + IDLE_S + 1)
    busy.append(True)
    assert not leave.goes(now), "it sees through what it has begun"
    stop = threading.Event()
    thread = threading.Thread(target=leave.run, args=(stop,))
    thread.start()
    mouth = Mouth()
    assert mouth.say(name, b"go")
    mouth.close()
    assert not stop.wait(0.5), "it is still giving something away"
    busy.clear()
    leave.used()
    at = time.monotonic()
    assert not leave.goes(at + QUIET_S - 0.5), "the next one may come"
    assert stop.wait(QUIET_S + 5)
    thread.join()
    busy.append(True)
    assert leave.goes(time.monotonic() + GO_S + 1), "but not for ever"


def test_a_stand_in_only_gives_away(tmp_path: Path) -> None:
    kernel = FakeKernel()
    kernel.instances[OLD] = FakeInstance(active=True)
    hands = Hands(cast(NodeKernel, kernel))
    executor = Executor("n1", hands, Epochs(tmp_path / "epochs.json"), STEPS)
    spec = instance_spec(DESIRED, ROUTER, NEW, 2)
    steps = (Mute("n1", OLD), Build("n1", spec), Unmute("n1", OLD))
    said = executor.execute(Command("run", "r1", 2, "n1", 1, 0, False, steps), time.monotonic())
    found = [(m.outcome, m.code) for m in said if isinstance(m, StepReport)]
    assert found == [(Outcome.DONE, ""), (Outcome.FAILED, "stand-in")]
    assert list(kernel.instances) == [OLD]


def test_the_agent_is_alone_with_its_state(tmp_path: Path) -> None:
    with sole_user(tmp_path, "agent"), pytest.raises(RefusedError), sole_agent(tmp_path):
        pass
    with sole_agent(tmp_path), pytest.raises(RefusedError), sole_user(tmp_path, "agent"):
        pass
