"""Rollouts and cordons go into the store and come out the same, also after a restart."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vrha.model.rollouts import (
    Member,
    MemberStatus,
    Rollout,
    RolloutKind,
    RolloutRequest,
    RolloutStatus,
)
from vrha.model.runs import RestartOptions, Strategy
from vrha.store import Store
from vrha.store import rollouts as rollouts_module

COUNTS = st.integers(0, 2**63 - 1)
REQUESTS = st.builds(
    RolloutRequest,
    max_parallel=COUNTS,
    stop_on_lost=st.none() | COUNTS,
    options=st.builds(
        RestartOptions,
        strategy=st.none() | st.sampled_from(Strategy),
        max_lost=st.none() | COUNTS,
    ),
)
ROLLOUTS = st.builds(Rollout, id=st.just("x1"), request=REQUESTS, round=COUNTS)
MEMBERS = st.lists(
    st.builds(
        Member,
        strategy=st.none() | st.sampled_from(Strategy),
        round=COUNTS,
        lost=st.none() | st.integers(0, 10**6),
    ),
    max_size=4,
    unique_by=lambda member: member.router,
)


def a_rollout(rollout_id: str = "x1", status: RolloutStatus = RolloutStatus.RUNNING) -> Rollout:
    return Rollout(
        rollout_id, RolloutRequest(RolloutKind.RESTART), Strategy.PARALLEL, status=status
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(ROLLOUTS, MEMBERS)
def test_what_goes_in_comes_out(store: Store, rollout: Rollout, members: list[Member]) -> None:
    class Undo(Exception):
        pass

    try:
        with store.transaction() as tx:
            tx.rollouts.add(rollout, members)
            found = tx.rollouts.get("x1")
            assert found is not None
            assert found[0] == rollout
            assert tx.rollouts.members("x1") == tuple(members)
            tally = tx.rollouts.tally("x1")
            assert sum(tally.counts.values()) == len(members)
            assert tally.lost == sum(m.lost or 0 for m in members)
            raise Undo
    except Undo:
        pass


def test_it_is_there_after_a_restart(url: str) -> None:
    store = Store.open(url)
    with store.transaction() as tx:
        tx.rollouts.add(a_rollout(), [Member("b"), Member("a")])
        tx.rollouts.save_member("x1", Member("a", MemberStatus.RUNNING, 1, "run-1"))
        tx.rollouts.cordon("n1")
        tx.rollouts.cordon("n1")
    store.close()
    store = Store.open(url)
    with store.transaction() as tx:
        assert tx.rollouts.open() == (a_rollout(),)
        assert [m.router for m in tx.rollouts.members("x1")] == ["b", "a"]
        assert tx.rollouts.members("x1")[1].run == "run-1"
        assert tx.rollouts.cordoned() == {"n1"}
        tx.rollouts.uncordon("n1")
        assert tx.rollouts.cordoned() == frozenset()
    store.close()


def test_an_ended_one_is_not_open_and_holds_nobody(store: Store) -> None:
    with store.transaction() as tx:
        tx.rollouts.add(a_rollout(), [Member("a"), Member("b")])
        assert tx.rollouts.holding(["c", "b"]) == ("x1", "b")
        assert tx.rollouts.holding(["c"]) is None
        tx.rollouts.save(a_rollout(status=RolloutStatus.STOPPING))
        assert len(tx.rollouts.open()) == 1
        tx.rollouts.save(a_rollout(status=RolloutStatus.STOPPED))
        assert tx.rollouts.open() == ()
        assert tx.rollouts.holding(["a"]) is None
        found = tx.rollouts.get("x1")
        assert found is not None
        assert found[1].ended_at >= found[1].started_at > ""
        tx.rollouts.save(a_rollout())
        (again,) = tx.rollouts.newest(5)
        assert again[1].ended_at == ""


def test_only_so_many_are_kept(store: Store) -> None:
    kept = rollouts_module.KEPT_ROLLOUTS
    with store.transaction() as tx:
        tx.rollouts.add(a_rollout("open"), [Member("a")])
        for number in range(kept + 5):
            tx.rollouts.add(a_rollout(f"x{number}", RolloutStatus.DONE), [Member("b")])
        found = [rollout.id for rollout, _ in tx.rollouts.newest(1000)]
        assert len(found) == kept + 1
        assert found[-1] == "open"
        assert found[0] == f"x{kept + 4}"
        assert tx.rollouts.members("x0") == ()
