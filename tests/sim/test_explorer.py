"""No order of a few events leads to two owners; it does where a rule is missing."""

import pytest

from tests.sim.explorer import explore
from tests.sim.many import BY_NAME
from tests.sim.parts import Parts

EVENTS = 8
FAULTS = 3


@pytest.mark.parametrize("voters", [1, pytest.param(3, marks=pytest.mark.long)])
def test_no_order_of_events_makes_two_owners(voters: int) -> None:
    found = explore(Parts(), voters, EVENTS, FAULTS)
    assert found.broken == ()
    assert found.states > 50_000


@pytest.mark.parametrize(
    "name",
    [
        "DeposesNobody",
        "WaitsTooShort",
        "VoterForgetsDeposed",
        "VoterSpeaksAtOnce",
        "MovesWithoutProof",
    ],
)
def test_without_a_rule_some_order_does(name: str) -> None:
    assert explore(BY_NAME[name].parts, 1, EVENTS, FAULTS).broken
