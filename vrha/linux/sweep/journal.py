"""What sweeps did on this node: one line of JSON per step, appended and synced.

A sweep that was cut short needs no journal to be finished, for all that is left is found again. It
tells people what was begun, and what became of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vrha.core.cleanup.items import Outcome

FILE = "journal.jsonl"
_LARGE = 4 << 20
"""Bytes after which the next sweep begins a new file; one older is kept."""


class Journal:
    """The journal in a folder. Writing never raises: `trouble` says what kept it from the disk."""

    def __init__(self, folder: Path, run: str) -> None:
        """`run` names the sweep in every line."""
        self._path = folder / FILE
        self._run = run
        self.trouble = ""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_size > _LARGE:
                    os.replace(self._path, self._path.with_suffix(".old"))
        except OSError as error:
            self._missed(error)

    def begin(self, profile: str, owners: Sequence[str], items: int) -> None:
        """These will be swept."""
        self._write([{"event": "begin", "profile": profile, "owners": owners, "items": items}])

    def note(self, outcomes: Iterable[Outcome]) -> None:
        """What became of some items."""
        self._write([{"event": "outcome", **told(outcome)} for outcome in outcomes])

    def end(self, owners: Mapping[str, str], problems: Sequence[str]) -> None:
        """The result of every owner: the sweep is over."""
        self._write([{"event": "end", "owners": owners, "problems": problems}])

    def _write(self, events: Sequence[Mapping[str, Any]]) -> None:
        if not events:
            return
        stamp = {"run": self._run, "at": round(time.time(), 3)}
        lines = "".join(json.dumps({**stamp, **event}) + "\n" for event in events)
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(self._path, flags, 0o600)
            try:
                self._append(fd, lines.encode())
                os.fdatasync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            self._missed(error)

    @staticmethod
    def _append(fd: int, data: bytes) -> None:
        size = os.fstat(fd).st_size
        try:
            while data:
                data = data[os.write(fd, data) :]
        except OSError:
            # Half a line would spoil the next one.
            os.ftruncate(fd, size)
            raise

    def _missed(self, error: OSError) -> None:
        self.trouble = f"{self._path}: {error.strerror}"


def told(outcome: Outcome) -> dict[str, Any]:
    """An outcome as it is written and shown."""
    item = outcome.item
    fields = {"owner": item.owner, "kind": item.kind, "name": item.name}
    reason = {"reason": outcome.reason} if outcome.reason else {}
    return {**fields, "why": item.why, **item.detail, "result": outcome.result, **reason}


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """Lines in order; none where there is no journal. Damaged ones are left out."""
    with contextlib.suppress(OSError), (folder / FILE).open() as file:
        for line in file:
            with contextlib.suppress(ValueError):
                loaded = json.loads(line)
                if isinstance(loaded, dict):
                    yield loaded


def unfinished(folder: Path) -> frozenset[str]:
    """Owners of which a sweep was begun and has not come to its end."""
    begun: dict[str, frozenset[str]] = {}
    for line in read(folder):
        if line.get("event") == "begin":
            begun[line["run"]] = frozenset(line["owners"])
        elif line.get("event") == "end":
            done = frozenset(line["owners"])
            begun = {run: owners - done for run, owners in begun.items()}
    return frozenset().union(*begun.values())
