"""Restarts by strategy `handover` on real parts: nobody notices, and what fails is taken back."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.system.guestkit import ACK, Dhcp
from tests.system.test_guests import GUEST_MAC, leases, scenario, slaac
from tests.system.zonekit import (
    VRHA,
    Places,
    Zone,
    agents_started,
    assert_nothing_lost,
    dead,
    probing,
    wait_for,
    zone,
)
from vrha.core.names import namespace_name
from vrha.errors import RefusedError
from vrha.lab.daemons import Program
from vrha.model.runs import RestartOptions, RunStatus, Strategy
from vrha.model.spec import InstanceRef
from vrha.model.views import RouterStatus, RunView

pytestmark = [pytest.mark.root, pytest.mark.system]

GATEWAY, PUBLIC = "10.1.1.1", "203.0.113.11"
STRANGER_MAC = "02:00:00:01:01:f1"


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    with tempfile.TemporaryDirectory(prefix="vrha-test-") as folder:
        yield Places(Path(folder))


@pytest.fixture(scope="module")
def made(places: Places) -> Iterator[Zone]:
    limits = {"check_in_s": 5.0, "step_s": 8.0, "sync_s": 8.0}
    name = f"test-handover-{os.getpid()}"
    with zone(scenario(), name, limits, places.env) as made, made.responding():
        yield made


@pytest.fixture
def served(made: Zone, places: Places) -> Iterator[Zone]:
    places.forget()
    yield made
    wait_for(lambda: made.router().status is RouterStatus.SERVING, 20, "a serving router")
    node = made.router().node
    wait_for(
        lambda: (
            {name: len(found) for name, found in made.objects().items() if found}
            == {node: made.expected_objects()}
        ),
        15,
        "one instance and nothing else",
    )


def successor(made: Zone) -> InstanceRef:
    """The instance that the next restart builds; generations of roll-backs are not used again."""
    planned = made.client.plan_restart(made.network).steps[0].what
    found = re.search(r"r1#(\d+)", planned)
    assert found
    return replace(made.ref(), generation=int(found[1]))


def restarted(made: Zone, **options: object) -> RunView:
    """A restart without a strategy, to its end."""
    run = made.client.restart_network(made.network, RestartOptions(**options))  # type: ignore[arg-type]
    return made.await_run(run.id)


def test_five_restarts_that_nobody_notices(served: Zone) -> None:
    before = served.ref()
    with (
        served.asking("vm2", GATEWAY) as tenants,
        served.asking("outside", PUBLIC) as neighbours,
        probing(served.all_streams()) as results,
    ):
        runs = [restarted(served, max_lost=0, hold=number % 2 == 1) for number in range(5)]
    assert [(run.status, run.strategy) for run in runs] == [(RunStatus.DONE, Strategy.HANDOVER)] * 5
    assert served.ref().generation == before.generation + 5
    assert_nothing_lost(results[0])
    for answers in (tenants.results()[GATEWAY], neighbours.results()[PUBLIC]):
        assert (answers.doubles, answers.overlap_ms) == (0, 0.0)
        assert len(answers.turns) == 1
        assert answers.answered > answers.asked // 2
    carried = {c.what for step in runs[-1].steps for c in step.evidence.carried}
    assert {"conntrack", "neighbours"} <= carried
    measured = [m for step in runs[-1].steps for m in step.evidence.measured]
    assert [(m.stream, m.lost, m.unavailable) for m in measured] == [("canary:blue", 0, "")]


def client(made: Zone, mac: str = GUEST_MAC) -> Dhcp:
    return Dhcp(made.lab, "guest", bytes.fromhex(mac.replace(":", "")))


def assert_known(made: Zone, guest: Dhcp) -> None:
    """The lease is known, before and after the client says anything, and to nobody else."""
    address = guest.address
    assert GUEST_MAC in leases(made)
    assert [guest.renew(), guest.rebind(), guest.reboot(), guest.discover()] == [ACK] * 4
    assert guest.address == address
    stranger = client(made, STRANGER_MAC)
    assert stranger.discover() == ACK
    assert stranger.address != address


def with_address(made: Zone, guest: Dhcp) -> None:
    assert guest.discover() == ACK
    made.lab.run("guest", ["ip", "-4", "address", "flush", "dev", "eth0"])
    made.lab.run("guest", ["ip", "address", "replace", f"{guest.address}/24", "dev", "eth0"])


def test_a_lease_granted_after_the_build_is_known_afterwards(served: Zone, places: Places) -> None:
    guest = client(served)
    with places.stopped("agent.flip.before", lambda: with_address(served, guest)):
        run = served.client.restart_network(served.network)
    assert served.await_run(run.id).status is RunStatus.DONE
    assert_known(served, guest)
    places.forget()
    wait_for(lambda: slaac(served), 10, "an address by SLAAC")


BREAK = "nft 'table inet broken { chain c { type filter hook forward priority 0; policy drop; }; }'"


def inside(made: Zone, ref: InstanceRef, script: str) -> None:
    """Run a script in the namespace of an instance."""
    argv = ["ip", "netns", "exec", namespace_name(ref), "sh", "-ec", script]
    made.lab.run(made.router().node, argv)


def forward_nothing(made: Zone, ref: InstanceRef) -> None:
    inside(made, ref, BREAK)


def test_a_replacement_that_forwards_nothing_is_taken_back(served: Zone, places: Places) -> None:
    old, new = served.ref(), successor(served)
    with probing(served.all_streams()) as results:
        with places.stopped("agent.flip.before", lambda: forward_nothing(served, new)):
            run = served.client.restart_network(served.network)
        ended = served.await_run(run.id)
    assert (ended.status, ended.reason, ended.leftovers) == (
        RunStatus.ROLLED_BACK,
        "canary-silent",
        (),
    )
    assert served.ref() == old
    assert not results[0].unrestored
    assert dead(results[0]) == {}
    # From the flip to the flip back: 50 ms of overlap, the probes, one command.
    assert 0 < results[0].longest_gap_ms < 2000


def test_a_lease_granted_by_a_replacement_that_fails_is_not_forgotten(
    served: Zone, places: Places
) -> None:
    old, new = served.ref(), successor(served)
    guest = client(served, STRANGER_MAC)
    known = client(served)
    with_address(served, known)

    def meanwhile() -> None:
        with_address(served, guest)
        forward_nothing(served, new)

    with places.stopped("agent.verify.before", meanwhile):
        run = served.client.restart_network(served.network)
    ended = served.await_run(run.id)
    assert (ended.status, ended.reason) == (RunStatus.ROLLED_BACK, "canary-silent")
    assert served.ref() == old
    assert {STRANGER_MAC, GUEST_MAC} <= set(leases(served))
    address = guest.address
    assert [guest.renew(), guest.reboot()] == [ACK] * 2
    assert guest.address == address


def test_more_loss_than_wanted_is_taken_back(served: Zone, places: Places) -> None:
    old, new = served.ref(), successor(served)

    def meanwhile() -> None:
        inside(served, new, f"{BREAK}; sleep 0.05; nft delete table inet broken; sleep 0.1")

    with probing(served.all_streams()) as results:
        with places.stopped("agent.verify.before", meanwhile):
            run = served.client.restart_network(served.network, RestartOptions(max_lost=0))
        ended = served.await_run(run.id)
    assert (ended.status, ended.reason) == (RunStatus.ROLLED_BACK, "too-many-lost")
    assert "probes lost, limit 0" in ended.detail
    assert served.ref() == old
    assert not results[0].unrestored
    assert dead(results[0]) == {}


def command(made: Zone, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VRHA, "--socket", str(made.lab.socket), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_plan_names_every_step_with_its_undo(served: Zone) -> None:
    before = served.router()
    plan = command(served, "network", "restart", served.network, "--cleanup", "--dry-run")
    assert plan.returncode == 0
    for words in (
        "build r1#",
        "carry connections and neighbours",
        f"turn the traffic from {served.ref()} to {successor(served)}",
        f"turn the traffic from {successor(served)} to {served.ref()}",
        "verify that packets pass",
        "no way back",
        f"destroy {served.ref()}",
    ):
        assert words in plan.stdout
    assert served.router() == before


def test_serial_where_rolling_restarts_are_switched_off(served: Zone) -> None:
    config = served.lab.folder / "config" / "orchestrator.toml"
    text = config.read_text()
    orchestrator = served.lab.orchestrator()

    def again(settings: str) -> None:
        orchestrator.kill()
        served.lab.socket.unlink(missing_ok=True)
        config.write_text(settings)
        orchestrator.start()
        orchestrator.wait_for(served.lab.socket)
        wait_for(lambda: served.client.health().nodes_heard == 3, 20, "all agents")

    again(f"{text}\n[network]\nrolling_restart = false\n")
    try:
        run = restarted(served)
    finally:
        again(text)
    assert (run.status, run.strategy) == (RunStatus.DONE, Strategy.SERIAL)
    assert restarted(served).strategy is Strategy.HANDOVER


OLD_RELEASE = "1c7ef7c"


@pytest.fixture(scope="module")
def release_0_1_0() -> Iterator[Path]:
    """The source of version 0.1.0."""
    root = Path(__file__).resolve().parents[2]
    packed = subprocess.run(
        ["git", "-C", str(root), "archive", OLD_RELEASE], capture_output=True, timeout=60
    )
    if packed.returncode != 0:
        pytest.skip("the history of this checkout has no version 0.1.0")
    with tempfile.TemporaryDirectory(prefix="vrha-0.1.0-") as folder:
        Path(folder).chmod(0o755)
        subprocess.run(["tar", "-xC", folder], input=packed.stdout, check=True, timeout=60)
        yield Path(folder)


@pytest.mark.long
def test_an_agent_of_version_0_1_0_and_its_upgrade(served: Zone, release_0_1_0: Path) -> None:
    node = served.router().node
    agent = served.lab.agent(node)
    program = agent._load()[0]
    config = Path(program.argv[-1])
    text = config.read_text()
    old = replace(program, env={**program.env, "PYTHONPATH": str(release_0_1_0)})

    def again(which: Program, settings: str) -> None:
        agent.kill()
        config.write_text(settings)
        before = agents_started(served)
        agent.start(which)
        wait_for(lambda: agents_started(served) > before, 20, "the other agent")

    bare = "\n".join(line for line in text.splitlines() if not line.startswith("sync_listen"))
    again(old, bare)
    try:
        with pytest.raises(RefusedError, match=r"version 0\.1\.0"):
            served.restart(Strategy.HANDOVER)
        with probing(served.all_streams()[:4]) as results:
            run = restarted(served)
        assert (run.status, run.strategy) == (RunStatus.DONE, Strategy.PARALLEL)
        assert not results[0].unrestored
    finally:
        again(program, text)
    with probing(served.all_streams()) as results:
        run = restarted(served, max_lost=0)
    assert (run.status, run.strategy) == (RunStatus.DONE, Strategy.HANDOVER)
    assert_nothing_lost(results[0])
