"""What agents say to each other: what goes in comes out, and rubbish is refused."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrha import codec
from vrha.agent.wire import Known, Neighbourhood, changes_of, count_of, frames
from vrha.errors import InputError
from vrha.linux.ctwire import Change, Kind
from vrha.linux.neighbour_check import PortAnswers
from vrha.linux.neighbours import REACHABLE, Neighbour

parts = st.binary(max_size=400)
changes = st.builds(Change, st.sampled_from(list(Kind)), parts, parts, parts)

NEIGHBOURS = [
    Neighbour("n0", ip_address("10.1.1.11"), bytes.fromhex("020000000011"), REACHABLE),
    Neighbour("u0", ip_address("2001:db8::1"), bytes.fromhex("0200000000ff"), REACHABLE),
]
HEARD = (PortAnswers("u0", (ip_address("203.0.113.1"),), (ip_address("2001:db8::1"),)),)


def decoded(body: bytes) -> list[Change] | None:
    """The changes; None when they are refused."""
    try:
        return changes_of(body)
    except InputError:
        return None


@given(st.lists(changes, max_size=30))
def test_changes_arrive_as_they_were_sent(sent: list[Change]) -> None:
    assert [change for body in frames(sent) for change in changes_of(body)] == sent


def test_many_changes_are_many_frames_in_order() -> None:
    sent = [Change(Kind.REMOVED, number.to_bytes(4, "big")) for number in range(2500)]
    bodies = list(frames(sent))
    assert len(bodies) == 3
    assert max(map(len, bodies)) < 4 << 20
    assert [change for body in bodies for change in changes_of(body)] == sent


@given(st.lists(changes, min_size=1, max_size=3), st.data())
def test_a_frame_cut_short_is_refused_or_holds_whole_changes(
    sent: list[Change], data: st.DataObject
) -> None:
    (body,) = frames(sent)
    cut = data.draw(st.integers(0, len(body) - 1))
    got = decoded(body[:cut])
    assert got is None or got == sent[: len(got)]


@given(st.binary(max_size=60))
def test_rubbish_is_refused_or_changes_but_nothing_else(body: bytes) -> None:
    got = decoded(body)
    assert got is None or b"".join(frames(got)) == body


def test_an_unknown_kind_of_change_is_refused() -> None:
    with pytest.raises(InputError, match="not a frame"):
        changes_of(bytes([3]) + bytes(6))


def test_neighbours_arrive_as_they_were_sent() -> None:
    body = codec.encode(Neighbourhood.of(NEIGHBOURS, HEARD))
    got = codec.decode(Neighbourhood, body)
    assert got.table() == NEIGHBOURS
    assert got.heard == HEARD


def test_a_neighbour_without_a_mac_is_refused() -> None:
    place = Neighbourhood((Known("n0", ip_address("10.1.1.11"), "no mac", REACHABLE),), ())
    with pytest.raises(InputError) as caught:
        place.table()
    assert caught.value.code == "peer-frame"


def test_counts() -> None:
    assert count_of(b"12") == 12
    with pytest.raises(InputError) as caught:
        count_of(b"many")
    assert caught.value.code == "peer-frame"
