"""Every rule of the protocol that is taken out is missed: a simulator that sees nothing would let
all of these live."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.sim.many import BY_NAME, Hunt, hunt_all

RARE = frozenset(
    {
        "LeaseFromReceipt",
        "LeaseFromNewest",
        "OneVoterIsEnough",
        "AnyLeader",
        "VoterForgetsDeposed",
        "NoMargin",
        "OneVoterDeposes",
        "SameEpoch",
        "GrantsBeforeTheStore",
        "GrantsFirst",
        "AsksNobody",
        "OneVoterMisses",
        "SightingsOfBefore",
        "NoFence",
    }
)
"""Random faults do the harm only after many seeds: minutes of computing for these."""


@pytest.fixture(scope="module")
def hunts(request: pytest.FixtureRequest) -> Mapping[str, Hunt]:
    """Of the mutants that are asked for, side by side."""
    wanted = {item.callspec.params.get("name") for item in _asked(request)}
    found = hunt_all([name for name in BY_NAME if name in wanted], os.cpu_count() or 1)
    return {hunt.mutant: hunt for hunt in found}


def _asked(request: pytest.FixtureRequest) -> list[pytest.Item]:
    return [item for item in request.session.items if "test_a_mutant_is_caught[" in item.nodeid]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] if name in RARE else []) for name in BY_NAME],
)
def test_a_mutant_is_caught(name: str, hunts: Mapping[str, Hunt]) -> None:
    assert hunts[name].seeds, f"{BY_NAME[name].rule}: {BY_NAME[name].seeds} seeds found nothing"


def test_there_are_at_least_twenty() -> None:
    assert len(BY_NAME) >= 20


def test_the_document_lists_them_all() -> None:
    table = (Path(__file__).parents[2] / "docs" / "ownership.md").read_text()
    harms = "two owners|nobody|needless|unbraked"
    rows = re.findall(rf"^\| (.+) \| (\w+) \| \w+ \| (?:{harms}) \|", table, re.MULTILINE)
    assert rows == [(mutant.rule, name) for name, mutant in BY_NAME.items()]
