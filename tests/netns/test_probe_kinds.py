"""HTTP, HTTPS and DNS probes against real servers, good and bad."""

from __future__ import annotations

import datetime
import http.server
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.netns.probekit import (
    B4,
    B4_SECOND,
    B6,
    NOBODY4,
    ROOT,
    Pair,
    drop,
    udp_counter,
    undrop,
    wait_until,
)
from vrha.errors import InputError, NotFoundError, UnreachableError
from vrha.model.probing import Result, Stream, StreamResult
from vrha.probe.attempts import AttemptChannel
from vrha.probe.channels import Inbox
from vrha.probe.dns import DnsChannel
from vrha.probe.kernel import Namespace
from vrha.probe.prober import Prober
from vrha.probe.process import ProbeProcess

pytestmark = pytest.mark.root


class _Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = int(self.path.rpartition("/")[2] or 200)
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Probes reset their connections."""


@contextmanager
def listening(path: str, address: str = "0.0.0.0", port: int = 0) -> Iterator[socket.socket]:
    """A TCP socket that listens in the namespace."""
    namespace = Namespace(path)
    with namespace:
        sock = socket.create_server((address, port), backlog=128)
    namespace.close()
    with sock:
        yield sock


@contextmanager
def pages(path: str, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A web server in the namespace whose pages answer with the status in their path; its port."""
    with listening(path) as sock:
        server = _Server(("127.0.0.1", 0), _Pages, bind_and_activate=False)
        server.socket.close()
        server.socket = tls.wrap_socket(sock, server_side=True) if tls else sock
        thread = threading.Thread(target=partial(server.serve_forever, 0.01))
        thread.start()
        try:
            yield sock.getsockname()[1] if not tls else server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@contextmanager
def saying(path: str, words: bytes) -> Iterator[int]:
    """A TCP server that says these words to everybody and hangs up; its port."""
    with listening(path) as sock:
        sock.settimeout(0.05)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    peer, _ = sock.accept()
                except TimeoutError:
                    continue
                with peer:
                    try:
                        peer.recv(1000)
                        peer.sendall(words)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            stop.set()
            thread.join()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A server's side of TLS for B4, signed by nobody else, and its certificate."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(B4))]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "cert.pem").write_bytes(pem)
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context, folder / "cert.pem"


@pytest.fixture
def certified(authority: tuple[ssl.SSLContext, Path]) -> ssl.SSLContext:
    return authority[0]


