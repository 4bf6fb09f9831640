"""A handover on one node, step by step: what tenants notice, and what the wire sees."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.netns.conftest import sh
from tests.netns.handoverkit import (
    GATEWAY,
    PUBLIC,
    UPSTREAM,
    UPSTREAM6,
    Street,
    asking,
    assert_nothing_lost,
    connected,
    dead,
    in_background,
    probing,
    street,
)
from tests.netns.nodekit import until
from vrha import failpoints
from vrha.core import names
from vrha.errors import StepError
from vrha.linux import netns
from vrha.linux.node import NodeKernel
from vrha.model.spec import Backend, InstanceSpec
from vrha.model.state import Activity

pytestmark = pytest.mark.root


@pytest.fixture
def served(kernel: NodeKernel) -> Iterator[Street]:
    with street(kernel) as made:
        yield made


@pytest.mark.parametrize(("backend", "hold"), [(Backend.NFTABLES, False), (Backend.IPTABLES, True)])
def test_nothing_is_lost_and_every_step_may_be_repeated(
    kernel: NodeKernel, backend: Backend, hold: bool
) -> None:
    with street(kernel, backend) as served:
        old, new = served.old, served.twin()
        steps = kernel.handovers
        with (
            asking(served.inside, GATEWAY) as tenants,
            asking(served.outside, PUBLIC) as neighbours,
            probing() as results,
        ):
            for _ in range(2):
                _, copied = steps.sync(old.ref, new.ref)
            for _ in range(2):
                steps.flip(old.ref, new.ref, hold)
                assert served.activities() == {1: Activity.RELAY, 2: Activity.ACTIVE}
            _, seen = steps.verify(old.ref, new.ref, max_lost=0)
            steps.verify(old.ref, new.ref, max_lost=0)
            for _ in range(2):
                kernel.destroy(old.ref)
        served.assert_only(new)
        assert_nothing_lost(results[0], 0 if hold else 1)
    assert {carried.what: carried.taken > 0 for carried in copied.carried} == {
        "neighbours": True,
        "conntrack": True,
    }
    assert [(stream.lost, stream.duplicates) for stream in seen.measured] == [(0, 0), (0, 0)]
    for answers in (tenants.results()[GATEWAY], neighbours.results()[PUBLIC]):
        assert answers.doubles == 0
        assert answers.asked - answers.answered <= 2
        assert answers.asked > 500


def test_the_way_back_loses_nothing_either(served: Street) -> None:
    """Also what began through the replacement lives on through the old one."""
    old, new = served.old, served.twin()
    steps = served.kernel.handovers
    with connected(served.inside, served.outside) as before, probing() as results:
        steps.sync(old.ref, new.ref)
        steps.flip(old.ref, new.ref, False)
        with (
            connected(served.other, served.outside) as between,
            connected(served.inside, served.outside, UPSTREAM6) as between6,
        ):
            for _ in range(2):
                steps.flip(new.ref, old.ref, False)
                assert served.activities() == {1: Activity.ACTIVE, 2: Activity.RELAY}
            served.kernel.destroy(new.ref)
            assert all(c.carries() for c in (before, between, between6))
    served.assert_only(old)
    assert_nothing_lost(results[0], 2)


def test_a_sync_after_the_flip_changes_nothing(served: Street) -> None:
    """A command may be delivered again: the MACs stay, and so does what is newer."""
    old, new = served.old, served.twin()
    steps = served.kernel.handovers
    with connected(served.inside, served.outside) as early, probing() as results:
        steps.sync(old.ref, new.ref)
        steps.flip(old.ref, new.ref, False)
        with connected(served.other, served.outside) as late:
            bound = sticky()
            steps.sync(old.ref, new.ref)
            assert sticky() == bound
            assert served.activities() == {1: Activity.RELAY, 2: Activity.ACTIVE}
            assert early.carries()
            assert late.carries()
            steps.verify(old.ref, new.ref, max_lost=0)
            served.kernel.destroy(old.ref)
            assert early.carries()
            assert late.carries()
    served.assert_only(new)
    assert_nothing_lost(results[0], 1)


def sticky() -> set[str]:
    """Static entries of the bridges: MAC and port."""
    lines = sh("bridge fdb show").splitlines()
    return {" ".join(line.split()[:3]) for line in lines if "sticky" in line}


def test_the_next_life_of_the_agent_carries_connections_anew(
    served: Street, state_dir: Path
) -> None:
    old, new = served.old, served.twin()
    served.kernel.handovers.sync(old.ref, new.ref)
    served.kernel.handovers.close()
    with (
        connected(served.other, served.outside) as connection,
        connected(served.inside, served.outside, UPSTREAM6) as connection6,
        probing() as results,
    ):
        agent = NodeKernel(state_dir)
        try:
            agent.handovers.flip(old.ref, new.ref, False)
            _, seen = agent.handovers.verify(old.ref, new.ref, max_lost=0)
            agent.destroy(old.ref)
        finally:
            agent.close()
        assert connection.carries()
        assert connection6.carries()
    served.assert_only(new)
    assert_nothing_lost(results[0], 1)
    assert [stream.unavailable for stream in seen.measured] == ["", ""]


def test_a_flip_that_was_cut_in_the_middle_is_finished_by_the_next_life(
    served: Street, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In between the silenced old one forwards everything, and learns of connections alone."""
    old, new = served.old, served.twin()
    (tmp_path / "flip.inside").write_text("error")
    monkeypatch.setenv(failpoints.VARIABLE, str(tmp_path))
    served.kernel.handovers.sync(old.ref, new.ref)
    with pytest.raises(StepError, match="failpoint"):
        served.kernel.handovers.flip(old.ref, new.ref, False)
    served.kernel.handovers.close()
    assert served.activities() == {1: Activity.RELAY, 2: Activity.ACTIVE}
    with connected(served.other, served.outside) as connection, probing() as results:
        agent = NodeKernel(state_dir)
        try:
            agent.handovers.flip(old.ref, new.ref, True)
            agent.handovers.verify(old.ref, new.ref, max_lost=0)
            agent.destroy(old.ref)
        finally:
            agent.close()
        assert connection.carries()
    served.assert_only(new)
    assert_nothing_lost(results[0], 1)


