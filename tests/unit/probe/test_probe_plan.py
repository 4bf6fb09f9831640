"""What a command line means: origins, names of streams, clocks of ends, the live view, files."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from vrha.errors import InputError, VrhaError
from vrha.model.probing import Live, LiveStream, Stream
from vrha.probe.ends import Offset, offset_of
from vrha.probe.events import Begin, Progress, event_of, lines_of, order_of
from vrha.probe.files import check_writable, write, write_probes
from vrha.probe.live import Trail, view
from vrha.probe.origins import HERE, Origin, origin_of, placed, split


@pytest.mark.parametrize(
    ("text", "origin", "target"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        ("vm1=192.0.2.1", "vm1", "192.0.2.1"),
        ("me@host=udp://[2001:db8::1]:7@5ms", "me@host", "udp://[2001:db8::1]:7@5ms"),
        ("http://192.0.2.1/?a=b", None, "http://192.0.2.1/?a=b"),
        ("vm1=http://192.0.2.1/?a=b", "vm1", "http://192.0.2.1/?a=b"),
        ("/proc/1/ns/net=192.0.2.1", "/proc/1/ns/net", "192.0.2.1"),
        ("=192.0.2.1", "", "192.0.2.1"),
        ("-oX=192.0.2.1", None, "-oX=192.0.2.1"),
    ],
)
def test_a_target_may_carry_its_origin(text: str, origin: str | None, target: str) -> None:
    assert split(text) == (origin, target)


def test_a_name_that_is_no_namespace_is_a_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vrha.probe.origins.NAMESPACES", tmp_path)
    (tmp_path / "vm1").touch()
    assert origin_of("") == HERE
    assert origin_of("vm1") == Origin("vm1", str(tmp_path / "vm1"))
    assert origin_of("vm2") == Origin("vm2", host="vm2")
    assert origin_of("/proc/1/ns/net") == Origin("net", "/proc/1/ns/net")
    for bad in ("-oProxyCommand=x", "..", "a b", "a\nb"):
        with pytest.raises(InputError) as caught:
            origin_of(bad)
        assert caught.value.code == "bad-origin"


def test_streams_have_names_of_their_own() -> None:
    def names(targets: list[str], origins: list[Origin]) -> list[str]:
        found = placed(targets, origins, lambda target: [Stream("x", "icmp", target)])
        return [stream.name for _, stream in found]

    far = Origin("far", host="far")
    assert names(["a"], [HERE]) == ["icmp"]
    assert names(["a"], [HERE, far]) == ["icmp", "icmp from far"]
    assert names(["a", "udp://b@5ms"], [HERE]) == ["icmp a", "udp://b"]
    assert names(["a", "a"], [HERE]) == ["icmp", "icmp #2"]


def test_the_quickest_answer_tells_the_clock() -> None:
    slow, quick = (0, 5_000_400, 900), (1_000, 5_001_055, 1_100)
    assert offset_of([slow, quick]) == Offset(5_000_005, 50)


def test_lines_come_whole_however_they_are_cut() -> None:
    out, into = os.pipe()
    os.write(into, b"one\ntw")
    lines = lines_of(out)
    assert next(lines) == b"one"
    os.write(into, b"o\nhalf")
    assert next(lines) == b"two"
    os.close(into)
    assert list(lines) == []
    os.close(out)


def test_orders_and_events_are_told_apart_by_kind() -> None:
    order = order_of(
        b'{"kind":"begin","streams":[{"name":"a","kind":"icmp","target":"b"}],'
        b'"duration_s":null,"require_reply_s":1,"live_every_s":1}'
    )
    assert isinstance(order, Begin)
    assert order.streams[0].target == "b"
    event = event_of(b'{"kind":"progress","live":{"at_ms":1,"streams":[]}}')
    assert event == Progress(Live(1.0, ()))
    with pytest.raises(InputError):
        order_of(b"Welcome to Linux")


def test_a_trail_tells_rate_and_the_share_that_came_back_each_second() -> None:
    trail = Trail()
    for second, lost in enumerate((0, 0, 500, 1500)):
        now = LiveStream("udp", 1000 * second, lost, 0.0, 0.0, 0.1, 0)
        trail.add(1000.0 * second, now)
    assert trail.rate == 1000
    assert list(trail.shares) == [1.0, 0.5, 0.0]
    assert (trail.sparkline()[0], trail.sparkline()[-1]) == ("█", "▁")


def test_nothing_is_said_when_quiet() -> None:
    out = io.StringIO()
    with view(out, None, True) as quiet:
        quiet.mark("flip")
        quiet.show(Live(0.0, ()))
    assert out.getvalue() == ""


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    check_writable([str(path)])
    assert list(tmp_path.iterdir()) == []
    write(str(path), b"body")
    assert path.read_bytes() == b"body\n"
    with pytest.raises(VrhaError) as caught:
        check_writable([str(tmp_path)])
    assert caught.value.code == "unwritable"
    assert list(tmp_path.iterdir()) == [path]


def test_the_times_of_each_probe(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_probes(str(path), [(Stream('a "b"', "icmp", "c"), [0, 1_000_000], [250_000, -1])])
    assert path.read_text().splitlines() == [
        "stream,seq,sent_ms,rtt_ms",
        '"a ""b""",0,0.000000,0.250000',
        '"a ""b""",1,1.000000,',
    ]
