"""What goes wrong during a build leaves no trace, and remains of a crash can be cleared away."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.conftest import sh
from tests.netns.nodekit import inventory, machine, spec_of, until
from vrha.core import names
from vrha.errors import PreconditionError, StepError
from vrha.linux import build, dnsmasq, netns, processes, rules, sysctls
from vrha.linux.node import NodeKernel
from vrha.model.spec import InstanceRef
from vrha.model.state import Activity

pytestmark = [pytest.mark.root, pytest.mark.unhurried]


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def kernel_with(folder: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> NodeKernel:
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return NodeKernel(state_dir)


def assert_no_trace(kernel: NodeKernel, state_dir: Path, code: str) -> StepError:
    """Building fails with this code; a live neighbour instance does not notice."""
    before = inventory(state_dir)
    with pytest.raises(StepError) as failed:
        kernel.build(spec_of(2))
    assert failed.value.code == code, str(failed.value)
    after = inventory(state_dir)
    # Sockets of an announcement that came before may be closed meanwhile; none may be added.
    open_before, open_after = int(before.pop("descriptors")[0]), int(after.pop("descriptors")[0])
    assert after == before
    assert open_after <= open_before
    return failed.value


@pytest.mark.parametrize("script", ["echo 'bad option at line 3' >&2; exit 1", "exit 0"])
def test_dnsmasq_fails(
    node: None, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    program(tmp_path, "dnsmasq", script)
    kernel = kernel_with(tmp_path, state_dir, monkeypatch)
    error = assert_no_trace(kernel, state_dir, "dnsmasq-failed")
    assert "bad option at line 3" in str(error) or "does not answer" in str(error)
    kernel.close()


def test_rules_are_rejected(
    node: None, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(
        tmp_path,
        "nft",
        'text=$(cat); case "$text" in *"table inet vr"*) echo "syntax error" >&2; exit 1;; esac;'
        ' echo "$text" | exec /usr/sbin/nft "$@"',
    )
    kernel = kernel_with(tmp_path, state_dir, monkeypatch)
    assert "syntax error" in str(assert_no_trace(kernel, state_dir, "rules-rejected"))
    kernel.close()


def test_a_bridge_is_missing_or_down_or_no_bridge(kernel: NodeKernel, state_dir: Path) -> None:
    sh("ip link set br-b down")
    assert "br-b" in str(assert_no_trace(kernel, state_dir, "port-not-forwarding"))
    sh("ip link del br-b")
    assert "br-b" in str(assert_no_trace(kernel, state_dir, "bridge-missing"))
    sh("ip link add br-b type veth peer name br-c")
    assert_no_trace(kernel, state_dir, "bridge-missing")


def test_the_state_directory_is_full(node: None, state_dir: Path) -> None:
    sh(f"mount -t tmpfs -o size=64k,mode=711 tmpfs {state_dir}")
    try:
        kernel = NodeKernel(state_dir)
        (state_dir / "ballast").write_bytes(b"x" * 65536)
        assert_no_trace(kernel, state_dir, "no-space")
        (state_dir / "ballast").unlink()
        kernel.build(spec_of(2))
        kernel.destroy(spec_of(2).ref)
        kernel.close()
    finally:
        sh(f"umount -l {state_dir}")


def test_a_failed_build_does_not_disturb_the_active_instance(
    kernel: NodeKernel, state_dir: Path
) -> None:
    client = machine("vm", "br-a", "10.1.1.50/24")
    old = spec_of(1)
    kernel.build(old)
    kernel.unmute(old.ref)
    sh("ip link set br-b down")
    flood = subprocess.Popen(
        ["ip", "netns", "exec", "vm", "ping", "-n", "-q", "-i", "0.01", "10.1.1.1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert_no_trace(kernel, state_dir, "port-not-forwarding")
    finally:
        flood.send_signal(signal.SIGINT)
        said, _ = flood.communicate(timeout=10)
    assert " 0% packet loss" in said
    assert client.pings("10.1.1.1")


@pytest.mark.parametrize("kind", ["link", "writable", "closed"])
def test_an_unsafe_state_directory_is_refused(node: None, state_dir: Path, kind: str) -> None:
    target = state_dir / "real"
    target.mkdir(mode=0o711)
    path = target
    if kind == "link":
        path = state_dir / "link"
        path.symlink_to(target)
    elif kind == "writable":
        target.chmod(0o777)
    else:
        target.chmod(0o700)
    with pytest.raises(PreconditionError, match="state-dir"):
        NodeKernel(path)


def test_a_missing_tool_is_named(
    node: None, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vrha.linux.tools.find", lambda name: None if name == "nft" else "/x")
    with pytest.raises(PreconditionError) as failed:
        NodeKernel(state_dir)
    assert (failed.value.code, failed.value.hint) == (
        "missing-tool:nft",
        "apt-get install nftables",
    )


def inside(ref: InstanceRef) -> list[int]:
    fd = netns.open_named(names.namespace_name(ref))
    try:
        return processes.inside(fd)
    finally:
        os.close(fd)


def test_processes_inside_are_killed_even_when_they_ignore_sigterm(
    kernel: NodeKernel, state_dir: Path
) -> None:
    before = inventory(state_dir)
    spec = spec_of()
    kernel.build(spec)
    enter = ("ip", "netns", "exec", names.namespace_name(spec.ref))
    script = "trap '' TERM; echo ready; while :; do sleep 1; done"
    stuck = subprocess.Popen([*enter, "sh", "-c", script], stdout=subprocess.PIPE)
    assert stuck.stdout is not None
    assert stuck.stdout.readline() == b"ready\n"
    stopped = subprocess.Popen([*enter, "sleep", "1000"])
    assert until(lambda: stopped.pid in inside(spec.ref))
    stopped.send_signal(signal.SIGSTOP)
    kernel.destroy(spec.ref)
    assert stuck.wait(timeout=5) == -signal.SIGKILL
    assert stopped.wait(timeout=5) == -signal.SIGKILL
    stuck.stdout.close()
    assert inventory(state_dir) == before


def test_leftover_files_do_not_stand_in_the_way(kernel: NodeKernel, state_dir: Path) -> None:
    spec = spec_of()
    netns.path_of(names.namespace_name(spec.ref)).touch()
    folder = state_dir / "instances/edge-1"
    folder.mkdir()
    (folder / "spec.json").write_text("{broken")
    (found,) = kernel.observe()
    assert found.activity is Activity.PARTIAL
    kernel.build(spec)
    assert kernel.self_test(spec).not_forwarding == ()


CRASHES = [
    (dnsmasq, "write_files"),
    (netns, "create"),
    (sysctls, "apply"),
    (rules, "load"),
    (build, "_pairs"),
    (build, "_address"),
    (dnsmasq, "start"),
    (build, "await_forwarding"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("module", "function"), CRASHES, ids=[f for _, f in CRASHES])
def test_a_crash_in_the_middle_is_cleared_away(
    kernel: NodeKernel, state_dir: Path, module: object, function: str, after: bool
) -> None:
    before = inventory(state_dir)
    spec = spec_of()
    crash_while_building(kernel, module, function, after)
    kernel.destroy(spec.ref)
    assert kernel.observe() == ()
    assert until(lambda: inventory(state_dir) == before), inventory(state_dir)
    crash_while_building(kernel, module, function, after)
    kernel.build(spec)
    assert kernel.self_test(spec).not_forwarding == ()
    (found,) = kernel.observe()
    assert found.activity is Activity.MUTED
    kernel.destroy(spec.ref)
    assert until(lambda: inventory(state_dir) == before), inventory(state_dir)


def crash_while_building(kernel: NodeKernel, module: object, function: str, after: bool) -> None:
    """A child process builds and is killed by SIGKILL before or after a part of the build."""
    child = os.fork()
    if child == 0:
        original: Callable[..., object] = getattr(module, function)

        def deadly(*args: object, **kwargs: object) -> object:
            if after:
                original(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
            return None

        setattr(module, function, deadly)
        try:
            kernel.build(spec_of())
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child ended by itself"
