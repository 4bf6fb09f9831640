"""What dead agents of Neutron left goes, all of it, and nothing else on the node changes."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.netns import neutronovs, neutronrules, neutronstate
from tests.netns.neutronstate import (
    Left,
)
from vrha.core.cleanup import plan as plans
from vrha.core.cleanup.decide import Agent, Decision, Situation, decide
from vrha.core.cleanup.keepers import keepers
from vrha.core.cleanup.plan import Plan
from vrha.core.cleanup.profiles import neutron
from vrha.linux.sweep import agents, engine
from vrha.linux.sweep.engine import Report
from vrha.linux.sweep.journal import Journal
from vrha.linux.sweep.site import opened

pytestmark = pytest.mark.root

NO_OVS = neutronovs.missing()


@dataclass
class Node:
    """A node with foreign things and those of dead agents, and what it was before these."""

    foreign: Left
    dead: Left
    before: dict[str, object]

    def now(self) -> dict[str, object]:
        return snapshot(self.foreign)


@pytest.fixture(autouse=True)
def records(private_mounts: None) -> Iterator[None]:
    """The folder of the journal, in a mount of its own."""
    with neutronovs.mounted(Path(neutron.NEUTRON.records)):
        yield


@pytest.fixture
def programs() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="vrha-programs-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def with_ovs(private_mounts: None) -> Iterator[bool]:
    if NO_OVS:
        yield False
        return
    with neutronovs.database():
        yield True


@pytest.fixture
def left(node: None, state_dir: Path, programs: Path, with_ovs: bool) -> Iterator[Node]:
    with neutronstate.foreign(state_dir, programs, with_ovs) as foreign:
        before = snapshot(foreign)
        with neutronstate.dead(state_dir, programs, with_ovs) as dead:
            assert snapshot(foreign) != before
            yield Node(foreign, dead, before)


def snapshot(of: Left) -> dict[str, object]:
    """Everything on the node that a sweep might touch."""
    found: dict[str, object] = dict(neutronrules.dump())
    for words in ("-o link", "-o addr", "route show table all", "-6 route show table all"):
        # That comes and goes with the ports of bridges, and some time after them.
        found[words] = output("ip", *words.split()).replace(" linkdown", "")
    for name in ("blue", "qrouter-blue"):
        found[name] = output("ip", "-n", name, "-o", "addr")
    found["names"] = sorted((p.name, p.stat().st_ino) for p in Path("/run/netns").iterdir())
    found["files"] = {str(p.relative_to(of.state)): described(p) for p in of.state.rglob("*")}
    found["ended"] = of.ended()
    found["sets"] = output("ipset", "save")
    listed = subprocess.run(
        ["conntrack", "-L", "-p", "tcp"], capture_output=True, text=True, timeout=10, check=True
    ).stdout
    found["connections"] = sorted(" ".join(row.split()[3:]) for row in listed.splitlines())
    found["ovs"] = neutronovs.dump() if of.ovs else ""
    return found


def described(path: Path) -> tuple[int, str]:
    status = path.lstat()
    content = path.read_bytes() if path.is_file() else b""
    return status.st_mode, hashlib.sha256(content).hexdigest()


def output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout


def sweep(state: Path, only: str = "") -> tuple[Plan, Report]:
    with opened(neutron.NEUTRON, state) as at:
        found = engine.find_all(at)
        assert found.problems == ()
        living = agents.living(at)
        kept_by = keepers(at.profile, found.items)

        def decision(owner: str) -> Decision:
            alive = Agent.ALIVE if kept_by[owner] & living.keys() else Agent.DEAD
            return decide(owner, Situation(alive))

        plan = plans.make("neutron", found.items, decision)
        if only:
            plan = plans.only(plan, lambda owner: owner == only)
        return plan, engine.sweep(at, plan, Journal(at.records, "test"))


def test_all_of_it_goes_and_nothing_else(left: Node, state_dir: Path) -> None:
    plan, report = sweep(state_dir)
    assert report.succeeded, [o for o in report.outcomes if o.result not in ("removed", "gone")]
    assert left.dead.ended() == set(left.dead.processes)
    assert left.now() == left.before
    plan, report = sweep(state_dir)
    assert plan.shares == ()
    assert left.now() == left.before
