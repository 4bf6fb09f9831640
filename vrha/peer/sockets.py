"""TCP sockets of the stream: numeric addresses, and a dead peer is noticed."""

from __future__ import annotations

import socket
import ssl

__all__ = ["LOST_S", "listening", "reason", "split", "text", "tune"]

LOST_S = 5
"""A peer that acknowledges nothing for so long (s) is lost."""
BACKLOG = 1024
"""Connections that wait to be taken; one that finds no room calls again after a second."""


def split(address: str) -> tuple[str, int]:
    """`172.31.255.11:7443` or `[::]:7443` in its parts. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{address!r} is an IPv6 address without brackets")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"{address!r} is not ADDRESS:PORT")
    # Looking a name up would have no deadline.
    try:
        socket.getaddrinfo(host, int(port), flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(f"{host!r} is not a numeric address") from error
    return host, int(port)


def text(sock: socket.socket) -> str:
    """The own address of a socket, as `split` reads it."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listening(address: str) -> socket.socket:
    """A non-blocking listener; `[::]` takes IPv4 as well. Raises OSError, ValueError."""
    host, port = split(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # For TIME_WAIT of an earlier agent; a living one still makes bind fail.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def tune(sock: socket.socket) -> None:
    """No delay of small messages; a dead peer is noticed within about LOST_S (tcp(7)).

    Raises OSError.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_S * 1000)


def reason(error: OSError) -> str:
    """What went wrong, in a few words for people."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS: {error.reason.lower().replace('_', ' ')}"
    return error.strerror or str(error) or type(error).__name__
