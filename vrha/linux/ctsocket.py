"""Sockets to the connection tracking of a namespace, and dumps of all its entries.

Formats: net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Final

from vrha.errors import StepError
from vrha.linux.netlink import NLM_F_DUMP

NEW, GET, DELETE = 0x100, 0x101, 0x102
NLM_F_REQUEST, NLMSG_ERROR, _NLMSG_DONE = 0x1, 2, 3
HEADER = struct.Struct("=IHHII")
ANSWER_BUFFER: Final = 16 << 20
DUMP_SIZE: Final = 1 << 16
_NETLINK_NETFILTER: Final = 12
_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_ANY_FAMILY = b"\0\0\0\0"
_TIMEOUT_S: Final = 10.0


def open_socket(groups: int, receive_bytes: int) -> socket.socket:
    """A socket in the namespace of the calling thread, which hears events of `groups` (a mask).

    Raises StepError `conntrack-socket`.
    """
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        try:
            made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_bytes)
            made.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, ANSWER_BUFFER)
            made.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            made.bind((0, groups))
        except OSError:
            made.close()
            raise
    except OSError as error:
        raise StepError(
            "conntrack-socket",
            f"cannot open a socket to connection tracking: {error.strerror}",
            "It needs CAP_NET_ADMIN and the kernel module nf_conntrack_netlink.",
        ) from error
    return made


def messages_in(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence number and body of each message."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, _, sequence, _ = HEADER.unpack_from(data, offset)
        yield kind, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def dumped(dumps: socket.socket) -> list[bytes]:
    """Bodies of all entries of the socket's namespace. Raises StepError `conntrack-dump`."""
    sequence = time.monotonic_ns() & 0xFFFFFFFF
    flags = NLM_F_REQUEST | NLM_F_DUMP
    bodies: list[bytes] = []
    poll = select.poll()
    poll.register(dumps, select.POLLIN)
    try:
        dumps.send(HEADER.pack(20, GET, flags, sequence, 0) + _ANY_FAMILY)
        while True:
            if not poll.poll(_TIMEOUT_S * 1000):
                raise TimeoutError(errno.ETIMEDOUT, "no answer")
            for kind, got, body in messages_in(dumps.recv(DUMP_SIZE, socket.MSG_DONTWAIT)):
                if got != sequence:
                    continue
                if kind == _NLMSG_DONE:
                    return bodies
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    raise OSError(code, errno.errorcode.get(code, str(code)))
                bodies.append(body)
    except OSError as error:
        raise StepError(
            "conntrack-dump", f"the kernel gave no dump of its connections: {error}"
        ) from error
