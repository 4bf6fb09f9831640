"""The one form of all results: an object with host, parameters and rows of raw runs."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def result(bench: str, params: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Result:
    """The object that `--json` writes."""
    return {
        "bench": bench,
        "commit": _commit(),
        "host": {
            "kernel": platform.release(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
        "params": dict(params),
        "rows": list(rows),
    }


def is_made(value: Result) -> bool:
    """Whether at least one run of some row but the control is good."""
    rows = [row for row in value["rows"] if row["row"] != "control"]
    return any("failed" not in run for row in rows for run in row["runs"])


def write_json(path: Path, value: Result) -> None:
    """Write `value` so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(value, indent=1) + "\n")
    fresh.replace(path)


def progress(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


def spread(values: Iterable[float], digits: int = 1) -> str:
    """`median / worst` of the values; a dash for none."""
    numbers = list(values)
    if not numbers:
        return "-"
    return f"{statistics.median(numbers):.{digits}f} / {max(numbers):.{digits}f}"


def quartiles(values: Iterable[float], digits: int = 1) -> str:
    """`median (lower quartile - upper quartile)` of the values; a dash for none."""
    numbers = list(values)
    if len(numbers) < 2:
        return f"{numbers[0]:.{digits}f}" if numbers else "-"
    low, middle, high = (f"{q:.{digits}f}" for q in statistics.quantiles(numbers, n=4))
    return f"{middle} ({low} - {high})"


def columns(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A plain table, columns as wide as their widest cell."""
    cells = [list(header), *[list(line) for line in lines]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except OSError:
        return ""
    return done.stdout.strip()
