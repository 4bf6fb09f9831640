"""One zone for all cases; a case that leaves it unfit costs the next one a fresh zone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.faults.cases import INSIDE, all_cases, chosen_cases
from tests.faults.stage import Stage, stage

ALL = "--all-faults"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        ALL, action="store_true", help="every case of tests/faults, not a choice of them"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        every = metafunc.config.getoption(ALL, default=False)
        cases = all_cases() if every else chosen_cases()
        # The inside of a flip is never left out.
        marks = [
            [pytest.mark.long] if place % 4 and case.place != INSIDE else []
            for place, case in enumerate(cases)
        ]
        metafunc.parametrize(
            "case",
            [
                pytest.param(case, marks=mark, id=case.name)
                for case, mark in zip(cases, marks, strict=True)
            ],
        )


class Stages:
    """The stage in use."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._now: Stage | None = None
        self._count = 0

    def fit(self) -> Stage:
        if self._now is None or not self._now.is_fit():
            self.close()
            self._count += 1
            self._now = self._stack.enter_context(stage(f"flt{os.getpid()}-{self._count}"))
        return self._now

    def spoiled(self) -> None:
        """The next case begins anew."""
        self._now = None

    def close(self) -> None:
        self._now = None
        self._stack.close()


@pytest.fixture(scope="session")
def stages() -> Iterator[Stages]:
    made = Stages()
    try:
        yield made
    finally:
        made.close()
