"""When ports fell silent and when they were gone, as the kernel tells it while it happens.

A process of its own notes what comes by the links' and nftables' news, with the time; what it means
is found out afterwards. A port is muted when it is down, has left its bridge, is gone, or may not
speak any more by the node's table.
"""

from __future__ import annotations

import multiprocessing
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

from vrha.errors import PreconditionError
from vrha.linux import nftwire, rtnetlink
from vrha.linux.netlink import attributes, each_message

_LINK_NEWS, _NFT_NEWS = 1 << 0, 1 << 6
"""RTNLGRP_LINK, NFNLGRP_NFTABLES."""
_NEWLINK, _DELLINK = 16, 17
_SET_NAME = 2
_ACTIVE = "active"
"""Set of the ports that may speak, see `vrha.linux.mute`."""
_IFF_UP = 1
_IFINFO = struct.Struct("=BBHiII")
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 256 << 20
_LIMIT_S = 30.0
_Note = tuple[int, bool, bytes]
"""CLOCK_MONOTONIC in ns, whether it is of nftables, the datagram."""


@dataclass(frozen=True, slots=True)
class Seen:
    """By index of the port, CLOCK_MONOTONIC in ns."""

    muted: Mapping[int, int]
    gone: Mapping[int, int]


class Watch:
    """Looks from construction to `stop` at the calling thread's network namespace."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self._end, theirs = context.Pipe()
        self._process = context.Process(target=_listen, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._answer("begin")

    def count_gone(self, ports: Iterable[int]) -> int:
        """How many of these ports are gone by now."""
        self._end.send(list(ports))
        found = self._answer("say")
        assert isinstance(found, int)
        return found

    def stop(self, ports: Mapping[int, str]) -> Seen:
        """What became of these ports, names by index."""
        self._end.send(None)
        notes = self._answer("end")
        self.close()
        assert isinstance(notes, list)
        return _meaning(notes, ports)

    def close(self) -> None:
        """Idempotent."""
        self._process.kill()
        self._process.join()
        self._end.close()

    def _answer(self, what: str) -> object:
        if not self._end.poll(_LIMIT_S):
            raise PreconditionError("bench-setup", f"who looks at the links did not {what}")
        return self._end.recv()


def _listen(end: Connection) -> None:
    links = _subscribed(rtnetlink.NETLINK_ROUTE, _LINK_NEWS)
    tables = _subscribed(nftwire.NETLINK_NETFILTER, _NFT_NEWS)
    poll = select.poll()
    for source in (links, tables, end):
        poll.register(source.fileno(), select.POLLIN)
    notes: list[_Note] = []
    gone: set[int] = set()
    end.send(True)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        for source in (links, tables):
            if source.fileno() in ready:
                data = source.recv(1 << 17)
                notes.append((time.monotonic_ns(), source is tables, data))
                if source is links:
                    gone.update(index for _, index, what in _told(data) if what == "gone")
        if end.fileno() in ready and not ready & {links.fileno(), tables.fileno()}:
            asked = end.recv()
            if asked is None:
                end.send(notes)
                return
            end.send(len(gone.intersection(asked)))


def _subscribed(protocol: int, groups: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    sock.bind((0, groups))
    return sock


def _meaning(notes: list[_Note], ports: Mapping[int, str]) -> Seen:
    indices = {name: index for index, name in ports.items()}
    muted: dict[int, int] = {}
    gone: dict[int, int] = {}
    for moment, of_tables, data in notes:
        if of_tables:
            for name in _taken_out(data):
                if name in indices:
                    muted.setdefault(indices[name], moment)
            continue
        for _, index, what in _told(data):
            if index in ports:
                muted.setdefault(index, moment)
                if what == "gone":
                    gone.setdefault(index, moment)
    return Seen(muted, gone)


def _told(data: bytes) -> Iterator[tuple[int, int, str]]:
    """(Type of the message, index, `gone` or `muted`) of links that speak no more."""
    for kind, _, _, body in each_message(data):
        if kind in (_NEWLINK, _DELLINK):
            family, _, _, index, flags, _ = _IFINFO.unpack_from(body)
            if kind == _DELLINK:
                yield kind, index, "muted" if family == socket.AF_BRIDGE else "gone"
            elif family == socket.AF_UNSPEC and not flags & _IFF_UP:
                yield kind, index, "muted"


def _taken_out(data: bytes) -> Iterator[str]:
    for kind, _, _, body in each_message(data):
        if kind == nftwire.kind(nftwire.DELSETELEM):
            name = attributes(body[4:]).get(_SET_NAME, b"").rstrip(b"\0").decode()
            if name in (_ACTIVE, nftwire.GRANTED):
                yield from nftwire.ports(body)
