"""A seed is the same run, whenever and wherever it is run."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from tests.sim.many import BY_NAME, Job, run_job
from tests.sim.run import run_seed

ROOT = Path(__file__).parents[2]


def simulate(*options: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.simulation", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def digest(seed: int) -> str:
    lines: list[str] = []
    run_seed(seed, trace=lines.append)
    return sha256("\n".join(lines).encode()).hexdigest()


def test_another_process_with_other_hashes_sees_the_same_events() -> None:
    one, other = (
        simulate("--seed", "42", "--trace", hash_seed=number).stdout for number in ("1", "2")
    )
    assert len(one.splitlines()) > 1000
    assert sha256(one.encode()).digest() == sha256(other.encode()).digest()


def test_a_run_leaves_nothing_behind_for_the_next() -> None:
    first = digest(5)
    assert digest(6) != first
    assert digest(5) == first


def test_a_violation_is_told_with_what_replays_it() -> None:
    told = simulate("--seeds", "4", "--jobs", "1", "--mutant", "DeposesNobody")
    assert told.returncode == 1
    assert "both own r" in told.stdout
    assert "nemesis does" in told.stdout
    replays = [line for line in told.stdout.splitlines() if "replay:" in line]
    options = replays[0].split("./tools/sim ")[1].split()
    seed = int(options[1])
    again = simulate(*options)
    assert again.returncode == 1
    outcome = run_job(Job(seed, mutant="DeposesNobody"))
    assert str(outcome.violations[0]) in told.stdout
    assert str(outcome.violations[0]) in again.stdout.splitlines()[-1]


def test_the_tool_says_what_it_did(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    told = simulate("--seeds", "2", "--jobs", "1", "--json", str(out))
    assert told.returncode == 0, told.stderr
    assert "2 seeds of 60 s, 0 bad" in told.stdout
    assert '"seeds_per_second"' in out.read_text()


@pytest.mark.parametrize("name", ["WaitsTooShort"])
def test_a_mutant_runs_under_its_name(name: str) -> None:
    job = Job(0, BY_NAME[name].script.__name__, name)
    assert type(job.parts) is type(BY_NAME[name].parts)
    assert job.command == f"./tools/sim --seed 0 --mutant {name} --trace"
