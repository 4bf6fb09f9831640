"""A sweep of what a dead agent left, on a real kernel: all of it goes, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.netns.conftest import sh
from tests.netns.nodekit import machine, spec_of, until
from tests.netns.sweepkit import SLEEP, bystanders, has_ended, living, results, stop, sweep, told
from vrha.config.lock import sole_user
from vrha.core.cleanup.decide import Reason
from vrha.core.names import host_port, namespace_name
from vrha.errors import RefusedError, StepError
from vrha.linux import dnsmasq, netns, nsid, rtnetlink
from vrha.linux.node import NodeKernel
from vrha.linux.sweep import namespaces
from vrha.model.spec import InstanceRef
from vrha.watcher.sweeping import look, wanted

pytestmark = [pytest.mark.root, pytest.mark.unhurried]

EDGE = InstanceRef("edge", 1)
NAME = namespace_name(EDGE)


def pid_of_dnsmasq(kernel: NodeKernel, state_dir: Path, ref: InstanceRef = EDGE) -> int:
    with kernel.instances.opened(ref) as inner:
        pid = dnsmasq.pid_of(state_dir / "instances" / f"{ref.router}-{ref.generation}", inner)
    assert pid is not None
    return pid


def build(kernel: NodeKernel, generation: int = 1, active: bool = True) -> None:
    spec = spec_of(generation)
    kernel.build(spec)
    if active:
        kernel.unmute(spec.ref)


def test_all_of_it_goes_and_nothing_else(kernel: NodeKernel, state_dir: Path) -> None:
    machine("other", "br-a", "10.1.1.50/24")
    sh("ip link add vrhforeign type veth peer name vrhforeign2")
    sh("nft add table inet foreign")
    for number, bridge in enumerate(("br-a", "br-b", "br-up")):
        sh(f"ip link set {bridge} address 02:00:00:00:00:0{number}")
    (state_dir / "epochs.json").write_text("{}")
    with living("other") as outside:
        before = bystanders(state_dir)
        build(kernel, 1)
        build(kernel, 2, active=False)
        pid = pid_of_dnsmasq(kernel, state_dir)

        done = sweep(state_dir)

        assert results(done) == {}
        assert done.exit_code == 0
        assert set(done.report.owners) == {"edge-1", "edge-2"}
        assert bystanders(state_dir) == before
        assert list((state_dir / "instances").iterdir()) == []
        assert has_ended(pid)
        assert not has_ended(outside, 0.05)
    again = sweep(state_dir)
    assert (again.plan.shares, again.report.outcomes, again.exit_code) == ((), (), 0)


def test_a_plan_tells_and_changes_nothing(kernel: NodeKernel, state_dir: Path) -> None:
    build(kernel)
    before = bystanders(state_dir)
    seen = look(wanted("vrha", state_dir, force=True))
    assert (seen.problems, seen.unfinished) == ((), frozenset())
    assert not (state_dir / "cleanup").exists()
    assert bystanders(state_dir) == before
    (share,) = seen.plan.shares
    assert (share.owner, share.decision.reason) == ("edge-1", Reason.FORCED)
    kinds = [item.kind.value for item in share.items]
    assert kinds == ["port", "port", "port", "process", "file", "namespace"]
    assert kernel.observe()[0].dnsmasq_alive


def test_what_still_serves_is_kept_without_force(kernel: NodeKernel, state_dir: Path) -> None:
    build(kernel, 1)
    build(kernel, 2, active=False)
    done = sweep(state_dir, force=False)
    assert dict(done.report.owners) == {"edge-2": "removed"}
    assert [i.ref for i in kernel.observe()] == [EDGE]


def test_only_one_router(kernel: NodeKernel, state_dir: Path) -> None:
    build(kernel)
    assert sweep(state_dir, only=("other",)).plan.shares == ()
    assert sweep(state_dir, only=("edge",)).exit_code == 0
    assert kernel.observe() == ()


def test_a_stopped_process_and_one_that_starts_others(kernel: NodeKernel, state_dir: Path) -> None:
    build(kernel)
    pid = pid_of_dnsmasq(kernel, state_dir)
    stop(pid)
    breeder = "while :; do sleep 0.01; done"
    with living(NAME) as inside:
        child = subprocess.Popen(["nsenter", f"--net={netns.path_of(NAME)}", "sh", "-c", breeder])
        try:
            stop(inside)
            done = sweep(state_dir)
            assert has_ended(pid)
            assert has_ended(inside)
            assert has_ended(child.pid)
        finally:
            child.kill()
            child.wait()
    assert [o.result for o in done.report.outcomes if o.result in ("leaked", "failed")] == []
    assert kernel.observe() == ()


def test_a_nameless_namespace_that_a_process_holds(kernel: NodeKernel, state_dir: Path) -> None:
    build(kernel)
    pid = pid_of_dnsmasq(kernel, state_dir)
    sh(f"ip netns del {NAME}")
    assert rtnetlink.link(kernel.instances.site.route, host_port(EDGE, "n0")) is not None
    done = sweep(state_dir)
    assert results(done) == {}
    assert has_ended(pid)
    assert [link for link in told("ip -o link").split() if link.startswith("vrh")] == []


def test_a_nameless_one_without_ports_is_known_by_its_process(
    kernel: NodeKernel, state_dir: Path
) -> None:
    build(kernel)
    pid = pid_of_dnsmasq(kernel, state_dir)
    for port in ("n0", "n1", "u0"):
        sh(f"ip link del {host_port(EDGE, port)}")
    sh(f"ip netns del {NAME}")
    shutil.rmtree(state_dir / "instances" / "edge-1")
    assert host_port(EDGE, "n0") in told("nft list ruleset")
    done = sweep(state_dir)
    assert results(done) == {}
    assert host_port(EDGE, "n0") not in told("nft list ruleset")
    assert set(done.report.owners) == {"edge-1"}
    assert has_ended(pid)


def test_an_agent_in_a_container_has_the_same_paths(node: None, state_dir: Path) -> None:
    script = f'mount -t tmpfs tmpfs {state_dir} && exec {sys.executable} -c "{SLEEP}" $0'
    conf = f"--conf-file={state_dir}/instances/edge-1/dnsmasq.conf"
    for container in (["unshare", "-n", "-m"], ["unshare", "-n"]):
        line = script if "-m" in container else script.partition("&& ")[2]
        child = subprocess.Popen([*container, "sh", "-c", line, conf], stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"in\n"
            done = sweep(state_dir)
            ours = "-m" not in container
            assert bool(done.report.outcomes) == ours
            assert has_ended(child.pid, 5 if ours else 0.05) == ours
        finally:
            child.kill()
            child.communicate()


def test_a_pid_file_is_no_witness(kernel: NodeKernel, state_dir: Path) -> None:
    machine("other", "br-a")
    build(kernel)
    with living("other") as outside:
        for name in ("dnsmasq.pid", "pid"):
            (state_dir / "instances" / "edge-1" / name).write_text(f"{outside}\n")
        assert sweep(state_dir).exit_code == 0
        assert not has_ended(outside, 0.05)


def test_a_namespace_hidden_below_another(kernel: NodeKernel, state_dir: Path) -> None:
    build(kernel)
    with living(NAME) as hidden:
        machine("top", "br-b")
        sh(f"mount --bind /run/netns/top /run/netns/{NAME}")
        sh("ip netns del top")
        with living(NAME) as seen:
            done = sweep(state_dir)
            assert results(done) == {}
            assert has_ended(hidden)
            assert has_ended(seen)
    assert NAME not in netns.names()
    assert "net:[" not in Path("/proc/thread-self/mountinfo").read_text()


def test_a_name_hidden_with_its_whole_folder(kernel: NodeKernel, state_dir: Path) -> None:
    build(kernel)
    sh("mount --make-private /run/netns")
    sh("mount --bind /run/netns /run/netns")
    try:
        done = sweep(state_dir)
        assert results(done) == {}
        assert NAME not in netns.names()
        sh("umount /run/netns")
        assert NAME not in netns.names()
    finally:
        sh("mount --make-shared /run/netns")
    assert kernel.observe() == ()


def test_half_of_an_instance(kernel: NodeKernel, state_dir: Path) -> None:
    build(kernel)
    # Ports without a namespace: its other ends are in another one that nobody can name.
    for port, at in (("n0", 2), ("n1", 3)):
        name = host_port(InstanceRef("ports", at), port)
        sh(f"ip link add {name} type veth peer name x{at}")
        subprocess.run(
            ["ip", "link", "set", name, "alias", f"vrha:ports:{at}:1:{port}"], check=True
        )
    sh("ip netns add vrha-names-4")
    (state_dir / "instances" / "folder-5").mkdir()
    (state_dir / "instances" / "folder-5" / "spec.json").write_text("{")
    (state_dir / "instances" / "link-6").symlink_to("/etc")
    netns.path_of("vrha-plain-7").touch()
    done = sweep(state_dir)
    owners = {"edge-1", "ports-2", "ports-3", "names-4", "folder-5", "link-6", "plain-7"}
    assert dict(done.report.owners) == dict.fromkeys(owners, "removed")
    assert netns.names() == []
    assert list((state_dir / "instances").iterdir()) == []
    assert Path("/etc/passwd").exists()
    assert "vrh" not in told("ip -o link").replace("vrha-test", "")


def test_a_name_of_ours_on_what_is_not_ours(kernel: NodeKernel, state_dir: Path) -> None:
    machine("other", "br-a")
    netns.path_of("vrha-home-1").touch()
    netns.path_of("vrha-other-1").touch()
    sh("mount --bind /proc/self/ns/net /run/netns/vrha-home-1")
    sh("mount --bind /run/netns/other /run/netns/vrha-other-1")
    with living("other") as outside:
        done = sweep(state_dir)
        assert [o.item.kind.value for o in done.report.outcomes] == ["namespace", "namespace"]
        assert not has_ended(outside, 0.05)
    assert netns.names() == ["other"]


def test_a_copied_alias_or_name_is_not_ours(kernel: NodeKernel, state_dir: Path) -> None:
    foreign = host_port(EDGE, "n0")
    sh(f"ip link add {foreign} type veth peer name x1")
    sh("ip link add vrhcopy type veth peer name x2")
    sh("ip link set vrhcopy alias vrha:edge:1:1:n0")
    before = bystanders(state_dir)
    assert sweep(state_dir).plan.shares == ()
    assert bystanders(state_dir) == before
    sh(f"ip link del {foreign}")


def test_what_will_not_die_is_leaked_and_not_used_again(
    kernel: NodeKernel, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "DEADLINE_S", 0.2)
    build(kernel)
    fd = netns.open_named(NAME)
    try:
        done = sweep(state_dir)
        assert done.exit_code == 1
        assert dict(done.report.owners) == {"edge-1": "leaked"}
        assert str(os.getpid()) in results(done)[f"namespace {NAME}"]
        assert "vrh" not in told("ip -o link").replace("vrha-test", "")
        with pytest.raises(StepError) as caught:
            build(kernel)
        assert caught.value.code == "instance-leaked"
        build(kernel, 2, active=False)
        kernel.destroy(InstanceRef("edge", 2))
        again = sweep(state_dir)
        assert dict(again.report.owners) == {"edge-1": "leaked"}
        assert kernel.observe() == ()
    finally:
        os.close(fd)
    assert until(lambda: not nsid.all_known(kernel.instances.site.route))
    assert sweep(state_dir).exit_code == 0
    build(kernel)


def test_the_journal_tells_it_all(kernel: NodeKernel, state_dir: Path) -> None:
    build(kernel)
    done = sweep(state_dir)
    lines = (state_dir / "cleanup" / "journal.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [e["event"] for e in events] == [
        "begin",
        *["outcome"] * len(done.report.outcomes),
        "end",
    ]
    assert len({e["run"] for e in events}) == 1
    assert events[-1]["owners"] == {"edge-1": "removed"}


def test_a_living_agent_is_not_swept(kernel: NodeKernel, state_dir: Path) -> None:
    build(kernel)
    with sole_user(state_dir, "agent"):
        with pytest.raises(RefusedError) as caught:
            sweep(state_dir)
        assert caught.value.code == "agent-lives"
        (share,) = look(wanted("vrha", state_dir, force=True)).plan.shares
        assert share.decision.reason is Reason.AGENT_LIVES
    assert kernel.observe()[0].dnsmasq_alive
