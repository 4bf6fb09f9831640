"""A sweep that meets trouble half-way: the rest goes, and exit code and journal tell."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.conftest import sh
from tests.netns.nodekit import spec_of
from tests.netns.sweepkit import has_ended, living, results, sweep, told
from tests.netns.test_sweep import EDGE, NAME, build, pid_of_dnsmasq
from vrha.agent.standin import sole_agent
from vrha.config.lock import sole_sweeper
from vrha.core.cleanup.decide import Reason
from vrha.core.cleanup.items import Item, Kind
from vrha.core.names import host_port
from vrha.errors import RefusedError
from vrha.linux import netns, processes, rtnetlink, tools
from vrha.linux.deadman import DeadMan
from vrha.linux.mute import Switch
from vrha.linux.netlink import Netlink
from vrha.linux.node import NodeKernel
from vrha.linux.sweep import children, engine, files, journal, namespaces, ports
from vrha.linux.sweep.site import Site, opened
from vrha.watcher.sweeping import look, wanted

pytestmark = [pytest.mark.root, pytest.mark.unhurried]
ROOT = Path(__file__).parents[2]


def ports_left() -> list[str]:
    return [word for word in told("ip -o link").split() if word.startswith("vrh")]


def program(state_dir: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """`vrha-cleanup`, run as init runs it."""
    argv = [sys.executable, "-m", "vrha.watcher.cleanup", "--state-dir", str(state_dir)]
    done = subprocess.run(
        [*argv, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    sh(f"mount -t tmpfs -o size=16k tmpfs {folder}")
    try:
        (folder / "filler").write_bytes(b"x" * 16384)
        yield
    finally:
        sh(f"umount {folder}")


LONG = [pytest.param(stage, marks=pytest.mark.long) for stage in ("port", "process", "namespace")]


@pytest.mark.parametrize("stage", ["file", *LONG])
def test_the_program_is_killed_half_way_and_the_next_one_ends_it(
    kernel: NodeKernel, state_dir: Path, tmp_path: Path, stage: str
) -> None:
    build(kernel)
    pid = pid_of_dnsmasq(kernel, state_dir)
    (tmp_path / f"sweep-{stage}").write_text("kill")
    code, _ = program(state_dir, "--force", VRHA_FAILPOINTS=str(tmp_path))
    assert code == -signal.SIGKILL
    assert look(wanted("vrha", state_dir)).unfinished == {"edge-1"}
    # What was begun is muted, so nobody need force it.
    code, said = program(state_dir)
    assert (code, "swept 1 owners" in said) == (0, True), said
    assert has_ended(pid)
    assert (ports_left(), netns.names()) == ([], [])
    assert program(state_dir) == (0, "nothing of profile vrha is left here\n")


def test_a_full_disk_keeps_nothing_alive(kernel: NodeKernel, state_dir: Path) -> None:
    build(kernel)
    with small_disk(state_dir / "cleanup"):
        done = sweep(state_dir)
    assert done.exit_code == 1
    assert set(done.report.owners.values()) == {"removed"}
    (problem,) = done.report.problems
    assert "journal" in problem
    assert "No space left" in problem
    assert (ports_left(), netns.names()) == ([], [])
    assert sweep(state_dir).exit_code == 0


def test_a_file_that_may_not_be_removed(kernel: NodeKernel, state_dir: Path) -> None:
    build(kernel, 1)
    build(kernel, 2, active=False)
    spec = state_dir / "instances" / "edge-1" / "spec.json"
    # Nobody may remove a folder on which something is mounted, not even root.
    mount = spec.parent / "held"
    mount.mkdir()
    sh(f"mount -t tmpfs -o ro tmpfs {mount}")
    try:
        done = sweep(state_dir)
        assert done.exit_code == 1
        assert dict(done.report.owners) == {"edge-1": "failed", "edge-2": "removed"}
        assert str(mount) in results(done)["file instances/edge-1"]
        assert (ports_left(), netns.names()) == ([], [])
        events = list(journal.read(state_dir / "cleanup"))
        assert events[-1]["owners"] == {"edge-1": "failed", "edge-2": "removed"}
    finally:
        sh(f"umount {mount}")
    assert sweep(state_dir).exit_code == 0


@pytest.mark.parametrize("module", [ports, children, files, namespaces])
def test_a_kind_that_fails_does_not_keep_the_others(
    kernel: NodeKernel, state_dir: Path, monkeypatch: pytest.MonkeyPatch, module: object
) -> None:
    build(kernel)

    def fail(at: Site, items: list[Item]) -> None:
        raise OSError(5, "made to fail")

    with monkeypatch.context() as broken:
        broken.setattr(module, "remove", fail)
        done = sweep(state_dir)
    assert done.exit_code == 1
    assert any("made to fail" in problem for problem in done.report.problems)
    failed = {o.item.kind for o in done.report.outcomes if o.result == "failed"}
    # A port goes with its namespace, which no process holds.
    wrong = {ports: set(), children: {Kind.PROCESS}, files: {Kind.FILE}}
    expected = wrong.get(module, {Kind.NAMESPACE})
    assert failed - {Kind.NAMESPACE} == expected - {Kind.NAMESPACE}
    assert sweep(state_dir).exit_code == 0
    assert (ports_left(), netns.names()) == ([], [])


def test_the_kernel_refuses_half_way(
    kernel: NodeKernel, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(kernel)
    pid = pid_of_dnsmasq(kernel, state_dir)

    def refuse(group: int) -> None:
        raise OSError(105, "No buffer space available")

    with monkeypatch.context() as broken:
        broken.setattr(rtnetlink, "delete_group", refuse)
        done = sweep(state_dir)
    # The namespace took its ports along.
    assert (results(done), done.exit_code) == ({}, 0)
    assert has_ended(pid)
    assert ports_left() == []


def test_the_socket_is_closed_half_way(
    kernel: NodeKernel, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(kernel)
    pid = pid_of_dnsmasq(kernel, state_dir)
    original = ports.silence

    def close(at: Site, items: list[Item]) -> None:
        original(at, items)
        at.route.close()

    with monkeypatch.context() as broken:
        broken.setattr(ports, "silence", close)
        done = sweep(state_dir)
    assert done.exit_code == 1
    assert "Bad file descriptor" in " ".join(done.report.problems)
    assert done.report.owners["edge-1"] == "failed"
    assert has_ended(pid)
    assert list((state_dir / "instances").iterdir()) == []
    assert sweep(state_dir).exit_code == 0
    assert (ports_left(), netns.names()) == ([], [])


def test_a_closed_socket_is_told_by_the_plan(state_dir: Path, node: None) -> None:
    what = wanted("vrha", state_dir)
    with opened(what.profile, state_dir) as at:
        at.route.close()
        found = engine.find_all(at)
    assert found.items == ()
    assert all("Bad file descriptor" in problem for problem in found.problems)
    assert len(found.problems) == 3


def test_a_process_that_does_not_end(
    kernel: NodeKernel, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(kernel)
    real = processes.kill
    monkeypatch.setattr(children, "DEADLINE_S", 0.05)
    monkeypatch.setattr(namespaces, "DEADLINE_S", 0.1)
    with living(NAME) as stubborn:

        def spare(pids: dict[int, int], seconds: float) -> tuple[set[int], set[int]]:
            killed, left = real({p: i for p, i in pids.items() if p != stubborn}, seconds)
            return killed, left | {stubborn}

        with monkeypatch.context() as spared:
            spared.setattr(processes, "kill", spare)
            done = sweep(state_dir)
        assert dict(done.report.owners) == {"edge-1": "leaked"}
        assert str(stubborn) in results(done)[f"namespace {NAME}"]
        assert ports_left() == []
        # It is nameless now, and has no port: only its mark leads to it.
        again = sweep(state_dir)
        assert again.exit_code == 0
        assert has_ended(stubborn)
    assert not list((state_dir / "cleanup" / "leaked").iterdir())


def test_an_agent_that_comes_back_waits(kernel: NodeKernel, state_dir: Path) -> None:
    held = threading.Event()

    def agent() -> None:
        with sole_agent(state_dir):
            held.set()

    with sole_sweeper(state_dir, 1):
        thread = threading.Thread(target=agent)
        thread.start()
        assert not held.wait(0.7)
    assert held.wait(5)
    thread.join()
    with sole_sweeper(state_dir, 1), pytest.raises(RefusedError), sole_sweeper(state_dir, 0.1):
        pass


def test_nothing_goes_while_the_lease_is_live(kernel: NodeKernel, state_dir: Path) -> None:
    kernel.build(spec_of())
    with contextlib.closing(Switch(tools.need("nft"), governed=True)) as switch:
        switch.change(unmute=[host_port(EDGE, "n0")])
        with contextlib.closing(DeadMan()) as lease:
            lease.arm(1000)
            assert lease.fire(60_000)
            done = sweep(state_dir)
            assert (done.exit_code, done.report.outcomes) == (4, ())
            (share,) = done.plan.shares
            assert share.decision.reason is Reason.LEASE_LIVE
            assert kernel.observe()[0].dnsmasq_alive
            lease.grant(frozenset([host_port(EDGE, "n0")]))
            lease.mute()
        # Nobody renews it: no force is needed, though the agent wanted it to speak.
        assert sweep(state_dir, force=False).exit_code == 0
        assert switch.active() == frozenset()
    assert ports_left() == []


def test_muted_before_anything_else(kernel: NodeKernel, state_dir: Path, tmp_path: Path) -> None:
    build(kernel)
    (tmp_path / "sweep-port").write_text("wait")
    with contextlib.closing(Switch(tools.need("nft"))) as switch:
        assert len(switch.active()) == 3
        argv = [sys.executable, "-m", "vrha.watcher.cleanup", "--force", "--json"]
        child = subprocess.Popen(
            [*argv, "--state-dir", str(state_dir)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "VRHA_FAILPOINTS": str(tmp_path)},
            stdout=subprocess.PIPE,
        )
        try:
            until = time.monotonic() + 20
            while not (tmp_path / "sweep-port.reached").exists():
                assert time.monotonic() < until
                time.sleep(0.01)
            assert switch.active() == frozenset()
            assert len(ports_left()) >= 3
        finally:
            (tmp_path / "sweep-port.go").touch()
            said, _ = child.communicate(timeout=30)
    assert child.returncode == 0
    assert json.loads(said)["owners"] == {"edge-1": "removed"}


def test_without_the_table_ports_are_set_down(kernel: NodeKernel, state_dir: Path) -> None:
    build(kernel)
    sh("nft delete table bridge vrha")
    plan = look(wanted("vrha", state_dir)).plan
    with opened(wanted("vrha", state_dir).profile, state_dir) as at:
        ports.silence(at, [i for s in plan.shares for i in s.items if i.kind is Kind.PORT])
        up = {link.name: link.up for link in rtnetlink.links(at.route)}
    assert [up[host_port(EDGE, port)] for port in ("n0", "n1", "u0")] == [False] * 3


def test_a_link_group_of_others_is_left_alone(kernel: NodeKernel, state_dir: Path) -> None:
    build(kernel)
    sh("ip link add foreign type veth peer name foreign2")
    sh(f"ip link set foreign group {ports.SWEPT}")
    assert sweep(state_dir).exit_code == 0
    with contextlib.closing(Netlink(rtnetlink.NETLINK_ROUTE)) as route:
        assert rtnetlink.link(route, "foreign") is not None
    assert ports_left() == []
