"""Restart network with cleanup on real parts: RabbitMQ, agents, dnsmasq, 1 ms probes.

The replacement is broken in every way that a real one can be; each time the old router must go
on as if nothing had happened, and nothing of the replacement may stay.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.system.zonekit import VRHA, Zone, probing, wait_for, zone
from vrha.errors import RefusedError
from vrha.model.runs import RestartOptions, RunStatus, StepStatus, Strategy
from vrha.model.views import RouterStatus

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.unhurried]

CHECK_IN_S = 8.0


@pytest.fixture(scope="module")
def made() -> Iterator[Zone]:
    limits = {"check_in_s": CHECK_IN_S, "step_s": CHECK_IN_S}
    with zone("seed-10x10", f"test-{os.getpid()}", limits) as made:
        yield made


@pytest.fixture
def served(made: Zone) -> Iterator[Zone]:
    """The zone, serving with exactly one instance before and after."""
    wait_for(lambda: made.router().status is RouterStatus.SERVING, 20, "a serving router")
    assert_clean(made)
    yield made
    wait_for(lambda: made.router().status is RouterStatus.SERVING, 20, "a serving router")
    assert_clean(made)


def assert_clean(made: Zone) -> None:
    """Exactly one instance, on its node, with all its parts."""

    def only_one() -> bool:
        objects = made.objects()
        node = made.router().node
        elsewhere = [o for name, found in objects.items() if name != node for o in found]
        return not elsewhere and len(objects[node]) == made.expected_objects()

    wait_for(only_one, 15, f"one instance and nothing else, not {made.objects()}")


@pytest.mark.parametrize("strategy", list(Strategy))
def test_a_restart_replaces_the_instance_and_traffic_returns(
    served: Zone, strategy: Strategy
) -> None:
    before = served.router()
    with probing(served.streams()) as results:
        run = served.restart(strategy)
    after = served.router()
    assert run.status is RunStatus.DONE
    assert after.instance != before.instance
    assert after.epoch > before.epoch
    assert not results[0].unrestored
    if strategy is Strategy.PARALLEL:
        assert results[0].lost < 2 * 60, "worse than a naive parallel restart"


def assert_old_one_untouched(served: Zone, instance: str, lost: int) -> None:
    assert served.router().instance == instance
    assert lost == 0


@pytest.mark.parametrize(
    ("tool", "script", "reason"),
    [
        ("dnsmasq", "echo 'dnsmasq: broken for a test' >&2; exit 3", "dnsmasq-failed"),
        ("nft", 'case "$*" in *-f*) echo "Error: no" >&2; exit 1;; esac; exec $REAL "$@"', "rules"),
    ],
)
def test_a_broken_replacement_is_rolled_back(
    served: Zone, tool: str, script: str, reason: str
) -> None:
    before = served.router()
    with probing(served.streams()) as results, served.broken_tool(before.node, tool, script):
        run = served.restart()
    assert run.status is RunStatus.ROLLED_BACK
    assert run.reason.startswith(reason)
    assert run.detail
    assert_old_one_untouched(served, before.instance, results[0].lost)


def test_rules_that_are_not_all_there_are_found_by_the_digest(served: Zone) -> None:
    """The kernel silently has one rule less than was rendered."""
    before = served.router()
    lossy = 'case "$*" in *-f*) grep -v "tcp dport 53" | $REAL "$@";; *) exec $REAL "$@";; esac'
    with (
        probing(served.streams()) as results,
        served.broken_tool(before.node, "nft", lossy),
    ):
        run = served.restart()
    assert (run.status, run.reason) == (RunStatus.ROLLED_BACK, "wrong-digest")
    assert_old_one_untouched(served, before.instance, results[0].lost)
    refused = [e for e in served.client.events() if e.kind == "check-in-refused"]
    assert refused[-1].reason == "wrong-digest"
    assert served.client.health().check_ins_refused >= 1


def test_an_agent_killed_during_the_build(served: Zone) -> None:
    before = served.router()
    agent = served.lab.agent(before.node)
    slow = 'touch "$REAL.begun"; sleep 30'
    with probing(served.streams()) as results:
        with served.broken_tool(before.node, "dnsmasq", slow):
            run = served.client.restart_network(served.network)
            build = run.steps[0]
            assert build.status is StepStatus.STARTED
            wait_for(lambda: len(served.namespaces(before.node)) == 2, 10, "a build under way")
            agent.kill()
            wait_for(
                lambda: served.client.run(run.id).status is RunStatus.ROLLING_BACK,
                CHECK_IN_S * 3,
                "the roll-back",
            )
        agent.start()
        ended = served.await_run(run.id)
    assert ended.status is RunStatus.ROLLED_BACK
    assert ended.leftovers == ()
    assert_old_one_untouched(served, before.instance, results[0].lost)


def test_a_broker_restarted_during_the_build(served: Zone) -> None:
    before = served.router()
    broker = served.lab.broker()
    slow = 'sleep 1; exec $REAL "$@"'
    with (
        probing(served.streams()) as results,
        served.broken_tool(before.node, "dnsmasq", slow),
    ):
        run = served.client.restart_network(served.network)
        wait_for(lambda: len(served.namespaces(before.node)) == 2, 10, "a build under way")
        broker.kill()
        wait_for(
            lambda: served.client.run(run.id).status is RunStatus.ROLLING_BACK, 20, "the roll-back"
        )
        broker.start()
        ended = served.await_run(run.id)
    assert ended.status is RunStatus.ROLLED_BACK
    assert ended.reason in ("no-answer", "no-check-in")
    assert ended.leftovers == ()
    assert_old_one_untouched(served, before.instance, results[0].lost)


def test_a_replacement_that_never_checks_in(served: Zone) -> None:
    before = served.router()
    agent = served.lab.agent(before.node)
    with probing(served.streams()) as results:
        agent.kill(signal.SIGSTOP)
        run = served.client.restart_network(served.network)
        wait_for(
            lambda: served.client.run(run.id).status is RunStatus.ROLLING_BACK,
            CHECK_IN_S * 3,
            "the roll-back",
        )
        why = served.client.run(run.id)
        agent.kill(signal.SIGCONT)
        ended = served.await_run(run.id)
    assert why.reason in ("no-answer", "no-check-in")
    assert "build" in why.detail or "check-in" in why.detail
    assert ended.status is RunStatus.ROLLED_BACK
    assert_old_one_untouched(served, before.instance, results[0].lost)


def test_a_killed_agent_adopts_what_it_finds(served: Zone) -> None:
    before = served.router()
    agent = served.lab.agent(before.node)
    dnsmasqs = served.lab.run(before.node, ["pidof", "dnsmasq"])
    with probing(served.streams()) as results:
        agent.kill()
        agent.start()
        started = len([e for e in served.client.events(limit=1000) if e.kind == "agent-started"])
        wait_for(
            lambda: (
                len([e for e in served.client.events(limit=1000) if e.kind == "agent-started"])
                > started
            ),
            20,
            "the new agent's inventory",
        )
    assert results[0].lost == 0
    assert served.lab.run(before.node, ["pidof", "dnsmasq"]) == dnsmasqs
    assert served.router() == before
    assert served.restart().status is RunStatus.DONE


@pytest.mark.parametrize("strategy", list(Strategy))
def test_an_orchestrator_killed_in_the_middle_takes_the_run_up(
    served: Zone, strategy: Strategy
) -> None:
    slow = 'sleep 0.3; exec $REAL "$@"'
    node = served.router().node
    with served.broken_tool(node, "dnsmasq", slow):
        run = served.client.restart_network(served.network, RestartOptions(strategy))
        orchestrator = served.lab.orchestrator()
        orchestrator.kill()
        served.lab.socket.unlink(missing_ok=True)
        orchestrator.start()
        orchestrator.wait_for(served.lab.socket)
        ended = served.await_run(run.id)
    assert ended.status is RunStatus.DONE


def test_a_second_restart_is_refused_with_the_id_of_the_first(served: Zone) -> None:
    run = served.client.restart_network(served.network)
    with pytest.raises(RefusedError, match=run.id):
        served.client.restart_network(served.network)
    served.await_run(run.id)


def test_the_command_line_end_to_end(served: Zone) -> None:
    def vrha(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*VRHA, "--socket", str(served.lab.socket), *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    before = served.router().instance
    plan = vrha("network", "restart", served.network, "--cleanup", "--dry-run")
    assert plan.returncode == 0
    assert "no way back" in plan.stdout
    done = vrha("network", "restart", served.network, "--cleanup")
    assert done.returncode == 0, done.stderr
    assert before in done.stdout
    unsure = vrha("network", "restart", served.network)
    assert unsure.returncode == 2
    assert "--cleanup" in unsure.stderr
    unknown = vrha("network", "restart", "nonsense", "--cleanup")
    assert unknown.returncode == 2
    assert "no-such-network" in unknown.stderr


def test_a_dead_dnsmasq_is_started_again(served: Zone) -> None:
    before = served.router()
    pid = served.lab.run(before.node, ["pidof", "dnsmasq"]).strip()
    with probing(served.streams()) as results:
        served.lab.run(before.node, ["kill", "-9", pid])
        wait_for(
            lambda: served.dnsmasqs(before.node) == [before.instance.replace("#", "-")],
            15,
            "another dnsmasq",
        )
    assert results[0].lost == 0
    assert served.router() == before


def test_a_router_that_its_node_has_lost_is_built_again(served: Zone) -> None:
    """As after a reboot: namespace, ports and dnsmasq are gone, the agent starts anew."""
    before = served.router()
    agent = served.lab.agent(before.node)
    agent.kill()
    name = before.instance.replace("#", "-")
    pid = served.lab.run(before.node, ["pidof", "dnsmasq"]).strip()
    served.lab.run(before.node, ["kill", "-9", pid])
    served.lab.run(before.node, ["ip", "netns", "del", f"vrha-{name}"])
    shutil.rmtree(served.lab.folder / "state" / f"agent-{before.node}" / "instances" / name)
    agent.start()
    wait_for(lambda: served.router().instance != before.instance, 40, "another instance")
    wait_for(lambda: served.router().status is RouterStatus.SERVING, 20, "a serving router")
    with probing(served.streams()) as results:
        pass
    assert not results[0].unrestored
