"""No two owners, and none unowned after the calm, in thousands of seeds."""

import os

import pytest

from tests.sim.many import Job, run_all
from tests.sim.scripts import SCRIPTS, at_random

JOBS = os.cpu_count() or 1
BLOCK = 400
SEEDS = 800
OF_A_SCRIPT = 10


def bad(jobs: list[Job]) -> list[str]:
    found = [
        f"{job.command}: {outcome.violations or outcome.unowned}"
        for job, outcome in run_all(jobs, JOBS)
        if outcome.bad
    ]
    return sorted(found)


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_random_faults_break_nothing(first: int) -> None:
    assert bad([Job(seed) for seed in range(first, first + BLOCK)]) == []


def test_directed_faults_break_nothing() -> None:
    scripts = [name for name in SCRIPTS if name != at_random.__name__]
    assert bad([Job(seed, name) for name in scripts for seed in range(OF_A_SCRIPT)]) == []
