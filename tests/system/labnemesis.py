"""The faults of the simulator, done to a real lab."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable

from tests.sim.nemesis import Cut, Fault, Kill, Loss, Pause, Unplug
from tests.system.zonekit import Zone
from vrha.bus.processes import ProcessId
from vrha.errors import VrhaError
from vrha.fencing.endpoint import PORT
from vrha.lab import wiring
from vrha.lab.daemons import Daemon
from vrha.lab.faults import cables, lose, mend, plug, unplug
from vrha.lab.zone import Lab

_TABLE = "vrha-test-cut"


def is_calm(zone: Zone) -> bool:
    """Whether everything is there, every node is live, and the first router permitted."""
    nodes = zone.lab.nodes
    try:
        health = zone.client.health()
        live = all(zone.lab.watcher_status(node)["live_ms"] for node in nodes)
        permitted = bool(zone.lab.watcher_status(zone.router().node)["ports"])
    except VrhaError:
        return False
    return health.broker and health.nodes_heard == len(nodes) and live and permitted


class LabNemesis:
    """`strike` returns at once. Names are those of nodes (their watchers), `agent-NODE`,
    `orchestrator` and `broker`. Leave the context to end what still lasts."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._pending: dict[threading.Timer, Callable[[], object]] = {}
        self._names: dict[threading.Timer, str] = {}
        self.errors: list[Exception] = []
        """Of what could not be ended."""

    def __enter__(self) -> LabNemesis:
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()

    def strike(self, fault: Fault) -> None:
        match fault:
            case Pause(name="broker"):
                broker = ProcessId.of(self._lab.broker().pid)
                assert broker is not None
                broker.kill(signal.SIGSTOP)
                self._later(fault.ms, lambda: broker.kill(signal.SIGCONT))
            case Pause():
                daemon = self._daemon(fault.name)
                daemon.kill(signal.SIGSTOP)
                self._later(fault.ms, lambda: daemon.kill(signal.SIGCONT))
            case Kill(name="broker"):
                broker = self._lab.broker()
                broker.kill()
                self._later(fault.ms, broker.start)
            case Kill():
                daemon = self._daemon(fault.name)
                daemon.kill()
                self._later(fault.ms, lambda: self._start(daemon), fault.name)
            case Loss():
                self._lose(fault)
            case Unplug():
                self._unplug(fault.name, fault.segment, fault.ms)
            case Cut():
                self._cut(fault)
            case _:
                raise NotImplementedError(fault)

    @property
    def pending(self) -> bool:
        """Whether something that was done still lasts."""
        return bool(self._pending)

    def lasts(self, name: str) -> bool:
        """Whether what was done to that one still lasts."""
        return any(self._names.get(timer) == name for timer in self._pending)

    def heal(self) -> None:
        for timer, action in list(self._pending.items()):
            timer.cancel()
            timer.join()
            # It may have come first.
            if self._pending.pop(timer, None) is not None:
                action()

    def abandon(self) -> None:
        """End nothing: the lab goes as a whole."""
        for timer in list(self._pending):
            timer.cancel()
        self._pending.clear()

    def _later(self, ms: float, action: Callable[[], object], name: str = "") -> None:
        def due() -> None:
            if self._pending.pop(timer, None) is not None:
                try:
                    action()
                except Exception as error:
                    self.errors.append(error)

        timer = threading.Timer(ms / 1000, due)
        self._pending[timer] = action
        self._names[timer] = name
        timer.start()

    @staticmethod
    def _start(daemon: Daemon) -> None:
        daemon.start()

    def _daemon(self, name: str) -> Daemon:
        if name == "orchestrator":
            return self._lab.orchestrator()
        if name.startswith("agent-"):
            return self._lab.agent(name.removeprefix("agent-"))
        return self._lab.watcher(name)

    def _lose(self, fault: Loss) -> None:
        lose(self._lab, fault.name)
        self._later(fault.ms, lambda: mend(self._lab, fault.name), fault.name)

    def _unplug(self, name: str, switch: str, ms: float) -> None:
        """The node's cable into that switch."""
        ends = {e: s for e, s in cables(self._lab, name).items() if s == switch}
        unplug(self._lab, ends)
        self._later(ms, lambda: plug(self._lab, ends), name)

    def _cut(self, fault: Cut) -> None:
        """Datagrams of ownership from these nodes to those; no `those`: to everybody."""
        ways = (("output", "daddr"), ("input", "saddr"))
        addresses = [wiring.node_address(self._lab.nodes.index(each)).ip for each in fault.those]
        others = ", ".join(str(each) for each in addresses)
        for node in fault.these:
            rules = [f"add table inet {_TABLE}"]
            for hook, end in ways if fault.both else ways[:1]:
                these = f"ip {end} {{ {others} }}" if others else ""
                rules += [
                    f"add chain inet {_TABLE} {hook} {{ type filter hook {hook} priority 0; }}",
                    f"add rule inet {_TABLE} {hook} {these} udp dport {PORT} drop",
                ]
            self._nft(node, "\n".join(rules))
            self._later(fault.ms, lambda node=node: self._nft(node, f"delete table inet {_TABLE}"))

    def _nft(self, node: str, rules: str) -> None:
        child = self._lab.exec(node, ["nft", "-f", "-"], stdin=subprocess.PIPE, text=True)
        child.communicate(rules + "\n", timeout=10)
        assert child.returncode == 0
