"""The cases of tests/faults: nothing of a plan is left out, and each has a name of its own."""

from __future__ import annotations

from tests.faults.cases import (
    AGENT,
    BROKER,
    HANDOVER,
    INSIDE,
    MOVE,
    ORCHESTRATOR,
    PEER,
    all_cases,
    chosen_cases,
)

THERE = {
    HANDOVER: ["build", "sync", "flip", "verify", "destroy"],
    MOVE: ["build", "offer", "sync", "flip", "verify", "destroy"],
}
BACK = {
    HANDOVER: ["undo-flip", "undo-destroy"],
    MOVE: ["undo-relay", "undo-unmute", "undo-announce", "undo-destroy"],
}


def test_agents_and_the_broker_die_before_and_after_each_step_and_in_the_flip() -> None:
    for scenario in (HANDOVER, MOVE):
        victims = [AGENT, BROKER] + ([PEER] if scenario == MOVE else [])
        for victim in victims:
            places = {
                c.place
                for c in all_cases()
                if (c.scenario, c.victim) == (scenario, victim)
                and not c.place.startswith("orchestrator.")
            }
            kinds = [*THERE[scenario], *BACK[scenario]]
            assert places == {INSIDE} | {
                f"agent.{kind}.{when}" for kind in kinds for when in ("before", "after")
            }


def test_the_orchestrator_dies_around_each_commit_and_each_message() -> None:
    for scenario in (HANDOVER, MOVE):
        places = {
            c.place for c in all_cases() if (c.scenario, c.victim) == (scenario, ORCHESTRATOR)
        }
        for kind in (*THERE[scenario], *BACK[scenario]):
            assert {f"orchestrator.{kind}.reported", f"orchestrator.{kind}.settled"} <= places
        # Steps that are sent together are sent by the name of the first.
        assert "orchestrator.flip.sending" in places
        assert "orchestrator.verify.sending" not in places
        assert {"orchestrator.check-in.received", "orchestrator.check-in.accepted"} <= places


def test_what_comes_before_the_flip_is_known_as_such() -> None:
    early = {c.place for c in all_cases() if c.before_flip}
    assert {"agent.sync.after", "agent.flip.before", "orchestrator.flip.sending"} <= early
    assert not {INSIDE, "agent.flip.after", "orchestrator.flip.sent"} & early
    assert not any(c.undo and c.before_flip for c in all_cases())


def test_names_differ_and_the_choice_meets_every_victim_in_every_step() -> None:
    names = [case.name for case in all_cases()]
    assert len(names) == len(set(names))
    groups = {(c.victim, c.kind) for c in all_cases()}
    assert {(c.victim, c.kind) for c in chosen_cases()} == groups
    assert len(chosen_cases()) < len(names) / 3