@pytest.fixture
def trusted(authority: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks for authorities in this test finds that of the server."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority[1]))


def measured(stream: Stream, duration_s: float = 0.5) -> StreamResult:
    with Prober([stream]) as prober:
        return prober.run(duration_s).streams[0]


def test_requests_are_answered(pair: Pair) -> None:
    with pages(pair.b) as port:
        for path in ("/200", "/404", ""):
            stream = Stream("web", "http", B4, port, pair.a, 10.0, path=path)
            one = measured(stream, 0.3)
            assert (one.loss.lost, one.errors) == (0, ())
            assert one.loss.sent >= 20 - one.late_ticks
            assert one.loss.rtt_median_ms


def test_a_server_in_trouble_is_no_answer(pair: Pair) -> None:
    with pages(pair.b) as port:
        one = measured(Stream("web", "http", B4, port, pair.a, 10.0, path="/503"), 0.3)
    assert one.loss.lost == one.loss.sent
    assert dict(one.errors) == {"status 503": one.loss.sent}


@pytest.mark.parametrize("kind", ["http", "https"])
def test_an_outage_of_the_web(pair: Pair, certified: ssl.SSLContext, kind: str) -> None:
    with pages(pair.b, certified if kind == "https" else None) as port:
        stream = Stream(
            *("web", kind, B4, port, pair.a, 20.0),  # type: ignore[arg-type]
            timeout_ms=300.0,
            verify=False,
        )
        result = faulted(pair, stream, f"tcp dport {port}")
    (one,) = result.streams
    assert 10 <= one.loss.lost < one.loss.sent
    assert not one.loss.unrestored
    assert set(dict(one.errors)) == {"not answered in time"}


def faulted(pair: Pair, stream: Stream, rule: str) -> Result:
    """Probes while packets that match are dropped for 0.3 s."""
    with ProbeProcess([stream], require_reply_s=5) as probe:
        drop(pair, pair.b, rule)
        try:
            time.sleep(0.3)
        finally:
            undrop(pair, pair.b)
        # A retransmitted SYN may come a second later; new attempts are answered at once.
        time.sleep(0.3)
        return probe.stop()


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_with_a_trusted_server_are_resumed(
    pair: Pair, certified: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    certified.maximum_version = version
    before = certified.session_stats()["hits"]
    with pages(pair.b, certified) as port:
        one = measured(Stream("web", "https", B4, port, pair.a, 20.0), 0.4)
    assert (one.loss.lost, one.errors) == (0, ())
    assert certified.session_stats()["hits"] > before


@pytest.mark.usefixtures("trusted")
def test_a_certificate_for_another_name_is_refused(pair: Pair, certified: ssl.SSLContext) -> None:
    with pages(pair.b, certified) as port:
        one = measured(Stream("web", "https", B4_SECOND, port, pair.a, 50.0), 0.2)
    assert one.loss.lost == one.loss.sent
    ((error, count),) = one.errors
    assert error.startswith("tls: IP address mismatch")
    assert count == one.loss.sent


def test_certificates_are_verified_unless_told_otherwise(
    pair: Pair, certified: ssl.SSLContext
) -> None:
    with pages(pair.b, certified) as port:
        stream = Stream("web", "https", B4, port, pair.a, 50.0)
        distrusted = measured(stream, 0.3)
        assert distrusted.loss.lost == distrusted.loss.sent
        assert dict(distrusted.errors) == {"tls: self-signed certificate": distrusted.loss.sent}
        anyway = measured(Stream("web", "https", B4, port, pair.a, 50.0, verify=False), 0.3)
        assert (anyway.loss.lost, anyway.errors) == (0, ())


@pytest.mark.parametrize(
    ("words", "kind", "error"),
    [
        (b"220 smtp ready\r\n", "http", "no HTTP"),
        (b"", "http", "closed by the far end"),
        (b"HTTP/1.1 soon\r\n", "http", "no HTTP"),
        (b"x" * 5000, "http", "no HTTP"),
        (b"220 smtp ready\r\n", "https", "tls: "),
    ],
)
def test_what_is_no_web_server_is_named(pair: Pair, words: bytes, kind: str, error: str) -> None:
    with saying(pair.b, words) as port:
        one = measured(Stream("web", kind, B4, port, pair.a, 50.0), 0.2)  # type: ignore[arg-type]
    assert one.loss.lost == one.loss.sent
    assert all(name.startswith((error, "ECONNRESET")) for name, _ in one.errors), one.errors


def test_a_port_without_a_server_is_refused(pair: Pair) -> None:
    one = measured(Stream("web", "http", B4, 81, pair.a, 20.0), 0.2)
    assert dict(one.errors) == {"ECONNREFUSED": one.loss.sent}


def test_a_server_that_accepts_and_says_nothing_did_not_answer(pair: Pair) -> None:
    with listening(pair.b) as sock:
        port = sock.getsockname()[1]
        stream = Stream("web", "http", B4, port, pair.a, 20.0, timeout_ms=100.0)
        one = measured(stream, 0.2)
    assert dict(one.errors) == {"not answered in time": one.loss.sent}


@contextmanager
def resolver(path: str, *options: str) -> Iterator[None]:
    """A real dnsmasq in the namespace that knows one name."""
    argv = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]
    argv += ["--user=root", "--pid-file", "--port=53", "--address=/known.example/192.0.2.7"]
    with subprocess.Popen(["nsenter", f"--net={path}", *argv, *options]) as process:
        try:
            wait_until(lambda: listens(path), "dnsmasq to listen")
            yield
        finally:
            process.terminate()


def listens(path: str) -> bool:
    shown = subprocess.run(
        ["nsenter", f"--net={path}", "ss", "-Hlun", "sport", "=", ":53"],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return bool(shown.stdout.strip())


def test_a_resolver_answers_also_that_there_is_no_such_name(pair: Pair) -> None:
    with resolver(pair.b, "--local=/example/"):
        for target in (B4, B6):
            for name in ("known.example", "known.example/AAAA", "none.example/MX"):
                one = measured(Stream("dns", "dns", target, 53, pair.a, 5.0, path=name), 0.2)
                assert (one.loss.lost, one.errors) == (0, ())


def test_a_resolver_that_refuses_is_named(pair: Pair) -> None:
    with resolver(pair.b):
        one = measured(Stream("dns", "dns", B4, 53, pair.a, 5.0, path="elsewhere.test"), 0.2)
    assert one.loss.lost == one.loss.sent
    assert dict(one.errors) == {"REFUSED": one.loss.sent}


def test_an_outage_of_the_resolver(pair: Pair) -> None:
    with resolver(pair.b):
        stream = Stream("dns", "dns", B4, 53, pair.a, 5.0, path="known.example")
        result = faulted(pair, stream, "udp dport 53")
    (one,) = result.streams
    assert len(one.loss.gaps) == 1
    assert one.loss.lost >= 50 - one.late_ticks
    assert not one.loss.unrestored


@contextmanager
def forging(path: str, change: Callable[[bytes], bytes], copies: int = 1) -> Iterator[None]:
    """A DNS server that answers each query by what `change` makes of it, `copies` times."""
    namespace = Namespace(path)
    with namespace:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    namespace.close()
    sock.bind(("0.0.0.0", 53))
    sock.settimeout(0.05)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                query, peer = sock.recvfrom(512)
            except TimeoutError:
                continue
            for _ in range(copies):
                sock.sendto(change(query), peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sock.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda query: query,
        lambda query: bytes([query[0] ^ 0x40]) + query[1:2] + b"\x81\x80" + query[4:],
        lambda query: query[:2] + b"\x81\x80" + query[4:12] + b"\x05other" + query[12:],
        lambda query: query[:2] + b"\x81\x80" + bytes(8),
        lambda query: b"junk",
    ],
)
def test_answers_to_other_questions_do_not_count(
    pair: Pair, change: Callable[[bytes], bytes]
) -> None:
    with forging(pair.b, change):
        one = measured(
            Stream("dns", "dns", B4, 53, pair.a, 10.0, path="known.example", timeout_ms=100.0), 0.2
        )
    assert one.loss.lost == one.loss.sent


def test_a_server_that_cannot_take_the_question_is_named(pair: Pair) -> None:
    with forging(pair.b, lambda query: query[:2] + b"\x81\x81" + bytes(8)):
        one = measured(Stream("dns", "dns", B4, 53, pair.a, 10.0, path="known.example"), 0.1)
    assert dict(one.errors) == {"FORMERR": one.loss.sent}


def test_answers_that_overran_the_buffer_are_told_from_lost_ones(pair: Pair) -> None:
    stream = Stream("dns", "dns", B4, 53, pair.a, path="known.example")
    inbox = Inbox()
    with forging(pair.b, lambda query: query, copies=2000):
        channel = DnsChannel(stream, Namespace(pair.a), inbox)
        try:
            channel.probe()
            wait_until(lambda: channel.receive_drops > 0, "more answers than there is room for")
        finally:
            channel.close()
            inbox.close()


def test_an_icmp_error_does_not_swallow_the_next_query(pair: Pair) -> None:
    pair.call(pair.b, "sysctl", "-qw", "net.ipv4.icmp_ratelimit=0")
    before = udp_counter(pair.b, "NoPorts")
    one = measured(Stream("dns", "dns", B4, 53, pair.a, path="known.example"), 0.3)
    assert dict(one.errors)["ECONNREFUSED"] >= one.loss.sent / 2
    assert udp_counter(pair.b, "NoPorts") - before == one.loss.sent


def test_more_queries_than_ids_are_refused(pair: Pair) -> None:
    stream = Stream("dns", "dns", B4, 53, pair.a, 0.1, path="known.example", timeout_ms=10_000.0)
    with pytest.raises(InputError, match="no more ids"):
        Prober([stream])


def test_news_of_a_closed_socket_is_not_taken_for_that_of_the_next_one(pair: Pair) -> None:
    """A connection that stands just as it is given up leaves its number, and its news, to the next
    one, which gets no answer."""
    poller = select.epoll()
    namespace = Namespace(pair.a)
    with listening(pair.b) as server, namespace, poller:
        port = server.getsockname()[1]
        channel = AttemptChannel(Stream("tcp", "tcp-connect", B4, port), Namespace(None), poller)
        channel.probe()
        wait_until(lambda: bool(select.select([server], [], [], 0)[0]), "the connection to stand")
        news = poller.poll(5)
        drop(pair, pair.b, f"tcp dport {port}")
        channel.expire(time.monotonic_ns() + 2_000_000_000)
        channel.probe()
        for fd, _ in news:
            assert channel.take(fd, time.monotonic_ns()), "the number was not given again"
        assert channel.answered == 0
        assert channel.awaits(time.monotonic_ns())
        undrop(pair, pair.b)
        ((fd, _),) = poller.poll(5)
        channel.take(fd, time.monotonic_ns())
        assert not channel.awaits(time.monotonic_ns())
        channel.close()
    namespace.close()


def test_a_family_that_the_target_does_not_have(pair: Pair) -> None:
    with pytest.raises(NotFoundError, match=r"no IPv6 address.*no-address"):
        Prober([Stream("x", "icmp", B4, netns=pair.a, family=6)])
    with pytest.raises(NotFoundError, match="no IPv4 address"):
        Prober([Stream("x", "icmp", B6, netns=pair.a, family=4)])
    assert measured(Stream("x", "icmp", B6, netns=pair.a, family=6), 0.1).loss.lost == 0


def test_a_target_that_is_not_there(pair: Pair) -> None:
    streams = [
        Stream("web", "http", NOBODY4, 80, pair.a, 10.0),
        Stream("dns", "dns", NOBODY4, 53, pair.a, 10.0, path="known.example"),
    ]
    for stream in streams:
        with Prober([stream]) as prober, pytest.raises(UnreachableError, match="no-reply"):
            prober.run(5, require_reply_s=0.3)
    with pytest.raises(UnreachableError, match="no-route"):
        Prober([Stream("dns", "dns", "192.0.2.1", 53, pair.a, path="known.example")])


def test_these_kinds_need_no_privilege(pair: Pair) -> None:
    pair.call(pair.a, "sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
    powerless = ["nsenter", f"--net={pair.a}", "setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    with pages(pair.b) as port, resolver(pair.b):
        targets = [f"http://{B4}:{port}/200", f"dns://[{B6}]/known.example", f"icmp://[{B6}]"]
        argv = [
            sys.executable,
            "-m",
            "vrha.probe",
            *targets,
            "--duration",
            "0.5",
            "--max-lost",
            "0",
        ]
        done = subprocess.run(
            [*powerless, *argv],
            capture_output=True,
            text=True,
            timeout=30,
            cwd=ROOT,
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_replies_beyond_the_timeout_are_late_and_lost(pair: Pair) -> None:
    serve = [sys.executable, "-m", "vrha.probe", "serve", "--delay", "200ms", "--netns", pair.b]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            slow = Stream("slow", "udp", B4, 8, pair.a, 5.0, timeout_ms=100.0)
            patient = Stream("patient", "udp", B4, 8, pair.a, 5.0, timeout_ms=900.0)
            with Prober([slow, patient]) as prober:
                result = prober.run(0.6)
        finally:
            process.terminate()
    late, well = result.stream("slow").loss, result.stream("patient").loss
    assert late.lost == late.sent
    assert late.late > 0
    assert (well.lost, well.late) == (0, 0)
