"""The bench of the sweep: its rows, and that neither it nor what it measures leaves anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.unhurried]

_ROOT = Path(__file__).parents[2]
_WAYS = "floor,engine,ip netns del"


def test_rows_tell_what_went_and_what_stayed(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "tools.benchmarks", "sweep", "--vrs", "2", "--runs", "1"]
    command += ["--ways", _WAYS, "--inside", "dnsmasq", "--json", str(out)]
    links = set(os.listdir("/sys/class/net"))
    done = subprocess.run(
        command,
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    rows = {row["row"].removesuffix(", 2, dnsmasq"): row["runs"][0] for row in result["rows"]}
    assert set(rows) == set(_WAYS.split(","))
    for swept in ("floor", "engine"):
        run = rows[swept]
        assert run["leaked"] == []
        assert 0 < run["muted_ms"] <= run["gone_ms"]
        assert run["silent_ms"] is not None
    assert rows["floor"]["ratio"] == 1
    # Silenced before the ports are deleted, not by that.
    assert rows["engine"]["muted_ms"] < rows["engine"]["gone_ms"]
    kinds = [thing.partition(" ")[0] for thing in rows["ip netns del"]["leaked"]]
    assert sorted(kinds) == ["port"] * 4 + ["process"] * 2
    assert rows["ip netns del"]["gone_ms"] is None
    assert [run["lost"]["other"] for run in rows.values()] == [0, 0, 0]
    assert "2 processes" in done.stdout
    assert set(os.listdir("/sys/class/net")) == links
