"""Many targets at the shortest interval, and what is said of those that cannot be reached."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.netns.probekit import (
    A4,
    B4,
    B4_SECOND,
    B6,
    B6_SECOND,
    MS,
    Fault,
    Pair,
    drop,
    now_and_after,
    undrop,
)
from vrha.core.gaps import UNANSWERED
from vrha.model.probing import Kind, Live, Stream
from vrha.probe.channels import Arrivals
from vrha.probe.prober import Prober
from vrha.probe.process import ProbeProcess

pytestmark = pytest.mark.root

BEYOND = "10.7.0.1"
"""Reached through the far end, as long as there is a route."""
HOUR_NS = 3600 * 1000 * MS


def ip(pair: Pair, path: str, lines: list[str]) -> None:
    pair.call(path, "ip", "-batch", "-", stdin="\n".join(lines))


@pytest.fixture
def crowd(served: Pair) -> Iterator[list[str]]:
    """Twenty addresses of the far end."""
    addresses = [f"10.9.0.{100 + n}" for n in range(20)]
    ip(served, served.b, [f"address add {one}/24 dev vb" for one in addresses])
    yield addresses
    ip(served, served.b, [f"address del {one}/24 dev vb" for one in addresses])


@pytest.fixture
def beyond(served: Pair) -> Iterator[Pair]:
    """The pair, with BEYOND on the loopback of the far end and a route there."""
    ip(served, served.b, [f"address replace {BEYOND}/32 dev lo"])
    ip(served, served.a, [f"route replace {BEYOND}/32 via {B4}"])
    yield served
    ip(served, served.a, [f"route replace {BEYOND}/32 via {B4}", f"route del {BEYOND}/32"])


def eloquent(pair: Pair) -> None:
    """The far end sends an ICMP error for every packet that it rejects."""
    pair.call(
        pair.b,
        *("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"),
        *("net.ipv4.icmp_msgs_per_sec=100000", "net.ipv4.icmp_msgs_burst=10000"),
    )


@pytest.mark.parametrize("kind", ["icmp", "udp"])
def test_twenty_targets_every_millisecond(served: Pair, crowd: list[str], kind: Kind) -> None:
    streams = [Stream(target, kind, target, netns=served.a) for target in crowd]
    with Prober(streams) as prober:
        result = prober.run(2.0)
        times = list(prober.probes())
    for one in result.streams:
        assert (one.loss.lost, one.loss.duplicates, one.errors) == (0, 0, ())
        assert one.receive_drops == 0
        assert one.loss.sent + one.late_ticks == 2000
        assert one.late_ticks < 400, "a fifth, on a loaded machine"
    assert [stream for stream, _, _ in times] == streams
    for one, (_, sent, received) in zip(result.streams, times, strict=True):
        assert len(sent) == len(received) == one.loss.sent
        assert list(sent) == sorted(sent)
        assert 0 <= sent[0] <= sent[-1] < 2100 * MS
        assert all(-MS < back - at < 1000 * MS for at, back in zip(sent, received, strict=True))


def test_a_clean_run_does_not_wait_for_its_timeout(served: Pair) -> None:
    patient = Stream("s", "icmp", B4, netns=served.a, timeout_ms=10_000.0)
    with Prober([patient]) as prober:
        began = time.monotonic()
        assert prober.run(0.2).lost == 0
        assert time.monotonic() - began < 3


def test_a_run_waits_for_what_is_silent_no_longer_than_its_timeout(served: Pair) -> None:
    drop(served, served.b, "udp dport 7")
    hasty = Stream("s", "udp", B4, netns=served.a, timeout_ms=100.0)
    with Prober([hasty]) as prober:
        began = time.monotonic()
        (one,) = prober.run(0.1).streams
        took = time.monotonic() - began
    assert one.loss.lost == one.loss.sent
    assert 0.2 <= took < 3


def test_an_icmp_error_counts_for_the_stream_whose_probe_it_quotes(served: Pair) -> None:
    """Unreachable hosts as well: without an error queue the kernel keeps them for itself."""
    eloquent(served)
    drop(
        served,
        served.b,
        f"ip daddr {B4_SECOND} reject with icmp host-unreachable; "
        f"ip6 daddr {B6_SECOND} reject with icmpv6 admin-prohibited; udp dport 1",
    )
    kinds: list[Kind] = ["icmp", "icmp", "udp"]
    streams = [
        Stream(f"{kind}{i} {target}", kind, target, netns=served.a)
        for target in (B4, B4_SECOND, B6, B6_SECOND)
        for i, kind in enumerate(kinds)
    ]
    with Prober(streams) as prober:
        result = prober.run(0.5)
    said = {B4: "", B6: "", B4_SECOND: "EHOSTUNREACH", B6_SECOND: "EACCES"}
    for one in result.streams:
        name = said[one.stream.target]
        assert one.loss.lost == (one.loss.sent if name else 0)
        assert one.errors == (((name, one.loss.sent),) if name else ())
        assert one.receive_drops == 0


def test_a_route_that_goes_away_is_an_error_of_its_streams_only(beyond: Pair) -> None:
    kinds: list[Kind] = ["icmp", "udp"]
    streams = [
        Stream(f"{kind} {target}", kind, target, netns=beyond.a)
        for kind in kinds
        for target in (B4, BEYOND)
    ]
    fault = Fault()
    with ProbeProcess(streams, require_reply_s=5) as probe:
        fault.began = now_and_after(lambda: ip(beyond, beyond.a, [f"route del {BEYOND}/32"]))
        time.sleep(0.1)
        fault.ended = now_and_after(
            lambda: ip(beyond, beyond.a, [f"route add {BEYOND}/32 via {B4}"])
        )
        time.sleep(0.1)
        result = probe.stop()
    for one in result.streams:
        if one.stream.target == B4:
            assert (one.loss.lost, one.errors) == (0, ())
        else:
            (gap,) = one.loss.gaps
            fault.explains(gap, one, result)
            ((name, count),) = one.errors
            assert name == "ENETUNREACH"
            # The route may come back between the send that fails and the one that follows it.
            assert one.loss.lost <= count <= one.loss.lost + 1


def test_a_live_view_tells_of_the_gap_while_it_lasts(served: Pair) -> None:
    """And of the other stream nothing."""
    seen: list[Live] = []

    def follow(live: Live) -> None:
        seen.append(live)
        if len(seen) == 2:
            drop(served, served.b, "udp dport 7")
        elif len(seen) == 5:
            undrop(served, served.b)

    streams = [Stream("u", "udp", B6, netns=served.a), Stream("i", "icmp", B4, netns=served.a)]
    with Prober(streams) as prober:
        result = prober.run(2.0, on_live=follow, live_every_s=0.2)
    assert len(seen) > 6
    assert [live.at_ms for live in seen] == sorted(live.at_ms for live in seen)
    before, during, last = (live.streams[0] for live in (seen[1], seen[4], seen[-1]))
    assert (before.name, before.lost, before.gap_ms) == ("u", 0, 0.0)
    (gap,) = result.stream("u").loss.gaps
    assert 0 < during.gap_ms <= gap.length_ms
    assert 0 < during.lost <= gap.lost
    assert (last.lost, last.gap_ms) == (gap.lost, 0.0)
    assert last.longest_gap_ms == pytest.approx(gap.length_ms)
    assert last.rtt_ms is not None
    assert {(live.streams[1].lost, live.streams[1].gap_ms) for live in seen} == {(0, 0.0)}


@pytest.mark.parametrize("step", [HOUR_NS, -HOUR_NS])
def test_a_clock_that_is_set_in_mid_run_moves_no_reply(
    served: Pair, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """All that the prober sees of a step: the clock, and the kernel's timestamps from then on."""
    real, said = time.time_ns, Arrivals.stamp
    stepped_at = real() + 300 * MS

    def now() -> int:
        return real() + step if real() >= stepped_at else real()

    def timestamp(arrivals: Arrivals, i: int) -> int:
        stamped = said(arrivals, i)
        return stamped + (step if stamped >= stepped_at else 0)

    monkeypatch.setattr(time, "time_ns", now)
    monkeypatch.setattr(Arrivals, "stamp", timestamp)
    streams = [Stream("out", "udp", B4, netns=served.a), Stream("in", "icmp", A4, netns=served.b)]
    with Prober(streams) as prober:
        result = prober.run(0.8)
        received = [at for _, _, times in prober.probes() for at in times]
    assert result.clock_steps == 1
    assert UNANSWERED not in received
    for one in result.streams:
        assert (one.loss.lost, one.loss.late) == (0, 0)
        assert one.loss.rtt_max_ms is not None
        assert 0 < one.loss.rtt_max_ms < 500
