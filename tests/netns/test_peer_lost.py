"""A path between two agents that goes dark: neither end waits for ever."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vrha.errors import UnreachableError
from vrha.peer import Identity, PeerLink, PeerServer, dial
from vrha.peer.sockets import LOST_S

pytestmark = pytest.mark.root

DARK = """
table inet dark { chain input { type filter hook input priority 0; policy drop; }; }
"""
NOTICED_S = LOST_S + 4
"""The limit, one second of idling, one interval between keepalives, and a slow machine."""


def lost_after(link: PeerLink) -> float:
    """Seconds until a receiver hears that the link is lost."""
    began = time.monotonic()
    with pytest.raises(UnreachableError) as lost:
        link.receive(NOTICED_S * 3)
    assert lost.value.code == "peer-lost"
    return time.monotonic() - began


def test_both_ends_notice(node: None) -> None:
    a, b = Identity.new("a"), Identity.new("b")
    server = PeerServer("127.0.0.1:0", a)
    try:
        expectation = server.expect("s", b.certificate, "token", 10)
        of_b = dial(server.address, b, a.certificate, "s", "token", 10)
        of_a = expectation.wait(10)
        subprocess.run(["nft", "-f", "-"], input=DARK, text=True, check=True, timeout=10)
        # One end has data on the way, the other is idle.
        of_b.send(1, b"into the dark")
        with ThreadPoolExecutor() as pool:
            waits = list(pool.map(lost_after, (of_a, of_b)))
        assert max(waits) < NOTICED_S
    finally:
        server.close()
