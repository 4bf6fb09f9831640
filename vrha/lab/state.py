"""What a lab leaves on disk while it is up: /run/vrha-lab/NAME/state.json."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vrha.bus.processes import ProcessId
from vrha.errors import InputError, NotFoundError, PreconditionError, RefusedError

_MODE = 0o711
"""dnsmasq, which gives up root, must pass through to its lease files, and see no more."""

ROOT = Path("/run/vrha-lab")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
_FILE = "state.json"


@dataclass(frozen=True, slots=True)
class LabState:
    """The record of one lab; processes are named by pid and start time."""

    name: str
    scenario: str
    owner: ProcessId
    """Who brings it up; an unfinished or ephemeral lab ends with it."""
    ephemeral: bool = False
    anchor: ProcessId | None = None
    ready: bool = False
    machines: Mapping[str, str] = field(default_factory=dict)
    """Machine name to the name of its segment."""
    nodes: Mapping[str, ProcessId] = field(default_factory=dict)
    """Node name to its holder process."""

    @property
    def alive(self) -> bool:
        """Whether there is something to use or, still being built, to wait for."""
        if self.anchor is None:
            return self.owner.alive
        return self.anchor.alive


def folder_of(name: str) -> Path:
    """The lab's folder. Raises InputError (`bad-name`)."""
    if not _NAME.fullmatch(name):
        raise InputError(
            "bad-name",
            f"{name!r} is no name for a lab",
            "Use lower-case letters, digits and hyphens, at most 31.",
        )
    return ROOT / name


def lab_names() -> list[str]:
    """All labs with a folder, dead ones too."""
    try:
        return sorted(entry.name for entry in ROOT.iterdir() if _NAME.fullmatch(entry.name))
    except FileNotFoundError:
        return []


def alive(name: str) -> bool:
    """Whether the lab's folder belongs to something that runs. Raises as `load`."""
    return load(name).alive


def claim(state: LabState) -> Path:
    """Make the lab's folder; exactly one of several contenders succeeds.

    Raises RefusedError (`lab-exists`), PreconditionError (`state-unwritable`).
    """
    folder = folder_of(state.name)
    fresh = ROOT / f".{state.name}.{state.owner.pid}.{state.owner.start}"
    try:
        _make_root()
        fresh.mkdir()
        try:
            _write(fresh, state)
            fresh.chmod(_MODE)
            fresh.rename(folder)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise PreconditionError(
                "state-unwritable", f"cannot write to {ROOT}: {error.strerror}"
            ) from error
        raise RefusedError(
            "lab-exists",
            f"a lab named {state.name!r} is already there",
            f"Use it, take it down with `vrha lab down --name {state.name}`, or pick --name OTHER.",
        ) from error
    return folder


def _make_root() -> None:
    ROOT.mkdir(mode=_MODE, exist_ok=True)
    # mkdir(2) honours the umask.
    ROOT.chmod(_MODE)


def save(state: LabState) -> LabState:
    """Replace the record on disk. Raises NotFoundError (`lab-gone`)."""
    try:
        _write(folder_of(state.name), state)
    except FileNotFoundError as error:
        raise NotFoundError("lab-gone", f"lab {state.name} was taken down meanwhile") from error
    return state


def load(name: str) -> LabState:
    """The record of a lab, alive or not. Raises NotFoundError (`no-lab`)."""
    try:
        raw = json.loads((folder_of(name) / _FILE).read_text())
    except FileNotFoundError as error:
        known = ", ".join(lab_names()) or "none"
        raise NotFoundError(
            "no-lab", f"no lab named {name!r} is up", f"Up: {known}. Start one: `vrha lab up`."
        ) from error
    except ValueError as error:
        raise _damaged(name, error) from error
    try:
        return _decode(raw)
    except (TypeError, KeyError, AttributeError) as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> PreconditionError:
    return PreconditionError(
        "state-damaged",
        f"{folder_of(name) / _FILE} is damaged: {error}",
        f"End the process that serves {folder_of(name)}/anchor.sock, then remove that folder.",
    )


def remove(name: str) -> None:
    """Delete the lab's folder, half-made ones of the dead, and the common one after the last."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder_of(name))
    for started in ROOT.glob(".*.*.*"):
        _name, pid, start = started.name[1:].split(".")
        if not ProcessId(int(pid), int(start)).alive:
            shutil.rmtree(started, ignore_errors=True)
    with suppress(OSError):
        ROOT.rmdir()


def _write(folder: Path, state: LabState) -> None:
    fresh = folder / f"{_FILE}.new"
    fresh.write_text(json.dumps(asdict(state), indent=1))
    os.replace(fresh, folder / _FILE)


def _decode(raw: Mapping[str, Any]) -> LabState:
    state = LabState(**raw)
    return replace(
        state,
        owner=ProcessId(**raw["owner"]),
        anchor=ProcessId(**raw["anchor"]) if raw["anchor"] else None,
        nodes={name: ProcessId(**process) for name, process in raw["nodes"].items()},
    )
