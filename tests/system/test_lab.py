"""The lab on the real kernel: it works, and nothing of it stays whoever dies."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.system.labkit import Machine, Spaces, namespace_of, python, until, vrha
from vrha.bus.processes import ProcessId
from vrha.errors import InputError, NotFoundError, RefusedError, VrhaError
from vrha.lab import life, state
from vrha.lab.daemons import Program, environment, identify
from vrha.lab.scenario import load_scenario
from vrha.lab.zone import Lab

pytestmark = [pytest.mark.root, pytest.mark.unhurried]

PREFIX = f"t{os.getpid()}"


@pytest.fixture
def name() -> Iterator[str]:
    """A name for a lab, and the check that nothing of any lab of ours stays."""
    before = Machine.now(PREFIX)
    yield f"{PREFIX}-{random.randrange(10**6)}"
    assert Machine.now(PREFIX) == before


@pytest.fixture(scope="module")
def seed() -> Iterator[Lab]:
    before = Machine.now(PREFIX)
    with Lab.up("seed-10x10", f"{PREFIX}-seed", ephemeral=True) as lab:
        yield lab
    assert Machine.now(PREFIX) == before


def reaches(lab: Lab, host: str, address: str) -> bool:
    with lab.exec(host, ["ping", "-qc1", "-W1", address], stdout=subprocess.DEVNULL) as ping:
        return ping.wait(5) == 0


def test_machines_of_a_segment_reach_each_other_and_nobody_else(seed: Lab) -> None:
    assert reaches(seed, "vm1", "10.1.1.12")
    assert reaches(seed, "vm10", "2001:db8:1::11")
    assert not reaches(seed, "vm1", "203.0.113.1")
    assert not reaches(seed, "outside", "10.1.1.11")


def test_nodes_hang_on_every_segment(seed: Lab) -> None:
    def plug(node: str, bridge: str, address: str) -> str:
        commands = f"""set -e
            ip netns add guest; ip link add g0 type veth peer name eth0 netns guest
            ip link set g0 master {bridge} up; ip -n guest link set eth0 up
            ip -n guest address add {address} dev eth0"""
        return seed.run(node, ["sh", "-c", commands])

    plug("n1", "br-blue", "10.1.1.201/24")
    plug("n2", "br-public", "203.0.113.201/24")
    try:
        assert reaches(seed, "vm1", "10.1.1.201")
        assert reaches(seed, "outside", "203.0.113.201")
        assert seed.run("n1", ["ls", "/run/netns"]).split() == ["guest"]
        assert seed.run("n3", ["ls", "/run/netns"]).split() == []
    finally:
        for node in ("n1", "n2"):
            seed.run(node, ["ip", "netns", "delete", "guest"])


def test_management_network_joins_nodes_and_orchestrator_only(seed: Lab) -> None:
    for node in seed.nodes:
        assert reaches(seed, node, "172.31.255.1")
    assert reaches(seed, "n1", "172.31.255.12")
    assert not reaches(seed, "vm1", "172.31.255.1")


def test_what_comes_from_an_unplugged_node_is_for_nobody(seed: Lab) -> None:
    """A bridge with the MAC of a port would leave that port the machine's own when it is taken
    out: the orchestrator would hear a node that hears nobody."""
    links = seed.run("", ["ip", "-o", "link", "show"])
    macs = dict(re.findall(r"^\d+: ([^:@]+).* link/ether (\S+)", links, re.MULTILINE))
    switch = macs.pop("lab-mgmt")
    assert len(macs) > len(seed.nodes)
    assert switch not in macs.values()


def test_no_bridge_hands_frames_to_iptables(seed: Lab) -> None:
    for host in ("", *seed.nodes):
        files = seed.run(host, ["sh", "-c", "cat /proc/sys/net/bridge/bridge-nf-call-* || :"])
        assert set(files.split()) <= {"0"}


def test_fabric_learns_and_floods_nothing_known(seed: Lab) -> None:
    assert reaches(seed, "vm1", "10.1.1.12")
    bridges = json.loads(seed.run("", ["ip", "-d", "-j", "link", "show", "type", "bridge"]))
    for bridge in bridges:
        assert bridge["linkinfo"]["info_data"]["stp_state"] == 0
    entries = seed.run("", ["bridge", "fdb", "show", "br", "br-blue"]).splitlines()
    learned = [line for line in entries if "02:00:00:01:01:0b dev h0" in line]
    assert learned


def test_exec_sees_only_the_lab(seed: Lab) -> None:
    assert seed.run("n2", ["hostname"]).strip() == "n2"
    pids = seed.run("vm1", ["sh", "-c", "ls -d /proc/[0-9]*"]).split()
    assert 4 <= len(pids) < 12
    assert seed.run("n1", ["ls", "/run"]).split() == ["lock", "netns", "vrha-lab"]
    assert "eth0" in seed.run("vm1", ["ls", "/proc/sys/net/ipv4/conf"]).split()


def test_exec_passes_streams_status_and_signals(seed: Lab) -> None:
    assert seed.run("vm1", ["cat"], stdin="hello") == "hello"
    with seed.exec("vm1", ["sh", "-c", "exit 7"]) as child:
        assert child.wait(5) == 7
    with seed.exec("vm1", ["sleep", "60"]) as child:
        child.terminate()
        assert child.wait(5) == -signal.SIGTERM
    with pytest.raises(VrhaError) as caught:
        seed.run("vm1", ["ls", "/nowhere"])
    assert caught.value.code == "lab-command-failed"
    with pytest.raises(NotFoundError) as missing:
        seed.run("vm99", ["true"])
    assert missing.value.code == "no-host"
    with pytest.raises(FileNotFoundError):
        seed.exec("vm1", ["/no/such/program"])


def test_caller_stays_where_it_is(seed: Lab) -> None:
    kinds = ("net", "mnt", "pid", "pid_for_children", "uts", "ipc")
    before = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
    seed.run("vm1", ["true"])
    seed.call("vm1", lambda: None)
    assert {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds} == before


def test_call_opens_sockets_on_the_host(seed: Lab) -> None:
    inode = seed.call("outside", lambda: Path("/proc/thread-self/ns/net").stat().st_ino)
    assert inode == Path(seed.netns_path("outside")).stat().st_ino


def test_netns_path_is_usable_from_outside(seed: Lab) -> None:
    for host, address in (("vm3", "10.1.1.13"), ("n1", "172.31.255.11")):
        command = ["nsenter", f"--net={seed.netns_path(host)}", "ip", "-br", "address"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        assert address in shown.stdout


def test_dais_is_complete(name: str) -> None:
    with Lab.up("dais-54", name, ephemeral=True) as lab:
        for machine, far in (("vm1", "10.1.1.19"), ("vm54", "10.1.6.11")):
            assert reaches(lab, machine, far)
        assert not reaches(lab, "vm1", "10.1.2.11")


def test_command_line(name: str) -> None:
    lab = ("lab", "up", "--no-daemons", "--name", name)
    made = vrha(*lab)
    assert made.returncode == 0, made.stderr
    try:
        again = vrha(*lab)
        assert again.returncode == 4
        assert "lab-exists" in again.stderr
        ping = ("--", "ping", "-qc1", "-W1", "10.1.1.12")
        assert vrha("lab", "exec", "--name", name, "vm1", *ping).returncode == 0
        false = vrha("lab", "exec", "--name", name, "vm1", "--", "sh", "-c", "exit 9")
        assert false.returncode == 9
        nothing = vrha("lab", "exec", "--name", name, "vm1", "--", "no-such-program")
        assert nothing.returncode == 2
        assert "no-command" in nothing.stderr
        status = json.loads(vrha("lab", "status", "--name", name, "--json").stdout)
        assert status["state"] == "up"
        assert status["nodes"] == ["n1", "n2", "n3"]
        assert name in vrha("lab", "status", "--name", name).stdout
    finally:
        down = vrha("lab", "down", "--name", name)
    assert down.returncode == 0
    gone = vrha("lab", "down", "--name", name)
    assert gone.returncode == 2
    assert "no-lab" in gone.stderr


def test_unknown_scenario_lists_the_known(name: str) -> None:
    refused = vrha("lab", "up", "seed", "--name", name)
    assert refused.returncode == 2
    assert "seed-10x10" in refused.stderr


def test_bad_name_is_refused() -> None:
    with pytest.raises(InputError):
        Lab.up("seed-10x10", "../x")


def test_two_labs_at_once(name: str, seed: Lab) -> None:
    with Lab.up("seed-10x10", name, ephemeral=True) as second:
        assert reaches(second, "vm1", "10.1.1.12")
        assert reaches(seed, "vm1", "10.1.1.12")
        with pytest.raises(RefusedError):
            Lab.up("seed-10x10", name)
        assert reaches(second, "vm1", "10.1.1.12")
        mine, other = Spaces(second), Spaces(seed)
        assert len(mine.members()) == 4
        assert not mine.inodes & other.inodes
    mine.assert_empty()
    assert reaches(seed, "vm1", "10.1.1.12")


def test_down_ends_everything_even_what_nobody_waits_for(name: str) -> None:
    lab = Lab.up("seed-10x10", name)
    spaces = Spaces(lab)
    stubborn = "import signal,time; signal.pthread_sigmask(0,range(1,64)); time.sleep(600)"
    child = lab.exec("vm1", [sys.executable, "-c", stubborn])
    agent = lab.agent("n1")
    agent.start(Program(("sleep", "600"), "n1", environment()))
    lab.down()
    assert child.wait(5) == -signal.SIGKILL
    assert not agent.alive
    spaces.assert_empty()


def test_daemon_survives_its_starter_and_kill_restarts_it(name: str) -> None:
    code = """if True:
        import sys
        from vrha.lab.daemons import Program, environment, identify
        from vrha.lab.zone import Lab
        lab = Lab.up("seed-10x10", sys.argv[1])
        script = 'hostname; echo $GREETING; cat /proc/sys/net/ipv4/conf/mgmt0/forwarding; sleep 600'
        env = environment({"GREETING": "hello"})
        lab.agent("n2").start(Program(("sh", "-c", script), "n2", env))
    """
    with python(code, name) as starter:
        _out, err = starter.communicate(timeout=30)
        assert starter.returncode == 0, err
    with Lab.find(name) as lab:
        agent = lab.agent("n2")
        first = agent.pid
        assert agent.alive
        assert lab.status().daemons["agent-n2"]
        until(lambda: agent.tail().splitlines() == ["n2", "hello", "0"], "its output")
        assert namespace_of(first, "mnt") == namespace_of(lab.place("n2").pid, "mnt")

        agent.kill()
        assert not agent.alive
        until(lambda: not Path(f"/proc/{first}").exists(), "process 1 reaps")
        agent.start()
        assert agent.alive
        assert agent.pid != first
        until(lambda: len(agent.tail().splitlines()) == 6, "its output again")

        with pytest.raises(VrhaError) as caught:
            lab.agent("n1").start(Program(("/no/such/program",), "n1", {}))
        assert caught.value.code == "lab-spawn-failed"
        assert lab.exec("vm1", ["true"]).wait(5) == 0, "process 1 survives a bad request"


def test_process_1_dies(name: str) -> None:
    lab = Lab.up("seed-10x10", name)
    spaces = Spaces(lab)
    child = lab.exec("vm1", ["sleep", "600"])
    os.kill(lab.pid, signal.SIGKILL)
    assert child.wait(5) == -signal.SIGKILL
    until(lambda: lab.status().state == "dead", "death")
    spaces.assert_empty()
    with pytest.raises(NotFoundError) as caught:
        lab.exec("vm1", ["true"])
    assert caught.value.code == "lab-gone"

    with Lab.up("seed-10x10", name) as again:
        assert reaches(again, "vm1", "10.1.1.12")


UP_AND_TELL = """if True:
    import os, sys, time
    from vrha.lab.zone import Lab
    def slow(self, plan):
        print(self.pid, flush=True)
        time.sleep(600)
    if sys.argv[2] == "middle":
        Lab._wire = slow
    lab = Lab.up("seed-10x10", sys.argv[1], ephemeral=True)
    print(lab.pid, flush=True)
    child = lab.exec("vm1", ["sleep", "600"])
    lab.agent("n1").start(__import__("vrha.lab.daemons").lab.daemons.Program(
        ("sleep", "600"), "n1", dict(os.environ)))
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("moment", ["middle", "ready"])
def test_killed_owner_takes_the_lab_along(name: str, moment: str) -> None:
    with python(UP_AND_TELL, name, moment) as owner:
        assert owner.stdout is not None
        anchor = ProcessId.of(int(owner.stdout.readline()))
        assert anchor is not None
        spaces = Spaces(Lab.find(name))
        if moment == "ready":
            assert owner.stdout.readline() == "ready\n"
        owner.kill()
    assert anchor.wait_gone(10)
    spaces.assert_empty()
    until(lambda: not (state.ROOT / name).exists(), "its folder")