def verdict(served: Street, new: InstanceSpec, max_lost: int | None = None) -> str:
    """The code by which the step fails; empty when it does not."""
    try:
        served.kernel.handovers.verify(served.old.ref, new.ref, max_lost)
    except StepError as error:
        return error.code
    return ""


def prepared(served: Street) -> InstanceSpec:
    """A replacement that has the traffic, unverified."""
    new = served.twin()
    served.kernel.handovers.sync(served.old.ref, new.ref)
    served.kernel.handovers.flip(served.old.ref, new.ref, False)
    return new


@pytest.mark.parametrize(("max_lost", "code"), [(3, "too-many-lost"), (None, "")])
def test_loss_is_measured_against_the_limit(
    served: Street, max_lost: int | None, code: str
) -> None:
    new = prepared(served)
    served.kernel.mute(new.ref)
    time.sleep(0.02)
    served.kernel.unmute(new.ref)
    assert verdict(served, new, max_lost) == code
    served.kernel.handovers.flip(new.ref, served.old.ref, False)
    served.kernel.destroy(new.ref)
    served.assert_only(served.old)
    assert served.inside.pings(UPSTREAM)


def test_a_replacement_that_forwards_nothing_is_found_out(served: Street) -> None:
    new = prepared(served)
    inner = names.namespace_name(new.ref)
    sh(f"ip netns exec {inner} sysctl -qw net.ipv4.ip_forward=0")
    assert until(lambda: not served.inside.pings(UPSTREAM, 1))
    time.sleep(0.05)
    assert verdict(served, new) == "canary-silent"
    served.kernel.handovers.flip(new.ref, served.old.ref, False)
    assert served.inside.pings(UPSTREAM)
    served.kernel.destroy(new.ref)
    served.assert_only(served.old)


def test_neighbours_that_fall_silent_are_named(served: Street) -> None:
    """The replacement's port to the outside hears nothing, so its gateway answers no question."""
    new = prepared(served)
    sh(f"ip link set {names.host_port(new.ref, 'u0')} nomaster")
    with pytest.raises(StepError, match=UPSTREAM) as caught:
        served.kernel.handovers.verify(served.old.ref, new.ref, None)
    assert caught.value.code == "neighbours-silent"
    served.kernel.handovers.flip(new.ref, served.old.ref, False)
    served.kernel.destroy(new.ref)
    served.assert_only(served.old)
    assert served.inside.pings(UPSTREAM)


def test_a_flip_between_two_that_do_not_serve_is_refused(served: Street) -> None:
    new = served.twin()
    served.kernel.mute(served.old.ref)
    with pytest.raises(StepError) as caught:
        served.kernel.handovers.flip(served.old.ref, new.ref, False)
    assert caught.value.code == "not-active"
    assert served.activities() == {1: Activity.MUTED, 2: Activity.MUTED}


