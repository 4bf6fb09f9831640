"""Who comes through the door of an agent, and who does not."""

from __future__ import annotations

import gc
import logging
import os
import socket
import ssl
import threading
import time

import pytest

from tests.unit.peer.peerkit import (
    LIMIT_S,
    SESSION,
    TOKEN,
    Two,
    beside,
    carry,
    hung_up,
    linked,
    signed,
    stranger,
    until,
    where,
)
from vrha.errors import (
    DeadlineError,
    InputError,
    PreconditionError,
    RefusedError,
    UnreachableError,
)
from vrha.peer import Identity, PeerServer, Refusal, dial
from vrha.peer.frames import HELLO, MAGIC, MAX_GREETING, NOBODY, VERSION, knock, pack
from vrha.peer.identity import der
from vrha.peer.server import MAX_CALLERS


def refused(two: Two, why: Refusal, **changes: object) -> None:
    """The call is refused for `why`, and the right one still comes through afterwards."""
    before = two.server.refusals.get(why, 0)
    with pytest.raises(RefusedError) as error:
        two.dial(**changes)  # type: ignore[arg-type]
    assert error.value.code == "peer-refused"
    until(lambda: two.server.refusals.get(why, 0) == before + 1)


def test_the_right_pair_meets(two: Two) -> None:
    with linked(two) as (of_a, of_b):
        of_b.send(7, b"from b")
        assert of_a.receive(LIMIT_S) == (7, b"from b")
        of_a.send(8, b"from a")
        assert of_b.receive(LIMIT_S) == (8, b"from a")
    assert two.server.refusals == {}


def test_the_one_who_waits_first_is_woken(two: Two) -> None:
    expectation = two.expect()
    waiting = beside(lambda: expectation.wait(LIMIT_S))
    link = two.dial()
    waiting.result(LIMIT_S).close()
    link.close()


def test_it_is_tls_13_of_the_pinned_certificate(two: Two) -> None:
    two.expect()
    context = two.b.client_context(der(two.a.certificate))
    with (
        stranger(two.server, knock(SESSION)) as plain,
        context.wrap_socket(plain) as sock,
    ):
        assert sock.version() == "TLSv1.3"
        assert sock.compression() is None
        assert sock.getpeercert(binary_form=True) == der(two.a.certificate)


def test_older_tls_is_refused(two: Two) -> None:
    two.expect()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        stranger(two.server, knock(SESSION)) as plain,
        pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
    ):
        context.wrap_socket(plain)
    until(lambda: two.server.refusals == {Refusal.FOREIGN: 1})


def test_another_client_certificate_is_refused(two: Two) -> None:
    two.expect()
    refused(two, Refusal.WRONG_CERTIFICATE, who=Identity.new("node-b"))
    two.dial().close()


def test_the_certificate_of_another_session_is_refused(two: Two) -> None:
    other = Identity.new("node-c")
    two.expect()
    two.server.expect("r-43/1", other.certificate, TOKEN, LIMIT_S)
    refused(two, Refusal.WRONG_CERTIFICATE, who=other)
    two.dial().close()


def test_no_client_certificate_is_refused(two: Two) -> None:
    two.expect()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=two.a.certificate)
    with (
        stranger(two.server, knock(SESSION)) as plain,
        context.wrap_socket(plain) as sock,
        pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
    ):
        sock.recv(1)
    until(lambda: two.server.refusals == {Refusal.WRONG_CERTIFICATE: 1})


def test_another_server_certificate_is_refused_before_the_token_is_told(two: Two) -> None:
    expectation = two.expect()
    refused(two, Refusal.WRONG_CERTIFICATE, certificate=Identity.new("node-a").certificate)
    with pytest.raises(DeadlineError):
        expectation.wait(0)
    two.dial().close()


def test_what_a_pinned_certificate_has_signed_is_refused(two: Two) -> None:
    """The chain is in order; it is another certificate all the same."""
    root, leaf = signed()
    two.server.expect(SESSION, root, TOKEN, LIMIT_S)
    refused(two, Refusal.WRONG_CERTIFICATE, who=leaf)
    server = PeerServer("127.0.0.1:0", leaf)
    try:
        server.expect(SESSION, two.b.certificate, TOKEN, LIMIT_S)
        with pytest.raises(RefusedError, match="another certificate"):
            dial(server.address, two.b, root, SESSION, TOKEN, LIMIT_S)
    finally:
        server.close()


def test_a_wrong_token_is_refused(two: Two) -> None:
    two.expect()
    for token in ("", TOKEN[:-1], TOKEN + "A", "é"):
        refused(two, Refusal.WRONG_TOKEN, token=token)
    two.dial().close()