def test_up_killed_at_any_moment_is_cleaned_by_down(name: str) -> None:
    for _attempt in range(8):
        command = [sys.executable, "-m", "vrha.cli.main", "lab", "up", "--no-daemons"]
        with subprocess.Popen(
            [*command, "--name", name],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as up:
            # Not a wait for something: the moment of the kill is what the test varies.
            time.sleep(random.uniform(0.1, 0.7))
            up.kill()
        if name in state.lab_names():
            anchor = state.load(name).anchor
            # It may clean up after its owner before `down` does.
            assert vrha("lab", "down", "--name", name).returncode in (0, NotFoundError.exit_code)
            assert anchor is None or anchor.wait_gone(10)
        until(lambda: not (state.ROOT / name).exists(), "its folder")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_up_leaves_nothing(name: str, number: int) -> None:
    code = """if True:
        import sys
        from vrha.cli import lab, main
        def begun(self, *args, **kw):
            print(self.pid, flush=True)
            self.run("vm1", ["sleep", "600"], timeout=600)
        lab.Lab.start_daemons = begun
        sys.exit(main.run(["lab", "up", "--name", sys.argv[1]]))
    """
    with python(code, name) as up:
        assert up.stdout is not None
        anchor = ProcessId.of(int(up.stdout.readline()))
        up.send_signal(number)
        assert up.wait(20) == 130
        assert anchor is not None
    assert not anchor.alive


@pytest.mark.parametrize("moment", ["anchor", "wiring"])
def test_taken_down_while_it_comes_up(name: str, moment: str, monkeypatch) -> None:
    owner, step = (life, "_completed") if moment == "anchor" else (Lab, "_wire")
    real = getattr(owner, step)
    before = anchors_of_ours()

    def down_first(*arguments):
        life.remove(name)
        return real(*arguments)

    monkeypatch.setattr(owner, step, down_first)
    with pytest.raises(VrhaError):
        Lab.up("seed-10x10", name)
    until(lambda: anchors_of_ours() == before, "the end of process 1")


def anchors_of_ours() -> set[int]:
    """Children of this process that are process 1 of a lab."""
    files = Path("/proc/self/task").glob("*/children")
    pids = {int(pid) for file in files for pid in file.read_text().split()}
    return {p for p in pids if b"vrha.lab.anchor" in Path(f"/proc/{p}/cmdline").read_bytes()}


def test_interrupted_before_process_1_is_known(name: str, monkeypatch) -> None:
    seen: list[ProcessId] = []

    def interrupted(record, plan, answer, pidfds):
        seen.extend(process for fd in pidfds if (process := identify(fd)))
        raise KeyboardInterrupt

    monkeypatch.setattr(life, "_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Lab.up("seed-10x10", name)
    assert len(seen) == 4
    for process in seen:
        assert process.wait_gone(5)


def test_others_of_a_similar_name_are_untouched(name: str) -> None:
    script = "mount -t tmpfs x /run; ip netns add vm1; ip netns add n1; echo ok; sleep 600"
    command = ["unshare", "--net", "--mount", "--fork", "--kill-child", "sh", "-c", script, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as foreign:
        try:
            assert foreign.stdout is not None
            assert foreign.stdout.readline() == "ok\n"
            folder = f"/proc/{foreign.pid}/root/run/netns"
            with Lab.up("seed-10x10", name), Lab.up("seed-10x10", f"{name}x"):
                vrha("lab", "down", "--name", name)
                assert Lab.find(f"{name}x").status().state == "up"
            assert foreign.poll() is None
            assert sorted(os.listdir(folder)) == ["n1", "vm1"]
        finally:
            foreign.kill()


def test_reused_pid_is_not_killed(name: str) -> None:
    with subprocess.Popen(["sleep", "600"]) as stranger:
        try:
            now = ProcessId.of(stranger.pid)
            assert now is not None
            earlier = replace(now, start=now.start - 1)
            state.claim(state.LabState(name, "seed-10x10", earlier, anchor=earlier))
            assert Lab.find(name).status().state == "dead"
            Lab.find(name).down()
            assert stranger.poll() is None
        finally:
            stranger.kill()
    assert name not in state.lab_names()


def test_broken_wiring_says_so_and_leaves_nothing(name: str) -> None:
    plan = load_scenario("seed-10x10")
    twice = replace(plan.machines[0], name="other", segment="no-such-bridge")
    with pytest.raises(VrhaError) as caught:
        Lab.up(replace(plan, machines=(twice,)), name)
    assert caught.value.code == "lab-command-failed"
    assert "no-such-bridge" in caught.value.message or "Cannot find" in caught.value.message


def test_kernel_that_refuses_namespaces(name: str) -> None:
    drop = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    up = [sys.executable, "-m", "vrha.cli.main", "lab", "up", "--name", name]
    done = subprocess.run(
        [*drop, *up], env=environment(), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "kernel-lacks-namespaces" in done.stderr
    assert "privileged" in done.stderr


def test_without_root(name: str) -> None:
    up = [sys.executable, "-m", "vrha.cli.main", "lab", "up", "--name", name]
    code = f"import os; os.setuid(65534); os.execvp({up[0]!r}, {up!r})"
    with python(code) as done:
        _out, err = done.communicate(timeout=30)
    if "Permission denied" in err and "not-root" not in err:
        pytest.skip("the interpreter is readable by root only")
    assert done.returncode == 1
    assert "not-root" in err
