"""`vrha doctor`: every check is shown, and one that fails fails the command."""

from __future__ import annotations

import json

import pytest

from tests.unit.cli.conftest import Vrha
from vrha.linux import doctor
from vrha.linux.doctor import Check

CHECKS = (
    Check("root", True, "user id 0"),
    Check("nf_tables", False, "Operation not supported", "modprobe nf_tables"),
)


def test_a_failed_check_says_what_to_do(vrha: Vrha, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "checks", lambda: CHECKS)
    result = vrha("doctor")
    assert result.code == 1
    assert result.out.splitlines() == [
        "ok    root: user id 0",
        "FAIL  nf_tables: Operation not supported",
        "        modprobe nf_tables",
    ]
    assert result.err.startswith("error: this machine lacks: nf_tables [machine-not-ready]\n")


def test_a_ready_machine(vrha: Vrha, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "checks", lambda: CHECKS[:1])
    assert vrha("doctor").code == 0


def test_this_machine_as_json(vrha: Vrha) -> None:
    result = vrha("doctor", "--json")
    found = json.loads(result.out)
    assert found[0]["name"] == "root"
    assert result.code == (0 if all(check["ok"] for check in found) else 1)
