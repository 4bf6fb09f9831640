"""Two orchestrators, one leads: it is killed, frozen, stopped, and its store hangs."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Server
from tests.system.conftest import Broker, wait_until
from tests.system.leaderkit import END_S, TTL_S, Pair, pair
from vrha.errors import RefusedError
from vrha.model.runs import RunStatus
from vrha.model.views import RouterStatus

log = logging.getLogger(__name__)

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.unhurried]

SLACK_S = 8.0
"""How much later than promised on a loaded machine."""


@pytest.fixture
def store_url(postgresql: Server) -> str:
    return postgresql.database()


@pytest.fixture
def broker_url(broker: Broker, request: pytest.FixtureRequest) -> str:
    return broker.vhost()


@pytest.fixture
def two(tmp_path: Path, broker_url: str, store_url: str) -> Iterator[Pair]:
    with pair(tmp_path, broker_url, store_url) as made:
        yield made


def test_who_stands_by_reads_and_changes_nothing(
    two: Pair, broker: Broker, broker_url: str
) -> None:
    health = two.second.client.health()
    assert (health.leads, health.leader, health.leader_epoch) == (False, "o1", 1)
    assert not health.broker
    assert two.second.client.routers() == two.first.client.routers()
    with pytest.raises(RefusedError, match="orchestrator o1 leads") as caught:
        two.second.client.restart_network("blue")
    assert caught.value.code == "not-leader"
    # It takes no report from the one that leads.
    vhost = broker_url.rpartition("/")[2]
    consumers = broker.ctl("list_consumers", "-p", vhost, "queue_name", "--no-table-headers")
    assert consumers.split().count("vrha.orchestrator") == 1


def test_a_leader_that_is_killed_is_followed_and_its_run_ends(two: Pair) -> None:
    two.first.arm("orchestrator.build.sent", "kill")
    run = two.first.client.restart_network("blue").id
    two.first.wait_gone()
    gone = time.monotonic()
    wait_until(lambda: two.second.leads, TTL_S + SLACK_S, "o2 leads")
    log.info("followed %.2f s after its death, TTL %g s", time.monotonic() - gone, TTL_S)
    assert two.ended(two.second, run).status is RunStatus.DONE
    assert_done_once(two, by_epoch=2)
    # It comes back, and stands by.
    two.first.start()
    wait_until(two.first.health, END_S, "o1 answers")
    assert two.second.leads
    assert not two.first.leads


def test_a_leader_that_stood_still_does_nothing_more(two: Pair) -> None:
    """It had the command in its hand: read from the outbox, not sent."""
    two.first.arm("orchestrator.build.sending", "wait")
    run = two.first.client.restart_network("blue").id
    wait_until(lambda: two.first.reached("orchestrator.build.sending"), END_S, "it holds one")
    before = {taken.life for taken in two.commands()}
    sent = len(two.commands())
    two.first.signal(signal.SIGSTOP)
    wait_until(lambda: two.second.leads, TTL_S + SLACK_S, "o2 leads")
    two.first.go("orchestrator.build.sending")
    two.first.signal(signal.SIGCONT)
    wait_until(lambda: two.first.said("lost the lead"), END_S, "o1 steps down")
    assert two.ended(two.second, run).status is RunStatus.DONE
    assert not [taken for taken in two.commands()[:] if taken.life in before][sent:]
    assert_done_once(two, by_epoch=2)
    # It refuses what it would have to write, names who leads, and goes on to be of use.
    with pytest.raises(RefusedError, match="orchestrator o2 leads"):
        two.first.client.restart_network("blue")
    assert two.first.client.run(run).status is RunStatus.DONE
    two.second.signal(signal.SIGKILL)
    wait_until(lambda: two.first.works, TTL_S + 2 * SLACK_S, "o1 leads again")
    again = two.first.client.restart_network("blue").id
    assert two.ended(two.first, again).status is RunStatus.DONE
    assert two.first.client.health().leader_epoch == 3


def test_a_leader_that_stands_still_swallows_no_report(two: Pair) -> None:
    """The broker still counts it among those who take them."""
    two.first.signal(signal.SIGSTOP)
    wait_until(lambda: two.second.works, TTL_S + SLACK_S, "o2 leads")
    for _ in range(3):
        run = two.second.client.restart_network("blue").id
        assert two.ended(two.second, run).status is RunStatus.DONE


def test_a_leader_that_is_stopped_hands_over_at_once(
    tmp_path: Path, broker_url: str, store_url: str
) -> None:
    patience_s = 120.0
    with pair(tmp_path, broker_url, store_url, ttl_s=patience_s) as two:
        two.first.signal(signal.SIGTERM)
        two.first.wait_gone()
        wait_until(lambda: two.second.works, patience_s / 3, "o2 leads")
        assert two.second.client.health().leader_epoch == 2
        run = two.second.client.restart_network("blue").id
        assert two.ended(two.second, run).status is RunStatus.DONE


def test_a_store_that_hangs_changes_no_leader(two: Pair, postgresql: Server) -> None:
    postgresql.signal(signal.SIGSTOP)
    try:
        time.sleep(3 * TTL_S)
    finally:
        postgresql.signal(signal.SIGCONT)
    wait_until(lambda: two.first.works, END_S, "o1 works on")
    assert two.first.client.health().leader_epoch == 1
    run = two.first.client.restart_network("blue").id
    assert two.ended(two.first, run).status is RunStatus.DONE


def assert_done_once(two: Pair, by_epoch: int) -> None:
    """The one restart, and nothing else, has taken place."""
    health = two.second.client.health()
    assert (health.leader, health.leader_epoch) == ("o2", by_epoch)
    assert len(two.second.client.runs()) == 2
    (view,) = two.second.client.routers()
    assert (view.epoch, view.status, view.run) == (2, RouterStatus.SERVING, "")
    assert two.owners() == [view.instance]
    assert two.instances() == {view.instance}
