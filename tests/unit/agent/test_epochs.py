"""Epochs survive, and trouble with their file is told."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vrha.agent.epochs import Epochs, Mark
from vrha.errors import PreconditionError, StepError


def test_the_highest_survives(tmp_path: Path) -> None:
    Epochs(tmp_path / "epochs.json").raise_to("r1", (3, 1))
    again = Epochs(tmp_path / "epochs.json")
    again.raise_to("r1", (2, 9))
    assert Epochs(tmp_path / "epochs.json").all() == (("r1", 3),)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"r1": "x"}', '{"r1": null}', "\x00"])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "epochs.json").write_text(text)
    with pytest.raises(PreconditionError) as caught:
        Epochs(tmp_path / "epochs.json")
    assert (caught.value.code, bool(caught.value.hint)) == ("state-damaged", True)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "epochs.json").mkdir()
    with pytest.raises(PreconditionError) as caught:
        Epochs(tmp_path / "epochs.json")
    assert caught.value.code == "state-dir"


@pytest.mark.parametrize(("folder", "code"), [("/dev/full", "state-dir"), ("/proc", "state-dir")])
def test_what_cannot_be_kept_is_not_remembered(folder: str, code: str) -> None:
    epochs = Epochs(Path(folder) / "epochs.json")
    with pytest.raises(StepError) as caught:
        epochs.raise_to("r1", (3, 1))
    assert caught.value.code == code
    assert epochs.highest("r1") == (0, 0)


def test_many_at_a_time_share_their_writes_and_none_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, written = tmp_path / "epochs.json", []
    write = Epochs._write

    def slow(self: Epochs, wanted: Mapping[str, Mark]) -> None:
        time.sleep(0.02)
        write(self, wanted)
        written.append(dict(wanted))

    monkeypatch.setattr(Epochs, "_write", slow)
    epochs = Epochs(path)

    def act(number: int) -> None:
        epochs.raise_to(f"r{number}", (number, 1))
        kept = {router: tuple(mark) for router, mark in json.loads(path.read_text()).items()}
        assert kept[f"r{number}"] == (number, 1), "on the disk before it is acted upon"

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(act, range(1, 41)))
    assert Epochs(path).all() == tuple(sorted((f"r{n}", n) for n in range(1, 41)))
    assert len(written) <= 20


def test_the_newest_is_told_to_all(tmp_path: Path) -> None:
    epochs = Epochs(tmp_path / "epochs.json")
    marks = [(epoch, order) for epoch in range(1, 5) for order in range(10)]
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda mark: epochs.raise_to("r1", mark), reversed(marks)))
    assert all(newest >= mark for newest, mark in zip(told, reversed(marks), strict=True))
    assert epochs.raise_to("r1", (1, 1)) == max(marks)


def test_each_of_many_hears_that_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Epochs, wanted: Mapping[str, Mark]) -> None:
        time.sleep(0.005)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def act(number: int) -> str:
        with pytest.raises(StepError) as caught:
            epochs.raise_to(f"r{number % 4}", (number, 1))
        return caught.value.code

    epochs = Epochs(tmp_path / "epochs.json")
    epochs.raise_to("r0", (1, 0))
    with monkeypatch.context() as broken:
        broken.setattr(Epochs, "_write", full)
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(act, range(1, 17))) == {"no-space"}
    assert epochs.all() == (("r0", 1),)
    epochs.raise_to("r9", (1, 1))
    assert Epochs(tmp_path / "epochs.json").all() == (("r0", 1), ("r9", 1))
