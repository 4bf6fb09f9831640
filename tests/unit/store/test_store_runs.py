"""The journal: runs and steps go in and come out the same, one open run per router."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from vrha.errors import NotFoundError, RefusedError
from vrha.model.evidence import Connections, Measured, Measurement
from vrha.model.runs import Run, RunKind, RunStatus, StepRecord, StepStatus, Strategy
from vrha.model.spec import InstanceRef, InstanceSpec, Router
from vrha.model.steps import AwaitCheckIn, Build, Destroy, Step
from vrha.store import Store, journal

OLD, NEW = InstanceRef("r1", 1), InstanceRef("r1", 2)
SPEC = InstanceSpec(NEW, 2, Router("r1", ("web",)), (), ())


def a_run(run_id: str = "run-1", router: str = "r1") -> Run:
    return Run(
        id=run_id,
        kind=RunKind.RESTART,
        router=router,
        epoch=2,
        strategy=Strategy.PARALLEL,
        status=RunStatus.RUNNING,
        steps=(
            StepRecord(0, Build("n1", SPEC, leases_from=OLD)),
            StepRecord(1, AwaitCheckIn(NEW)),
            StepRecord(2, Destroy("n1", OLD)),
        ),
        point_of_no_return=2,
        old=OLD,
        new=NEW,
    )


def numbered(records: tuple[StepRecord, ...]) -> tuple[StepRecord, ...]:
    return tuple(replace(record, seq=i) for i, record in enumerate(records))


st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
# SQLite integers have 64 bits; so have all the counters of the model.
st.register_type_strategy(int, st.integers(-(2**63), 2**63 - 1))
st.register_type_strategy(Mapping, st.dictionaries(st.text(max_size=3), st.text(), max_size=2))
RECORDS = st.lists(
    st.builds(StepRecord, step=st.from_type(Step), deadline=st.none() | st.from_type(float)),
    max_size=2,
).map(lambda records: numbered(tuple(records)))
RUNS = st.builds(Run, steps=RECORDS, undo=RECORDS, strategy=st.none() | st.sampled_from(Strategy))


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(first=RUNS, second=RUNS)
def test_a_run_comes_back_as_it_was(new_url: Callable[[], str], first: Run, second: Run) -> None:
    url = new_url()
    store = Store.open(url)
    first = replace(first, status=RunStatus.RUNNING)
    with store.transaction() as tx:
        tx.add_run(first)
        assert tx.run(first.id) == first
    second = replace(second, id=first.id, router=first.router)
    with store.transaction() as tx:
        tx.save_run(second)
    store.close()
    again = Store.open(url)
    with again.transaction() as tx:
        assert tx.run(first.id) == second
        assert [run for run, _ in tx.runs(10)] == [second]
    again.close()


def test_only_changed_steps_are_written(store: Store) -> None:
    run = a_run()
    with store.transaction() as tx:
        tx.add_run(run)
    statements: list[str] = []

    @event.listens_for(store._db, "before_cursor_execute")
    def _seen(_c, _cursor, statement, _parameters, _context, _many):  # type: ignore[no-untyped-def]
        statements.append(statement)

    started = replace(run.steps[1], status=StepStatus.STARTED, attempt=1, deadline=12.5)
    changed = replace(run, steps=(run.steps[0], started, run.steps[2]))
    with store.transaction() as tx:
        tx.save_run(changed)
    writes = [s for s in statements if s.startswith(("UPDATE steps", "INSERT", "DELETE"))]
    assert len(writes) == 1
    assert "progress" in writes[0]
    assert "step=" not in writes[0]
    with store.transaction() as tx:
        assert tx.run("run-1") == changed


def test_many_runs_of_a_transaction_are_written_by_few_statements(store: Store) -> None:
    statements: list[str] = []

    @event.listens_for(store._db, "before_cursor_execute")
    def _seen(_c, _cursor, statement, _parameters, _context, _many):  # type: ignore[no-untyped-def]
        statements.append(statement)

    runs = [a_run(f"run-{i}", router=f"r{i}") for i in range(20)]
    with store.transaction() as tx:
        for run in runs:
            tx.add_run(run)
            started = replace(run.steps[0], status=StepStatus.STARTED, attempt=1, deadline=1.0)
            tx.save_run(replace(run, steps=(started, *run.steps[1:])))
            tx.add_event("run-started", "restart", run=run.id)
        assert tx.run("run-7") != runs[7]
    writes = [s for s in statements if s.startswith(("UPDATE", "INSERT", "DELETE"))]
    assert len(writes) < 10
    with store.transaction() as tx:
        assert [run.id for run in tx.open_runs()] == [run.id for run in runs]
        assert [event.run for event in tx.events()] == [run.id for run in runs]
        assert tx.run("run-7").steps[0].attempt == 1  # type: ignore[union-attr]


def test_steps_that_are_gone_are_deleted(store: Store) -> None:
    run = a_run()
    with store.transaction() as tx:
        tx.add_run(run)
        tx.save_run(replace(run, steps=run.steps[:1], undo=run.steps[2:]))
    with store.transaction() as tx:
        found = tx.run("run-1")
    assert found is not None
    assert (len(found.steps), len(found.undo)) == (1, 1)


def test_a_second_open_run_of_a_router_is_refused_by_name(store: Store) -> None:
    with store.transaction() as tx:
        tx.add_run(a_run("run-1"))
        tx.add_run(a_run("run-2", router="r2"))
    with pytest.raises(RefusedError) as refused, store.transaction() as tx:
        tx.add_run(a_run("run-3"))
    assert refused.value.code == "run-in-progress"
    assert "run-1" in str(refused.value)
    with store.transaction() as tx:
        assert tx.open_run_of("r1") == a_run("run-1")
        assert [run.id for run in tx.open_runs()] == ["run-1", "run-2"]
        tx.save_run(replace(a_run("run-1"), status=RunStatus.DONE))
        tx.add_run(a_run("run-3"))
        assert tx.open_run_of("r1") == a_run("run-3")


def test_a_refusal_leaves_the_transaction_usable(store: Store) -> None:
    with store.transaction() as tx:
        tx.add_run(a_run("run-1"))
        with pytest.raises(RefusedError):
            tx.add_run(a_run("run-2"))
        tx.add_event("run", "refused", router="r1")
    with store.transaction() as tx:
        assert [e.reason for e in tx.events()] == ["refused"]
        assert tx.run("run-2") is None


def test_of_many_threads_and_stores_one_opens_the_run(url: str) -> None:
    stores = [Store.open(url) for _ in range(2)]
    outcomes: list[str] = []

    def start(i: int) -> None:
        try:
            with stores[i % 2].transaction() as tx:
                tx.add_run(a_run(f"run-{i}"))
            outcomes.append("opened")
        except RefusedError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=start, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        store.close()
    assert sorted(outcomes) == ["opened"] + ["run-in-progress"] * 7


@pytest.mark.parametrize("end", [RunStatus.DONE, RunStatus.ROLLED_BACK])
def test_an_ended_run_stays_as_it_ended(store: Store, end: RunStatus) -> None:
    with store.transaction() as tx:
        tx.add_run(a_run())
        tx.save_run(replace(a_run(), status=end))
    for status in set(RunStatus) - {end}:
        with pytest.raises(RefusedError) as refused, store.transaction() as tx:
            tx.save_run(replace(a_run(), status=status))
        assert refused.value.code == "run-ended"
    with store.transaction() as tx:
        tx.save_run(replace(a_run(), status=end, leftovers=("vr-x",)))
        ((run, times),) = tx.runs(1)
    assert run.leftovers == ("vr-x",)
    assert times.started_at <= times.ended_at


def test_an_unknown_run_is_not_saved(store: Store) -> None:
    with pytest.raises(NotFoundError), store.transaction() as tx:
        tx.save_run(a_run())


def test_runs_are_listed_newest_first_and_bounded(store: Store) -> None:
    with store.transaction() as tx:
        for i in range(5):
            tx.add_run(a_run(f"run-{i}", router=f"r{i}"))
        tx.save_run(replace(a_run("run-3", router="r3"), status=RunStatus.DONE))
        assert [run.id for run, _ in tx.runs(2)] == ["run-4", "run-3"]
        assert [run.id for run, _ in tx.runs(3, open_only=True)] == ["run-4", "run-2", "run-1"]
        assert tx.run_times("run-4") == tx.runs(1)[0][1]
        assert tx.run_times("run-4").ended_at == ""  # type: ignore[union-attr]


def test_old_runs_are_forgotten_open_ones_never(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "KEPT_RUNS", 2)
    with store.transaction() as tx:
        tx.add_run(a_run("open", router="r0"))
        for i in range(4):
            run = a_run(f"run-{i}")
            tx.add_run(run)
            tx.reports.put_timings(run.id, 0, False, (("build", 1.0),))
            tx.reports.step_began(run.id, 0, False, 1e9)
            tx.reports.put_measurement(run.id, Measurement())
            tx.save_run(replace(run, status=RunStatus.DONE))
        assert [run.id for run, _ in tx.runs(10)] == ["run-3", "run-2", "open"]
        assert tx.reports.timings("run-0") == tx.reports.begins("run-0") == {}
        assert tx.reports.measurement("run-0") is None
        assert tx.reports.measurement("run-3") == Measurement()
        assert tx.reports.timings("run-3") == {(0, False): (("build", 1.0),)}


def test_when_a_step_began_and_what_was_measured_last_count(store: Store) -> None:
    first = Measured("egress_icmp", 1.5, 1.0, 10, 2, gaps_ms=((0.5, 2.0),))
    last = Measurement((replace(first, lost=3),), (Connections("t", 2, 1, None),), 4)
    with store.transaction() as tx:
        tx.reports.step_began("run-1", 3, False, 1_767_225_600.125)
        tx.reports.step_began("run-1", 3, True, 7.5)
        tx.reports.step_began("run-1", 3, False, 1_767_225_601.25)
        tx.reports.put_measurement("run-1", Measurement((first,)))
        tx.reports.put_measurement("run-1", last)
    with store.transaction() as tx:
        assert tx.reports.begins("run-1") == {(3, False): 1_767_225_601.25, (3, True): 7.5}
        assert tx.reports.measurement("run-1") == last
        assert tx.reports.measurement("run-2") is None


def test_timings_of_a_later_attempt_replace_the_earlier(store: Store) -> None:
    with store.transaction() as tx:
        tx.reports.put_timings("run-1", 3, False, (("netns", 1.5), ("rules", 2.25)))
        tx.reports.put_timings("run-1", 3, True, (("undo", 4.0),))
        tx.reports.put_timings("run-1", 3, False, (("netns", 9.0),))
    with store.transaction() as tx:
        assert tx.reports.timings("run-1") == {
            (3, False): (("netns", 9.0),),
            (3, True): (("undo", 4.0),),
        }
