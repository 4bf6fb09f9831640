"""Many seeds in several processes, and how many it takes to catch a mutant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context

from tests.sim.machine import Needless, Unbraked, Violation
from tests.sim.mutants import MUTANTS, Mutant
from tests.sim.parts import Parts
from tests.sim.run import Outcome, run_seed
from tests.sim.scripts import SCRIPTS, at_random

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


@dataclass(frozen=True, slots=True)
class Job:
    """A seed under a script; `mutant` empty for the whole protocol."""

    seed: int
    script: str = at_random.__name__
    mutant: str = ""

    @property
    def parts(self) -> Parts | None:
        return BY_NAME[self.mutant].parts if self.mutant else None

    @property
    def command(self) -> str:
        """That replays it exactly."""
        script = f" --script {self.script}" if self.script != at_random.__name__ else ""
        mutant = f" --mutant {self.mutant}" if self.mutant else ""
        return f"./tools/sim --seed {self.seed}{script}{mutant} --trace"


@dataclass(frozen=True, slots=True)
class Hunt:
    """`seeds` is how many it took, 0: it lives."""

    mutant: str
    seeds: int
    outcome: Outcome | None


def run_job(job: Job) -> Outcome:
    return run_seed(job.seed, job.parts, SCRIPTS[job.script])


def hunt(name: str) -> Hunt:
    """Seeds from 0 on until the harm is done that the mutant's rule is there to prevent."""
    mutant = BY_NAME[name]
    for seed in range(mutant.seeds):
        outcome = run_seed(seed, mutant.parts, mutant.script)
        if is_caught(mutant, outcome):
            return Hunt(name, seed + 1, outcome)
    return Hunt(name, 0, None)


def is_caught(mutant: Mutant, outcome: Outcome) -> bool:
    """By the very harm that its rule is to prevent."""
    if mutant.harm == "nobody":
        return bool(outcome.unowned)
    kind = {"two owners": Violation, "needless": Needless, "unbraked": Unbraked}[mutant.harm]
    return any(isinstance(each, kind) for each in outcome.violations)


def run_all(jobs: Iterable[Job], processes: int) -> Iterator[tuple[Job, Outcome]]:
    """In any order."""
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(_run_with_job, jobs, chunksize=4)


def hunt_all(names: Iterable[str], processes: int) -> Iterator[Hunt]:
    """In any order."""
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(hunt, names)


def _run_with_job(job: Job) -> tuple[Job, Outcome]:
    return job, run_job(job)
