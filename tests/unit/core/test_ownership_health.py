"""What renewals say of agents, and what the leader may ask for."""

from __future__ import annotations

from vrha.core.ownership.book import Book
from vrha.core.ownership.commands import Relieve, Send, Tell
from vrha.core.ownership.holder import Holder
from vrha.core.ownership.leader import Leader
from vrha.core.ownership.timing import Timing
from vrha.model.ownership import Electorate, Health, NodeHealth, Refusal, Renew, StandIn

VOTERS = Electorate(1, ("n1", "n2", "n3"))
DEAD = Health.AGENT_DEAD


def holder() -> Holder:
    return Holder("n1", Timing(), VOTERS, 5, {}, 0.0)


def renewal(seq: int, health: int = 0) -> Renew:
    return Renew("n1", 5, seq, VOTERS.tag, health)


def test_renewals_say_how_the_node_is() -> None:
    made = holder()
    made.health = int(DEAD)
    (said,) = made.tick(0.0)
    assert isinstance(said, Tell)
    assert said.message == renewal(1, int(DEAD))


def test_a_stand_in_is_asked_for_by_the_newest_leader_only() -> None:
    made = holder()
    assert made.receive(StandIn("o1", 4, "n1", 5, 2.5), 1.0) == [Relieve(2.5)]
    assert made.receive(StandIn("o1", 4, "n1", 6, 2.5), 1.0) == []
    made.leader_epoch = 5
    refused = Send("o1", Refusal("n1", 5, 5, 0, "stale-leader"))
    assert made.receive(StandIn("o1", 4, "n1", 5, 2.5), 1.0) == [refused]


def test_the_leader_knows_since_when_and_how_often() -> None:
    leader = Leader("o1", 4, Timing(), Book((VOTERS,)), 0.0)
    assert leader.healths(5.0) == []
    assert leader.stand_in("n1", 2.0) == []
    leader.receive(renewal(1), 10.0)
    for seq, at in ((2, 20.0), (3, 30.0)):
        leader.receive(renewal(seq, int(DEAD)), at)
    leader.receive(renewal(2), 35.0)
    assert leader.healths(40.0) == [NodeHealth("n1", 10.0, DEAD, 20.0, 1)]
    leader.receive(renewal(4, DEAD | Health.STAND_IN), 50.0)
    (with_help,) = leader.healths(60.0)
    assert (with_help.since_ms, with_help.failures) == (40.0, 1), "still dead since then"
    leader.receive(renewal(5), 70.0)
    leader.receive(renewal(6, int(DEAD)), 80.0)
    assert leader.healths(80.0)[0].failures == 2
    assert leader.stand_in("n1", 2.0) == [Send("n1", StandIn("o1", 4, "n1", 5, 2.0))]
    leader.depose("n1", 90.0)
    assert leader.stand_in("n1", 2.0) == []
