"""A whole zone in namespaces on one machine: nodes, tenant machines, the outside world.

Everything lives below one process (`vrha.lab.anchor`), process 1 of a pid namespace with its own
mounts and network. When it dies, by `down`, by kill -9 or with its owner, the kernel removes the
rest; what stays is the folder /run/vrha-lab/NAME, which `down` deletes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from vrha.bus.broker import PrivateBroker
from vrha.bus.processes import ProcessId
from vrha.errors import DeadlineError, NotFoundError, VrhaError
from vrha.lab import anchor, enter, state, wiring
from vrha.lab.daemons import Daemon, Program, ask, environment, toml
from vrha.lab.life import BUILD_TIMEOUT, check_machine, remove_lab, start_anchor
from vrha.lab.scenario import Scenario, load_scenario
from vrha.lab.watching import ORCHESTRATOR, Watching, socket_of
from vrha.watcher import status

Progress = Callable[[str], None]

SYNC_PORT = 7443
"""Where agents of a lab bring routers to each other."""

_VRHA = (sys.executable, "-m", "vrha.cli.main")


def _silent(_message: str) -> None:
    """No progress wanted."""


@dataclass(frozen=True, slots=True)
class LabStatus:
    """What `vrha lab status` shows."""

    name: str
    scenario: str
    state: str
    """`up`, `starting` or `dead`"""
    folder: str
    socket: str
    machines: Mapping[str, str]
    nodes: tuple[str, ...]
    daemons: Mapping[str, bool]
    """Daemon to whether it is alive."""


class Lab:
    """A lab that is up (or was: see `status`). Make one with `Lab.up`, reach one with `Lab.find`.

    As a context manager it is taken down at the end, whatever happened.
    """

    def __init__(self, record: state.LabState) -> None:
        self._record = record
        self._children: list[subprocess.Popen[Any]] = []
        self.name = record.name
        self.folder = state.folder_of(record.name)
        self.socket = self.folder / "vrha.sock"
        """Where the orchestrator's API listens."""

    @classmethod
    def up(
        cls,
        scenario: str | Path | Scenario,
        name: str = "lab",
        progress: Progress = _silent,
        ephemeral: bool = False,
    ) -> Self:
        """Build the zone's machines, nodes and networks; starts no daemon (`start_daemons`).

        If this process dies before the end, or with `ephemeral` at any later time, the lab goes
        too. Raises PreconditionError (`not-root`, `missing-tool`, `kernel-lacks-namespaces`),
        RefusedError (`lab-exists`), InputError and NotFoundError as `load_scenario`,
        VrhaError (`lab-wiring-failed`). Nothing is left behind by any of them.
        """
        check_machine()
        plan = scenario if isinstance(scenario, Scenario) else load_scenario(scenario)
        owner = ProcessId.of(os.getpid())
        assert owner is not None
        if name in state.lab_names() and not state.alive(name):
            progress(f"removing what is left of a dead lab {name}")
            remove_lab(state.load(name))
        record = state.LabState(name, plan.name, owner, ephemeral)
        folder = state.claim(record)
        try:
            progress(f"namespaces for {len(plan.machines)} machines and {len(plan.nodes)} nodes")
            record = start_anchor(record, plan, folder)
            lab = cls(record)
            lab._wire(plan)
            document = yaml.safe_dump(dict(plan.zone), sort_keys=False)
            (folder / "zone.yaml").write_text(document)
            lab._record = state.save(replace(record, ready=True))
            if not ephemeral:
                lab.keep()
        except BaseException:
            with suppress(NotFoundError):
                remove_lab(state.load(name))
            raise
        progress("machines and nodes are up")
        return lab

    def keep(self) -> None:
        """Let an ephemeral lab outlive the process that made it. Raises UnreachableError."""
        self._record = state.save(replace(self._record, ephemeral=False))
        ask(self.folder, {"op": "keep"})

    @classmethod
    def find(cls, name: str = "lab") -> Self:
        """The lab of that name. Raises NotFoundError (`no-lab`); it may be dead: see `status`."""
        return cls(state.load(name))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    @property
    def machines(self) -> tuple[str, ...]:
        return tuple(self._record.machines)

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(self._record.nodes)

    @property
    def zone_file(self) -> Path:
        """The desired state of the scenario, for `vrha apply -f`."""
        return self.folder / "zone.yaml"

    @property
    def pid(self) -> int:
        """Process 1 of the lab as seen from here. Raises NotFoundError (`lab-gone`)."""
        if self._record.anchor is None or not self._record.anchor.alive:
            raise NotFoundError("lab-gone", f"lab {self.name} is not running")
        return self._record.anchor.pid

    def place(self, where: str = "") -> enter.Place:
        """Namespaces of a machine or node; of process 1 (the switches) when empty.

        Raises NotFoundError (`no-host`, `lab-gone`).
        """
        if where in self._record.nodes:
            return enter.Place(self._record.nodes[where].pid)
        if not where:
            return enter.Place(self.pid)
        if where not in self._record.machines:
            known = ", ".join([*self.machines, *self.nodes])
            raise NotFoundError("no-host", f"no host {where!r} in this lab", f"There are: {known}.")
        return enter.Place(self.pid, f"/proc/{self.pid}/root{anchor.NETNS}/{where}")

    def netns_path(self, where: str) -> str:
        """Path by which processes outside the lab can open a host's network namespace."""
        return self.place(where).network_path

    def exec(self, where: str, argv: Sequence[str], **popen: Any) -> subprocess.Popen[Any]:
        """Start a program on a machine or node; `popen` as for subprocess.Popen.

        The process is a direct child of the caller, who must wait() for it; it ends with the lab.
        Raises NotFoundError, OSError.
        """
        child = enter.start(self.place(where), argv, **popen)
        self._children = [c for c in self._children if c.poll() is None] + [child]
        return child

    def run(self, where: str, argv: Sequence[str], timeout: float = 10.0, stdin: str = "") -> str:
        """Run a program to its end and return its standard output.

        Raises VrhaError (`lab-command-failed`), DeadlineError (`lab-command-slow`).
        """
        pipe = subprocess.PIPE
        child = self.exec(where, argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        try:
            out, err = child.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise DeadlineError(
                "lab-command-slow", f"{argv[0]} on {where}: not done in {timeout:g} s"
            ) from error
        finally:
            if child.poll() is None:
                child.kill()
                child.communicate()
        if child.returncode:
            problem = (err or out).strip()[-500:]
            raise VrhaError(
                "lab-command-failed", f"{argv[0]} on {where or 'the fabric'}: {problem}"
            )
        return str(out)

    def call(self, where: str, function: Callable[[], enter.T]) -> enter.T:
        """Call a function whose new sockets belong to a host's network (see `enter.in_network`)."""
        return enter.in_network(self.place(where), function)

    def _wire(self, plan: Scenario) -> None:
        def batch(where: str, lines: Iterable[str]) -> None:
            self.run(where, ["ip", "-batch", "-"], timeout=BUILD_TIMEOUT, stdin="\n".join(lines))

        batch("", wiring.fabric_lines(plan))
        for index, node in enumerate(plan.nodes):
            batch(node, wiring.node_lines(plan, index))
        for machine in plan.machines:
            batch(machine.name, wiring.machine_lines(machine))

    def broker(self, progress: Progress = _silent) -> PrivateBroker:
        """The lab's RabbitMQ, started or not."""
        return PrivateBroker(
            self.folder / "broker",
            port=5672,
            listen=str(wiring.MGMT_ADDRESS.ip),
            progress=progress,
            launch=self._launch_broker,
            inside=partial(enter.in_network, self.place()),
        )

    def _launch_broker(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> ProcessId:
        request = {"op": "spawn", "argv": list(argv), "env": dict(env), "where": "", "cwd": "/"}
        process = ask(self.folder, {**request, "log": str(log)})
        if process is None:
            raise VrhaError("lab-spawn-failed", f"{argv[0]} ended at once")
        return process

    def agent(self, node: str) -> Daemon:
        """The agent of a node, for kill() and start()."""
        return Daemon(self.folder, f"agent-{node}")

    def orchestrator(self) -> Daemon:
        """The orchestrator, for kill() and start()."""
        return Daemon(self.folder, "orchestrator")

    def start_daemons(
        self,
        progress: Progress = _silent,
        run: Mapping[str, float] | None = None,
        vrha: Sequence[str] = _VRHA,
        env: Mapping[str, str] | None = None,
        watched: bool = False,
        profile: str = "default",
        failover: Mapping[str, Any] | None = None,
        cleanup: Mapping[str, Any] | None = None,
    ) -> None:
        """Start RabbitMQ, the orchestrator and an agent per node; `watched`: a watcher too.

        `profile` names the times of watchers (`vrha.core.ownership.timing`), `cleanup` is a table
        of their settings; `run` and `failover` are ones of the orchestrator's. `vrha` is the
        command; `env` is added to the environment of all but the broker, also when they start
        again.
        Returns when the orchestrator's socket is there; agents may still be connecting.
        Raises what PrivateBroker.start and Daemon.start raise.
        """
        broker = self.broker(progress)
        broker.start()
        bus = {"urls": [broker.url]}
        progress("starting orchestrator and agents")
        orchestrator = self.orchestrator()
        settings = {
            "state_dir": str(self._state_dir("orchestrator")),
            "api": {"socket": str(self.socket)},
            "bus": bus,
            "run": run or {},
            "failover": failover or {},
        }
        variables = environment(env)
        if watched:
            watching = Watching(self._watching, self.nodes, profile, cleanup or {})
            settings |= {"name": ORCHESTRATOR, "ownership": watching.of_orchestrator()}
            for node in self.nodes:
                self._start_watcher(watching, node, variables, vrha)
        config = self._config("orchestrator", settings)
        argv = (*vrha, "orchestrator", "run", "--config", str(config))
        orchestrator.start(Program(argv, "", variables))
        for index, node in enumerate(self.nodes):
            name = f"agent-{node}"
            agent: dict[str, Any] = {
                "node": node,
                "state_dir": str(self._state_dir(name)),
                "sync_listen": f"{wiring.node_address(index).ip}:{SYNC_PORT}",
                "bus": bus,
            }
            if watched:
                agent["governed"] = True
            config = self._config(name, agent)
            argv = (*vrha, "agent", "run", "--config", str(config))
            self.agent(node).start(Program(argv, node, variables))
        orchestrator.wait_for(self.socket)

    def watcher(self, node: str) -> Daemon:
        """The watcher of a node."""
        return Daemon(self.folder, f"watcher-{node}")

    def watcher_status(self, node: str) -> dict[str, Any]:
        """What the watcher of a node says. Raises as `status.ask`."""
        return status.ask(socket_of(self._watching, node))

    @property
    def _watching(self) -> Path:
        """Keys and sockets of the watchers."""
        return self.folder / "watching"

    def _start_watcher(
        self, watching: Watching, node: str, variables: Mapping[str, str], vrha: Sequence[str]
    ) -> None:
        name = f"watcher-{node}"
        of_agent = self._config_of(f"agent-{node}")
        stand_in = (*vrha, "agent", "run", "--stand-in", "--config", str(of_agent))
        of_agent_state = str(self._state_dir(f"agent-{node}"))
        sweep = (sys.executable, "-m", "vrha.watcher.cleanup", "--state-dir", of_agent_state)
        settings = watching.of_node(node, self._state_dir(name), stand_in, sweep)
        config = self._config(name, settings)
        argv = (sys.executable, "-m", "vrha.watcher.main", "--config", str(config))
        self.watcher(node).start(Program(argv, node, variables))

    def _state_dir(self, name: str) -> Path:
        path = self.folder / "state" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _config_of(self, name: str) -> Path:
        return self.folder / "config" / f"{name}.toml"

    def _config(self, name: str, settings: Mapping[str, Any]) -> Path:
        path = self._config_of(name)
        path.parent.mkdir(exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(toml(settings))
        return path

    def status(self) -> LabStatus:
        """What is there and what is alive."""
        record = self._record
        running = record.anchor is not None and record.anchor.alive
        up = "up" if running and record.ready else "starting" if record.alive else "dead"
        names = ["orchestrator", *(f"agent-{node}" for node in self.nodes)]
        daemons = {name: Daemon(self.folder, name).alive for name in names}
        alive = PrivateBroker.running(self.folder / "broker")
        return LabStatus(
            name=self.name,
            scenario=record.scenario,
            state=up,
            folder=str(self.folder),
            socket=str(self.socket),
            machines=record.machines,
            nodes=self.nodes,
            daemons={"broker": alive, **daemons},
        )

    def down(self) -> None:
        """Remove the lab and all that is left of it. Raises DeadlineError (`lab-not-gone`)."""
        with suppress(NotFoundError):
            remove_lab(state.load(self.name), self._children)
