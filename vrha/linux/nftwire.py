"""Messages that change and read the sets of the node's nftables table.

Formats: include/uapi/linux/netfilter/nf_tables.h. Light on purpose: the watcher imports it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

from vrha.linux.netlink import NLM_F_CREATE, Message, attr, attributes, each_attribute, nest, text

TABLE = "vrha"
GRANTED, LIVE, ARM = "granted", "live", "arm"
"""Sets of a governed table, see `mute`."""

NETLINK_NETFILTER = 12
GETCHAIN, NEWSETELEM, GETSETELEM, DELSETELEM = 4, 12, 13, 14

_BATCH_BEGIN, _BATCH_END = 16, 17
_NFPROTO_BRIDGE, _SUBSYS_NFTABLES = 7, 10
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_ELEM_LIST_TABLE, _ELEM_LIST_SET, _ELEM_LIST_ELEMENTS = 1, 2, 3
_LIST_ELEM, _DATA_VALUE = 1, 1
_SET_ELEM_KEY, _SET_ELEM_TIMEOUT, _SET_ELEM_EXPIRATION = 1, 4, 5
_IFNAMSIZ = 16


def kind(message: int) -> int:
    """The netlink type of a message of nftables."""
    return (_SUBSYS_NFTABLES << 8) | message


def transaction(*messages: Message) -> list[Message]:
    """The messages as one batch, of which the kernel carries out all or none."""
    body = struct.pack("!BBH", socket.AF_UNSPEC, 0, _SUBSYS_NFTABLES)
    begin, end = (Message(edge, 0, body, ack=False) for edge in (_BATCH_BEGIN, _BATCH_END))
    return [begin, *messages, end]


def chain(name: str) -> bytes:
    """Body that asks for a chain."""
    return _family() + text(_CHAIN_TABLE, TABLE) + text(_CHAIN_NAME, name)


def members(name: str, *found: bytes) -> bytes:
    """Body that names elements of a set; none means all of them."""
    body = _family() + text(_ELEM_LIST_TABLE, TABLE) + text(_ELEM_LIST_SET, name)
    return body + nest(_ELEM_LIST_ELEMENTS, *found) if found else body


def element(key: bytes, timeout_ms: int = 0) -> bytes:
    """One element; its timeout, if any, is the last 8 bytes, in network byte order."""
    timeout = attr(_SET_ELEM_TIMEOUT, struct.pack("!Q", timeout_ms)) if timeout_ms else b""
    return nest(_LIST_ELEM, nest(_SET_ELEM_KEY, attr(_DATA_VALUE, key)), timeout)


def port_elements(names: Iterable[str]) -> list[bytes]:
    """The elements of ports in a set of type ifname."""
    return [element(name.encode().ljust(_IFNAMSIZ, b"\0")) for name in names]


def add(name: str, *found: bytes) -> Message:
    """Add elements; those that are there stay as they are."""
    return Message(kind(NEWSETELEM), NLM_F_CREATE, members(name, *found))


def delete(name: str, *found: bytes) -> Message:
    """Delete elements; the kernel refuses the whole batch when one is absent."""
    return Message(kind(DELSETELEM), 0, members(name, *found))


def flush(name: str) -> Message:
    """Delete all elements, also of an empty set."""
    return Message(kind(DELSETELEM), 0, members(name))


def ports(answer: bytes) -> list[str]:
    """Names of the ports in one answer (its nfgenmsg header included) of a dump."""
    return [
        attributes(fields[_SET_ELEM_KEY])[_DATA_VALUE].rstrip(b"\0").decode(errors="replace")
        for fields in _elements(answer)
    ]


def expirations(answer: bytes) -> list[int]:
    """For how many ms the elements in one answer still match."""
    return [
        int.from_bytes(fields.get(_SET_ELEM_EXPIRATION, b""), "big") for fields in _elements(answer)
    ]


def _family() -> bytes:
    return struct.pack("!BBH", _NFPROTO_BRIDGE, 0, 0)


def _elements(answer: bytes) -> list[dict[int, bytes]]:
    listed = attributes(answer[4:]).get(_ELEM_LIST_ELEMENTS, b"")
    return [attributes(found) for _, found in each_attribute(listed)]
