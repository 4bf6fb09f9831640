"""What a watcher keeps: its last incarnation, the highest epochs, how it counts votes.

Losing the last write, or all of it, is survived (an incarnation is told from an earlier one by a
random part of its number too), so nobody has to wait for it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from vrha.core.ownership.holder import Life
from vrha.errors import PreconditionError, StepError
from vrha.model.ownership import Electorate, Held
from vrha.watcher.pen import Job

log = logging.getLogger(__name__)

_FILE = "watcher.json"


@dataclass(frozen=True, slots=True)
class Kept:
    """As in the file."""

    incarnation: int
    epochs: Held
    electorate: Electorate


class State:
    """One file in `folder`, replaced as a whole."""

    def __init__(self, folder: Path, first: Electorate, later: Callable[[Job], object]) -> None:
        """`first` is used until the leader told of another; `later` has a job done, in order.

        Raises PreconditionError `state-dir`, `state-damaged`.
        """
        self._path = folder / _FILE
        self._later = later
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            text = self._path.read_text() if self._path.exists() else ""
        except OSError as error:
            raise PreconditionError("state-dir", f"{folder}: {error.strerror}") from error
        self.kept = Kept(0, (), first)
        if text:
            self.kept = _parsed(text, self._path)

    def begins(self, incarnation: int) -> None:
        """A full disk is told in the log: it must not keep a node mute."""
        self._write(replace(self.kept, incarnation=incarnation))

    def learns(self, epochs: Held, electorate: Electorate) -> None:
        """As `begins`."""
        if (epochs, electorate) != (self.kept.epochs, self.kept.electorate):
            self._write(replace(self.kept, epochs=epochs, electorate=electorate))

    def _write(self, kept: Kept) -> None:
        self.kept = kept
        self._later(partial(self._put, kept))

    def _put(self, kept: Kept) -> None:
        electorate = [kept.electorate.version, list(kept.electorate.voters)]
        fields = {"incarnation": kept.incarnation, "epochs": dict(kept.epochs)}
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_text(json.dumps({**fields, "electorate": electorate}))
            os.replace(fresh, self._path)
        except OSError as error:
            log.error("cannot write %s: %s", self._path, error.strerror)


class LeaseFile:
    """The lease, in memory (tmpfs) and for this boot only: for the process that follows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def write(self, life: Life) -> None:
        """Where that cannot be written, nothing is kept: the next process begins anew.

        Raises StepError `state-dir` when an older one stays that must not be taken.
        """
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_text(json.dumps({"boot": self._boot, **asdict(life)}))
            os.replace(fresh, self._path)
        except OSError:
            self.forget()

    def read(self) -> Life | None:
        """That of the process before; None where there is none, or of another boot."""
        try:
            loaded = json.loads(self._path.read_text())
            if loaded.pop("boot") != self._boot:
                return None
            loaded["routers"] = tuple((str(r), int(e)) for r, e in loaded["routers"])
            return Life(**loaded)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def forget(self) -> None:
        """Raises StepError `state-dir`."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise StepError("state-dir", f"cannot remove {self._path}: {error.strerror}") from error


def _parsed(text: str, path: Path) -> Kept:
    try:
        loaded = json.loads(text)
        version, voters = loaded["electorate"]
        epochs = tuple(sorted((str(r), int(e)) for r, e in loaded["epochs"].items()))
        electorate = Electorate(int(version), tuple(str(voter) for voter in voters))
        return Kept(int(loaded["incarnation"]), epochs, electorate)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PreconditionError(
            "state-damaged",
            f"{path} is damaged: {error!r}",
            "It can be removed while the watcher is stopped: the node begins muted, as after a"
            " loss of its disk.",
        ) from error
