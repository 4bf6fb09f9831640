"""Connection tracking entries of one network namespace, followed into another.

Raw nfnetlink: an entry of a dump or an event costs about 0.02 ms to carry over, where object
layers need 3 ms. Formats: net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from typing import Final

from vrha.errors import StepError
from vrha.linux.ctsocket import (
    ANSWER_BUFFER,
    DELETE,
    DUMP_SIZE,
    GET,
    HEADER,
    NEW,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    dumped,
    messages_in,
    open_socket,
)
from vrha.linux.ctwire import (
    Change,
    Kind,
    change_of,
    ends_within,
    is_ahead,
    is_sound,
    key_of,
    timeout_and_id,
)
from vrha.linux.netlink import NLM_F_CREATE, NLM_F_EXCL
from vrha.model.evidence import Carried

_GROUPS = 0b111
"""NFNLGRP_CONNTRACK_NEW, _UPDATE, _DESTROY."""

_EVENT_BUFFER: Final = 64 << 20
"""Bytes; about 1 kB per waiting event."""
_EVENT_SIZE = 1 << 13
_AT_ONCE, _ASKED_AT_ONCE = 500, 200
_EVENTS_AT_MOST, _FLUSHED_AT_MOST = 50_000, 1_000_000
_OWN_TRAFFIC_S: Final = 2.0
"""An entry that lives this much longer than was asked for has seen packets of its own."""

_CREATE_REASONS = {
    errno.EEXIST: "nat-port-taken",
    errno.ENOENT: "expectation",
    errno.ENOMEM: "table-full",
    errno.ENOSPC: "table-full",
    errno.EOPNOTSUPP: "unsupported",
    errno.EPROTONOSUPPORT: "unsupported",
    errno.EINVAL: "invalid",
    errno.EPERM: "not-permitted",
}
_UPDATE_REASONS = _CREATE_REASONS | {
    errno.EBUSY: "older",
    errno.ETIME: "already-gone",
    errno.ENOENT: "already-gone",
    errno.ENOSPC: "labels-unused",
}


class Source:
    """Entries of the namespace in which the calling thread is when it is made.

    The thread need not stay there. Close it before the namespace is destroyed: its sockets keep
    the namespace alive, and the end of a namespace would look like the end of its connections.
    """

    def __init__(self, receive_bytes: int = _EVENT_BUFFER) -> None:
        """Subscribe; from now on nothing is missed. Raises StepError `conntrack-socket`."""
        self._events = open_socket(_GROUPS, receive_bytes)
        try:
            self._dumps = open_socket(0, ANSWER_BUFFER)
        except StepError:
            self._events.close()
            raise
        self._own_ports: set[int] = set()
        self._given: set[bytes] = set()
        self._touched: set[bytes] | None = None
        self._overrun = False

    def close(self) -> None:
        self._events.close()
        self._dumps.close()

    def fileno(self) -> int:
        """Readable when events wait."""
        return self._events.fileno()

    @property
    def overrun(self) -> bool:
        """Events were lost because nobody read them in time; only a new `dump` heals that."""
        return self._overrun

    def ignore(self, port_id: int) -> None:
        """What the Target of this port does here is our own doing and no news."""
        self._own_ports.add(port_id)

    def dump(self) -> Iterator[list[Change]]:
        """All entries in chunks; last, what was given out before and is there no more.

        `pending` may be called between chunks: what it has given out is not given again older.
        Raises StepError `conntrack-dump`.
        """
        # What waits is older than the dump, and after an overrun it has holes.
        for _ in self._received(_FLUSHED_AT_MOST):
            pass
        self._overrun = False
        touched: set[bytes] = set()
        self._touched = touched
        try:
            yield from self._chunks(dumped(self._dumps), touched)
        finally:
            self._touched = None

    def _chunks(self, bodies: list[bytes], touched: set[bytes]) -> Iterator[list[Change]]:
        vanished = self._given.copy()
        expected: list[Change] = []
        for start in range(0, len(bodies), _AT_ONCE):
            chunk: list[Change] = []
            for body in bodies[start : start + _AT_ONCE]:
                key = key_of(body)
                vanished.discard(key)
                change = None if key in touched else change_of(Kind.FOUND, key, (body,))
                if change is not None:
                    (expected if change.is_expected else chunk).append(change)
            self._given.update(change.key for change in chunk)
            yield chunk
        # Their masters must be there first.
        expected = [change for change in expected if change.key not in touched]
        self._given.update(change.key for change in expected)
        vanished -= touched
        self._given -= vanished
        yield expected + [Change(Kind.REMOVED, key) for key in vanished]

    def pending(self) -> list[Change]:
        """All that has happened since the last call; removals first. Never blocks.

        Of an entry with several events only its newest state is given. Raises StepError
        `conntrack-events`.
        """
        entries: dict[bytes, tuple[bytes, ...]] = {}
        gone: dict[bytes, None] = {}
        touched = self._touched
        for kind, body in self._received(_EVENTS_AT_MOST):
            key = key_of(body)
            if touched is not None:
                touched.add(key)
            if kind == DELETE:
                entries.pop(key, None)
                if key in self._given:
                    gone[key] = None
            else:
                entries[key] = (*entries.get(key, ()), body)
        self._given.difference_update(gone)
        changes = [Change(Kind.REMOVED, key) for key in gone]
        for key, bodies in entries.items():
            change = change_of(Kind.SET, key, bodies)
            if change is not None:
                self._given.add(key)
                changes.append(change)
        return changes

    def fleeting(self, below_s: int) -> list[Change]:
        """Entries that would end within `below_s` seconds if no packet came.

        Packets that prolong them are no events. What `pending` gives afterwards is newer. Raises
        StepError `conntrack-dump`.
        """
        found: list[Change] = []
        for body in dumped(self._dumps):
            change = (
                change_of(Kind.SET, key_of(body), (body,)) if ends_within(body, below_s) else None
            )
            if change is not None and change.key in self._given:
                found.append(change)
        return found

    def _received(self, at_most: int) -> Iterator[tuple[int, bytes]]:
        """Types and bodies of the events that wait, without those of our own doing."""
        receive, own = self._events.recv, self._own_ports
        for _ in range(at_most):
            try:
                data = receive(_EVENT_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise StepError(
                        "conntrack-events", f"cannot read connection events: {error.strerror}"
                    ) from error
                self._overrun = True
                continue
            length, kind, _, _, port = HEADER.unpack_from(data)
            if port not in own:
                yield kind, data[16:length]


class Target:
    """Takes entries into the namespace in which the calling thread is when it is made.

    What its own traffic has made of an entry is never overwritten or removed by something older.
    """

    def __init__(self) -> None:
        """Raises StepError `conntrack-socket`."""
        self._socket = open_socket(0, ANSWER_BUFFER)
        self.port_id: int = self._socket.getsockname()[0]
        self._sequence = 0
        self._ends: dict[bytes, float] = {}
        self._sent = 0
        self._refused: Counter[str] = Counter()

    def close(self) -> None:
        self._socket.close()

    def carried(self) -> Carried:
        """Changes applied so far, and for what reasons the kernel did not take some."""
        refused = tuple(sorted(self._refused.items()))
        return Carried("conntrack", self._sent, self._sent - self._refused.total(), refused)

    def apply(self, changes: Sequence[Change]) -> None:
        """Carry them out in order; entries that are refused are counted, never raised.

        Raises StepError `conntrack-inject` when the socket itself fails.
        """
        self._sent += len(changes)
        removed: list[Change] = []
        placed: dict[bytes, Change] = {}
        for change in changes:
            if not is_sound(change):
                self._refused["invalid"] += 1
                continue
            if change.key in placed:
                self._carry_out(removed, placed)
            if change.kind is Kind.REMOVED:
                removed.append(change)
            else:
                placed[change.key] = change
        self._carry_out(removed, placed)

    def keep_only(self, keys: Set[bytes]) -> int:
        """Remove all other entries, whoever made them; how many there were.

        For an instance without any traffic of its own. Raises StepError `conntrack-dump`,
        `conntrack-inject`.
        """
        strangers = []
        for body in dumped(self._socket):
            key = key_of(body)
            if key not in keys:
                strangers.append((0, key + timeout_and_id(body)[1]))
                self._ends.pop(key, None)
        try:
            self._send(DELETE, strangers)
        except OSError as error:
            raise _not_injected(error) from error
        return len(strangers)

    @property
    def held(self) -> int:
        """Entries that were taken and not removed again."""
        return len(self._ends)

    def _carry_out(self, removed: list[Change], placed: dict[bytes, Change]) -> None:
        """Removals first: another entry may need their NAT port."""
        try:
            self._remove([change.key for change in removed])
            self._place(list(placed.values()))
        except OSError as error:
            raise _not_injected(error) from error
        removed.clear()
        placed.clear()

    def _remove(self, keys: list[bytes]) -> None:
        now = time.monotonic()
        present = self._ask(keys)
        bodies = []
        for index, key in enumerate(keys):
            ends = self._ends.pop(key, 0.0)
            if index not in present:
                self._refused["already-gone"] += 1
                continue
            left, identifier = timeout_and_id(present[index])
            if now + left > ends + _OWN_TRAFFIC_S:
                self._refused["in-use"] += 1
            else:
                bodies.append(key + identifier)
        for code in self._send(DELETE, [(0, body) for body in bodies]).values():
            self._refused[_UPDATE_REASONS.get(code, _plain(code))] += 1

    def _place(self, changes: list[Change]) -> None:
        now = time.monotonic()
        creating = NLM_F_CREATE | NLM_F_EXCL
        messages = []
        for change in changes:
            if change.kind is Kind.SET and change.key in self._ends:
                messages.append((0, change.key + change.update))
            else:
                messages.append((creating, change.key + change.update + change.create))
            self._ends[change.key] = now + change.timeout
        errors = self._send(NEW, messages)
        ended: list[Change] = []
        exist: list[Change] = []
        unclear: list[Change] = []
        for index, code in errors.items():
            change, flags = changes[index], messages[index][0]
            if code == errno.ENOENT and not flags:
                ended.append(change)
            elif code == errno.EEXIST and flags:
                (exist if change.kind is Kind.SET else unclear).append(change)
            else:
                self._refuse(change, code, _CREATE_REASONS if flags else _UPDATE_REASONS)
        self._create(ended)
        self._update(exist + self._ahead(unclear))

    def _create(self, changes: list[Change]) -> None:
        """Entries that have ended here while the other side still uses them."""
        flags = NLM_F_CREATE | NLM_F_EXCL
        bodies = [(flags, change.key + change.update + change.create) for change in changes]
        for index, code in self._send(NEW, bodies).items():
            self._refuse(changes[index], code, _CREATE_REASONS)

    def _update(self, changes: list[Change]) -> None:
        """Entries that could not be created: this one, or one with its NAT port, exists."""
        bodies = [(0, change.key + change.update) for change in changes]
        reasons = _UPDATE_REASONS | {errno.ENOENT: "nat-port-taken"}
        for index, code in self._send(NEW, bodies).items():
            self._refuse(changes[index], code, reasons)

    def _ahead(self, changes: list[Change]) -> list[Change]:
        """Those of a dump that know more than the entry that is here."""
        present = self._ask([change.key for change in changes])
        chosen = []
        for index, change in enumerate(changes):
            here = (
                change_of(Kind.FOUND, change.key, (present[index],)) if index in present else None
            )
            if here is None:
                self._refuse(change, errno.EEXIST, _CREATE_REASONS)
            elif is_ahead(change, here):
                chosen.append(change)
            else:
                self._refuse(change, errno.EBUSY, _UPDATE_REASONS)
        return chosen

    def _refuse(self, change: Change, code: int, reasons: dict[int, str]) -> None:
        reason = reasons.get(code, _plain(code))
        self._refused[reason] += 1
        if reason != "older":
            self._ends.pop(change.key, None)

    def _send(self, kind: int, messages: Sequence[tuple[int, bytes]]) -> dict[int, int]:
        """Error numbers by place. Needs no acknowledgements: all is done when `send` returns."""
        errors: dict[int, int] = {}
        pack = HEADER.pack
        for start in range(0, len(messages), _AT_ONCE):
            parts: list[bytes] = []
            for offset, (flags, body) in enumerate(messages[start : start + _AT_ONCE]):
                head = pack(16 + len(body), kind, flags | NLM_F_REQUEST, self._sequence + offset, 0)
                parts += (head, body)
            for place, got, body in self._answers(parts):
                if got == NLMSG_ERROR:
                    errors[start + place] = -struct.unpack_from("=i", body)[0]
        return errors

    def _ask(self, keys: Sequence[bytes]) -> dict[int, bytes]:
        """Entries as they are here by place; those that are not here are left out."""
        present: dict[int, bytes] = {}
        for start in range(0, len(keys), _ASKED_AT_ONCE):
            parts: list[bytes] = []
            for offset, key in enumerate(keys[start : start + _ASKED_AT_ONCE]):
                sequence = self._sequence + offset
                parts += (HEADER.pack(16 + len(key), GET, NLM_F_REQUEST, sequence, 0), key)
            for place, kind, body in self._answers(parts):
                if kind == NEW:
                    present[start + place] = body
        return present

    def _answers(self, parts: list[bytes]) -> Iterator[tuple[int, int, bytes]]:
        """Send messages numbered from `_sequence` on; place, type and body of what comes back."""
        first = self._sequence
        self._sequence += len(parts) // 2
        self._socket.send(b"".join(parts))
        while True:
            try:
                data = self._socket.recv(DUMP_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            for kind, sequence, body in messages_in(data):
                yield sequence - first, kind, body


def _not_injected(error: OSError) -> StepError:
    return StepError("conntrack-inject", f"cannot pass connections to the kernel: {error.strerror}")


def _plain(code: int) -> str:
    return errno.errorcode.get(code, f"error-{code}").lower()
