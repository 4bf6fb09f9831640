"""Packing and unpacking of netlink attributes."""

from __future__ import annotations

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrha.linux import netlink

VALUES = st.dictionaries(st.integers(1, 100), st.binary(max_size=40), max_size=8)


@given(VALUES)
def test_attributes_survive_packing(values: dict[int, bytes]) -> None:
    packed = b"".join(netlink.attr(kind, data) for kind, data in values.items())
    assert len(packed) % 4 == 0
    assert netlink.attributes(packed) == values
    nested = netlink.attributes(netlink.nest(7, packed))
    assert netlink.attributes(nested[7]) == values


@given(st.binary(max_size=80))
def test_garbage_does_not_loop_or_raise(data: bytes) -> None:
    netlink.attributes(data)


def test_a_batch_that_cannot_be_committed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says so of its first message, though it acknowledges those within."""

    def frame(seq: int, code: int) -> tuple[int, int, int, bytes]:
        return 2, 0, seq, struct.pack("=i", -code) + bytes(16)

    kernel = netlink.Netlink(socket.NETLINK_ROUTE)
    with kernel, monkeypatch.context() as patched:
        near, far = socket.socketpair()
        with near, far, kernel._socket:
            patched.setattr(kernel, "_socket", near)
            patched.setattr(kernel, "_receive", lambda: [frame(1, errno.ENOMEM), frame(2, 0)])
            with pytest.raises(netlink.NetlinkError) as refused:
                kernel.talk([netlink.Message(16, 0, b"", ack=False), netlink.Message(17, 0, b"")])
    assert (refused.value.errno, refused.value.index) == (errno.ENOMEM, 0)
