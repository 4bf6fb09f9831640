"""Rollouts on real parts: the command, RabbitMQ, agents; the orchestrator is killed half-way."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.system.zonekit import VRHA, Zone, serving, zone
from vrha.model.rollouts import RolloutKind, RolloutRequest, RolloutStatus
from vrha.model.runs import RestartOptions, Strategy

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.unhurried]

PARALLEL = RolloutRequest(RolloutKind.RESTART, options=RestartOptions(Strategy.PARALLEL))


@pytest.fixture(scope="module")
def made() -> Iterator[Zone]:
    limits = {"check_in_s": 10.0, "step_s": 10.0}
    with zone("dais-54", f"test-rollouts-{os.getpid()}", limits) as made:
        yield made


def vrha(made: Zone, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [*VRHA, "--socket", str(made.lab.socket), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def generations(made: Zone) -> dict[str, int]:
    return {r.name: int(r.instance.split("#")[1]) for r in made.client.routers()}


def test_all_routers_are_restarted_by_one_command(made: Zone) -> None:
    before = generations(made)
    result = vrha(
        made, "network", "restart", "--all", "--cleanup", "--strategy", "parallel", "--json"
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert [m["status"] for m in report["members"]] == ["done"] * len(before)
    assert generations(made) == {name: generation + 1 for name, generation in before.items()}
    table = vrha(made, "rollout", "report", report["id"])
    assert f"{len(before)}/{len(before)} done" in table.stdout


def test_a_killed_orchestrator_takes_the_rollout_up_again(made: Zone) -> None:
    """And the command that follows it does not notice."""
    before = generations(made)
    rollout = made.client.start_rollout(PARALLEL)
    argv = [*VRHA, "--socket", str(made.lab.socket), "rollout", "watch", rollout.id]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, **pipes) as watching:  # type: ignore[call-overload]
        try:
            assert "3 routers, one first" in watching.stderr.readline()
            made.lab.orchestrator().kill()
            made.lab.orchestrator().start()
            out, err = watching.communicate(timeout=120)
        finally:
            watching.kill()
    assert watching.returncode == 0, err
    assert "3/3 done" in out
    ended = made.client.rollout(rollout.id)
    assert ended.status is RolloutStatus.DONE
    assert generations(made) == {name: generation + 1 for name, generation in before.items()}


def test_nodes_are_drained_until_nothing_fits(made: Zone) -> None:
    homes = {router.name: router.node for router in made.client.routers()}
    first, second, last = sorted({node.name for node in made.desired.nodes})
    planned = vrha(made, "node", "drain", homes["r1"], "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "move of router r1" in planned.stdout
    assert not any(node.draining for node in made.client.nodes())
    for node in (first, second):
        result = vrha(made, "node", "drain", node)
        assert result.returncode == 0, result.stderr
        assert node not in {router.node for router in made.client.routers()}
    assert made.objects()[first] == made.objects()[second] == []
    result = vrha(made, "node", "drain", last)
    assert result.returncode == 1
    assert "[rollout-stopped]" in result.stderr
    assert f"{first}: draining, {second}: draining, {last}: draining" in result.stdout
    assert serving(made.client)
    assert {router.node for router in made.client.routers()} == {last}
    for node in (first, second, last):
        assert vrha(made, "node", "undrain", node).returncode == 0
    resumed = vrha(made, "rollout", "resume", made.client.rollouts(1)[0].id)
    assert resumed.returncode == 0, resumed.stderr
    assert last not in {router.node for router in made.client.routers()}
    assert vrha(made, "node", "undrain", last).returncode == 0
