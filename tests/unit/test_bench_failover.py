"""The benches of failover: how runs are split, what rows and zones are, what tables say."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address
from typing import Any

import pytest
import yaml

from tools.benchmarks import (
    announcements,
    dais54,
    failover,
    failoverpeers,
    failoverzone,
    instants,
    massfailover,
    massrouters,
    options,
    report,
)
from tools.benchmarks.announcements import Heard
from tools.benchmarks.nodefaults import data_cables, management_cable
from tools.benchmarks.rows import good
from tools.benchmarks.underfault import timed
from vrha.config import desired
from vrha.errors import InputError
from vrha.lab.scenario import load_scenario
from vrha.lab.wiring import fabric_lines
from vrha.linux import frames
from vrha.model.views import Event

MAC = bytes.fromhex("021ab0000001")


def test_an_outage_is_the_longest_gap_that_was_not_over_at_the_fault() -> None:
    gaps = {"a": [[10.0, 900.0], [990.0, 20.0], [1500.0, 700.0]], "b": [[10.0, 5.0]], "c": []}
    assert instants.outages(gaps, 1000.0) == {"a": 700.0, "b": 0.0, "c": 0.0}


def test_restored_is_when_the_longest_gap_of_the_last_stream_was_over() -> None:
    gaps = {"a": [[1000.0, 300.0], [1900.0, 1.0]], "b": [[1002.0, 305.0]], "c": []}
    assert instants.restored_ms(gaps, 1000.0) == 1307.0
    assert instants.restored_ms({"a": [[1.0, 2.0]], "b": []}, 1000.0) is None


def test_phases_follow_each_other_from_the_fault_to_the_last_answer() -> None:
    seen = {"node-silent": 100.4, "node-out": 100.7, "announced": 100.71, "restored": 100.712}
    assert instants.split(100.0, seen) == {
        "detect": pytest.approx(400),
        "decide": pytest.approx(300),
        "act": pytest.approx(10),
        "neighbour": pytest.approx(2),
    }


def test_a_phase_without_an_end_is_in_the_next_one() -> None:
    found = instants.split(100.0, {"announced": 100.5, "restored": 100.6})
    assert found == {"act": pytest.approx(500), "neighbour": pytest.approx(100)}
    found = instants.split(100.0, {"advert": 100.3, "announced": 100.4}, instants.VRRP)
    assert found == {"detect": pytest.approx(300), "act": pytest.approx(100)}


def test_the_right_in_the_store_ends_what_nobody_else_ended() -> None:
    seen = {"node-silent": 100.4, "taken-over": 100.75}
    assert instants.split(100.0, seen)["decide"] == pytest.approx(350)
    assert instants.split(100.0, seen | {"node-out": 100.7})["decide"] == pytest.approx(300)


def test_no_phase_is_shorter_than_nothing() -> None:
    seen = {"node-silent": 100.4, "announced": 100.3, "restored": 100.5}
    found = instants.split(100.0, seen)
    assert found == {"detect": pytest.approx(400), "act": 0, "neighbour": pytest.approx(100)}


def test_a_run_is_timed_on_the_line_of_its_probes() -> None:
    row = timed({"a": [[1000.0, 300.0]], "b": []}, 999.5)
    assert row == {"fault_at_ms": 999.5, "outage_ms": {"a": 300.0, "b": 0.0}, "worst_ms": 300.0}


def test_frames_that_speak_for_an_address() -> None:
    announced = frames.gratuitous_arps(MAC, IPv4Address("203.0.113.10"))
    assert [announcements.parse(f, 5.0) for f in announced] == [
        Heard(5.0, "announced", "203.0.113.10")
    ] * 2
    assert announcements.parse(frames.arp_probe(MAC, IPv4Address("203.0.113.10")), 5.0) is None
    header = b"\x45" + bytes(8) + bytes([112]) + bytes(2)
    packet = header + socket.inet_aton("10.1.1.254") + socket.inet_aton("224.0.0.18")
    advert = bytes(12) + b"\x08\x00" + packet
    assert announcements.parse(advert, 5.0) == Heard(5.0, "advert", "10.1.1.254")
    assert announcements.parse(advert[:23] + b"\x11" + advert[24:], 5.0) is None


def test_the_first_of_an_address_after_the_fault() -> None:
    heard = [
        Heard(1.0, "announced", "a"),
        Heard(3.0, "advert", "a"),
        Heard(4.0, "announced", "b"),
        Heard(5.0, "announced", "a"),
    ]
    assert announcements.first(heard, "announced", "a", 2.0) == 5.0
    assert announcements.first(heard, "announced", "c", 2.0) is None


def test_the_stamp_of_the_kernel() -> None:
    extra = [(socket.SOL_SOCKET, 35, struct.pack("@qq", 7, 500_000_000))]
    assert announcements.stamp(extra) == 7.5
    assert announcements.stamp([]) == 0.0


def test_the_journal_names_instants_by_kind_or_reason() -> None:
    def event(number: int, kind: str, reason: str, detail: str = "") -> Event:
        at = f"2026-01-01T00:00:0{number}.250+00:00"
        return Event(number, at, kind, "run", "r1", "n1", reason, detail)

    found = failoverzone.named(
        [
            event(1, "failover-decided", "node-silent"),
            event(2, "taken-over", "failover"),
            event(3, "announced", "failover", "2026-01-01T00:00:02.500+00:00"),
            event(4, "taken-over", "failover"),
            event(5, "run-ended", "done"),
        ]
    )
    assert found.keys() == {"node-silent", "taken-over", "announced"}
    assert found["taken-over"] - found["node-silent"] == 1
    assert found["announced"] - found["taken-over"] == 0.25


def test_cables_are_those_of_the_lab() -> None:
    plan = load_scenario("seed-10x10")
    wired = "\n".join(fabric_lines(plan))
    for node in plan.nodes:
        cables = data_cables(plan, node)
        assert cables.keys() == set(plan.segments)
        for segment, cable in cables.items():
            assert f"link set {cable} master {segment} up" in wired
        assert f"link set {management_cable(plan, node)} master lab-mgmt up" in wired


def test_a_row_for_each_cause_and_each_who(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = load_scenario("seed-10x10")
    reasons = {False: "", True: "conntrackd: command not found"}
    monkeypatch.setattr(failover.keepalived, "missing", lambda conntrackd: reasons[conntrackd])
    rows = failover.rows_of(
        plan, ["node-loss", "uplink"], [("unset", "fast")], list(failoverpeers.PEERS)
    )
    assert [row.name for row in rows[:4]] == [
        "node-loss: unset, fast",
        "node-loss: keepalived-1s",
        "node-loss: keepalived-100ms",
        "node-loss: keepalived-100ms+conntrackd",
    ]
    assert len(rows) == 8
    assert [bool(row.missing) for row in rows] == [False, False, False, True] * 2


def test_a_policy_that_is_unknown_is_missing() -> None:
    plan = load_scenario("seed-10x10")
    assert failoverzone.missing(plan, "unset") == ""
    assert "policy" in failoverzone.missing(plan, "prayer")


def test_words_are_checked() -> None:
    assert options.words(" a,b,,a", ("a", "b"), "cause") == ["a", "b"]
    assert options.words("", ("a",), "cause") == []
    with pytest.raises(InputError, match="no cause 'c'"):
        options.words("a,c", ("a", "b"), "cause")


def _run(worst: float, **fields: Any) -> dict[str, Any]:
    return {
        "lost": {"egress_icmp": 3, "fresh_egress": 4},
        "outage_ms": {"egress_icmp": worst - 1, "fresh_egress": worst},
        "worst_ms": worst,
        "tcp_alive": 30,
        "tcp_total": 31,
        "tcp_longest_stall_ms": 12.0,
        "owners_overlap_ms": 0.0,
        "back": True,
        "late_ticks": 0,
        "phases_ms": {"detect": worst},
    } | fields


def test_the_table_of_failovers() -> None:
    rows = [
        {"row": "node-loss: unset, default", "runs": [_run(600), _run(700), {"failed": "x"}]},
        {"row": "node-loss: keepalived-1s", "missing": "keepalived: not found", "runs": []},
    ]
    text = failover.table(report.result("failover", {}, rows))
    assert "650.0 / 700.0" in text
    assert "60 of 62" in text
    assert "node-loss: keepalived-1s: missing: keepalived: not found" in text
    assert "not back" not in failover.told(_run(600))
    assert "not back" in failover.told(_run(600, back=False))
    assert failover.told({"failed": "x"}) == "failed: x"


def test_every_machine_of_the_experiment_has_a_public_address() -> None:
    plan = dais54.all_public(load_scenario("dais-54"))
    zone = desired.parse(yaml.safe_dump(dict(plan.zone)), plan.name)
    pairs = [nat for router in zone.routers for nat in router.static_nat]
    assert len(pairs) == len({nat.public for nat in pairs}) == len(dais54.machines(plan)) == 54
    for router in zone.routers:
        assert router.uplink is not None
        own = {address.ip for address in router.uplink.addresses}
        assert {nat.public for nat in router.static_nat} < own
        assert set(router.source_nat) < own


def test_the_downtime_of_a_machine_is_the_longer_of_both_ways() -> None:
    assert dais54.by_machine({"in@vm1": 200.0, "out@vm1": 300.0, "in@vm2": 0.0}) == {
        "vm1": 300.0,
        "vm2": 0.0,
    }


def test_the_table_of_the_experiment() -> None:
    run = {"downtime_ms": {"vm1": 500.0, "vm2": 700.0, "vm3": 0.0}, "back": True}
    rows = [{"row": "node-loss: unset", "runs": [run]}]
    text = dais54.table(report.result("dais-54", {}, rows))
    assert "2 of 3" in text
    assert "0.50" in text
    assert "0.70" in text
    assert text.splitlines()[2].split()[-1] == "11"
    assert dais54.told(run) == "2 of 3 machines had a gap, median 500 ms, worst 700 ms"


@pytest.mark.parametrize("number", [1, massrouters.MOST])
def test_a_zone_of_many_routers_is_valid(number: int) -> None:
    plan = massrouters.scenario(number)
    zone = desired.parse(yaml.dump(dict(plan.zone), Dumper=massrouters.Fast), plan.name)
    assert len(zone.routers) == len(zone.networks) == number
    own = [str(router.source_nat[0]) for router in zone.routers]
    assert own == [massrouters.own_address(place) for place in range(number)]
    assert [machine.name for machine in plan.machines] == ["outside"]


def test_when_routers_are_back() -> None:
    assert massfailover.back([30.0, 10.0, 20.0], 3) == {
        "count": 3,
        "back_ms": [30.0, 10.0, 20.0],
        "first_ms": 10.0,
        "median_ms": 20.0,
        "last_ms": 30.0,
        "ms": 30.0,
    }
    assert "ms" not in massfailover.back([30.0], 2)
    assert massfailover.back([], 2) == {"count": 0, "back_ms": []}


def test_the_ratio_to_the_floor_of_the_same_turn() -> None:
    floor = {"row": "floor", "runs": [{"ms": 100.0}, {"failed": "x"}, {"ms": 50.0}]}
    ours = {
        "row": "standby",
        "runs": [{"ms": 700.0, "after_verdict_ms": 150.0}, {"ms": 9}, {"ms": 100.0}],
    }
    massfailover.with_ratios([floor, ours])
    assert [run.get("ratio") for run in good(ours)] == [1.5, None, 2.0]


def test_the_table_of_a_mass_failover() -> None:
    row = massfailover.back([30.0, 10.0, 20.0], 3) | {"answered": 3, "owned_twice": 0}
    rows = [
        {"row": "resurrect", "runs": [row]},
        {"row": "standby", "missing": "no policy", "runs": []},
    ]
    text = massfailover.table(report.result("mass-failover", {}, rows))
    assert "standby: missing: no policy" in text
    cells = "resurrect 1 0 3 / 3 10 / 10 20 / 20 30 / 30 - - 3 / 3 0 / 0"
    assert " ".join(text.splitlines()[2].split()) == cells
