"""Pauses and what is remembered of nodes go into the store and come out the same."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vrha.model.health import NodeHealth
from vrha.model.pauses import PauseScope, PauseTarget
from vrha.store import Store

EVERYTHING = PauseTarget()
NODE = PauseTarget(PauseScope.NODE, "n1")
TIMES = st.floats(0, 4e9)


def test_pauses_last_until_they_are_removed(url: str) -> None:
    store = Store.open(url)
    with store.transaction() as tx:
        first = tx.pauses.put(EVERYTHING, "ann", "the switch is being replaced")
        second = tx.pauses.put(NODE, "bob", "")
    store.close()
    store = Store.open(url)
    with store.transaction() as tx:
        assert set(tx.pauses.all()) == {first, second}
        assert tx.pauses.remove(EVERYTHING)
        assert not tx.pauses.remove(EVERYTHING)
        assert not tx.pauses.remove(PauseTarget(PauseScope.ZONE, "n1"))
        assert tx.pauses.all() == (second,)
    store.close()


def test_a_second_pause_of_the_same_replaces_the_first(store: Store) -> None:
    with store.transaction() as tx:
        tx.pauses.put(NODE, "ann", "one")
        second = tx.pauses.put(NODE, "bob", "two")
        assert tx.pauses.all() == (second,)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    st.builds(
        NodeHealth,
        node=st.sampled_from(["n1", "n2"]),
        penalty=TIMES,
        penalised_at=TIMES,
        suppressed_until=TIMES,
        failed_over_at=TIMES,
        fail_back_until=TIMES,
    )
)
def test_health_of_a_node(store: Store, health: NodeHealth) -> None:
    with store.transaction() as tx:
        tx.node_health.put(health)
    with store.reading() as tx:
        assert tx.node_health.all()[health.node] == health
