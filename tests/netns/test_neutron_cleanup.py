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
from tests.netns.neutronstate import DVR, EXTERNAL, HA, HOLLOW, LEGACY, LOST, NETWORK, Left
from tests.netns.nodekit import until
from vrha.core.cleanup.items import Kind, Result
from vrha.core.cleanup.profiles import neutron
from vrha.linux.sweep.engine import Progress
from vrha.watcher.sweeping import Done, run, wanted

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


def sweep(left: Node, *only: str, progress: Progress = lambda phase, count: None) -> Done:
    """As `vrha cleanup run --profile neutron`."""
    return run(wanted("neutron", left.dead.state, only), progress)


def not_removed(done: Done) -> dict[str, str]:
    found = (o for o in done.report.outcomes if o.result is not Result.REMOVED)
    return {f"{o.item.kind} {o.item.name}": f"{o.result} {o.reason}" for o in found}


def changed(left: Node) -> dict[str, tuple[object, object]]:
    """What is not as it was before there were any agents.

    The kernel takes a namespace apart some ms after nothing holds it any more, and the other ends
    of its links with it.
    """
    until(lambda: output("ip", "-o", "link") == left.before["-o link"])
    now = left.now()
    return {key: (was, now[key]) for key, was in left.before.items() if now[key] != was}


def owners_with_items(done: Done) -> dict[str, set[Kind]]:
    return {share.owner: {item.kind for item in share.items} for share in done.plan.shares}


def test_all_of_it_goes_and_nothing_else(left: Node) -> None:
    done = sweep(left)
    assert done.exit_code == 0, not_removed(done)
    # The row of a port that never came into its namespace is the same port as its link.
    assert not_removed(done) == {}
    assert left.dead.ended() == set(left.dead.processes)
    assert changed(left) == {}
    ports = {Kind.OVS_PORT} if left.dead.ovs else set()
    assert owners_with_items(done) == {
        LEGACY: {Kind.NAMESPACE, Kind.PROCESS, Kind.FILE, Kind.CONNTRACK, *ports},
        HA: {Kind.NAMESPACE, Kind.PROCESS, Kind.FILE, *ports},
        DVR: {Kind.NAMESPACE, Kind.PROCESS, Kind.FILE, *ports},
        EXTERNAL: {Kind.NAMESPACE, Kind.FILE, *ports},
        LOST: {Kind.NAMESPACE, Kind.PROCESS, Kind.FILE, *ports},
        HOLLOW: {Kind.NAMESPACE, Kind.FILE},
        NETWORK: {Kind.NAMESPACE, Kind.PROCESS, Kind.FILE, *ports},
        neutron.L3_AGENT: {Kind.RULES, Kind.PORT, *ports},
        neutron.DHCP_AGENT: {Kind.RULES},
    }
    again = sweep(left)
    assert (again.exit_code, again.plan.shares, again.report.outcomes) == (0, (), ())
    assert changed(left) == {}
