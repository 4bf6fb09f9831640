"""HTTP(S) requests as probes, each over a connection of its own (RFC 9112, RFC 8446)."""

from __future__ import annotations

import select
import ssl
from ipaddress import IPv6Address

from vrha.errors import InputError
from vrha.model.probing import Stream
from vrha.probe.attempts import Attempt, AttemptChannel
from vrha.probe.kernel import Namespace

MOST_BYTES = 4096
"""A status line is shorter."""
DEFAULT_PORTS = {"http": 80, "https": 443}
MOST_PATH = 2048
"""So that a request always fits into the empty buffer of a socket."""
NO_HTTP = "no HTTP"


class HttpChannel(AttemptChannel):
    """A GET per probe; its answer is a status line below 500, timed when it has come.

    Raises InputError (`bad-stream`) on a path that no request could carry.
    """

    def __init__(self, stream: Stream, namespace: Namespace, poller: select.epoll) -> None:
        super().__init__(stream, namespace, poller)
        self._request = request(stream)
        self._host = host_of(stream)
        self._said: dict[int, bytes] = {}
        self._context = _context(stream) if stream.kind == "https" else None
        self._session: ssl.SSLSession | None = None

    def _go_on(self, fd: int, attempt: Attempt, now: int) -> None:
        try:
            if fd not in self._said:
                self._open(fd, attempt)
            self._read(fd, attempt, now)
        except (ssl.SSLWantReadError, BlockingIOError):
            self._await(fd, select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self._await(fd, select.EPOLLOUT)
        except ssl.SSLError as error:
            self._drop(fd, f"tls: {_reason(error)}")
        except OSError as error:
            self._count(error)
            self._drop(fd)

    def _open(self, fd: int, attempt: Attempt) -> None:
        """Greet, as far as that goes at once, and ask."""
        if self._context is not None:
            if not isinstance(attempt.sock, ssl.SSLSocket):
                attempt.sock = self._context.wrap_socket(
                    attempt.sock,
                    server_hostname=self._host,
                    do_handshake_on_connect=False,
                    session=self._session,
                )
                # The socket has been given a new object, not a new number.
            assert isinstance(attempt.sock, ssl.SSLSocket)
            attempt.sock.do_handshake()
        attempt.sock.send(self._request)
        self._said[fd] = b""

    def _read(self, fd: int, attempt: Attempt, now: int) -> None:
        data = attempt.sock.recv(MOST_BYTES)
        said = self._said[fd] + data
        line, end, _ = said.partition(b"\n")
        if end:
            if isinstance(attempt.sock, ssl.SSLSocket):
                self._session = attempt.sock.session
            self._judge(fd, line, now)
        elif not data or len(said) > MOST_BYTES or not b"HTTP/".startswith(said[:5]):
            self._drop(fd, NO_HTTP if said else "closed by the far end")
        else:
            self._said[fd] = said
            self._await(fd, select.EPOLLIN)

    def _judge(self, fd: int, line: bytes, now: int) -> None:
        parts = line.split()
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/") or not parts[1].isdigit():
            self._drop(fd, NO_HTTP)
        elif int(parts[1]) >= 500:
            self._drop(fd, f"status {int(parts[1])}")
        else:
            del self._said[fd]
            self._succeed(fd, now)

    def _drop(self, fd: int, why: str | None = None) -> None:
        self._said.pop(fd, None)
        if why is None:
            self._pending.pop(fd).sock.close()
        else:
            self._fail(fd, why)

    def _fail(self, fd: int, why: str) -> None:
        self._said.pop(fd, None)
        super()._fail(fd, why)


def request(stream: Stream) -> bytes:
    """The request of a stream. Raises InputError (`bad-stream`)."""
    path = stream.path or "/"
    if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
        raise InputError("bad-stream", f"stream {stream.name!r}: {path!r} is no path of a URL")
    if len(path) > MOST_PATH:
        raise InputError(
            "bad-stream", f"stream {stream.name!r}: a path of more than {MOST_PATH} characters"
        )
    host = host_of(stream)
    if _is_v6(host):
        host = f"[{host}]"
    if stream.port != DEFAULT_PORTS[stream.kind]:
        host += f":{stream.port}"
    lines = (
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "User-Agent: ping-gap",
        "Connection: close",
        "",
        "",
    )
    return "\r\n".join(lines).encode("ascii")


def host_of(stream: Stream) -> str:
    """The target as a server knows itself: a name in its IDNA form (RFC 3490) without the dot at
    its end (RFC 6066 section 3), an address without the scope of this machine (RFC 6874).

    Raises InputError (`bad-stream`).
    """
    host = stream.target.partition("%")[0].removesuffix(".")
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise InputError("bad-stream", f"stream {stream.name!r}: {host!r}: {error}") from error


def _is_v6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _context(stream: Stream) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not stream.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    return (error.reason or "failed").lower().replace("_", " ")
