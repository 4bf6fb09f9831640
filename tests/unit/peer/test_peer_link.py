"""The open stream: frames of any size, both ways at once, and every way to end."""

from __future__ import annotations

import random
import select
import socket

import pytest

from tests.unit.peer.peerkit import LIMIT_S, SESSION, Two, beside, carry, stranger, until
from vrha.errors import InputError, UnreachableError
from vrha.peer import MAX_FRAME, PeerLink, dial
from vrha.peer.frames import HELLO, VERSION, knock, pack
from vrha.peer.identity import der

Links = tuple[PeerLink, PeerLink]


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, MAX_FRAME])
def test_frames_of_any_size(links: Links, size: int) -> None:
    body = random.Random(size).randbytes(size)
    sending = beside(lambda: links[0].send(255, body))
    assert links[1].receive(LIMIT_S) == (255, body)
    sending.result(LIMIT_S)


def test_a_frame_too_large_is_not_sent(links: Links) -> None:
    with pytest.raises(InputError):
        links[0].send(1, bytes(MAX_FRAME + 1))
    links[0].send(2)
    assert links[1].receive(LIMIT_S) == (2, b"")


def test_a_frame_too_large_ends_the_link(two: Two) -> None:
    expectation = two.expect()
    context = two.b.client_context(der(two.a.certificate))
    with (
        stranger(two.server, knock(SESSION)) as plain,
        context.wrap_socket(plain) as sock,
    ):
        token = expectation.terms.token
        sock.sendall(pack(HELLO, bytes([VERSION]) + token))
        link = expectation.wait(LIMIT_S)
        sock.sendall((MAX_FRAME + 1).to_bytes(4, "big") + b"\x01")
        with pytest.raises(UnreachableError, match="at most") as lost:
            link.receive(LIMIT_S)
        assert lost.value.code == "peer-lost"
        with pytest.raises(UnreachableError):
            link.send(1)


def test_what_comes_right_behind_the_greeting_is_kept(two: Two) -> None:
    expectation = two.expect()
    context = two.b.client_context(der(two.a.certificate))
    with (
        stranger(two.server, knock(SESSION)) as plain,
        context.wrap_socket(plain) as sock,
    ):
        hello = pack(HELLO, bytes([VERSION]) + expectation.terms.token)
        sock.sendall(hello + pack(9, b"early"))
        link = expectation.wait(LIMIT_S)
        assert link.receive(LIMIT_S) == (9, b"early")
        link.close()


def test_nothing_comes(links: Links) -> None:
    assert links[0].receive(0) is None
    assert links[0].receive(0.02) is None


def test_many_senders_and_both_ways_at_once(links: Links) -> None:
    count, senders = 300, 3

    def talk(link: PeerLink, kind: int) -> None:
        for i in range(count):
            link.send(kind, i.to_bytes(4, "big") * (i * 20))

    def listen(link: PeerLink) -> dict[int, list[bytes]]:
        heard: dict[int, list[bytes]] = {kind: [] for kind in range(senders)}
        for _ in range(count * senders):
            frame = link.receive(LIMIT_S)
            assert frame is not None
            heard[frame[0]].append(frame[1])
        return heard

    listeners = [beside(lambda link=link: listen(link)) for link in links]  # type: ignore[misc]
    talkers = [
        beside(lambda link=link, kind=kind: talk(link, kind))  # type: ignore[misc]
        for link in links
        for kind in range(senders)
    ]
    expected = [i.to_bytes(4, "big") * (i * 20) for i in range(count)]
    for each in listeners:
        assert each.result(60) == dict.fromkeys(range(senders), expected)
    for talker in talkers:
        talker.result(LIMIT_S)


