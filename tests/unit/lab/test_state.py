"""Claiming, reading and removing the folder of a lab."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from vrha.bus.processes import ProcessId
from vrha.errors import InputError, NotFoundError, RefusedError
from vrha.lab import state


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(state, "ROOT", tmp_path / "labs")
    return tmp_path / "labs"


def me() -> ProcessId:
    found = ProcessId.of(os.getpid())
    assert found is not None
    return found


def dead() -> ProcessId:
    return replace(me(), start=me().start - 1)


def test_record_survives_the_disk() -> None:
    record = state.LabState("a", "seed", me(), True, me(), True, {"vm1": "br"}, {"n1": me()})
    state.claim(record)
    assert state.load("a") == record
    assert state.alive("a")


def test_second_claim_is_refused_and_leaves_the_first() -> None:
    state.claim(state.LabState("a", "seed", me()))
    with pytest.raises(RefusedError) as caught:
        state.claim(state.LabState("a", "other", me()))
    assert caught.value.code == "lab-exists"
    assert state.load("a").scenario == "seed"
    assert state.lab_names() == ["a"]


def test_dead_anchor_is_dead_though_its_owner_lives() -> None:
    record = state.LabState("a", "seed", me())
    assert record.alive
    assert not replace(record, anchor=dead()).alive
    assert not replace(record, owner=dead()).alive


def test_remove_takes_the_common_folder_with_the_last(root: Path) -> None:
    state.claim(state.LabState("a", "seed", me()))
    state.claim(state.LabState("b", "seed", me()))
    state.remove("a")
    assert state.lab_names() == ["b"]
    state.remove("b")
    assert not root.exists()


def test_half_made_folder_of_a_dead_owner_goes_too(root: Path) -> None:
    state.claim(state.LabState("a", "seed", me()))
    (root / f".x.{dead().pid}.{dead().start}").mkdir()
    kept = root / f".y.{me().pid}.{me().start}"
    kept.mkdir()
    state.remove("a")
    assert list(root.iterdir()) == [kept]


def test_unknown_lab_names_the_known() -> None:
    state.claim(state.LabState("a", "seed", me()))
    with pytest.raises(NotFoundError) as caught:
        state.load("b")
    assert caught.value.code == "no-lab"
    assert "a" in caught.value.hint


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-a", "a" * 32, "a.b"])
def test_names_that_could_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(InputError) as caught:
        state.folder_of(name)
    assert caught.value.code == "bad-name"


def test_process_is_told_from_another_life_of_its_pid() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        real = ProcessId.of(child.pid)
        assert real is not None
        stranger = replace(real, start=real.start + 1)
        assert not stranger.kill()
        assert child.poll() is None
        assert stranger.wait_gone(0)
        assert not real.wait_gone(0)
        assert real.kill()
        assert child.wait() == -9
    assert not real.alive
    assert not real.kill()
