"""The bench of ping-gap: what the other probers print, and how outages are held against faults."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from tools.benchmarks import gappeers, gaprate, gapruns, gapscore, pinggap, report
from tools.benchmarks.gappeers import Probe
from tools.benchmarks.gapscore import Fault, Outage, Way
from tools.benchmarks.gapwire import PAUSE_MS, plan
from vrha.model.probing import Gap, Loss, Stream, StreamResult

MS = 1_000_000

PING = """\
PING 10.9.0.2 (10.9.0.2) 56(84) bytes of data.
[1795239727.082341] 64 bytes from 10.9.0.2: icmp_seq=484 ttl=64 time=0.008 ms
[1795239727.083342] 64 bytes from 10.9.0.2: icmp_seq=485 ttl=64 time=0.009 ms
[1795239727.105341] 64 bytes from 10.9.0.2: icmp_seq=488 ttl=64 time=0.027 ms
[1795239727.106340] 64 bytes from 10.9.0.2: icmp_seq=489 ttl=64 time=0.004 ms

--- 10.9.0.2 ping statistics ---
1194 packets transmitted, 1182 received, 1.00503% packet loss, time 1316ms
rtt min/avg/max/mdev = 0.001/0.003/0.034/0.002 ms
"""

FPING = """\
[1795239728.38647] 10.9.0.2 : [498], 64 bytes, 0.004 ms (0.005 avg, 0% loss)
[1795239728.38935] 10.9.0.2 : [501], 64 bytes, 0.005 ms (0.005 avg, 0% loss)
[1795239728.39030] 10.9.0.2 : [502], 64 bytes, 0.005 ms (0.005 avg, 0% loss)
[1795239728.88648] 10.9.0.2 : [499], timed out (0.005 avg, 0% loss)
[1795239728.88735] 10.9.0.2 : [500], timed out (0.005 avg, 0% loss)