def test_it_is_polled_with_others(links: Links) -> None:
    """As the netlink loop does: whatever `poll` shows and `pending` says is all there is."""
    of_a, of_b = links
    poll = select.poll()
    poll.register(of_a.fileno(), select.POLLIN)
    # Several frames in one TLS record, and frames of several records.
    sending = beside(lambda: [of_b.send(i, bytes(i * 300)) for i in range(200)])
    got = 0
    while got < 200:
        assert of_a.pending() or poll.poll(LIMIT_S * 1000)
        if (frame := of_a.receive(0)) is not None:
            assert frame == (got, bytes(got * 300))
            got += 1
    sending.result(LIMIT_S)
    assert not of_a.pending()
    assert not poll.poll(0)


def test_the_end_comes_after_what_was_sent(links: Links) -> None:
    of_a, of_b = links
    of_b.send(1, b"last words")
    of_b.close()
    assert of_a.receive(LIMIT_S) == (1, b"last words")
    for _ in range(2):
        with pytest.raises(UnreachableError) as lost:
            of_a.receive(LIMIT_S)
        assert lost.value.code == "peer-lost"
    assert of_a.pending()
    assert of_a.fileno() == -1


def test_sending_to_nobody_fails(links: Links) -> None:
    links[1].close()

    def fails() -> bool:
        try:
            links[0].send(1, bytes(1000))
        except UnreachableError as lost:
            return lost.code == "peer-lost"
        return False

    until(fails)


def test_closing_wakes_who_waits(links: Links) -> None:
    of_a, _ = links
    receiving = beside(lambda: of_a.receive(60))
    with pytest.raises(TimeoutError):
        receiving.result(0.05)
    of_a.close()
    of_a.close()
    with pytest.raises(UnreachableError, match="closed here"):
        receiving.result(LIMIT_S)
    assert of_a.fileno() == -1


def test_closing_wakes_who_cannot_send(links: Links) -> None:
    of_a, _ = links

    def pour() -> None:
        while True:
            of_a.send(1, bytes(MAX_FRAME))

    sending = beside(pour)
    with pytest.raises(TimeoutError):
        sending.result(0.3)
    of_a.close()
    with pytest.raises(UnreachableError):
        sending.result(LIMIT_S)


def test_a_peer_that_does_not_read_is_lost(links: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vrha.peer.link.LOST_S", 0.2)

    def pour() -> None:
        while True:
            links[0].send(1, bytes(MAX_FRAME))

    with pytest.raises(UnreachableError, match="has taken nothing"):
        pour()
    assert links[0].fileno() == -1


def test_a_sender_that_waits_does_not_stop_the_receiver(links: Links) -> None:
    """Both send more than the buffers hold and read afterwards in another thread."""
    bodies = 4

    def pour(link: PeerLink) -> None:
        for _ in range(bodies):
            link.send(1, bytes(MAX_FRAME))

    pouring = [beside(lambda link=link: pour(link)) for link in links]  # type: ignore[misc]
    for link in links:
        for _ in range(bodies):
            assert link.receive(LIMIT_S) == (1, bytes(MAX_FRAME))
    for each in pouring:
        each.result(LIMIT_S)


def test_altered_bytes_end_the_link(two: Two) -> None:
    """A middleman who flips one bit on the way."""
    expectation = two.expect()
    host, _, port = two.server.address.rpartition(":")
    with (
        socket.create_server(("127.0.0.1", 0)) as middle,
        socket.create_connection((host, int(port))) as to_a,
    ):
        address = f"127.0.0.1:{middle.getsockname()[1]}"
        token = expectation.terms.token.decode()
        dialing = beside(lambda: dial(address, two.b, two.a.certificate, SESSION, token, LIMIT_S))
        to_b, _ = middle.accept()
        with to_b:
            carry(to_a, to_b, dialing.done)
            of_a, of_b = expectation.wait(LIMIT_S), dialing.result(LIMIT_S)
            of_b.send(1, b"state")
            altered = bytearray(to_b.recv(4096))
            altered[-1] ^= 1
            to_a.sendall(altered)
            with pytest.raises(UnreachableError, match="TLS"):
                of_a.receive(LIMIT_S)
            of_b.close()
