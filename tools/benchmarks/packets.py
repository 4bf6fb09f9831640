"""Sending prepared frames and timing what the kernel does with them.

A frame that an AF_PACKET socket sends into a veth port is bridged, routed and filtered all the way
in the context of the sender (net/core/dev.c, netif_rx and the backlog it fills on the same CPU), so
the CPU time of the sending thread is the cost of the packet, whoever else uses the machine.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from vrha.model.spec import Address

_BATCH = 64
_PAYLOAD = bytes(18)


@dataclass(frozen=True, slots=True)
class Udp:
    """One UDP packet, and the MAC addresses of the frame that carries it."""

    to_mac: bytes
    from_mac: bytes
    source: Address
    target: Address
    source_port: int
    target_port: int

    def frame(self) -> bytes:
        """The Ethernet frame; without UDP checksum, so nothing on the way verifies one."""
        ports = struct.pack("!HHHH", self.source_port, self.target_port, 8 + len(_PAYLOAD), 0)
        udp = ports + _PAYLOAD
        ends = self.source.packed + self.target.packed
        if isinstance(self.source, IPv4Address):
            head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + ends
            head = head[:10] + _checksum(head) + head[12:]
            return self.to_mac + self.from_mac + b"\x08\0" + head + udp
        head = struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + ends
        return self.to_mac + self.from_mac + b"\x86\xdd" + head + udp


def _checksum(head: bytes) -> bytes:
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _MsgHdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_IoVec)),
        ("iov_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _MMsgHdr(ctypes.Structure):
    _fields_ = (("header", _MsgHdr), ("length", ctypes.c_uint))


class Frames:
    """Frames in the form of sendmmsg(2), so that Python's own time per packet is negligible."""

    def __init__(self, sock: socket.socket, frames: Sequence[bytes]) -> None:
        self._fd = sock.fileno()
        self._vectors = (_IoVec * len(frames))(*[_IoVec(f, len(f)) for f in frames])
        self._messages = (_MMsgHdr * len(frames))()
        for message, vector in zip(self._messages, self._vectors, strict=True):
            message.header.iov = ctypes.pointer(vector)
            message.header.iov_length = 1
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __len__(self) -> int:
        return len(self._messages)

    def send(self) -> float:
        """Send every frame once; the CPU time that one took, in microseconds. Raises OSError."""
        at = ctypes.addressof(self._messages)
        end = at + ctypes.sizeof(self._messages)
        begin = time.thread_time_ns()
        while at < end:
            left = (end - at) // ctypes.sizeof(_MMsgHdr)
            sent = self._libc.sendmmsg(self._fd, ctypes.c_void_p(at), min(_BATCH, left), 0)
            if sent <= 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            at += sent * ctypes.sizeof(_MMsgHdr)
        return (time.thread_time_ns() - begin) / 1000 / len(self)
