"""Journal and marks: what they say, also on a damaged or full disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vrha.core.cleanup.items import Item, Kind, Outcome, Result
from vrha.core.cleanup.profile import Profile
from vrha.core.cleanup.profiles.vrha import VRHA
from vrha.errors import StepError
from vrha.linux.sweep import engine, journal
from vrha.linux.sweep.journal import Journal
from vrha.linux.sweep.leaked import Leak, Leaks

ITEM = Item(Kind.PORT, "vrh1-n0", "edge-1", "alias", {"index": 7})


def test_a_sweep_that_was_cut_short_is_known(tmp_path: Path) -> None:
    first = Journal(tmp_path / "cleanup", "1")
    first.begin("vrha", ["edge-1", "edge-2"], 9)
    first.note([Outcome(ITEM, Result.FAILED, "busy")])
    assert journal.unfinished(tmp_path / "cleanup") == {"edge-1", "edge-2"}
    with (tmp_path / "cleanup" / journal.FILE).open("a") as file:
        file.write('{"run": "1", "eve\n[]\n')
    second = Journal(tmp_path / "cleanup", "2")
    second.begin("vrha", ["edge-1"], 1)
    second.end({"edge-1": "removed"}, ["a problem"])
    assert journal.unfinished(tmp_path / "cleanup") == {"edge-2"}
    lines = list(journal.read(tmp_path / "cleanup"))
    assert [line["event"] for line in lines] == ["begin", "outcome", "begin", "end"]
    assert (lines[1]["index"], lines[1]["reason"], lines[1]["result"]) == (7, "busy", "failed")
    assert first.trouble == second.trouble == ""


def test_a_journal_begins_anew_when_it_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_LARGE", 100)
    for run in ("1", "2"):
        Journal(tmp_path, run).begin("vrha", ["edge-1"] * 20, 1)
    assert [line["run"] for line in journal.read(tmp_path)] == ["2"]
    old = (tmp_path / journal.FILE).with_suffix(".old")
    assert json.loads(old.read_text())["run"] == "1"


def test_a_journal_that_cannot_be_written_tells(tmp_path: Path) -> None:
    (tmp_path / "cleanup").touch()
    kept = Journal(tmp_path / "cleanup", "1")
    kept.begin("vrha", ["edge-1"], 1)
    assert "cleanup" in kept.trouble
    assert list(journal.read(tmp_path / "nothing")) == []


def test_a_mark_counts_in_its_own_boot_only(tmp_path: Path) -> None:
    leaks = Leaks(tmp_path / "leaked")
    leaks.refuse("edge-1")
    leaks.mark(Leak("edge-1", 4026531999, 5))
    assert leaks.read() == [Leak("edge-1", 4026531999, 5)]
    with pytest.raises(StepError) as caught:
        leaks.refuse("edge-1")
    assert (caught.value.code, "vrha cleanup" in caught.value.hint) == ("instance-leaked", True)
    leaks.refuse("edge-2")
    path = tmp_path / "leaked" / "edge-1"
    for text in (path.read_text().replace('"boot": "', '"boot": "x'), "damaged", "{}\n"):
        path.write_text(text)
        leaks.refuse("edge-1")
    leaks.clear("edge-1")
    leaks.clear("edge-1")
    assert leaks.read() == []


def test_only_what_a_profile_has_is_loaded() -> None:
    assert set(engine.modules(VRHA)) == {Kind.PORT, Kind.PROCESS, Kind.NAMESPACE, Kind.FILE}
    plain = Profile("x", "", "/x", namespace_owner=lambda name: None)
    assert plain.port_owner("a", "b") is None
    assert plain.router_of("edge") == "edge"
