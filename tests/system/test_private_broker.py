"""One machine without a configured broker: the orchestrator runs a RabbitMQ node of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.zonekit import VRHA, Zone, serving, wait_for
from vrha.cli.client import Client
from vrha.config.desired import load
from vrha.errors import UnreachableError, VrhaError
from vrha.lab.daemons import Daemon, Program, environment, toml
from vrha.lab.zone import Lab
from vrha.model.runs import RunStatus
from vrha.model.spec import Desired

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.unhurried]

NODE = "n1"
OUTSIDE = ("203.0.113.1",)


class Machine:
    """Node n1 with an orchestrator and an agent that know nothing but each other's files."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.state = lab.folder / "state" / "orchestrator"
        self.url_file = self.state / "broker.url"
        self.orchestrator = self._daemon(
            "orchestrator", {"state_dir": str(self.state), "api": {"socket": str(lab.socket)}}
        )
        agent_state = lab.folder / "state" / f"agent-{NODE}"
        self.agent = self._daemon(
            f"agent-{NODE}",
            {
                "node": NODE,
                "state_dir": str(agent_state),
                "bus": {"url_file": str(self.url_file)},
            },
        )
        self.client = Client(str(lab.socket))

    def _daemon(self, name: str, settings: dict[str, object]) -> tuple[Daemon, Program]:
        Path(str(settings["state_dir"])).mkdir(parents=True)
        config = self.lab.folder / f"{name}.toml"
        config.write_text(toml(settings))
        word = name.split("-")[0]
        argv = (*VRHA, word, "run", "--config", str(config))
        return Daemon(self.lab.folder, name), Program(argv, NODE, environment())

    def start(self, daemon: tuple[Daemon, Program]) -> None:
        daemon[0].start(daemon[1])

    def processes(self) -> list[str]:
        """Those of Erlang."""
        names = self.lab.run(NODE, ["ps", "-eo", "comm"]).split()
        return sorted(name for name in names if name in ("epmd", "beam.smp", "erl_child_setup"))

    def answers(self) -> bool:
        try:
            return self.client.health().broker
        except VrhaError:
            return False


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Lab.up("seed-10x10", f"test-alone-{os.getpid()}", ephemeral=True) as lab:
        yield Machine(lab)


def test_one_machine_with_nothing_configured(machine: Machine) -> None:
    lab = machine.lab
    # The agent may come first, as at boot: it waits for the broker's address.
    machine.start(machine.agent)
    machine.start(machine.orchestrator)
    wait_for(machine.answers, 60, "orchestrator and its broker")
    assert machine.url_file.stat().st_mode & 0o077 == 0
    url = machine.url_file.read_text()
    wanted = load(lab.zone_file)
    desired = Desired(wanted.networks, wanted.routers, wanted.nodes[:1])
    machine.client.apply(desired)
    wait_for(lambda: serving(machine.client), 30, "a serving router")
    zone = Zone(lab, machine.client, desired)
    assert zone.unreached({"vm1": OUTSIDE}) == []
    assert zone.restart().status is RunStatus.DONE

    beams = machine.processes()
    machine.orchestrator[0].kill(signal.SIGKILL)
    assert zone.unreached({"vm1": OUTSIDE}) == []
    machine.start(machine.orchestrator)
    wait_for(machine.answers, 60, "orchestrator and its broker")
    assert machine.processes() == beams
    assert machine.url_file.read_text() == url
    assert zone.restart().status is RunStatus.DONE
    assert zone.unreached({"vm1": OUTSIDE}) == []

    machine.orchestrator[0].kill(signal.SIGTERM)
    assert machine.processes() == []
    assert not machine.url_file.exists()
    with pytest.raises(UnreachableError):
        machine.client.health()
    assert zone.unreached({"vm1": OUTSIDE}) == []
    machine.start(machine.orchestrator)
    wait_for(machine.answers, 60, "orchestrator and its broker")
    assert zone.restart().status is RunStatus.DONE


def test_a_second_orchestrator_on_the_same_folder_is_refused(machine: Machine) -> None:
    machine.start(machine.orchestrator)
    wait_for(machine.answers, 60, "orchestrator and its broker")
    beams = machine.processes()
    program = machine.orchestrator[1]
    argv = ["env", f"PYTHONPATH={program.env['PYTHONPATH']}", *program.argv]
    with pytest.raises(VrhaError, match=r"\[already-running\]"):
        machine.lab.run(NODE, argv, timeout=30)
    assert machine.answers()
    assert machine.processes() == beams
    assert machine.url_file.exists()