def test_an_unknown_session_is_refused(two: Two) -> None:
    refused(two, Refusal.UNKNOWN_SESSION)
    two.expect()
    refused(two, Refusal.UNKNOWN_SESSION, session="r-42/2")
    two.dial().close()


def test_a_session_is_for_one_connection(two: Two) -> None:
    with linked(two) as (of_a, of_b):
        refused(two, Refusal.SESSION_USED)
        of_b.send(1)
        assert of_a.receive(LIMIT_S) == (1, b"")
    refused(two, Refusal.SESSION_USED)


def test_a_session_ends_with_its_limit(two: Two) -> None:
    expectation = two.expect(limit_s=0.05)
    with pytest.raises(DeadlineError) as late:
        expectation.wait(LIMIT_S)
    assert late.value.code == "peer-late"
    refused(two, Refusal.UNKNOWN_SESSION)


def test_a_connection_that_nobody_takes_is_closed_at_the_limit(two: Two) -> None:
    two.expect(limit_s=0.5)
    link = two.dial()
    with pytest.raises(UnreachableError):
        link.receive(LIMIT_S)


def test_a_cancelled_session_is_unknown(two: Two) -> None:
    expectation = two.expect()
    waiting = beside(lambda: expectation.wait(LIMIT_S))
    expectation.cancel()
    with pytest.raises(DeadlineError):
        waiting.result(LIMIT_S)
    refused(two, Refusal.UNKNOWN_SESSION)


def test_expecting_again_replaces(two: Two) -> None:
    first = two.expect()
    untaken = two.dial()
    second = two.expect()
    with pytest.raises(UnreachableError):
        untaken.receive(LIMIT_S)
    link = two.dial()
    second.wait(LIMIT_S).close()
    link.close()
    with pytest.raises(DeadlineError):
        first.wait(0)


def test_a_closed_server_expects_nobody(two: Two) -> None:
    expectation = two.expect()
    two.server.close()
    for each in (expectation, two.expect()):
        with pytest.raises(DeadlineError):
            each.wait(LIMIT_S)
    with pytest.raises(UnreachableError) as error:
        two.dial(timeout_s=0.2)
    assert error.value.code == "peer-unreachable"


def test_links_outlive_the_server(two: Two) -> None:
    with linked(two) as (of_a, of_b):
        two.server.close()
        of_b.send(1)
        assert of_a.receive(LIMIT_S) == (1, b"")


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (b"GET", Refusal.FOREIGN),
        (bytes(5000), Refusal.FOREIGN),
        (MAGIC + os.urandom(5000), Refusal.UNKNOWN_SESSION),
        (knock(SESSION) + bytes(5000), Refusal.FOREIGN),
    ],
)
def test_garbage_is_turned_away(two: Two, says: bytes, why: Refusal) -> None:
    two.expect()
    with stranger(two.server, says) as sock:
        assert hung_up(sock)
    until(lambda: two.server.refusals == {why: 1})
    two.dial().close()


def test_a_caller_can_read_why_before_the_connection_ends(two: Two) -> None:
    with stranger(two.server, knock(SESSION) + bytes(5000)) as sock:
        assert sock.recv(100) == NOBODY
        assert sock.recv(100) == b""


def test_strangers_drive_out_strangers_only(two: Two) -> None:
    two.expect()
    context = two.b.client_context(der(two.a.certificate))
    strangers: list[socket.socket] = []
    with stranger(two.server, knock(SESSION)) as plain:
        try:
            strangers += [stranger(two.server) for _ in range(3 * MAX_CALLERS)]
            until(lambda: two.server.refusals.get(Refusal.CROWDED, 0) > 2 * MAX_CALLERS)
            with context.wrap_socket(plain) as sock:
                assert sock.version() == "TLSv1.3"
        finally:
            for each in strangers:
                each.close()


@pytest.mark.parametrize(
    "says",
    [
        pack(HELLO + 1, bytes([VERSION]) + TOKEN.encode()),
        pack(HELLO, bytes([VERSION + 1]) + TOKEN.encode()),
        pack(HELLO, b""),
        pack(HELLO, bytes(MAX_GREETING + 1))[:5],
    ],
)
def test_a_wrong_greeting_is_refused(two: Two, says: bytes) -> None:
    two.expect()
    context = two.b.client_context(der(two.a.certificate))
    with (
        stranger(two.server, knock(SESSION)) as plain,
        context.wrap_socket(plain) as sock,
    ):
        sock.sendall(says)
        assert hung_up(sock)
    assert two.server.refusals == {Refusal.WRONG_GREETING: 1}
    two.dial().close()


