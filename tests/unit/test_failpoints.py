"""Places where a test lets a daemon die or wait; nothing happens where no test says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vrha import failpoints
from vrha.errors import StepError

ROOT = Path(__file__).parents[2]
PLACE = "before-flip"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(failpoints.VARIABLE, str(tmp_path))
    return tmp_path


def test_without_the_variable_nothing_is_even_looked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / PLACE).write_text("error")
    monkeypatch.delenv(failpoints.VARIABLE)
    failpoints.reach(PLACE)
    monkeypatch.setenv(failpoints.VARIABLE, "")
    failpoints.reach(PLACE)
    assert [path.name for path in folder.iterdir()] == [PLACE]


def test_a_place_without_a_file_and_a_folder_that_is_gone_do_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "elsewhere").write_text("error")
    failpoints.reach(PLACE)
    monkeypatch.setenv(failpoints.VARIABLE, str(folder / "gone"))
    failpoints.reach(PLACE)
    assert [path.name for path in folder.iterdir()] == ["elsewhere"]


def test_an_error_happens_once_and_is_told(folder: Path) -> None:
    (folder / PLACE).write_text("error\n")
    with pytest.raises(StepError) as caught:
        failpoints.reach(PLACE)
    assert caught.value.code == "failpoint"
    assert [path.name for path in folder.iterdir()] == [f"{PLACE}.reached"]
    failpoints.reach(PLACE)


def test_a_kill_leaves_the_process_no_time(folder: Path) -> None:
    (folder / PLACE).write_text("kill")
    code = (
        "import atexit\nfrom vrha import failpoints\n"
        "atexit.register(print, 'ended well')\n"
        f"try:\n    failpoints.reach({PLACE!r})\nfinally:\n    print('went on')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
    assert [path.name for path in folder.iterdir()] == [f"{PLACE}.reached"]


def test_who_waits_goes_on_when_it_is_told_and_not_before(folder: Path) -> None:
    (folder / PLACE).write_text("wait")
    passed = threading.Event()

    def pass_by() -> None:
        failpoints.reach(PLACE)
        passed.set()

    thread = threading.Thread(target=pass_by, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not (folder / f"{PLACE}.reached").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert (folder / f"{PLACE}.reached").exists()
    assert not passed.is_set()
    (folder / f"{PLACE}.go").touch()
    assert passed.wait(10)
    thread.join(10)


def test_who_is_never_told_goes_on_in_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failpoints, "WAIT_S", 0.01)
    (folder / PLACE).write_text("wait")
    failpoints.reach(PLACE)
    assert (folder / f"{PLACE}.reached").exists()
