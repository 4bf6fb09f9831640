"""Every rule of the protocol that is taken out is missed: a simulator that sees nothing would let
all of these live."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.sim.many import BY_NAME, Hunt, hunt_all


@pytest.fixture(scope="module")
def hunts() -> Mapping[str, Hunt]:
    return {hunt.mutant: hunt for hunt in hunt_all(BY_NAME, os.cpu_count() or 1)}


@pytest.mark.parametrize("name", BY_NAME)
def test_a_mutant_is_caught(name: str, hunts: Mapping[str, Hunt]) -> None:
    assert hunts[name].seeds, f"{BY_NAME[name].rule}: {BY_NAME[name].seeds} seeds found nothing"


def test_there_are_at_least_twenty() -> None:
    assert len(BY_NAME) >= 20


def test_the_document_lists_them_all() -> None:
    table = (Path(__file__).parents[2] / "docs" / "ownership.md").read_text()
    harms = "two owners|nobody|needless|unbraked"
    rows = re.findall(rf"^\| (.+) \| (\w+) \| \w+ \| (?:{harms}) \|", table, re.MULTILINE)
    assert rows == [(mutant.rule, name) for name, mutant in BY_NAME.items()]
