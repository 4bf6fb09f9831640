"""Bytes on the wire: the knock, then in TLS frames.

A frame is the length of the body (4 bytes, big endian), a kind (1 byte), and the body.
"""

from __future__ import annotations

import struct
from hashlib import sha256

from vrha.errors import InputError

__all__ = [
    "HELLO",
    "MAGIC",
    "MAX_FRAME",
    "MAX_GREETING",
    "NOBODY",
    "REFUSED",
    "VERSION",
    "WELCOME",
    "Frames",
    "knock",
    "pack",
]

MAGIC = b"vrha"
NOBODY = bytes.fromhex("15 0303 0002 02 70")
"""The answer to a knock that nobody expects: fatal TLS alert unrecognized_name (RFC 8446, 6)."""

MAX_FRAME = 4 << 20
"""Largest body, in bytes."""

VERSION = 1
HELLO, WELCOME, REFUSED = 0, 1, 2
"""Kinds of the greeting; after it all 256 kinds belong to the users of the link."""
MAX_GREETING = 1024
"""Largest body of the greeting, in bytes: what an unknown caller may make us keep."""

_HEADER = struct.Struct(">IB")


def knock(session: str) -> bytes:
    """What the caller says first, in clear: 20 bytes that stand for the session."""
    return MAGIC + sha256(session.encode()).digest()[:16]


def pack(kind: int, body: bytes) -> bytes:
    """One frame. Raises InputError (`peer-frame`)."""
    if not 0 <= kind <= 255 or len(body) > MAX_FRAME:
        raise InputError(
            "peer-frame",
            f"no frame has kind {kind} and {len(body)} bytes",
            f"Kinds are 0..255; send at most {MAX_FRAME} bytes at once.",
        )
    return _HEADER.pack(len(body), kind) + body


class Frames:
    """Bytes in, frames out. `limit` is the largest body that is taken, in bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    @property
    def ready(self) -> bool:
        """Whether `take` has something to say: a whole frame, or that one is too large."""
        if len(self._buffer) < _HEADER.size:
            return False
        size = int(_HEADER.unpack_from(self._buffer)[0])
        return size > self.limit or len(self._buffer) >= _HEADER.size + size

    def take(self) -> tuple[int, bytes] | None:
        """The next frame, if all of it is here. Raises ValueError when it exceeds the limit."""
        if not self.ready:
            return None
        size, kind = _HEADER.unpack_from(self._buffer)
        if size > self.limit:
            raise ValueError(f"frame of {size} bytes, at most {self.limit} are taken")
        end = _HEADER.size + size
        body = bytes(memoryview(self._buffer)[_HEADER.size : end])
        del self._buffer[:end]
        return kind, body
