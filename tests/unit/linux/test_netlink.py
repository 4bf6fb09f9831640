"""Packing and unpacking of netlink attributes."""

from __future__ import annotations

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
