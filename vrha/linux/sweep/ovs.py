"""Ports of Open vSwitch: rows of its database, which outlive the links that they name.

`--no-wait` everywhere: a switch that does not run, or hangs, must not keep a sweep waiting. It
drops the ports as soon as it reads its database again (ovs-vsctl(8)).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Final

from vrha.core.cleanup.items import Item, Kind, Outcome, Result
from vrha.core.cleanup.profile import nobody
from vrha.errors import StepError
from vrha.linux import tools
from vrha.linux.sweep import insides
from vrha.linux.sweep.site import Site

_DATABASE = Path("/run/openvswitch/db.sock")
_TIMEOUT_S: Final = 5
_AT_ONCE: Final = 200
_INTERFACE_ID = "iface-id"
_WORD = re.compile(r"[\w-]+")
_NOTE_BYTES: Final = 1 << 18


def find(at: Site) -> list[Item]:
    """Raises StepError `ovs-failed`. Where no Open vSwitch runs there is none."""
    program = _program(at)
    if program is None:
        return []
    rows = _rows(program)
    seen_at = _owners(at, rows.keys()) if rows else {}
    found = []
    for name, ids in sorted(rows.items()):
        owner = at.profile.ovs_owner(name, ids, seen_at.get(name))
        if owner is not None:
            why = f"external_ids {_INTERFACE_ID}={ids.get(_INTERFACE_ID, '')}"
            detail = {_INTERFACE_ID: ids.get(_INTERFACE_ID, "")}
            found.append(Item(Kind.OVS_PORT, name, owner, why, detail))
    return found


def remove(at: Site, items: Sequence[Item]) -> Iterator[Outcome]:
    """Raises StepError `ovs-failed`."""
    program = _program(at)
    rows = _rows(program) if program is not None else {}
    doomed: list[Item] = []
    for item in items:
        ids = rows.get(item.name)
        if ids is None:
            yield Outcome(item, Result.GONE)
        elif ids.get(_INTERFACE_ID, "") != item.detail[_INTERFACE_ID]:
            yield Outcome(item, Result.KEPT, "the port is another's by now")
        else:
            doomed.append(item)
    for start in range(0, len(doomed), _AT_ONCE):
        yield from _removed(program or "", doomed[start : start + _AT_ONCE])


def _removed(program: str, items: Sequence[Item]) -> Iterator[Outcome]:
    """All of them in one transaction of the database."""
    orders = [word for item in items for word in ("--", "--if-exists", "del-port", item.name)]
    done = _run(program, *orders)
    for item in items:
        failed = done.returncode != 0
        yield Outcome(item, Result.FAILED if failed else Result.REMOVED, done.complaint * failed)


def _program(at: Site) -> str | None:
    used = at.profile.ovs_owner is not nobody and _DATABASE.exists()
    return tools.find("ovs-vsctl") if used else None


def _run(program: str, *orders: str) -> tools.Finished:
    argv = [program, "--no-wait", f"--timeout={_TIMEOUT_S}", f"--db=unix:{_DATABASE}", *orders]
    return tools.run(argv, timeout=_TIMEOUT_S + 2)


def _rows(program: str) -> dict[str, Mapping[str, str]]:
    """External ids of all interfaces by name."""
    done = _run(program, "--format=json", "--columns=name,external_ids", "list", "Interface")
    if done.returncode != 0:
        raise StepError(
            "ovs-failed",
            f"ovs-vsctl does not show the ports of Open vSwitch: {done.complaint}",
            "Is ovsdb-server running? Its ports are swept when the sweep is run again.",
        )
    try:
        return {name: dict(ids) for name, (_, ids) in json.loads(done.stdout)["data"]}
    except (ValueError, KeyError, TypeError) as error:
        raise StepError("ovs-failed", f"ovs-vsctl wrote what is not understood: {error}") from error


def _owners(at: Site, wanted: Set[str]) -> dict[str, str]:
    """Owners of the ports that are seen in a namespace, or named in a file, of theirs."""
    found: dict[str, str] = {}
    for pattern in at.profile.link_notes:
        for note in sorted(at.state_dir.glob(pattern)):
            owner = _owner_of_note(at, note)
            if owner is not None:
                found |= dict.fromkeys(wanted & set(_WORD.findall(_text(note))), owner)
    for each in insides.look(at):
        found |= dict.fromkeys(wanted & each.links, each.owner)
    return found


def _owner_of_note(at: Site, note: Path) -> str | None:
    """The file itself or the folder that it is in tells the owner."""
    relative = note.relative_to(at.state_dir)
    return at.profile.file_owner(str(relative)) or at.profile.file_owner(str(relative.parent))


def _text(note: Path) -> str:
    try:
        if note.is_symlink() or not note.is_file():
            return ""
        with note.open(errors="replace") as file:
            return file.read(_NOTE_BYTES)
    except OSError:
        return ""
