"""Targets as they are written on the command line."""

from __future__ import annotations

import re
import socket
from typing import Literal, get_args

from vrha.errors import InputError
from vrha.model.probing import Kind, Stream

INTERVALS_MS: dict[Kind, float] = {
    "icmp": 1.0,
    "udp": 1.0,
    "udp-fresh": 1.0,
    "tcp-connect": 10.0,
    "tcp-echo": 10.0,
    "tcp-push": 10.0,
    "http": 10.0,
    "https": 100.0,
    "dns": 10.0,
}
"""How often each is asked unless told otherwise: what its own cost allows."""
PORTS: dict[Kind, int] = {
    "icmp": 7,
    "udp": 7,
    "udp-fresh": 7,
    "tcp-echo": 8,
    "tcp-push": 9,
    "http": 80,
    "https": 443,
    "dns": 53,
}
_SCHEMES: dict[str, Kind] = {**{kind: kind for kind in get_args(Kind)}, "tcp": "tcp-connect"}
_WITH_PATH = ("http", "https", "dns")
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
_AT = re.compile(r"(.+)@(\d+(?:\.\d+)?)(us|ms|s|m)")
_NAME = re.compile(r"[^:/@\[\]\s]+")
_HOST = re.compile(rf"(?:\[([^\[\]]+)\]|({_NAME.pattern}))(?::(\d{{1,5}}))?")
_HINT = (
    "Write HOST, or icmp://HOST, udp://HOST:PORT, udp-fresh://HOST:PORT, tcp://HOST:PORT, "
    "tcp-echo://HOST:PORT, tcp-push://HOST:PORT, http://HOST/PATH, https://HOST/PATH, "
    "dns://SERVER/NAME/TYPE; IPv6 addresses in [] where a port follows; @5ms at the end is the "
    "interval."
)


def parse_target(
    text: str,
    *,
    kind: Kind | None = None,
    port: int | None = None,
    interval_ms: float | None = None,
    netns: str | None = None,
    family: Literal[0, 4, 6] = 0,
    timeout_ms: float = 1000.0,
    verify: bool = True,
    count: int = 1,
) -> Stream:
    """The stream that `text` names; a bare HOST is probed by `kind` (ICMP) at `port`.

    The defaults of interval and port are those of INTERVALS_MS and PORTS. The stream is named by
    the text. Raises InputError (`bad-target`, `bad-stream`).
    """
    rest, own_ms = _interval(text)
    scheme, separator, target = rest.partition("://")
    path = ""
    if separator:
        found = _SCHEMES.get(scheme.lower())
        if found is None:
            raise _bad(text, f"unknown scheme {scheme!r}")
        kind = found
        host, path = _host_and_path(kind, target)
        if path and kind not in _WITH_PATH:
            raise _bad(text, f"{scheme} takes no path")
        host, port = _host(text, host)
        if kind == "icmp" and port is not None:
            raise _bad(text, "ICMP has no ports")
    else:
        kind = kind or "icmp"
        host = _bare_host(text, rest)
    if port is None:
        port = PORTS.get(kind)
    if port is None:
        raise _bad(text, "a port is missing")
    if kind == "dns" and not path:
        raise _bad(text, "the name to ask for is missing")
    stream = Stream(
        name=text,
        kind=kind,
        target=host,
        port=port,
        netns=netns,
        interval_ms=next(ms for ms in (own_ms, interval_ms, INTERVALS_MS[kind]) if ms is not None),
        count=count,
        path=path,
        family=family,
        timeout_ms=timeout_ms,
        verify=verify,
    )
    stream.check()
    return stream


def _interval(text: str) -> tuple[str, float | None]:
    match = _AT.fullmatch(text)
    return (match[1], float(match[2]) * _UNITS[match[3]]) if match else (text, None)


def _host_and_path(kind: Kind, target: str) -> tuple[str, str]:
    if kind not in ("http", "https"):
        host, _, tail = target.partition("/")
        return host, tail
    # What follows # is not for the server (RFC 3986 section 3.5).
    target = target.partition("#")[0]
    host = re.split("[/?]", target, maxsplit=1)[0]
    path = target[len(host) :]
    return host, "/" + path if path.startswith("?") else path


def _bare_host(text: str, host: str) -> str:
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if _is_v6(inner):
        return inner
    if not _NAME.fullmatch(host):
        raise _bad(text, f"{host!r} is no host")
    return host


def _host(text: str, host: str) -> tuple[str, int | None]:
    match = _HOST.fullmatch(host)
    if match is None or (match[1] and not _is_v6(match[1])):
        raise _bad(text, f"{host!r} is no host or host and port")
    return match[1] or match[2], int(match[3]) if match[3] else None


def _is_v6(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
    except (OSError, ValueError):
        return False
    return True


def _bad(text: str, why: str) -> InputError:
    return InputError("bad-target", f"target {text!r}: {why}", _HINT)
