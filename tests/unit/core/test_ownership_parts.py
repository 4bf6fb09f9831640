"""Timing, wanted rights, and corners of holder and leader that random runs pass too quickly."""

from __future__ import annotations

import pytest

from vrha.core.ownership.book import Book
from vrha.core.ownership.commands import Commit, Mute, Permit, Right, Send, Tell
from vrha.core.ownership.holder import Holder, first_incarnation
from vrha.core.ownership.leader import Leader
from vrha.core.ownership.timing import PROFILES, Timing, problems
from vrha.core.ownership.wanted import wanted_rights
from vrha.model.ownership import Ack, Deposed, Electorate, Grant, Holding, Renew
from vrha.model.spec import InstanceRef
from vrha.model.state import RouterState

VOTERS = Electorate(1, ("n1", "n2", "n3"))
TIMING = PROFILES["default"]


def holder(now: float = 0.0) -> Holder:
    return Holder("n1", TIMING, VOTERS, 5, {}, now)


def leased(now: float = 0.0) -> Holder:
    """With a lease from `now` on."""
    made = holder(now)
    made.tick(now)
    for voter in ("n2", "n3"):
        made.receive(Ack(voter, "n1", 5, 1), now + 1)
    return made


def grant(number: int = 1, seq: int = 1, **fields: object) -> Grant:
    values = {"routers": (("r1", 1),), "incarnation": 5, "leader_epoch": 1, **fields}
    return Grant("o1", number=number, node="n1", seq=seq, electorate=VOTERS, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_hold_together(profile: str) -> None:
    assert list(problems(PROFILES[profile])) == []


def test_worst_outages_are_as_promised() -> None:
    assert PROFILES["default"].worst_outage_ms < 1000
    assert PROFILES["fast"].worst_outage_ms < 500


@pytest.mark.parametrize(
    "timing",
    [
        Timing(lease_ms=400),
        Timing(slice_ms=250),
        Timing(slice_ms=40),
        Timing(suspect_ms=200),
        Timing(suspect_ms=900),
        Timing(drift=0.0),
        Timing(drift=0.5),
        Timing(renew_ms=-1),
    ],
)
def test_times_that_do_not_fit_are_refused(timing: Timing) -> None:
    assert list(problems(timing))


def test_the_lease_counts_from_sending() -> None:
    made = holder()
    made.tick(0.0)
    made.receive(Ack("n2", "n1", 5, 1), 100.0)
    assert made.lease_end is None, "one of three is no majority"
    made.receive(Ack("n3", "n1", 5, 1), 300.0)
    assert made.lease_end == TIMING.lease_ms


def test_a_lapse_mutes_before_anything_is_said() -> None:
    made = leased()
    commands = made.receive(grant(), TIMING.lease_ms)
    assert isinstance(commands[0], Mute)
    assert not any(isinstance(command, Permit) for command in commands)
    said = made.tick(TIMING.lease_ms)
    assert isinstance(said[0], Tell)
    assert said[0].message == Renew("n1", 6, 1, VOTERS.tag)


def test_a_grant_without_a_lease_ends_with_its_renewal() -> None:
    made = holder()
    made.tick(0.0)
    assert made.receive(grant(), 10.0)
    assert made.routers == {"r1": 1}
    assert isinstance(made.tick(TIMING.lease_ms)[0], Mute)
    assert made.routers == {}


def test_what_a_grant_revokes_stays_revoked() -> None:
    made = leased()
    made.receive(grant(1), 2.0)
    made.receive(grant(2, routers=(), revoked=(("r1", 2),)), 3.0)
    (permit, answer) = made.receive(grant(3, routers=(("r1", 1),)), 4.0)
    assert isinstance(permit, Permit)
    assert permit.routers == ()
    assert isinstance(answer, Send)
    assert isinstance(answer.message, Holding)
    assert answer.message.epochs == (("r1", 2),)


@pytest.mark.parametrize(
    ("late", "reason"),
    [
        ({"leader_epoch": 0}, "stale-leader"),
        ({"number": 1}, "stale-grant"),
        ({"number": 9, "seq": 99}, "late-grant"),
    ],
)
def test_refusals_say_why(late: dict[str, int], reason: str) -> None:
    made = leased()
    made.receive(grant(2), 2.0)
    (answer,) = made.receive(grant(**late), 3.0)
    assert isinstance(answer, Send)
    assert getattr(answer.message, "reason", "") == reason
    assert getattr(answer.message, "leader_epoch", 0) == 1


def test_the_next_process_goes_on_while_the_lease_lasts() -> None:
    made = leased()
    made.receive(grant(), 2.0)
    life = made.saved()
    assert life is not None
    after = holder(100.0)
    assert after.resume(life, 100.0)
    assert (after.routers, after.lease_end) == ({"r1": 1}, TIMING.lease_ms)
    after.tick(100.0)
    after.receive(Ack("n2", "n1", 5, 2), 101.0)
    after.receive(Ack("n3", "n1", 5, 2), 101.0)
    assert after.lease_end == TIMING.lease_ms, "answers to the process before do not count"
    assert not holder(600.0).resume(life, 600.0)


def test_incarnations_are_told_apart_by_chance_too() -> None:
    assert first_incarnation(0, 7) != first_incarnation(0, 8)
    assert first_incarnation(first_incarnation(5, 1), 0) > first_incarnation(5, 0xFFFFFFFF)


def leader(*rights: Right) -> Leader:
    book = Book((VOTERS,), {right.router: right for right in rights}, {"n1": 5})
    return Leader("o1", 1, TIMING, book, 0.0)


def test_nobody_is_given_what_another_has() -> None:
    made = leader(Right("r1/1", "n1", 3))
    assert made.give("r1/2", "n2", 0.0) == []
    both = {"r1/1", "r1/2", "r1/3"}
    assert made.give("r1/2", "n2", 0.0, beside={"r1/2"}) == [], "nobody wants it beside the other"
    (commit,) = made.give("r1/2", "n2", 0.0, beside=both)
    assert commit == Commit((Right("r1/2", "n2", 4),))
    assert made.give("r1/2", "n3", 0.0, beside=both) == []
    (commit,) = made.give("r1/3", "n1", 0.0, beside=both)
    assert commit == Commit((Right("r1/3", "n1", 5),)), "epochs are of the router"


def test_a_silent_node_is_waited_out() -> None:
    made = leader(Right("r1", "n1", 3))
    assert made.silent(TIMING.suspect_ms) == ["n1"]
    assert len(made.depose("n1", 400.0)) == 3
    for voter in ("n2", "n3"):
        made.receive(Deposed(voter, 1, 1, "n1", 5, 1000.0, 5), 410.0)
    out = TIMING.safe_ms
    assert made.take("n1", out - 1) == []
    assert made.take("n1", out) == [Commit((Right("r1", "", 4),))]


def test_voters_change_one_by_one() -> None:
    made = leader()
    assert made.elect(("n1",), 0.0) == []
    assert made.elect(("n1", "n2", "n3", "o1"), 0.0)
    assert len(made.book.electorates) == 2
    assert made.elect(("n1", "n2", "n3"), 0.0) == [], "the last change is not through"


def test_what_serves_and_what_is_being_built_has_a_right() -> None:
    states = [
        RouterState("r1", node="n1", active=InstanceRef("r1", 4)),
        RouterState("r2", node="n2"),
    ]
    assert wanted_rights(states, ()) == {"r1/4": "n1"}


def test_a_node_whose_settings_name_other_voters_gets_nothing_until_it_learned() -> None:
    made = leader(Right("r1", "n1", 3))
    wrong = Holder("n1", TIMING, Electorate(1, ("n1",)), 5, {}, 0.0)
    (tell,) = wrong.tick(0.0)
    assert isinstance(tell, Tell)
    (send,) = made.receive(tell.message, 1.0)
    assert isinstance(send, Send)
    assert isinstance(send.message, Grant)
    assert send.message.routers == ()
    wrong.receive(send.message, 2.0)
    assert wrong.electorate == VOTERS
    (tell,) = wrong.tick(150.0)
    assert isinstance(tell, Tell)
    (send,) = made.receive(tell.message, 151.0)
    assert isinstance(send, Send)
    assert getattr(send.message, "routers", ()) == (("r1", 3),)


# ---- silence, and takeovers


def hears(made: Leader, node: str, seq: int, now: float, incarnation: int = 5) -> None:
    made.receive(Renew(node, incarnation, seq, VOTERS.tag), now)


def asked(made: Leader, now: float) -> int:
    """The question about n1; all voters get it."""
    sent = made.inquire("n1", now)
    attempts = {each.message.attempt for each in sent if isinstance(each, Send)}  # type: ignore[union-attr]
    (attempt,) = attempts
    return int(attempt)


def say(made: Leader, attempt: int, age: float, now: float, *voters: str) -> None:
    for voter in voters:
        made.receive(Deposed(voter, 1, attempt, "n1", 0, age, 5), now)


def test_a_node_is_missed_when_a_majority_says_so() -> None:
    made = leader(Right("r1/1", "n1", 3))
    say(made, asked(made, 400.0), 400.0, 401.0, "n2")
    assert (made.is_missed("n1", 402.0), made.is_seen("n1", 402.0)) == (False, False)
    say(made, made.nodes["n1"].asked, 400.0, 403.0, "n3")
    assert (made.is_missed("n1", 404.0), made.is_seen("n1", 404.0)) == (True, False)


def test_what_voters_say_now_replaces_what_they_said() -> None:
    made = leader(Right("r1/1", "n1", 3))
    say(made, asked(made, 400.0), 400.0, 401.0, "n2", "n3")
    say(made, asked(made, 550.0), 20.0, 551.0, "n2", "n3")
    assert (made.is_missed("n1", 552.0), made.is_seen("n1", 552.0)) == (False, True)


def test_what_voters_said_gets_old() -> None:
    made = leader(Right("r1/1", "n1", 3))
    say(made, asked(made, 400.0), 400.0, 401.0, "n2", "n3")
    asked(made, 550.0)
    assert made.is_missed("n1", 400.0 + TIMING.missed_ms), "answers of before, until others come"
    assert not made.is_missed("n1", 401.0 + TIMING.missed_ms)


def test_what_voters_said_of_one_silence_is_not_of_the_next() -> None:
    made = leader(Right("r1/1", "n1", 3))
    hears(made, "n1", 1, 0.0)
    say(made, asked(made, 400.0), 400.0, 401.0, "n2", "n3")
    hears(made, "n1", 2, 410.0)
    assert not made.is_missed("n1", 411.0)


def both() -> Leader:
    """n1 has an instance, and n2 and n3 live."""
    made = leader(Right("r1/1", "n1", 3))
    for name, incarnation in (("n1", 5), ("n2", 1), ("n3", 1)):
        hears(made, name, 1, 0.0, incarnation)
    return made


def test_a_takeover_from_a_living_node_waits_for_its_proof() -> None:
    made = both()
    commit, grant_ = made.reassign({"r1/2": "n2"}, 1.0)
    assert commit == Commit((Right("r1/1", "n1", 4, leaving=True),))
    assert isinstance(grant_, Send)
    assert grant_.to == "n1"
    assert made.reassign({"r1/2": "n2"}, 2.0) == [], "it has been asked"
    made.receive(Holding("n1", 5, 1, made.nodes["n1"].number, (), (("r1/1", 4),)), 3.0)
    commit, grant_ = made.reassign({"r1/2": "n2"}, 4.0)
    assert commit == Commit((Right("r1/2", "n2", 6),))
    assert isinstance(grant_, Send)
    assert grant_.to == "n2"


def test_a_takeover_from_a_lost_node_waits_until_it_is_out() -> None:
    made = both()
    made.depose("n1", 400.0)
    for voter in ("n2", "n3"):
        made.receive(Deposed(voter, 1, 1, "n1", 5, 1000.0, 5), 401.0)
    for place in range(2, 8):
        hears(made, "n2", place, 150.0 * place, 1)
    (out,) = made.outs()
    commit, *_ = made.reassign({"r1/2": "n2"}, out - 1)
    assert commit == Commit((Right("r1/1", "n1", 4, leaving=True),))
    commit, *_ = made.reassign({"r1/2": "n2"}, out)
    assert commit == Commit((Right("r1/1", "", 5), Right("r1/2", "n2", 6)))


def test_an_instance_that_is_elsewhere_is_asked_back_too() -> None:
    commit, *_ = both().reassign({"r1/1": "n2"}, 1.0)
    assert commit == Commit((Right("r1/1", "n1", 4, leaving=True),))


def test_of_two_instances_of_a_router_one_takes_over() -> None:
    made = both()
    commit, *_ = made.reassign({"r2/1": "n2", "r2/2": "n3"}, 1.0)
    assert commit == Commit((Right("r2/1", "n2", 2),))


def test_nothing_is_taken_over_by_a_node_that_is_given_up() -> None:
    made = both()
    made.depose("n2", 1.0)
    assert made.reassign({"r1/2": "n2"}, 2.0) == []
