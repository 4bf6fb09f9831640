"""Sets, tables and rules of an agent among others' in the node's own tables."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.netns import neutronrules
from tests.netns.conftest import sh
from vrha.core.cleanup.items import Outcome, Result
from vrha.core.cleanup.profile import Profile
from vrha.core.cleanup.profiles.neutron import NEUTRON
from vrha.linux.sweep import legacyrules, rules, sets, tables
from vrha.linux.sweep.site import KindModule, opened

pytestmark = [pytest.mark.root, pytest.mark.unhurried]


def swept(module: KindModule, profile: Profile) -> dict[str, Outcome]:
    """Find and remove, by name."""
    with opened(profile, Path("/nonexistent")) as at:
        return {o.item.name: o for o in module.remove(at, module.find(at))}


def results(outcomes: dict[str, Outcome]) -> dict[str, Result]:
    return {name: outcome.result for name, outcome in outcomes.items()}


@pytest.fixture
def of_sets(node: None) -> Profile:
    for name in ("old-a", "old-b", "other"):
        sh(f"ipset create {name} hash:net")
    sh("ipset add old-a 192.0.2.0/24")
    return replace(NEUTRON, set_owner=lambda name: "me" if name.startswith("old-") else None)


def test_ipsets_go_and_others_stay(of_sets: Profile) -> None:
    assert results(swept(sets, of_sets)) == {"old-a": Result.REMOVED, "old-b": Result.REMOVED}
    assert sh("ipset list -n").split() == ["other"]
    assert swept(sets, of_sets) == {}


def test_an_ipset_in_use_or_gone_is_told(of_sets: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    sh("iptables-legacy -A INPUT -m set --match-set old-a src -j DROP")
    monkeypatch.setattr(sets, "_LET_GO_S", 0.05)
    with opened(of_sets, Path("/nonexistent")) as at:
        found = sets.find(at)
        sh("ipset destroy old-b")
        outcomes = {o.item.name: (o.result, o.reason) for o in sets.remove(at, found)}
    assert outcomes == {
        "old-a": (Result.FAILED, "a rule still uses it"),
        "old-b": (Result.GONE, ""),
    }


def test_tables_go_with_all_in_them(node: None) -> None:
    for family in ("inet", "ip6", "bridge"):
        sh(f"nft add table {family} mine")
    sh("nft add table inet other")
    sh("nft add chain inet mine input")
    profile = replace(NEUTRON, tables=("inet mine", "bridge mine", "ip mine"))
    assert results(swept(tables, profile)) == dict.fromkeys(
        ("inet mine", "bridge mine"), Result.REMOVED
    )
    assert sh("nft list tables").splitlines() == ["table ip6 mine", "table inet other"]


@pytest.fixture
def lock(private_mounts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The lock of iptables, in a file of the test's own."""
    path = tmp_path / "xtables.lock"
    monkeypatch.setattr(legacyrules, "_LOCK", path)
    monkeypatch.setattr(legacyrules, "_LOCK_S", 0.05)
    held = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    yield held
    os.close(held)


def test_rules_of_a_locked_table_are_left_and_told(node: None, lock: int) -> None:
    pytest.importorskip("iptc", exc_type=ImportError)
    sh("iptables-legacy -N neutron-l3-agent-local")
    sh("iptables-nft -N neutron-l3-agent-local")
    fcntl.flock(lock, fcntl.LOCK_EX)
    outcomes = swept(rules, NEUTRON)
    assert {name.split()[0]: o.result for name, o in outcomes.items()} == {
        "iptables-nft": Result.REMOVED,
        "iptables-legacy": Result.FAILED,
    }
    assert "another program has held" in next(o.reason for o in outcomes.values() if o.reason)
    fcntl.flock(lock, fcntl.LOCK_UN)
    assert {o.result for o in swept(rules, NEUTRON).values()} == {Result.REMOVED}
    assert swept(rules, NEUTRON) == {}


@pytest.mark.parametrize("by_library", [True, False])
def test_shared_chains_stay_while_another_has_a_rule_in_them(
    node: None, by_library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_library:
        pytest.importorskip("iptc", exc_type=ImportError)
    else:
        monkeypatch.setattr(legacyrules, "best", legacyrules.Programs)
    neutronrules.load_foreign()
    before = neutronrules.dump()
    neutronrules.load_agents()
    assert isinstance(legacyrules.best(), legacyrules.Library) == by_library
    with opened(NEUTRON, Path("/nonexistent")) as at:
        found = [i for i in rules.find(at) if i.owner == "neutron-l3-agent"]
        assert {o.result for o in rules.remove(at, found)} == {Result.REMOVED}
    for program in neutronrules.PROGRAMS:
        assert top(program)[-1] == f"-A neutron-filter-top -j {DHCP}local"
    assert {o.result for o in swept(rules, NEUTRON).values()} == {Result.REMOVED}
    assert neutronrules.dump() == before


DHCP = "neutron-dhcp-age-"


def top(program: str) -> Sequence[str]:
    argv = [program, "-S", "neutron-filter-top"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.splitlines()


def test_a_chain_that_is_used_in_a_way_not_known_is_told(node: None) -> None:
    sh("iptables-nft -N neutron-l3-agent-local")
    sh("nft add map ip filter ways { type ipv4_addr : verdict ; }")
    sh("nft add element ip filter ways { 192.0.2.1 : jump neutron-l3-agent-local }")
    outcome = next(iter(swept(rules, NEUTRON).values()))
    assert outcome.result is Result.FAILED
    assert "does not delete the chains of table filter" in outcome.reason
