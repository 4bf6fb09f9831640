"""A short soak, and that its checks see what they are there for."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Iterator

import pytest

from tools.soaking import watch
from tools.soaking.kinds import sequence
from tools.soaking.report import details, line
from tools.soaking.rounds import Stage, stage
from tools.soaking.scenario import gateway

pytestmark = [pytest.mark.root, pytest.mark.system]

log = logging.getLogger(__name__)

SEED = 5
KINDS = ("node-rebooted", "agent-killed", "orchestrator-killed", "move")


@pytest.fixture(scope="module")
def ready() -> Iterator[Stage]:
    with stage(f"test-soak-{os.getpid()}", log.info) as made:
        yield made


def test_faults_by_chance_break_no_promise(ready: Stage) -> None:
    for injection in itertools.islice(sequence(SEED, KINDS), len(KINDS)):
        out = ready.play(injection)
        log.info("%s", line(out))
        assert out.violations == [], "\n".join([line(out), *details(out)])


def test_what_is_left_behind_is_seen(ready: Stage) -> None:
    assert ready.changed() == []
    ready.lab.run("n2", ["ip", "netns", "add", "vrha-r9-1"])
    child = ready.lab.exec("n3", ["sleep", "60"])
    try:
        assert [change for change in ready.changed() if change.startswith("+")] == [
            "+ n2: namespace vrha-r9-1",
            "+ n3: process sleep 60",
        ]
    finally:
        child.kill()
        child.wait()
        ready.lab.run("n2", ["ip", "netns", "delete", "vrha-r9-1"])
    assert ready.changed() == []


def test_what_is_missing_is_seen(ready: Stage) -> None:
    node = next(router.node for router in ready.client.routers() if router.name == "r1")
    ready.lab.run(node, ["nft", "add", "table", "bridge", "stray"])
    ready.lab.run(node, ["nft", "delete", "table", "bridge", "stray"])
    assert ready.changed() == []
    port = ready.lab.run(node, ["sh", "-c", "ip -o link | grep -o 'vrh[0-9a-f]*-u0' | head -1"])
    ready.lab.run(node, ["ip", "link", "set", port.strip(), "nomaster"])
    try:
        assert any(change.startswith("- link") for change in ready.changed())
    finally:
        ready.lab.run(node, ["ip", "link", "set", port.strip(), "master", "br-public"])


def test_a_second_owner_is_seen(ready: Stage) -> None:
    address = gateway(1)
    with watch.owners(ready.lab) as watches:
        ready.lab.run("vm1", ["ip", "address", "add", f"{address}/32", "dev", "lo"])
        time.sleep(0.3)
        ready.lab.run("vm1", ["ip", "address", "delete", f"{address}/32", "dev", "lo"])
    assert set(watch.doubles(watches)) == {address}
