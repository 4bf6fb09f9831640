"""Keys of the signed datagrams: one for each ordered pair of those who talk to each other.

A file `FROM+TO.key` of mode 0600 holds 32 random bytes in hexadecimal. Both ends have it and
nobody else, so whoever takes over one machine can speak for no other.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from vrha.errors import InputError, PreconditionError

LENGTH = 32
_SUFFIX = ".key"


class Keys:
    """Those of one machine, read when they are first needed."""

    def __init__(self, folder: Path) -> None:
        """Raises PreconditionError `no-keys` when there is no such folder."""
        if not folder.is_dir():
            raise PreconditionError(
                "no-keys", f"{folder} is no folder of keys", "vrha watcher keys makes them."
            )
        self._folder = folder
        self._known: dict[tuple[str, str], bytes] = {}

    def key(self, sender: str, receiver: str) -> bytes:
        """Raises PreconditionError: `no-key`, or `key-unsafe` when others may read it."""
        pair = sender, receiver
        if pair not in self._known:
            self._known[pair] = _read(self._folder / file_name(*pair))
        return self._known[pair]


def file_name(sender: str, receiver: str) -> str:
    return f"{sender}+{receiver}{_SUFFIX}"


def pairs(
    nodes: Iterable[str], voters: Iterable[str], leaders: Iterable[str]
) -> set[tuple[str, str]]:
    """Who says something to whom: nodes and leaders to all voters and to each other, and back."""
    nodes, voters, leaders = set(nodes), set(voters), set(leaders)
    ways = {(a, b) for a in nodes | leaders for b in voters | leaders}
    ways |= {(a, b) for a in nodes for b in leaders}
    return {(a, b) for a, b in ways | {(b, a) for a, b in ways} if a != b}


def make(folder: Path, ways: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Make a folder for each participant below `folder`, with the keys that it needs; their names.

    Keys that are there already stay. Raises InputError `unwritable`.
    """
    try:
        for sender, receiver in sorted(ways):
            name = file_name(sender, receiver)
            ends = [folder / end / name for end in (sender, receiver)]
            found = next((end.read_text() for end in ends if end.exists()), "")
            text = found or secrets.token_hex(LENGTH) + "\n"
            for end in ends:
                end.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not end.exists():
                    _write(end, text)
            yield name
    except OSError as error:
        raise InputError("unwritable", f"{folder}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _read(path: Path) -> bytes:
    hint = "vrha watcher keys makes keys; each end of a pair needs the same."
    try:
        with path.open() as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            key = bytes.fromhex(file.read(4 * LENGTH))
    except (OSError, ValueError) as error:
        raise PreconditionError("no-key", f"{path}: {error}", hint) from error
    if mode & 0o077:
        raise PreconditionError(
            "key-unsafe", f"{path} is open to others (mode {mode:04o})", f"chmod 600 {path}"
        )
    if len(key) != LENGTH:
        raise PreconditionError("no-key", f"{path} holds {len(key)} bytes, not {LENGTH}", hint)
    return key
