"""A router with as many rules as a list may have, from the bytes of a command to its check-in."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path

import pytest

from tests.netns.nodekit import spec_of
from vrha import codec
from vrha.agent.epochs import Epochs
from vrha.agent.executor import Executor, Hands
from vrha.bus.topology import MAX_DOWN, MAX_UP
from vrha.linux.node import NodeKernel
from vrha.model.messages import CheckIn, Command, Outcome, StepReport
from vrha.model.spec import Backend, Ingress, PortRange, Protocol, Rule
from vrha.model.steps import Build, Configure
from vrha.render.digest import expected_digest

pytestmark = [pytest.mark.root, pytest.mark.unhurried]

RULES = 20_000


def rule(number: int) -> Rule:
    if number % 2:
        return Rule(Protocol.TCP, PortRange(number, number))
    remote = ip_network((int(IPv4Address("100.64.0.0")) + number * 16, 28))
    return Rule(Protocol.UDP, PortRange(number + 1, number + 4), remote)


@pytest.mark.parametrize("backend", list(Backend))
def test_many_rules_are_loaded_proved_and_replaced(
    kernel: NodeKernel, state_dir: Path, backend: Backend
) -> None:
    small = spec_of(backend=backend)
    assert small.uplink is not None
    address = small.uplink.addresses[0].ip
    rules = tuple(rule(number) for number in range(RULES))
    large = replace(small, router=replace(small.router, ingress=(Ingress(address, rules),)))
    agent = Executor("n1", Hands(kernel), Epochs(state_dir / "epochs.json"))
    ref = large.ref

    body = codec.encode(
        Command("run", ref.router, 1, "n1", 1, 0, False, (Build("n1", large),), "t")
    )
    assert len(body) < MAX_DOWN
    command = codec.decode_message(body, MAX_DOWN)
    assert isinstance(command, Command)
    check_in, report = agent.execute(command, time.monotonic())
    assert len(codec.encode(check_in)) < MAX_UP
    assert isinstance(check_in, CheckIn)
    assert check_in.self_test.rules == expected_digest(large)
    assert check_in.self_test.rules.count > RULES

    step = Configure("n1", small, large)
    update = Command("run", ref.router, 1, "n1", 1, 0, False, (step,))
    (report,) = agent.execute(update, time.monotonic())
    assert isinstance(report, StepReport)
    assert report.outcome is Outcome.DONE
    assert kernel.self_test(small).rules == expected_digest(small)
