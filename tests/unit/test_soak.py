"""What the soak draws, and what it makes of an inventory; no zone needed."""

from __future__ import annotations

import itertools
from collections import Counter

from tests.sim.nemesis import Cut, Kill, Loss
from tests.system.labfaults import Damage, node_of, resolved
from tools.soaking.audit import differences
from tools.soaking.kinds import NOT_FELT, RECOVERED, kinds, sequence
from tools.soaking.report import line, table
from tools.soaking.rounds import Outcome

SERVES = {"r1": "n2", "r2": "n2", "r3": "n3"}
MANY = 400


def test_the_same_seed_draws_the_same_faults_and_another_one_others() -> None:
    one, same, other = (list(itertools.islice(sequence(s), MANY)) for s in (4, 4, 5))
    assert one == same
    assert one != other


def test_every_kind_comes_before_any_comes_again() -> None:
    known = kinds()
    assert len(known) >= 20
    first = [injection.kinds[0] for injection in itertools.islice(sequence(1), 2 * len(known))]
    assert Counter(first) == dict.fromkeys(known, 2)
    assert set(first[: len(known)]) == set(known)


def test_some_rounds_have_two_faults_about_different_things() -> None:
    drawn = list(itertools.islice(sequence(2), MANY))
    pairs = [injection for injection in drawn if len(injection.faults) == 2]
    assert MANY / 8 < len(pairs) < MANY / 2
    known = kinds()
    for one, other in (injection.kinds for injection in pairs):
        assert one != other
        assert not known[one].about or known[one].about != known[other].about


def test_of_two_faults_only_the_end_is_promised_unless_both_are_harmless() -> None:
    for injection in itertools.islice(sequence(3), MANY):
        if len(injection.kinds) == 2 and "rules-flushed" not in injection.kinds:
            harmless = all(kinds()[name].promise == NOT_FELT for name in injection.kinds)
            assert injection.promise == (NOT_FELT if harmless else RECOVERED)


def test_only_the_chosen_kinds_are_drawn() -> None:
    names = ["move", "agent-killed"]
    drawn = itertools.islice(sequence(1, names), 20)
    assert {name for injection in drawn for name in injection.kinds} == set(names)


def test_a_fault_finds_the_node_of_its_router() -> None:
    assert resolved(Loss("@r3", 1), SERVES) == Loss("n3", 1)
    assert resolved(Kill("agent-@r1", 1), SERVES) == Kill("agent-n2", 1)
    assert resolved(Cut(("@r1",), (), 1), SERVES) == Cut(("n2",), (), 1)
    assert resolved(Kill("broker", 1), SERVES) == Kill("broker", 1)
    assert resolved(Damage("r1", "port"), SERVES) == Damage("r1", "port")


def test_two_faults_never_hit_one_node() -> None:
    """The second would start again what the first has killed for a while."""
    assert resolved(Loss("@r1", 1), SERVES, ["n2"]) == Loss("n3", 1)
    assert node_of(Kill("agent-n2", 1)) == "n2"
    assert node_of(Kill("orchestrator", 1)) == ""


def test_differences_count() -> None:
    before, after = Counter(a=2, b=1), Counter(a=1, c=2)
    assert differences(before, after) == ["+ c", "+ c", "- a", "- b"]
    assert differences(before, before) == []


def test_the_report_tells_of_every_kind_and_of_violations() -> None:
    good = Outcome(1, "move", [], 0, 0.0, gap_ms=4, tcp_total=8, tcp_alive=8)
    bad = Outcome(2, "move+disk-full", ["x", "y"], 20, 0.0, gap_ms=800, violations=["two owners"])
    assert "VIOLATION two owners" in line(bad)
    assert "VIOLATION" not in line(good)
    rows = [row.split() for row in table([good, good, bad]).splitlines()]
    assert rows[1][:2] == ["move", "2"]
    assert rows[2][:4] == ["two", "at", "once", "1"]
    assert rows[1][-1] == "0"
    assert rows[2][-1] == "1"