def test_a_replacement_that_has_lost_its_bridge_gets_no_traffic(served: Street) -> None:
    new = served.twin()
    steps = served.kernel.handovers
    with probing() as results:
        steps.sync(served.old.ref, new.ref)
        sh(f"ip link set {names.host_port(new.ref, 'n1')} nomaster")
        with pytest.raises(StepError) as caught:
            steps.flip(served.old.ref, new.ref, False)
        assert caught.value.code == "port-not-forwarding"
        assert served.activities() == {1: Activity.ACTIVE, 2: Activity.MUTED}
        steps.flip(new.ref, served.old.ref, False)
        served.kernel.destroy(new.ref)
    served.assert_only(served.old)
    assert_nothing_lost(results[0], 2)


def test_a_flip_that_the_bridge_refuses_half_way_leaves_the_old_one(
    served: Street, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = served.twin()
    steps = served.kernel.handovers
    place = tmp_path / "flip.inside"
    place.write_text("wait")
    monkeypatch.setenv(failpoints.VARIABLE, str(tmp_path))

    def cut() -> None:
        assert until(place.with_name("flip.inside.reached").exists)
        sh(f"ip link set {names.host_port(new.ref, 'u0')} nomaster")
        place.with_name("flip.inside.go").touch()

    with (
        connected(served.inside, served.outside) as connection,
        probing() as results,
    ):
        steps.sync(served.old.ref, new.ref)
        thread = threading.Thread(target=cut)
        thread.start()
        with pytest.raises(StepError) as caught:
            steps.flip(served.old.ref, new.ref, False)
        thread.join()
        assert caught.value.code == "flip-failed"
        assert served.activities() == {1: Activity.ACTIVE, 2: Activity.MUTED}
        steps.flip(new.ref, served.old.ref, False)
        served.kernel.destroy(new.ref)
        assert connection.carries()
    served.assert_only(served.old)
    assert dead(results[0].connections) == {}
    # The new one had some of the MACs until the bridge refused the last.
    assert max(stream.loss.lost for stream in results[0].streams) <= 20


def test_a_port_of_the_replacement_is_gone(served: Street) -> None:
    new = served.twin()
    served.kernel.handovers.sync(served.old.ref, new.ref)
    sh(f"ip link del {names.host_port(new.ref, 'n1')}")
    with pytest.raises(StepError) as caught:
        served.kernel.handovers.flip(served.old.ref, new.ref, False)
    assert caught.value.code == "port-not-forwarding"
    assert served.activities()[1] is Activity.ACTIVE
    served.kernel.handovers.flip(new.ref, served.old.ref, False)
    served.kernel.destroy(new.ref)
    served.assert_only(served.old)
    assert served.inside.pings(UPSTREAM)


def test_a_relay_that_is_muted_or_serves_again_leaves_no_trace(served: Street) -> None:
    new = prepared(served)
    served.kernel.mute(served.old.ref)
    served.assert_only(new)
    served.kernel.unmute(served.old.ref)
    served.kernel.mute(new.ref)
    served.assert_only(served.old)


def test_the_name_server_answers_all_the_time(served: Street) -> None:
    """Asked every 10 ms, without asking again; also by IPv6, at the address that never changes."""
    answers: list[str] = []

    def ask() -> None:
        answers.append(served.inside.resolve(GATEWAY, "vm1.red.example"))

    with in_background(ask, 0.01) as wrong:
        served.hand_over(served.twin())
        served.hand_over(served.twin())
    assert wrong == []
    assert len(answers) > 20
    assert set(answers) == {"10.1.1.11"}


@contextmanager
def disturbance() -> Iterator[None]:
    """Another process makes namespaces with links on a bridge, and removes them, without pause."""
    lines = (
        "i=$((i+1))",
        "ip netns add other",
        "ip link add other$i type veth peer name other0 netns other",
        "ip link set other$i master br-b up",
        "ip netns del other",
        "echo",
    )
    loop = f"while :; do {'; '.join(lines)}; done"
    argv = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", loop]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            yield
            assert child.poll() is None
        finally:
            child.kill()
            child.wait()
            netns.remove("other")


def test_handovers_while_others_are_built_and_destroyed(
    served: Street, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """All of them take the kernel's one lock of links and namespaces, again and again."""
    flips: list[float] = []

    with disturbance(), probing() as results:
        for _ in range(5):
            new, old = served.twin(), served.old
            served.kernel.handovers.sync(old.ref, new.ref)
            timings = dict(served.kernel.handovers.flip(old.ref, new.ref, False))
            flips.append(timings["flip"])
            served.kernel.handovers.verify(old.ref, new.ref, max_lost=0)
            served.kernel.destroy(old.ref)
            served.old = new
    served.assert_only(served.old)
    assert_nothing_lost(results[0], len(flips))
    record_testsuite_property("flips_ms", flips)