def test_a_silent_caller_holds_up_nobody_and_is_dropped(two: Two) -> None:
    two.expect()
    context = two.b.client_context(der(two.a.certificate))
    with (
        stranger(two.server) as silent,
        stranger(two.server, knock(SESSION)) as plain,
        context.wrap_socket(plain) as no_greeting,
    ):
        began = time.monotonic()
        two.dial().close()
        assert two.server.refusals == {}
        assert hung_up(silent)
        assert hung_up(no_greeting)
        assert time.monotonic() - began < LIMIT_S
    assert two.server.refusals == {Refusal.SILENT: 2}


def test_a_hundred_strangers(two: Two, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    two.expect()
    threads = threading.active_count()
    strangers = [stranger(two.server) for _ in range(100)]
    try:
        two.dial().close()
        until(lambda: two.server.refusals[Refusal.CROWDED] >= 100 - MAX_CALLERS)
        assert threading.active_count() == threads
        assert all(hung_up(sock) for sock in strangers[: 100 - MAX_CALLERS])
    finally:
        for sock in strangers:
            sock.close()
    assert len(caplog.records) == 1


def test_the_expected_one_comes_through_a_flood(two: Two) -> None:
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            stranger(two.server, b"\x16\x03\x01\x02\x00").close()

    floods = [beside(flood) for _ in range(2)]
    try:
        for i in range(5):
            expectation = two.expect(f"r-{i}/1")
            link = two.dial(session=f"r-{i}/1")
            expectation.wait(LIMIT_S).close()
            link.close()
    finally:
        stop.set()
        for each in floods:
            each.result(LIMIT_S)


def test_nothing_is_left_open(two: Two) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with linked(two):
        pass
    before = descriptors()
    for _ in range(5):
        with linked(two):
            pass
        refused(two, Refusal.UNKNOWN_SESSION, session="other")
        stranger(two.server, b"x" * 100).close()
    until(lambda: descriptors() == before)


# wrap_socket of a connection that was reset drops the socket it has made without closing it
# (CPython 3.11, SSLSocket._create); the interpreter closes it, with a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_call_that_breaks_is_made_again(two: Two) -> None:
    expectation = two.expect()
    with socket.create_server(("127.0.0.1", 0)) as middle:
        address = f"127.0.0.1:{middle.getsockname()[1]}"
        dialing = beside(lambda: dial(address, two.b, two.a.certificate, SESSION, TOKEN, LIMIT_S))
        middle.accept()[0].close()
        with middle.accept()[0] as to_b, stranger(two.server) as to_a:
            carry(to_a, to_b, dialing.done)
            expectation.wait(LIMIT_S).close()
            dialing.result(LIMIT_S).close()
    gc.collect()


def test_a_listener_that_says_nothing_is_unreachable(two: Two) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(UnreachableError) as error:
            dial(address, two.b, two.a.certificate, SESSION, TOKEN, 0.2)
    assert error.value.code == "peer-unreachable"


@pytest.mark.parametrize("address", ["", "192.0.2.1", "node-a:7443", "::1:7443"])
def test_an_address_that_cannot_be_called(two: Two, address: str) -> None:
    with pytest.raises(UnreachableError) as error:
        dial(address, two.b, two.a.certificate, SESSION, TOKEN, LIMIT_S)
    assert error.value.code == "peer-unreachable"


def test_ipv6_any_takes_both() -> None:
    a, b = Identity.new("a"), Identity.new("b")
    server = PeerServer("[::]:0", a)
    try:
        assert server.address.startswith("[::]:")
        port = server.address.rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]"):
            expectation = server.expect(host, b.certificate, TOKEN, LIMIT_S)
            link = dial(f"{host}:{port}", b, a.certificate, host, TOKEN, LIMIT_S)
            expectation.wait(LIMIT_S).close()
            link.close()
    finally:
        server.close()


@pytest.mark.parametrize(
    "listen", ["", "127.0.0.1", ":7443", "localhost:7443", "::1:7443", "127.0.0.1:x", "192.0.2.1:1"]
)
def test_an_address_that_cannot_be_served(listen: str) -> None:
    with pytest.raises(PreconditionError) as error:
        PeerServer(listen, Identity.new("a"))
    assert error.value.code == "sync-listen"
    assert error.value.hint


def test_a_port_that_is_taken(two: Two) -> None:
    with pytest.raises(PreconditionError, match="in use"):
        PeerServer(f"127.0.0.1:{where(two.server)[1]}", two.a)


def test_what_is_no_certificate(two: Two) -> None:
    for text in ("", "é", two.a.certificate * 2, two.a.certificate.replace("M", "!", 5)):
        with pytest.raises(InputError) as error:
            two.server.expect(SESSION, text, TOKEN, LIMIT_S)
        assert error.value.code == "peer-certificate"


def test_the_key_is_not_shown(two: Two) -> None:
    assert "PRIVATE" not in repr(two.a) + two.a.certificate
    assert TOKEN not in repr(two.expect().terms)
