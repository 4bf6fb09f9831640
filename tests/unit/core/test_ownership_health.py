"""What renewals say of agents, and what the leader may ask for."""

from __future__ import annotations

from vrha.core.ownership.book import Book
from vrha.core.ownership.commands import Command, Commit, Relieve, Right, Send, Tell
from vrha.core.ownership.holder import Holder
from vrha.core.ownership.leader import Leader
from vrha.core.ownership.timing import Timing
from vrha.model.ownership import (
    Ack,
    Electorate,
    Health,
    NodeHealth,
    Over,
    Refusal,
    Renew,
    StandIn,
)

VOTERS = Electorate(1, ("n1", "n2", "n3"))
DEAD = Health.AGENT_DEAD
UNANSWERED = Health.UNANSWERED
TIMING = Timing()


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


# ---- nodes that the voters do not answer


def said(commands: list[Command]) -> Renew:
    (tell,) = [each for each in commands if isinstance(each, Tell)]
    assert isinstance(tell.message, Renew)
    return tell.message


def acks(made: Holder, now: float, *voters: str) -> None:
    for voter in voters:
        made.receive(Ack(voter, "n1", made.incarnation, made.seq), now)


def test_a_node_says_when_nobody_answers_it_and_at_once_when_somebody_does() -> None:
    made = holder()
    made.tick(0.0)
    acks(made, 2.0, "n1", "n2")
    for at in (150.0, 300.0):
        assert not said(made.tick(at)).health & UNANSWERED, "one may be under way"
        acks(made, at + 1, "n1")
    assert said(made.tick(450.0)).health & UNANSWERED
    acks(made, 451.0, "n1", "n3")
    assert made.due == 451.0
    assert not said(made.tick(451.0)).health & UNANSWERED


def test_what_ends_a_life_is_no_answer() -> None:
    made = holder()
    for at in (0.0, 150.0, 300.0):
        made.tick(at)
    made.receive(Over("o1", "n1", 5, 5), 400.0)
    first = said(made.tick(450.0))
    assert (first.incarnation > 5, first.health & UNANSWERED) == (True, UNANSWERED)


def test_a_process_that_stood_still_does_not_blame_the_voters() -> None:
    made = holder()
    made.tick(0.0)
    acks(made, 2.0, "n1", "n2")
    made.tick(150.0)
    assert not said(made.tick(5000.0)).health & UNANSWERED


def cut_off() -> Leader:
    """Of n1, which has r1 and says that nobody answers."""
    leader = Leader("o1", 1, TIMING, Book((VOTERS,), {"r1": Right("r1", "n1", 3)}, {"n1": 5}), 0.0)
    leader.receive(renewal(1), 0.0)
    assert leader.is_heard("n1", 100.0)
    assert leader.receive(renewal(2, int(UNANSWERED)), 100.0) == []
    return leader


def test_a_node_that_nobody_answers_is_missed_at_once_and_no_target() -> None:
    leader = cut_off()
    assert leader.silent(101.0) == ["n1"]
    assert (leader.is_missed("n1", 101.0), leader.is_heard("n1", 101.0)) == (True, False)
    assert leader.healths(101.0)[0].unanswered
    leader.receive(renewal(2), 102.0)
    assert leader.silent(103.0) == ["n1"], "late, and of before"
    leader.receive(renewal(3), 104.0)
    assert (leader.silent(105.0), leader.is_missed("n1", 105.0)) == ([], False)


def test_its_next_life_proves_that_the_last_one_is_mute() -> None:
    leader = cut_off()
    leader.depose("n1", 110.0)
    leader.receive(renewal(3, int(UNANSWERED)), 200.0)
    assert not leader.is_out("n1", 201.0)
    again = Renew("n1", 6, 1, VOTERS.tag, int(UNANSWERED))
    assert leader.receive(again, 210.0) == [], "it is granted nothing"
    assert leader.is_out("n1", 211.0)
    assert leader.take("n1", 211.0) == [Commit((Right("r1", "", 4),))]
    leader.receive(Renew("n1", 6, 2, VOTERS.tag), 220.0)
    assert (leader.is_heard("n1", 221.0), leader.is_out("n1", 221.0)) == (True, False)


def test_a_node_that_asks_others_is_taught() -> None:
    leader = cut_off()
    others = Electorate(1, ("n1", "n8", "n9"))
    (sent,) = leader.receive(Renew("n1", 5, 3, others.tag, int(UNANSWERED)), 200.0)
    assert isinstance(sent, Send)
    assert getattr(sent.message, "electorate", None) == VOTERS
