"""A UDP socket that says signed messages to peers by name, and takes none that are not."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Mapping

from vrha.errors import InputError, PreconditionError, VrhaError
from vrha.fencing import wire
from vrha.fencing.keys import Keys
from vrha.model.ownership import Message

PORT = 7450
_AT_ONCE = 256
_RECEIVE_BYTES = 1 << 20


def address_of(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `[V6]:PORT` or `HOST` alone. Raises InputError `bad-address`."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(PORT)
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError("bad-address", f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


class Endpoint:
    """One socket of the participant `name`. Nothing here blocks. `rejected` counts by reason."""

    def __init__(self, name: str, listen: str, peers: Mapping[str, str], keys: Keys) -> None:
        """Raises InputError (`bad-address`), PreconditionError (`address-in-use`, `no-key`)."""
        self.name = name
        self._keys = keys
        host, port = address_of(listen)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._peers = {peer: _resolved(text, family) for peer, text in peers.items()}
        for peer in peers:
            keys.key(name, peer)
            keys.key(peer, name)
        self.rejected: Counter[str] = Counter()
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise PreconditionError(
                "address-in-use", f"cannot listen on {listen}: {error.strerror}"
            ) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, to: str, message: Message) -> None:
        """A peer that is unknown or cannot be reached is as one that does not answer."""
        address = self._peers.get(to)
        if address is None:
            self.rejected["unknown receiver"] += 1
            return
        try:
            self._socket.sendto(wire.pack(message, self.name, to, self._keys), address)
        except (OSError, VrhaError):
            self.rejected["not sent"] += 1

    def receive(self) -> Iterator[tuple[str, Message]]:
        """What has come, at most some hundred at once: (sender, message)."""
        for _ in range(_AT_ONCE):
            try:
                datagram = self._socket.recv(wire.MAX_DATAGRAM + 1)
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error of an earlier send: it says nothing about what has come.
                continue
            try:
                yield wire.unpack(datagram, self.name, self._keys)
            except wire.Rejected as error:
                self.rejected[str(error)] += 1


def _resolved(text: str, family: socket.AddressFamily) -> tuple[str, int]:
    host, port = address_of(text)
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)
    except OSError as error:
        raise InputError("bad-address", f"{host}: {error.strerror or error}") from error
    address = found[0][4]
    return str(address[0]), int(address[1])
