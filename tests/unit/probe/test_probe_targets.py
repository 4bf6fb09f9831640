"""What may be written as a target, and where it is probed from."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vrha.errors import InputError, NotFoundError
from vrha.model.probing import Kind, Stream
from vrha.probe import origins
from vrha.probe.channels import resolve
from vrha.probe.dns import question
from vrha.probe.http import request
from vrha.probe.origins import HERE, Origin, origin_of, placed
from vrha.probe.targets import parse_target


@pytest.mark.parametrize(
    ("text", "kind", "target", "port", "path", "interval"),
    [
        ("192.0.2.1", "icmp", "192.0.2.1", 7, "", 1.0),
        ("2001:db8::1", "icmp", "2001:db8::1", 7, "", 1.0),
        ("[2001:db8::1]", "icmp", "2001:db8::1", 7, "", 1.0),
        ("icmp://example.org@500us", "icmp", "example.org", 7, "", 0.5),
        ("udp://192.0.2.1", "udp", "192.0.2.1", 7, "", 1.0),
        ("udp://192.0.2.1:77@5ms", "udp", "192.0.2.1", 77, "", 5.0),
        ("udp-fresh://[2001:db8::1]:77", "udp-fresh", "2001:db8::1", 77, "", 1.0),
        ("tcp://host:443", "tcp-connect", "host", 443, "", 10.0),
        ("tcp-echo://host", "tcp-echo", "host", 8, "", 10.0),
        ("tcp-push://host", "tcp-push", "host", 9, "", 10.0),
        ("http://host/a/b?c=d@2s", "http", "host", 80, "/a/b?c=d", 2000.0),
        ("http://host?c=d#e", "http", "host", 80, "/?c=d", 10.0),
        ("https://host:8443", "https", "host", 8443, "", 100.0),
        ("dns://192.0.2.53/example.org/AAAA", "dns", "192.0.2.53", 53, "example.org/AAAA", 10.0),
    ],
)
def test_targets(text: str, kind: Kind, target: str, port: int, path: str, interval: float) -> None:
    stream = parse_target(text)
    assert (stream.kind, stream.target, stream.port) == (kind, target, port)
    assert (stream.path, stream.interval_ms) == (path, interval)


def test_a_bare_host_takes_kind_and_port_from_beside_it() -> None:
    stream = parse_target("host@2ms", kind="tcp-connect", port=22, interval_ms=7.0, family=6)
    assert (stream.kind, stream.port, stream.interval_ms, stream.family) == (
        *("tcp-connect", 22, 2.0, 6),
    )


@pytest.mark.parametrize(
    "text",
    [
        *("", "smtp://host", "tcp://host", "udp://host/path", "udp://", "icmp://host:7"),
        *("http://", "dns://192.0.2.53", "udp://a:b:c", "host/24", "udp://host:99999"),
        *("udp://2001:db8::1:7", "udp://host:0", "host@0ms", "udp://host@5", "host@5", "host:80"),
        *("[2001:db8::1]:77", "[::1", "udp://[host]:7", "http://user@host/", "tcp://ho st:1"),
    ],
)
def test_targets_that_are_none(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_target(text)
    assert caught.value.code in ("bad-target", "bad-stream")


def test_each_target_may_have_an_origin_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origins, "NAMESPACES", tmp_path)
    (tmp_path / "vm1").touch()
    found = placed(
        ("vm1=udp://192.0.2.1@5ms", "web1.example.org=192.0.2.2", "192.0.2.3"),
        (HERE, Origin("vm1", str(tmp_path / "vm1"))),
        lambda text: [parse_target(text)],
    )
    assert [(origin.host, stream.name, stream.netns) for origin, stream in found] == [
        ("", "udp://192.0.2.1 from vm1", str(tmp_path / "vm1")),
        ("web1.example.org", "icmp 192.0.2.2 from web1.example.org", None),
        ("", "icmp 192.0.2.3", None),
        ("", "icmp 192.0.2.3 from vm1", str(tmp_path / "vm1")),
    ]


def test_one_target_is_named_by_its_kind() -> None:
    found = placed(("192.0.2.1", "192.0.2.1"), (HERE,), lambda text: [parse_target(text)])
    assert [stream.name for _, stream in found] == ["icmp", "icmp #2"]


@pytest.mark.parametrize("text", ["-oProxyCommand=x", "..", "a b", "a\nb"])
def test_origins_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="bad-origin"):
        origin_of(text)


def test_the_request_of_http() -> None:
    stream = Stream("x", "http", "2001:db8::1", 8080, path="/health")
    assert request(stream).startswith(b"GET /health HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\n")
    for bad in ("health", "/a b", "/a\r\nX: y", "/\u00e4"):
        with pytest.raises(InputError, match="no path"):
            request(Stream("x", "http", "host", path=bad))


def test_a_server_is_asked_by_the_name_that_it_has() -> None:
    for target, host in (
        ("b\u00fccher.example", b"xn--bcher-kva.example"),
        ("example.org.", b"example.org"),
        ("fe80::1%eth0", b"[fe80::1]"),
    ):
        stream = Stream("x", "http", target, 80)
        assert request(stream).split(b"\r\n")[1] == b"Host: " + host
    with pytest.raises(InputError, match="bad-stream"):
        request(Stream("x", "http", "b\u00fc..example", 80))


def test_a_path_that_no_socket_takes_at_once_is_refused() -> None:
    with pytest.raises(InputError, match="2048 characters"):
        request(Stream("x", "http", "host", 80, path="/" + "x" * 5000))


def test_a_name_that_nobody_knows_lacks_no_family(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(NotFoundError, match="unknown-host"):
        resolve(Stream("x", "icmp", "nowhere.invalid", family=6))


def test_the_question_of_dns() -> None:
    packed = question(Stream("x", "dns", "host", path="www.example.org./aaaa"))
    assert packed == b"\x03www\x07example\x03org\x00\x00\x1c\x00\x01"
    assert question(Stream("x", "dns", "host", path="b\u00fccher.example"))[1:].startswith(b"xn--")
    for bad in ("", "a..b", "x" * 64, "host/NOTYPE", ".".join(["x" * 60] * 5), "host/99999"):
        with pytest.raises(InputError, match="bad-stream"):
            question(Stream("x", "dns", "host", path=bad))
