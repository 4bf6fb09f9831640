"""The bench of drains: its zone, its streams, its table."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from tools.benchmarks import drain, manyrouters, report
from vrha.config.desired import load
from vrha.lab.zone import Lab
from vrha.model.spec import Desired


@pytest.fixture(scope="module")
def desired(tmp_path_factory: pytest.TempPathFactory) -> Desired:
    path = tmp_path_factory.mktemp("zone") / "zone.yaml"
    scenario = manyrouters.scenario(manyrouters.MOST)
    path.write_text(yaml.safe_dump(dict(scenario.zone)))
    return load(path)


def test_as_many_routers_as_there_are_addresses_for(desired: Desired) -> None:
    routers = desired.routers
    assert len(routers) == len(desired.networks) == manyrouters.MOST
    used = [a.ip for r in routers if r.uplink for a in r.uplink.addresses]
    assert len(set(used)) == 2 * manyrouters.MOST


def test_every_router_is_probed_in_both_directions(desired: Desired) -> None:
    lab = cast(Lab, SimpleNamespace(netns_path=lambda name: name))
    streams = manyrouters.streams(lab, desired, 20)
    by_router = Counter(s.name.partition("@")[2] for s in streams)
    assert by_router == {router.name: 6 for router in desired.routers}
    first = {s.name.partition("@")[0]: (s.netns, s.target) for s in streams[:6]}
    assert first["egress_icmp"] == ("vm1", "203.0.113.1")
    assert first["ingress_tcp"] == ("outside", "203.0.113.11")


def test_the_table_tells_rate_and_who_lost() -> None:
    run: dict[str, Any] = {
        **{"lost": {"egress_udp@r1": 0, "egress_udp@r2": 3}, "lost_by_router": {"r2": 3}},
        **{"sent": {"egress_udp@r1": 50, "egress_udp@r2": 50}, "tcp_alive": 4, "tcp_total": 4},
        **{"unrestored": [], "late_ticks": 1, "leaked": [], "ms": 2000, "count": 2},
        **{"routers_per_s": 1.0, "phases_ms": {"total": 900.0}, "busy": {"n2": 0.8}},
    }
    rows = [{"row": "drain-4", "runs": [run, {"failed": "drain-failed"}]}]
    line = drain.table(report.result("drain", {}, rows)).splitlines()[2]
    assert line.split()[:3] == ["drain-4", "2", "1"]
    assert "3 of 100" in line
    assert "1.00 / 1.00" in line
