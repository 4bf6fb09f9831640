"""Fixtures of the stream between agents."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.peer.peerkit import Two, linked
from vrha.peer import Identity, PeerLink, PeerServer


@pytest.fixture
def two() -> Iterator[Two]:
    a = Identity.new("node-a")
    server = PeerServer("127.0.0.1:0", a)
    try:
        yield Two(server, a, Identity.new("node-b"))
    finally:
        server.close()


@pytest.fixture
def links(two: Two) -> Iterator[tuple[PeerLink, PeerLink]]:
    with linked(two) as made:
        yield made
