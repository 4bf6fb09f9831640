"""Frames, however the bytes come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrha.errors import InputError
from vrha.peer.frames import MAX_FRAME, Frames, pack


@given(
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=8),
    st.lists(st.integers(1, 30)),
)
def test_frames_survive_any_cut(sent: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(pack(kind, body) for kind, body in sent)
    frames, got = Frames(MAX_FRAME), []
    for size in [*cuts, len(stream) or 1]:
        frames.feed(stream[:size])
        stream = stream[size:]
        while frames.ready:
            got.append(frames.take())
        assert frames.take() is None
    assert got == sent


def test_a_frame_over_the_limit_is_refused_by_its_header() -> None:
    frames = Frames(10)
    frames.feed(pack(1, bytes(11))[:5])
    assert frames.ready
    with pytest.raises(ValueError, match="11 bytes"):
        frames.take()


@pytest.mark.parametrize(("kind", "size"), [(-1, 0), (256, 0), (1, MAX_FRAME + 1)])
def test_what_cannot_be_sent_is_said(kind: int, size: int) -> None:
    with pytest.raises(InputError) as refused:
        pack(kind, bytes(size))
    assert refused.value.code == "peer-frame"
