"""Entries from the kernel's bytes to those that it takes elsewhere."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrha.linux.ctwire import Change, Kind, change_of, is_ahead, is_sound, key_of, timeout_and_id
from vrha.linux.netlink import attr, attributes, nest

ORIG, REPLY, STATUS, PROTOINFO, HELP, NAT_SRC, TIMEOUT, MARK = 1, 2, 3, 4, 5, 6, 7, 8
ID, NAT_DST, MASTER, ZONE, LABELS = 12, 13, 14, 18, 22
TCP, UDP, ICMP = 6, 17, 1


@dataclass(frozen=True)
class End:
    """A side of a flow."""

    address: str
    port: int


def number(value: int) -> bytes:
    return struct.pack("!I", value)


def tuple_of(kind: int, protocol: int, source: End, target: End) -> bytes:
    first = 1 if "." in source.address else 3
    ends = [
        attr(first + place, ip_address(end.address).packed)
        for place, end in enumerate((source, target))
    ]
    ports = [attr(2, struct.pack("!H", source.port)), attr(3, struct.pack("!H", target.port))]
    return nest(kind, nest(1, *ends), nest(2, attr(1, bytes((protocol,))), *ports))


def tcp_info(state: int) -> bytes:
    flags = [attr(4, b"\x23\0"), attr(5, b"\x03\0")]
    return nest(
        PROTOINFO, nest(1, attr(1, bytes((state,))), attr(2, b"\7"), attr(3, b"\7"), *flags)
    )


def body_of(
    orig: tuple[End, End],
    reply: tuple[End, End] | None = None,
    protocol: int = UDP,
    status: int = 0x18E,
    timeout: int = 100,
    more: bytes = b"",
    zone: int = 0,
) -> bytes:
    """A message of the kernel from nfgenmsg on."""
    family = b"\2\0\0\0" if "." in orig[0].address else b"\12\0\0\0"
    return b"".join(
        (
            family,
            tuple_of(ORIG, protocol, *orig),
            tuple_of(REPLY, protocol, *(reply or orig[::-1])),
            attr(ZONE, struct.pack("!H", zone)) if zone else b"",
            attr(STATUS, number(status)),
            attr(ID, number(77)),
            attr(TIMEOUT, number(timeout)),
            more,
        )
    )


def found(body: bytes) -> Change:
    change = change_of(Kind.FOUND, key_of(body), (body,))
    assert change is not None
    return change


INSIDE, OUTSIDE, PUBLIC = End("10.1.1.11", 5000), End("203.0.113.1", 80), End("203.0.113.10", 6000)


def nat_of(change: Change, kind: int) -> tuple[bytes, bytes] | None:
    """Address and port of a NAT attribute."""
    attached = attributes(change.create)
    if kind not in attached:
        return None
    nat = attributes(attached[kind])
    ((address_kind, address),) = [(k, v) for k, v in nat.items() if k in (1, 4)]
    assert address_kind == (1 if len(address) == 4 else 4)
    return address, attributes(nat[3])[1]


def test_without_nat_there_are_no_nat_attributes() -> None:
    change = found(body_of((INSIDE, OUTSIDE)))
    assert change.create == tuple_of(REPLY, UDP, OUTSIDE, INSIDE)


@pytest.mark.parametrize("protocol", [TCP, UDP, 132])
def test_source_nat_is_given_with_the_port_it_had(protocol: int) -> None:
    change = found(body_of((INSIDE, OUTSIDE), (OUTSIDE, PUBLIC), protocol))
    assert change.create.startswith(tuple_of(REPLY, protocol, OUTSIDE, INSIDE))
    assert nat_of(change, NAT_SRC) == (ip_address(PUBLIC.address).packed, struct.pack("!H", 6000))
    assert nat_of(change, NAT_DST) == (ip_address(OUTSIDE.address).packed, struct.pack("!H", 80))


def test_both_ends_translated() -> None:
    inner = End("10.1.1.12", 8080)
    change = found(body_of((OUTSIDE, PUBLIC), (inner, End("10.1.1.1", 999)), TCP))
    assert nat_of(change, NAT_SRC) == (bytes((10, 1, 1, 1)), struct.pack("!H", 999))
    assert nat_of(change, NAT_DST) == (bytes((10, 1, 1, 12)), struct.pack("!H", 8080))


PORTS = st.integers(1, 65535)
V4 = st.ip_addresses(v=4, network="10.0.0.0/8").map(str)
V6 = st.ip_addresses(v=6, network="2001:db8::/32").map(str)
FLOWS = st.sampled_from([V4, V6]).flatmap(
    lambda addresses: st.tuples(*[st.builds(End, addresses, PORTS)] * 4)
)


@given(FLOWS, st.sampled_from([TCP, UDP]), st.sampled_from([0, 5]))
def test_the_quick_way_and_the_general_one_agree(
    flow: tuple[End, End, End, End], protocol: int, zone: int
) -> None:
    body = body_of(flow[:2], flow[2:], protocol, zone=zone, more=tcp_info(3))
    reply = tuple_of(REPLY, protocol, *flow[2:])
    # Without the flag "nested" it means the same, but is not laid out as expected.
    odd = body.replace(reply, attr(REPLY, reply[4:]))
    assert odd != body
    quick, general = found(body), found(odd)
    assert quick.key == general.key
    assert quick.update == general.update
    assert attributes(quick.create).keys() == attributes(general.create).keys()
    assert attributes(quick.create)[REPLY] == attributes(general.create)[REPLY]
    for kind in (NAT_SRC, NAT_DST):
        assert nat_of(quick, kind) == nat_of(general, kind)


def test_the_update_says_status_timeout_mark_and_labels() -> None:
    more = attr(MARK, number(42)) + attr(LABELS, bytes(15) + b"\1")
    change = found(body_of((INSIDE, OUTSIDE), (OUTSIDE, PUBLIC), status=0x19E, more=more))
    told = attributes(change.update)
    assert told[STATUS] == number(0xE)
    assert told[TIMEOUT] == number(100)
    assert change.timeout == 100
    assert told[MARK] == number(42)
    assert told[LABELS] == bytes(15) + b"\1"
    assert {NAT_SRC, NAT_DST, REPLY}.isdisjoint(told)


def test_tcp_windows_are_not_checked_any_more() -> None:
    change = found(body_of((INSIDE, OUTSIDE), protocol=TCP, more=tcp_info(3)))
    tcp = attributes(attributes(attributes(change.update)[PROTOINFO])[1])
    assert tcp == {1: b"\3", 2: b"\7", 3: b"\7", 4: b"\x2b\x2b", 5: b"\x0b\x0b"}


@pytest.mark.parametrize(("status", "state"), [(0x8, 1), (0xA, 2), (0xE, 3)])
def test_a_state_that_was_not_told_is_only_for_a_new_entry(status: int, state: int) -> None:
    change = found(body_of((INSIDE, OUTSIDE), protocol=TCP, status=status))
    assert PROTOINFO not in attributes(change.update)
    assert attributes(attributes(attributes(change.create)[PROTOINFO])[1])[1] == bytes((state,))


def test_an_expected_entry_names_its_master_only_when_new() -> None:
    master = tuple_of(MASTER, TCP, INSIDE, OUTSIDE)
    change = found(body_of((INSIDE, OUTSIDE), protocol=TCP, status=0xF, more=master))
    assert change.is_expected
    assert attributes(change.update)[STATUS] == number(0xF)
    assert attributes(change.create)[STATUS] == number(0xE)
    assert MASTER in attributes(change.create)
    assert MASTER not in attributes(change.update)


@pytest.mark.parametrize(
    ("source", "target", "goes"),
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("10.1.1.1", "224.0.0.18", False),
        ("0.0.0.0", "255.255.255.255", False),
        ("::1", "::1", False),
        ("fe80::1", "ff02::1", False),
        ("10.1.1.1", "10.1.1.2", True),
        ("fd00::1", "2001:db8::1", True),
    ],
)
def test_what_belongs_to_its_namespace_stays(source: str, target: str, goes: bool) -> None:
    body = body_of((End(source, 1), End(target, 2)))
    assert (change_of(Kind.SET, key_of(body), (body,)) is not None) == goes


def test_a_dying_entry_stays() -> None:
    body = body_of((INSIDE, OUTSIDE), status=0x20E)
    assert change_of(Kind.SET, key_of(body), (body,)) is None


def test_of_several_events_the_newest_of_each_attribute_counts() -> None:
    first = body_of((INSIDE, OUTSIDE), protocol=TCP, status=8, timeout=5, more=tcp_info(1))
    second = body_of((INSIDE, OUTSIDE), protocol=TCP, timeout=7, more=attr(MARK, number(1)))
    change = change_of(Kind.SET, key_of(first), (first, second))
    assert change is not None
    told = attributes(change.update)
    assert (told[STATUS], told[TIMEOUT], told[MARK]) == (number(0xE), number(7), number(1))
    assert attributes(attributes(told[PROTOINFO])[1])[1] == b"\1"


def test_keys_tell_zones_and_families_apart() -> None:
    plain = key_of(body_of((INSIDE, OUTSIDE)))
    assert plain == b"\2\0\0\0" + tuple_of(ORIG, UDP, INSIDE, OUTSIDE)
    assert key_of(body_of((INSIDE, OUTSIDE), (OUTSIDE, PUBLIC), timeout=1)) == plain
    assert key_of(body_of((INSIDE, OUTSIDE), zone=5)) == plain + attr(ZONE, b"\0\5")


def test_time_left_and_identifier() -> None:
    assert timeout_and_id(body_of((INSIDE, OUTSIDE))) == (100, attr(ID, number(77)))


def _entry(status: int, timeout: int, state: int = 0) -> Change:
    return found(
        body_of(
            (INSIDE, OUTSIDE),
            protocol=TCP if state else UDP,
            status=status,
            timeout=timeout,
            more=tcp_info(state) if state else b"",
        )
    )


@pytest.mark.parametrize(
    ("offered", "present", "ahead"),
    [
        (_entry(0xA, 30), _entry(0x8, 30), True),
        (_entry(0x8, 30), _entry(0xA, 10), False),
        (_entry(0xE, 120), _entry(0xE, 60), True),
        (_entry(0xE, 60), _entry(0xE, 120), False),
        (_entry(0xE, 120, 4), _entry(0xE, 432000, 3), True),
        (_entry(0xE, 432000, 3), _entry(0xE, 60, 5), False),
        (_entry(0x8, 60, 9), _entry(0x8, 120, 1), True),
        (_entry(0xA, 60, 2), _entry(0x8, 60, 9), True),
    ],
)
def test_which_of_two_descriptions_is_the_later(
    offered: Change, present: Change, ahead: bool
) -> None:
    assert is_ahead(offered, present) == ahead


@given(st.binary(max_size=64), st.binary(max_size=16), st.sampled_from(Kind))
def test_only_what_names_an_entry_is_sound(key: bytes, update: bytes, kind: Kind) -> None:
    assert not is_sound(Change(kind, key, b"", update)) or ORIG in attributes(key[4:])


def test_what_we_make_is_sound() -> None:
    change = found(body_of((INSIDE, OUTSIDE)))
    assert is_sound(change)
    assert is_sound(Change(Kind.REMOVED, change.key))
    assert not is_sound(Change(Kind.REMOVED, change.key[:4]))
    assert not is_sound(Change(Kind.SET, change.key, change.create, b""))
