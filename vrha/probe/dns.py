"""DNS queries over UDP as probes (RFC 1035)."""

from __future__ import annotations

import re
import secrets
import socket
import struct
import time
from contextlib import suppress

from vrha.core.gaps import UNANSWERED
from vrha.errors import InputError
from vrha.model.probing import Stream
from vrha.probe.channels import (
    NOT_SENT,
    SO_TIMESTAMPNS,
    Arrivals,
    Inbox,
    ProbeChannel,
    no_route,
    overran,
)
from vrha.probe.kernel import Namespace

TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28}
_RCODES = {1: "FORMERR", 2: "SERVFAIL", 4: "NOTIMP", 5: "REFUSED"}
ANSWERED = (0, 3)
"""NOERROR and NXDOMAIN: the server knows."""
_HEADER = struct.Struct("!6H")
_RECURSION, _RESPONSE = 0x0100, 0x8000
IDS = 1 << 16


class DnsChannel(ProbeChannel):
    """A query per probe over one connected socket.

    Raises InputError (`bad-stream`), UnreachableError (`no-route`).
    """

    def __init__(self, stream: Stream, namespace: Namespace, inbox: Inbox) -> None:
        super().__init__(stream, namespace)
        self._question = question(stream)
        if stream.timeout_ms >= IDS * stream.interval_ms:
            raise InputError(
                "bad-stream",
                f"stream {stream.name!r}: more than {IDS} queries would be open within the timeout",
                "DNS has no more ids: use a longer interval or a shorter timeout.",
            )
        self._first_id = secrets.randbelow(IDS)
        self._inbox = inbox
        with namespace:
            self._socket = socket.socket(self.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            self._socket.connect(self.address)
        except OSError as error:
            self._socket.close()
            raise no_route(stream, self.address[0], error) from error
        inbox.add(self._socket.fileno(), self._take)

    def probe(self) -> None:
        number = (self._first_id + len(self.sent)) % IDS
        self.sent.append(time.monotonic_ns())
        self.received.append(UNANSWERED)
        query = _HEADER.pack(number, _RECURSION, 1, 0, 0, 0) + self._question
        try:
            self._socket.send(query)
        except OSError as error:
            self._count(error)
            if error.errno not in NOT_SENT:
                # The error belongs to an earlier probe (ICMP error) and kept this one from going.
                with suppress(OSError):
                    self._socket.send(query)

    def _take(self, _: int, arrivals: Arrivals) -> None:
        while True:
            try:
                data, control, _, _ = self._socket.recvmsg(4096, 64)
            except BlockingIOError:
                return
            except OSError as error:
                self._count(error)
                continue
            self._hear(data, arrivals.of_message(control, time.monotonic_ns()))

    def _hear(self, data: bytes, at: int) -> None:
        if len(data) < _HEADER.size:
            return
        number, flags, questions, *_ = _HEADER.unpack_from(data)
        asked = data[_HEADER.size : _HEADER.size + len(self._question)]
        is_ours = questions == 1 and asked.lower() == self._question.lower()
        rcode = flags & 0xF
        # Only a server that did not take the question may leave it out.
        if not flags & _RESPONSE or not (is_ours or (not questions and rcode not in ANSWERED)):
            return
        # The newest probe of that id: older ones are beyond their timeout.
        seq = len(self.sent) - 1 - (self._first_id + len(self.sent) - 1 - number) % IDS
        if seq < 0:
            return
        if rcode not in ANSWERED:
            self.errors[_RCODES.get(rcode, f"rcode {rcode}")] += 1
        elif self.received[seq] != UNANSWERED:
            self.duplicates += 1
        else:
            self.received[seq] = at
            self.answered += 1

    @property
    def receive_drops(self) -> int:
        return overran(self._socket)

    def close(self) -> None:
        self._inbox.drop(self._socket.fileno())
        self._socket.close()
        super().close()


def question(stream: Stream) -> bytes:
    """The question of a stream whose path is NAME or NAME/TYPE.

    Raises InputError (`bad-stream`).
    """
    name, _, wanted = stream.path.partition("/")
    kind = TYPES.get(wanted.upper() or "A")
    if kind is None and re.fullmatch(r"\d{1,5}", wanted) and int(wanted) < IDS:
        kind = int(wanted)
    if kind is None:
        raise InputError(
            "bad-stream",
            f"stream {stream.name!r}: unknown type {wanted!r} of a DNS query",
            f"Known are {', '.join(TYPES)} and numbers.",
        )
    return _packed(name, stream) + struct.pack("!2H", kind, 1)


def _packed(name: str, stream: Stream) -> bytes:
    try:
        # Underscores and the like are no IDNA names, but names that DNS has.
        labels = [
            label.encode() if label.isascii() else label.encode("idna")
            for label in name.rstrip(".").split(".")
            if name.rstrip(".")
        ]
    except UnicodeError as error:
        raise InputError("bad-stream", f"stream {stream.name!r}: {name!r}: {error}") from error
    packed = b"".join(bytes([len(label)]) + label for label in labels if len(label) < 64) + b"\0"
    if not name or any(not 0 < len(label) < 64 for label in labels) or len(packed) > 255:
        raise InputError("bad-stream", f"stream {stream.name!r}: {name!r} is no domain name")
    return packed
