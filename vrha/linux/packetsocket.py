"""AF_PACKET sockets that take only what somebody waits for.

A socket without a filter would wake its reader for every packet that an instance forwards.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence

_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_BUFFER_BYTES = 1 << 20
"""Room for a second of replies at 1 ms: each takes about 800 bytes of it."""
_BYTE, _HALF = 0x30, 0x28
_JUMP_IF_EQUAL, _RETURN = 0x15, 0x06

Check = tuple[int, int, int]
"""Bytes of a number (1 or 2), its offset in the frame, and what it must be."""

ARP_REPLY: Sequence[Check] = ((2, 20, 2),)
ADVERTISEMENT: Sequence[Check] = ((1, 20, 58), (1, 54, 136))


def echo_reply(ident: int) -> Sequence[Check]:
    """ICMP echo replies of one identifier, without IP options."""
    return ((1, 14, 0x45), (1, 23, 1), (1, 34, 0), (2, 38, ident))


def open_packets(device: str, ether_type: int, checks: Sequence[Check]) -> socket.socket:
    """A raw, non-blocking socket on a device of the calling thread's network namespace.

    It takes frames of `ether_type` that pass all `checks`, and whatever it sends goes out
    unfiltered by IP rules. Closing it is an RCU wait. Raises OSError.
    """
    # Of no protocol until it is bound: nothing gets in before the filter stands.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        _attach(sock, checks)
        sock.bind((device, ether_type))
    except OSError:
        sock.close()
        raise
    return sock


def _attach(sock: socket.socket, checks: Sequence[Check]) -> None:
    """Classic BPF: load and compare for each check, take, drop (linux/filter.h)."""
    program: list[tuple[int, int, int, int]] = []
    for place, (size, offset, wanted) in enumerate(checks):
        to_drop = 2 * (len(checks) - place) - 1
        program.append((_BYTE if size == 1 else _HALF, 0, 0, offset))
        program.append((_JUMP_IF_EQUAL, 0, to_drop, wanted))
    program += [(_RETURN, 0, 0, 0xFFFF), (_RETURN, 0, 0, 0)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("@HBBI", *line) for line in program))
    fprog = struct.pack("@HP", len(program), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
