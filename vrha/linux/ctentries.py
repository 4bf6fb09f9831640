"""Connection tracking of the calling thread's namespace: all entries, and deleting some of them."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence

from vrha.errors import StepError
from vrha.linux.ctsocket import (
    ANSWER_BUFFER,
    DELETE,
    DUMP_SIZE,
    HEADER,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    dumped,
    messages_in,
    open_socket,
)
from vrha.linux.ctwire import key_of, timeout_and_id

_AT_ONCE = 500


def entries() -> list[bytes]:
    """As the kernel shows them (net/netfilter/nf_conntrack_netlink.c, ctnetlink_fill_info).

    Raises StepError `conntrack-socket`, `conntrack-dump`.
    """
    opened = open_socket(0, ANSWER_BUFFER)
    try:
        return dumped(opened)
    finally:
        opened.close()


def delete(bodies: Sequence[bytes]) -> int:
    """Delete entries that `entries` gave; how many of them were still there.

    Raises StepError `conntrack-socket`, `conntrack-delete`.
    """
    opened = open_socket(0, ANSWER_BUFFER)
    gone = 0
    try:
        for start in range(0, len(bodies), _AT_ONCE):
            chunk = bodies[start : start + _AT_ONCE]
            # With its id: an entry made since for the same connection is another's.
            orders = [key_of(body) + timeout_and_id(body)[1] for body in chunk]
            opened.send(
                b"".join(
                    HEADER.pack(16 + len(order), DELETE, NLM_F_REQUEST, start + place, 0) + order
                    for place, order in enumerate(orders)
                )
            )
            gone += len(chunk) - _refused(opened)
    except OSError as error:
        raise StepError(
            "conntrack-delete", f"the kernel does not delete connections: {error.strerror}"
        ) from error
    finally:
        opened.close()
    return gone


def _refused(opened: socket.socket) -> int:
    """How many answers there are; all was done when `send` returned. Raises OSError."""
    count = 0
    while True:
        try:
            data = opened.recv(DUMP_SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return count
        for kind, _, body in messages_in(data):
            code = -struct.unpack_from("=i", body)[0] if kind == NLMSG_ERROR else 0
            if code not in (0, errno.ENOENT):
                raise OSError(code, errno.errorcode.get(code, str(code)))
            count += code != 0
