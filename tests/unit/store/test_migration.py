"""A store of version 0.1.0 is taken over as it is, also in the middle of a run.

`version_1.sql` was dumped from such a store: router r1 was created, restarted, and was being
restarted again by strategy `parallel`, up to the confirmed swap.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.orchestrator.world import DESIRED, FakeInstance, World
from tests.unit.store.conftest import execute
from vrha.errors import PreconditionError
from vrha.model.evidence import Evidence, Measured
from vrha.model.runs import RestartOptions, RunStatus, StepStatus, Strategy
from vrha.model.spec import InstanceRef
from vrha.model.state import RouterState
from vrha.model.steps import Destroy
from vrha.store import Store, schema

DUMP = (Path(__file__).parent / "version_1.sql").read_text()


@pytest.fixture
def url(tmp_path: Path) -> str:
    with sqlite3.connect(tmp_path / "store.db") as db:
        db.executescript(DUMP)
    db.close()
    return f"sqlite:///{tmp_path}/store.db"


def layout(path: Path) -> dict[str, str]:
    """Tables and indices with the columns of each."""
    with sqlite3.connect(path / "store.db") as db:
        found = db.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
        names = [name for (name,) in found]
        columns = {name: str(db.execute(f"PRAGMA table_info({name})").fetchall()) for name in names}
    db.close()
    return columns


def test_everything_is_kept_and_the_open_run_goes_on_where_it_was(url: str) -> None:
    store = Store.open(url)
    with store.transaction() as tx:
        assert tx.desired() == (1, DESIRED)
        (state,) = tx.router_states()
        assert (state.active, state.node, state.epoch) == (InstanceRef("r1", 2), "n1", 3)
        runs = [run for run, _ in tx.runs(10)]
        assert [run.status for run in runs] == [RunStatus.RUNNING, RunStatus.DONE, RunStatus.DONE]
        (run,) = tx.open_runs()
        assert [r.status for r in run.steps] == [StepStatus.DONE] * 4 + [StepStatus.STARTED]
        assert run.steps[-1].step == Destroy("n1", InstanceRef("r1", 2))
        assert len(tx.outbox.unsent()) == 1
        assert {node.name: node.capabilities for node in tx.node_states()} == {
            "n1": ("parallel",),
            "n2": ("parallel",),
        }
        assert tx.reports.timings(run.id) != {}
        assert tx.reports.evidence(run.id) == {}
    store.close()


def test_the_layout_is_that_of_a_new_store(url: str, tmp_path: Path) -> None:
    before = layout(tmp_path)
    Store.open(url).close()
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    Store.open(f"sqlite:///{fresh}/store.db").close()
    assert layout(tmp_path) == layout(fresh)
    assert "evidence" in layout(fresh).keys() - before.keys()


def test_evidence_can_be_kept_and_the_store_is_opened_again(url: str) -> None:
    evidence = Evidence(measured=(Measured("egress", 1.5, 1.0, 100, 0),))
    store = Store.open(url)
    with store.transaction() as tx:
        (run,) = tx.open_runs()
        tx.reports.put_evidence(run.id, 3, False, evidence)
    store.close()
    store = Store.open(url)
    with store.transaction() as tx:
        assert tx.reports.evidence(run.id) == {(3, False): evidence}
    store.close()


def test_an_orchestrator_ends_the_open_run_and_the_next_one_is_a_handover(
    url: str, tmp_path: Path
) -> None:
    world = World(tmp_path)
    old, new = InstanceRef("r1", 2), InstanceRef("r1", 3)
    world.nodes["n1"].instances.update({old: FakeInstance(), new: FakeInstance(active=True)})
    world.engine.resume()
    world.settle()
    assert world.last_run() == (RunStatus.DONE, "")
    assert world.all_instances() == {new}
    world.heard()
    world.service.restart_network("blue", RestartOptions(Strategy.HANDOVER))
    world.settle()
    assert world.last_run() == (RunStatus.DONE, "")
    assert world.all_instances() == {InstanceRef("r1", 4)}


def test_a_store_of_version_2_gets_its_leader(new_url: Callable[[], str]) -> None:
    url = new_url()
    store = Store.open(url)
    with store.transaction() as tx:
        tx.put_desired(DESIRED)
    store.close()
    execute(url, "DROP TABLE leader")
    execute(url, "UPDATE vrha_schema SET version = 2")
    store = Store.open(url)
    assert store.take_lead("o1", store.lead()) == 1
    with store.transaction() as tx:
        assert tx.desired() == (1, DESIRED)
    store.close()


def test_a_store_of_version_3_gets_its_standbys(new_url: Callable[[], str]) -> None:
    url = new_url()
    store = Store.open(url)
    state = RouterState("r1", 2, 1, "n1", InstanceRef("r1", 1))
    with store.transaction() as tx:
        tx.put_router_state(state)
    store.close()
    execute(url, "DROP TABLE standbys")
    execute(url, "UPDATE vrha_schema SET version = 3")
    store = Store.open(url)
    with store.transaction() as tx:
        assert tx.router_states() == tx.router_briefs() == (state,)
    store.close()


@pytest.mark.parametrize("version", [0, schema.SCHEMA_VERSION + 1, 99])
def test_a_version_that_is_not_known_is_refused_and_left_alone(
    url: str, tmp_path: Path, version: int
) -> None:
    with sqlite3.connect(tmp_path / "store.db") as db:
        db.execute(f"UPDATE vrha_schema SET version = {version}")
    db.close()
    before = layout(tmp_path)
    with pytest.raises(PreconditionError, match=f"layout version {version}") as caught:
        Store.open(url)
    assert caught.value.code == "store-version"
    assert layout(tmp_path) == before
