"""One daemon per state folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vrha.config.lock import sole_user
from vrha.errors import PreconditionError, RefusedError


def test_a_second_user_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with (
        sole_user(tmp_path, "agent"),
        pytest.raises(RefusedError, match="another agent") as caught,
        sole_user(tmp_path, "agent"),
    ):
        pass
    assert caught.value.code == "already-running"
    with sole_user(tmp_path, "agent"):
        assert list(tmp_path.iterdir()) == []


def test_the_kernel_frees_what_a_killed_one_held(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from vrha.config.lock import sole_user\n"
        "with sole_user(pathlib.Path(sys.argv[1]), 'agent'): print('held', flush=True); input()"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(RefusedError), sole_user(tmp_path, "agent"):
            pass
        child.kill()
        child.wait(timeout=10)
        with sole_user(tmp_path, "agent"):
            pass


def test_a_child_does_not_hold_it_on(tmp_path: Path) -> None:
    with sole_user(tmp_path, "agent"):
        child = subprocess.Popen(["sleep", "60"])
    try:
        with sole_user(tmp_path, "agent"):
            pass
    finally:
        child.kill()
        child.wait(timeout=10)


def test_a_missing_folder_is_made_for_its_owner_only(tmp_path: Path) -> None:
    with sole_user(tmp_path / "a" / "b", "agent"):
        assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PreconditionError) as caught, sole_user(tmp_path / "file", "agent"):
        pass
    assert (caught.value.code, bool(caught.value.hint)) == ("state-dir", True)
