"""What dead agents of Neutron left goes, all of it, and nothing else on the node changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.netns import neutronovs, neutronrules, neutronstate
from tests.netns.neutronstate import DVR, EXTERNAL, HA, HOLLOW, LEGACY, LOST, NETWORK, Left, link
from tests.netns.nodekit import until
from vrha.core.cleanup.items import Kind, Result
from vrha.core.cleanup.profiles import neutron
from vrha.core.cleanup.profiles.neutron import NEUTRON
from vrha.linux import netns
from vrha.linux.sweep.engine import Progress
from vrha.watcher.sweeping import Done, run, wanted

pytestmark = [pytest.mark.root, pytest.mark.unhurried]

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
    with neutronovs.mounted(Path(NEUTRON.records)):
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


def says_all_and_changes_nothing(left: Node) -> bool:
    """A dry run by the command."""
    before = left.now()
    command = [sys.executable, "-m", "vrha.watcher.cleanup", "--profile=neutron", "--dry-run"]
    shown = output(*command, f"--state-dir={left.dead.state}", "--json")
    assert left.now() == before
    assert left.dead.ended() == set()
    owners = {share["owner"]: share for share in json.loads(shown)["owners"]}
    assert {owner: share["choice"] for owner, share in owners.items()} == dict.fromkeys(
        (LEGACY, HA, DVR, EXTERNAL, LOST, HOLLOW, NETWORK, neutron.L3_AGENT, neutron.DHCP_AGENT),
        "sweep",
    )
    assert all(item["why"] for share in owners.values() for item in share["items"])
    return True


def test_all_of_it_goes_and_nothing_else(left: Node) -> None:
    assert says_all_and_changes_nothing(left)
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
        HOLLOW: {Kind.NAMESPACE, Kind.FILE, *ports},
        NETWORK: {Kind.NAMESPACE, Kind.PROCESS, Kind.FILE, *ports},
        neutron.L3_AGENT: {Kind.RULES, Kind.PORT, *ports},
        neutron.DHCP_AGENT: {Kind.RULES},
    }
    again = sweep(left)
    assert (again.exit_code, again.plan.shares, again.report.outcomes) == (0, (), ())
    assert changed(left) == {}


def test_one_router_only(left: Node) -> None:
    before = left.now()
    others = set(left.dead.processes) - {f"keepalived {LOST}", f"radvd {LOST}"}
    done = sweep(left, LOST)
    assert (done.exit_code, set(done.report.owners)) == (0, {LOST})
    assert left.dead.ended() == set(left.dead.processes) - others
    now = left.now()
    gone = set(before["files"]) - set(now["files"])  # type: ignore[call-overload]
    assert {path for path in gone if LOST not in path} == set()
    assert f"ha_confs/{LOST}/ip-monitor" in gone
    for same in (*neutronrules.PROGRAMS, "nft", "names", "connections", "-o link", "sets"):
        assert now[same] == before[same]


@pytest.mark.parametrize(
    ("lives", "swept"),
    [
        (neutron.L3_AGENT, {NETWORK, neutron.DHCP_AGENT}),
        (neutron.DHCP_AGENT, {LEGACY, HA, DVR, EXTERNAL, LOST, HOLLOW, neutron.L3_AGENT}),
    ],
)
def test_a_living_agent_keeps_what_is_its_own(left: Node, lives: str, swept: set[str]) -> None:
    agent = neutronstate.agent(left.dead, lives)
    names = set(netns.names())
    done = sweep(left)
    assert done.exit_code == 0, not_removed(done)
    assert set(done.report.owners) == swept
    assert {s.decision.reason for s in done.plan.shares if s.owner not in swept} == {"agent-lives"}
    kept = NETWORK if lives == neutron.DHCP_AGENT else LEGACY
    assert sweep(left, kept).exit_code == 4
    kinds = ("qdhcp-",) if lives == neutron.L3_AGENT else ("qrouter-", "snat-", "fip-")
    ours = {name for name in names if NEUTRON.namespace_owner(name) is not None}
    assert set(netns.names()) == names - {name for name in ours if name.startswith(kinds)}
    end(agent)
    assert sweep(left).exit_code == 0
    assert changed(left) == {}


def test_an_agent_that_comes_back_gets_the_rest(left: Node) -> None:
    def comes_back(phase: str, count: int) -> None:
        if phase == Kind.RULES:
            neutronstate.agent(left.dead, neutron.L3_AGENT)

    rules = neutronrules.dump()
    done = sweep(left, LEGACY, neutron.L3_AGENT, progress=comes_back)
    assert done.exit_code == 1
    kept = {o.item.kind for o in done.report.outcomes if o.result is Result.KEPT}
    assert kept == {Kind.RULES, Kind.CONNTRACK, Kind.FILE, Kind.NAMESPACE}
    assert "neutron-l3-agent lives again" in done.report.problems[0]
    assert neutronrules.dump() == rules
    assert f"qrouter-{LEGACY}" in netns.names()


@pytest.mark.skipif(bool(NO_OVS), reason=NO_OVS)
def test_a_port_of_the_switch_that_is_anothers_by_now_stays(left: Node) -> None:
    name = link("qr-", LEGACY, 1)

    def changes_hands(phase: str, count: int) -> None:
        if phase == "mute":
            neutronovs.vsctl("set", "Interface", name, "external_ids:iface-id=somebody")
            neutronovs.vsctl("del-port", link("qg-", LEGACY, 2))

    done = sweep(left, LEGACY, progress=changes_hands)
    results = {o.item.name: o.result for o in done.report.outcomes if o.item.kind is Kind.OVS_PORT}
    assert results == {name: Result.KEPT, link("qg-", LEGACY, 2): Result.GONE}
    assert name in neutronovs.vsctl("list-ports", "br-int").split()


def end(agent: subprocess.Popen[bytes]) -> None:
    agent.kill()
    agent.wait(timeout=10)


def test_a_namespace_that_somebody_holds_has_no_links_left(left: Node) -> None:
    """As the daemon of an agent does that does not end with it."""
    with netns.NETNS_DIR.joinpath(f"qrouter-{HA}").open() as held:
        path = f"/proc/{os.getpid()}/fd/{held.fileno()}"
        inside = ("nsenter", f"--net={path}", "ip", "-o", "link")
        assert link("qr-", HA, 1) in output(*inside)
        done = sweep(left, HA)
        assert (done.exit_code, dict(done.report.owners)) == (1, {HA: Result.LEAKED})
        assert output(*inside).count("\n") == output(*inside).count(": lo:") == 1
        assert link("tap", HA, 1) not in output("ip", "-o", "link")
    done = sweep(left, HA)
    assert done.exit_code == 0
