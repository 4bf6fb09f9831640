"""When somebody began to speak for an address, as the wire shows it: announcements and adverts.

The kernel stamps each frame and keeps it until it is asked for, so that listening costs nothing
while something is measured. Formats: RFC 826 and RFC 5227 section 3 (an announcement names one
address as sender and target), RFC 5798 section 5.2.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

_ETH_P_ALL, _ETH_P_ARP, _IPPROTO_VRRP = 3, 0x0806, 112
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_BUFFER_BYTES = 16 << 20
_LOAD_HALF, _LOAD_WORD, _LOAD_BYTE = 0x28, 0x20, 0x30
_EQUAL, _EQUAL_X, _TO_X, _RETURN = 0x15, 0x1D, 0x07, 0x06
_PROGRAM = (
    (_LOAD_HALF, 0, 0, 12),
    (_EQUAL, 0, 4, _ETH_P_ARP),
    (_LOAD_WORD, 0, 0, 28),
    (_TO_X, 0, 0, 0),
    (_LOAD_WORD, 0, 0, 38),
    (_EQUAL_X, 3, 4, 0),
    (_EQUAL, 0, 3, 0x0800),
    (_LOAD_BYTE, 0, 0, 23),
    (_EQUAL, 0, 1, _IPPROTO_VRRP),
    (_RETURN, 0, 0, 64),
    (_RETURN, 0, 0, 0),
)
"""Classic BPF (linux/filter.h): ARP with one address on both sides, or VRRP without IP options."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One frame: when (Unix time, s), what (`announced` or `advert`), of which address."""

    at: float
    kind: str
    address: str


class Announcements:
    """What is said on the segment of a device from construction on.

    Construct it in the network namespace of the device (`Lab.call`). Raises OSError.
    """

    def __init__(self, device: str = "eth0") -> None:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self._sock.setblocking(False)
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            code = ctypes.create_string_buffer(
                b"".join(struct.pack("@HBBI", *line) for line in _PROGRAM)
            )
            fprog = struct.pack("@HP", len(_PROGRAM), ctypes.addressof(code))
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
            self._sock.bind((device, _ETH_P_ALL))
        except OSError:
            self._sock.close()
            raise
        self._heard: list[Heard] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sock.close()

    def heard(self) -> list[Heard]:
        """All since construction, in order."""
        self._heard += self._waiting()
        return self._heard

    def _waiting(self) -> Iterator[Heard]:
        while True:
            try:
                frame, extra, _, _ = self._sock.recvmsg(64, 64)
            except BlockingIOError:
                return
            if (found := parse(frame, stamp(extra))) is not None:
                yield found


def stamp(extra: list[tuple[int, int, bytes]]) -> float:
    """The kernel's time of a frame (SO_TIMESTAMPNS, socket(7)); 0 without it."""
    for level, kind, data in extra:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = struct.unpack_from("@qq", data)
            return float(seconds + nanoseconds / 1e9)
    return 0.0


def parse(frame: bytes, at: float) -> Heard | None:
    """What a frame says; an advert is of who sent it."""
    kind = frame[12:14]
    if kind == b"\x08\x06" and frame[28:32] == frame[38:42]:
        return Heard(at, "announced", str(IPv4Address(frame[28:32])))
    if kind == b"\x08\x00" and frame[23:24] == bytes([_IPPROTO_VRRP]):
        return Heard(at, "advert", str(IPv4Address(frame[26:30])))
    return None


def first(heard: list[Heard], kind: str, address: str, since: float) -> float | None:
    """When that was heard first, not before `since`; None if never."""
    moments = (h.at for h in heard if (h.kind, h.address) == (kind, address) and h.at >= since)
    return min(moments, default=None)
