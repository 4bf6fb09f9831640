"""Epochs survive, and trouble with their file is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from vrha.agent.epochs import Epochs
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