10.9.0.2  : xmt/rcv/%loss = 1321/1319/0%, min/avg/max = 0.001/0.006/0.049
10.9.0.26 : xmt/rcv/%loss = 2000/2000/0%, min/avg/max = 0.001/0.002/0.018
"""


def trip(number: int, sent: int, lost: str) -> dict[str, Any]:
    """As irtt writes it, without what nobody reads here."""
    return {
        "seqno": number,
        "lost": lost,
        "timestamps": {"client": {"receive": {}, "send": {"wall": sent, "monotonic": 499690039}}},
        "delay": {},
        "ipdv": {},
    }


IRTT = json.dumps(
    {
        "version": {"irtt": "0.9.0"},
        "stats": {"packets_sent": 6, "packets_received": 3, "duplicates": 0},
        "round_trips": [
            trip(382, 100 * MS, "false"),
            trip(383, 101 * MS, "true"),
            trip(384, 103 * MS, "true_up"),
            trip(385, 104 * MS, "false"),
            trip(386, 105 * MS, "true_down"),
            trip(387, 106 * MS, "false"),
        ],
    }
)


def test_ping_has_a_line_for_each_reply_and_leaves_the_gap_to_the_reader() -> None:
    told = gappeers.parse_ping(PING)
    assert (told.sent, told.lost) == (1194, 12)
    assert [probe.number for probe in told.probes] == [484, 485, 488, 489]
    assert told.probes[0].sent == 1795239727_082333_000
    # It sent two probes in 21 ms: what it says is late, not what was lost.
    (outage,) = gappeers.outages(told.probes, 1.0, 0)
    assert (outage.lost, outage.way) == (2, "")
    assert outage.start == 1795239727_084333_000
    assert outage.length_ms == pytest.approx(20.981)


def test_numbers_of_ping_go_on_after_16_bits() -> None:
    line = "[1.{:06d}] 64 bytes from 10.9.0.2: icmp_seq={} ttl=64 time=0.001 ms\n"
    numbers = [65534, 65535, 0, 3]
    text = "".join(line.format(at, number) for at, number in enumerate(numbers))
    told = gappeers.parse_ping(text + "9 packets transmitted, 9 received, 0% packet loss\n")
    assert [probe.number for probe in told.probes] == [65534, 65535, 65536, 65539]


def test_fping_says_later_what_was_lost() -> None:
    told = gappeers.parse_fping(FPING)
    assert (told.sent, told.lost) == (1321, 2)
    assert [(p.number, p.answered) for p in told.probes] == [
        *((498, True), (499, False), (500, False), (501, True), (502, True))
    ]
    (outage,) = gappeers.outages(told.probes, 1.0, 1795239728 * 10**9)
    assert (outage.start, outage.lost) == (387_466_000, 2)
    assert outage.length_ms == pytest.approx(1.879)
    assert gappeers.fping_totals(FPING) == (3321, 3319)


def test_irtt_says_when_and_on_which_way() -> None:
    told = gappeers.parse_irtt(IRTT)
    assert (told.sent, told.lost) == (6, 3)
    first, second = gappeers.outages(told.probes, 1.0, 0)
    # Of the first probe it did not know the way; that of the other is the outage's.
    assert first == Outage(101 * MS, 3.0, 2, "forth")
    assert second == Outage(105 * MS, 1.0, 1, "back")


@pytest.mark.parametrize("parse", [gappeers.parse_ping, gappeers.parse_fping, gappeers.parse_irtt])
def test_what_ended_without_a_summary_is_refused(parse: Any) -> None:
    with pytest.raises(ValueError, match=r"no summary|Expecting value"):
        parse("connect: Network is unreachable\n")


def test_what_was_lost_at_either_end_of_a_run_is_no_outage() -> None:
    probes = [Probe(1, 1, False), Probe(2, 2, True), Probe(3, 3, True), Probe(4, 4, False)]
    assert gappeers.outages(probes, 1.0, 0) == []


def fault(way: Way, began_ms: float, length_ms: float) -> Fault:
    began = round(began_ms * MS)
    return Fault(way, round(length_ms), began, began + round(length_ms * MS), 0.05)


def test_each_fault_gets_its_outage_and_the_rest_is_false() -> None:
    faults = [fault("forth", 100, 1.05), fault("back", 150, 20.1), fault("forth", 300, 1.2)]
    outages = [
        Outage(round(101.9 * MS), 1.0, 1),
        Outage(round(150.6 * MS), 2.0, 2),
        Outage(round(153.6 * MS), 17.0, 17, "back"),
        Outage(round(200 * MS), 1.0, 1),
    ]
    rows, false = gapscore.judge(faults, outages)
    assert [(row["seen"], row["measured_ms"], row["lost"]) for row in rows] == [
        *((True, 1.0, 1), (True, 17.0, 17), (False, 0.0, 0))
    ]
    assert (rows[0]["start_error_ms"], rows[1]["told_way"]) == (1.9, "back")
    assert "start_error_ms" not in rows[2]
    assert false == [[50.6, 2.0], [100.0, 1.0]]
    # 1 ms that was not seen is within 2 ms of the truth, half a fault is not.
    assert gapscore.within(rows) == "66.7 %"
    assert gapscore.tail(gapscore.errors_ms(rows)) == "1.20 / 3.10 / 3.10"
    assert gapscore.directions(rows) == "1 of 2"
    assert gapscore.directions(rows[:1]) == "not told"


def test_the_95th_percentile_is_one_of_the_values() -> None:
    assert gapscore.tail(range(1, 101), 0) == "50 / 95 / 100"
    assert gapscore.tail(range(1, 21), 0) == "10 / 19 / 20"
    assert gapscore.tail([-3.0], 1) == "3.0 / 3.0 / 3.0"
    assert gapscore.tail([]) == gapscore.within([]) == "-"


@pytest.mark.parametrize(
    ("forth", "way"), [(None, ""), (0, "back"), (4, "forth"), (1, "both")], ids=str
)
def test_gaps_of_ping_gap_are_outages_on_the_monotonic_clock(forth: int | None, way: Way) -> None:
    gap = Gap(start_ms=2.5, length_ms=4.0, lost=4, lost_forth=forth)
    loss = Loss(9, 4, 0, (gap,), 4.0, 4.0, None, None, None, None, False)
    result = StreamResult(Stream("x", "udp", "10.9.0.2"), "10.9.0.2", loss, 0, (), 0)
    assert gapscore.outages_of(result, 7 * MS) == [Outage(9_500_000, 4.0, 4, way)]


def test_a_plan_has_every_length_both_ways_in_an_order_of_its_own() -> None:
    planned = plan((1.0, 5.0), 3, seed=1)
    assert planned == plan((1.0, 5.0), 3, seed=1)
    assert planned != plan((1.0, 5.0), 3, seed=2)
    kinds = [(p.way, p.length_ms) for p in planned]
    assert kinds != sorted(kinds)
    assert sorted(kinds) == sorted(
        [("forth", 1.0), ("forth", 5.0), ("back", 1.0), ("back", 5.0)] * 3
    )
    # Else an outage could be that of the fault before.
    assert min(PAUSE_MS) * MS > 4 * gapscore.MARGIN_NS


def rate_run(cpu: float, whole: float, **more: Any) -> dict[str, Any]:
    fields = {"sent": 900, "expected": 1000, "lost": 1, "rate": 20_000}
    return fields | {"cpu_us": cpu, "cpu_whole_us": whole} | more


def test_ratios_are_to_fping_with_as_many_targets_in_the_same_round() -> None:
    rows: list[dict[str, Any]] = [
        {"row": "ping-gap icmp x20", "runs": [rate_run(6, 8), rate_run(9, 9), rate_run(1, 1)]},
        {"row": "fping x20", "runs": [rate_run(4, 4), rate_run(3, 3), {"failed": "x"}]},
        {"row": "ping-gap icmp x1", "runs": [rate_run(6, 8)]},
    ]
    gaprate.ratios(rows)
    assert [run.get("ratio") for run in rows[0]["runs"]] == [1.5, 3.0, None]
    assert rows[0]["runs"][0]["ratio_whole"] == 2.0
    assert "ratio" not in rows[2]["runs"][0]


def taken(names: tuple[str, ...], way: Way, **more: Any) -> dict[str, Any]:
    rows, false = gapscore.judge(
        [fault("forth", 10, 5.0), fault("back", 90, 5.0)],
        [Outage(10 * MS, 5.0, 5, way), Outage(40 * MS, 1.0, 1)],
    )
    return {
        "streams": {name: {"faults": rows, "false_gaps": false} for name in names},
        "unsure_ms": [20.0],
        "sent": dict.fromkeys(names, 90),
        "expected": dict.fromkeys(names, 100),
        "lost": dict.fromkeys(names, 6),
    } | more


def test_the_tables_tell_what_failed_what_is_missing_and_who_saw_what() -> None:
    ours = taken(("icmp", "udp"), "forth", late_ticks=3, ticks=100)
    rows: list[dict[str, Any]] = [
        {"part": "throughput", "row": "fping x20", "runs": [rate_run(4, 4), rate_run(5, 6)]},
        {"part": "throughput", "row": "fping x1", "runs": [{"failed": "gone"}]},
        {"part": "accuracy", "row": "ping-gap", "runs": [ours]},
        {"part": "peers", "row": "ping-gap", "runs": [ours]},
        {"part": "peers", "row": "ping", "runs": [taken(("icmp",), "")]},
        {"part": "peers", "row": "irtt", "missing": "irtt: command not found", "runs": []},
    ]
    text = pinggap.table(report.result("ping-gap", {}, rows))
    cells = [[c.strip() for c in line.split("  ") if c.strip()] for line in text.splitlines()]
    by_name = {tuple(row[:3]): row for row in cells if row}
    rates = {row[0]: row for row in cells if row}
    assert rates["fping x20"][3:5] == ["10.00 %", "2 of 1800"]
    assert by_name["icmp", "back", "5"][3:6] == ["1", "0", "0.0 %"]
    assert by_name["udp", "both", "all"][3:6] == ["2", "1", "50.0 %"]
    assert by_name["ping-gap udp", "10.00 %", "6 of 30"][-2:] == ["1 of 1", "itself"]
    assert by_name["ping icmp", "10.00 %", "6 of 30"][-2:] == [
        *("not told", "only a count; its lines")
    ]
    assert "late ticks: 3 of 100" in text
    assert "irtt: missing: irtt: command not found" in text
    assert "fping x1: failed: gone" in text


def test_parts_are_taken_in_their_order_and_no_others() -> None:
    assert pinggap.parts("peers,throughput") == ["throughput", "peers"]
    with pytest.raises(argparse.ArgumentTypeError, match="no part 'speed'"):
        pinggap.parts("accuracy,speed")


def test_a_peer_that_is_not_installed_is_a_row_with_nothing_to_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vrha.linux.tools.find", lambda name: "/bin/ping" * (name == "ping"))
    rows = {row.name: row for row in gapruns.peer_rows({}, (1.0,), 1)}
    assert [name for name, row in rows.items() if row.take] == ["ping-gap", "ping"]
    assert rows["irtt"].missing == "irtt: command not found"
    rows = {row.name: row for row in gaprate.rows(20, 5)}
    assert [name for name, row in rows.items() if row.missing] == ["fping x20", "fping x1"]
