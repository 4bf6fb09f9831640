"""What two agents say to each other while a router moves; see docs/protocol.md.

Bytes of connection tracking entries are those of the kernel, so both nodes must have the same
byte order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from vrha.errors import InputError
from vrha.linux.ctwire import Change, Kind
from vrha.linux.neighbour_check import PortAnswers
from vrha.linux.neighbours import Neighbour
from vrha.model.spec import Address

_AT_MOST = 1000
"""Changes in one frame: each is below 1 kB, a frame below 4 MiB."""
_HEAD = struct.Struct(">BHHH")
_KINDS = (Kind.FOUND, Kind.SET, Kind.REMOVED)


class Say(IntEnum):
    """Kinds of frames."""

    CHANGES = 10
    """Connections, either way."""
    NEIGHBOURS = 11
    """From the old one, once."""
    COPIED = 12
    """All connections that there were have been sent."""
    BEAT = 13
    """To a standby, again and again: the serving instance's agent lives."""
    FLUSH = 20
    """Question of the new one: send what waits, then answer."""
    FLUSHED = 21
    """How many connections have changed since the last flush, as a decimal number."""
    LEASES = 22
    """Question: the DHCP leases."""
    LEASES_ARE = 23
    SILENCE = 24
    """Question: be a relay from now on."""
    SILENT = 25
    COUNT = 26
    """Question: how many packets the old one has sent."""
    COUNTED = 27
    FAILED = 30
    """Answer to a question that could not be carried out: why."""


@dataclass(frozen=True, slots=True)
class Known:
    """A neighbour as it crosses the wire; `mac` in hexadecimal."""

    port: str
    address: Address
    mac: str
    state: int


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Neighbours of the old instance, and who of them answered it just now."""

    neighbours: tuple[Known, ...]
    heard: tuple[PortAnswers, ...]

    @classmethod
    def of(cls, known: Iterable[Neighbour], heard: tuple[PortAnswers, ...]) -> Neighbourhood:
        return cls(tuple(Known(k.port, k.address, k.mac.hex(), k.state) for k in known), heard)

    def table(self) -> list[Neighbour]:
        """The neighbours as the kernel half takes them. Raises InputError (`peer-frame`)."""
        try:
            return [
                Neighbour(k.port, k.address, bytes.fromhex(k.mac), k.state) for k in self.neighbours
            ]
        except ValueError as error:
            raise InputError("peer-frame", f"a neighbour without a MAC: {error}") from error


def count_of(body: bytes) -> int:
    """What COUNTED says, in decimal. Raises InputError (`peer-frame`)."""
    try:
        return int(body)
    except ValueError as error:
        raise InputError("peer-frame", f"not a count of packets: {error}") from error


def frames(changes: Sequence[Change]) -> Iterator[bytes]:
    """Bodies of CHANGES frames."""
    for start in range(0, len(changes), _AT_MOST):
        yield b"".join(_packed(changes[start : start + _AT_MOST]))


def _packed(changes: Iterable[Change]) -> Iterator[bytes]:
    for change in changes:
        sizes = len(change.key), len(change.create), len(change.update)
        yield _HEAD.pack(_KINDS.index(change.kind), *sizes)
        yield change.key + change.create + change.update


def changes_of(body: bytes) -> list[Change]:
    """The changes of a frame. Raises InputError (`peer-frame`)."""
    changes: list[Change] = []
    place = 0
    try:
        while place < len(body):
            kind, *sizes = _HEAD.unpack_from(body, place)
            place += _HEAD.size
            parts = []
            for size in sizes:
                parts.append(body[place : place + size])
                place += size
            changes.append(Change(_KINDS[kind], *parts))
    except (struct.error, IndexError) as error:
        raise InputError("peer-frame", f"not a frame of changes: {error}") from error
    if place != len(body):
        raise InputError("peer-frame", "a frame of changes ends in the middle")
    return changes
