"""Every rule of the protocol that is taken out is missed: a simulator that sees nothing would let
all of these live."""

import os
from collections.abc import Mapping

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
