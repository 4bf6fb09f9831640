"""Agents that die, hang or stay away in a real zone: what is seen, and that nothing is lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.system.zonekit import Zone, wait_for, zone

pytestmark = [pytest.mark.root, pytest.mark.system]


@pytest.fixture(scope="module")
def watched() -> Iterator[Zone]:
    with zone("seed-10x10", "agentless", watched=True) as made:
        yield made


def test_smoke(watched: Zone) -> None:
    node = watched.router().node
    print(watched.lab.watcher_status(node)["agents"])
    watched.lab.agent(node).kill(signal.SIGKILL)
    wait_for(lambda: watched.lab.watcher_status(node)["agents"]["health"] == 1, 5, "dead")
    watched.lab.agent(node).start()
    wait_for(lambda: watched.lab.watcher_status(node)["agents"]["health"] == 0, 10, "alive")
    print(watched.lab.watcher_status(node)["agents"])
