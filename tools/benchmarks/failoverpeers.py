"""A keepalived pair under the faults of the bench of failover."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.benchmarks import instants
from tools.benchmarks.keepalived import KeepalivedPair
from tools.benchmarks.nodefaults import NodeFaults
from tools.benchmarks.peerconf import Member, v4_ports
from tools.benchmarks.underfault import Scene, under_fault
from tools.benchmarks.zone import Progress
from vrha.bus.processes import ProcessId
from vrha.config.desired import load
from vrha.errors import StepError
from vrha.lab.scenario import Scenario
from vrha.lab.zone import Lab
from vrha.probe.process import serving

RESTART_S = 0.1
"""After how long init starts again what has ended (RestartSec= of systemd.service(5))."""
LOOP_S = 5.0
"""How long the crash loop goes on."""
LIFE_S = 0.3


@dataclass(frozen=True, slots=True)
class Peer:
    """Interval of its adverts in s, and whether conntrackd runs beside."""

    advert_s: float
    conntrackd: bool = False


PEERS = {
    "keepalived-1s": Peer(1.0),
    "keepalived-100ms": Peer(0.1),
    "keepalived-100ms+conntrackd": Peer(0.1, True),
}


def take(peer: Peer, cause: str, plan: Scenario, name: str, progress: Progress) -> dict[str, Any]:
    """One run with a fresh pair in a lab of its own. Raises VrhaError."""
    with Lab.up(plan, name, progress=progress, ephemeral=True) as lab:
        desired = load(lab.zone_file)
        pair = KeepalivedPair(lab, desired, peer.conntrackd, progress, peer.advert_s)
        with serving(7, [lab.netns_path(machine) for machine in lab.machines]), pair:
            return _measured(pair, cause, plan)


def _measured(pair: KeepalivedPair, cause: str, plan: Scenario) -> dict[str, Any]:
    roles = pair.roles()
    if roles is None:
        raise StepError("keepalived-late", "the pair is not ready")
    master, backup = roles
    with NodeFaults(pair.lab, plan, master.node) as faults:
        struck = _Struck(pair, faults, master, backup)
        scene = Scene.of(pair.lab, pair.desired)
        row, fault, seen = under_fault(scene, lambda: struck.strike(cause), struck.back)
    guest = str(backup.own[v4_ports(pair.spec)[0].name].ip)
    if guest in row["adverts"]:
        seen["advert"] = fault + row["adverts"][guest] / 1000
    row["phases_ms"] = instants.split(fault, seen, instants.VRRP) if row["worst_ms"] else {}
    row["from"], row["to"] = master.node, backup.node
    return row


class _Struck:
    """What happens to the node of the master."""

    def __init__(
        self, pair: KeepalivedPair, faults: NodeFaults, master: Member, backup: Member
    ) -> None:
        self.pair, self.faults, self.master, self.backup = pair, faults, master, backup
        self._then: Callable[[], None] = lambda: None

    def strike(self, cause: str) -> float:
        uplink = self.pair.spec.uplink
        match cause:
            case "control":
                return time.time()
            case "node-loss":
                return self.faults.lose_power()
            case "sigstop-node":
                return self.faults.freeze()
            case "cut-off":
                return self.faults.drop_adverts(["ip", "netns", "exec", self.master.name])
            case "uplink":
                assert uplink is not None
                return self.faults.lose_uplink(uplink.bridge)
            case "agent-kill":
                self._then = self._again
                return self._kill()
            case "agent-crash-loop":
                self._then = self._loop
                return self._kill()
        raise NotImplementedError(cause)

    def back(self) -> bool:
        """After what belongs to the cause; that traffic flows is seen otherwise."""
        self._then()
        return True

    def _kill(self) -> float:
        """SIGKILL to all of its keepalived: the parent alone would let the child say good-bye."""
        doomed = [p for p in self.faults.processes() if _name(p).startswith("keepalived")]
        began = time.time()
        for process in doomed:
            process.kill()
        return began

    def _again(self) -> None:
        time.sleep(RESTART_S)
        self.pair.restart(self.master)

    def _loop(self) -> None:
        until = time.time() + LOOP_S
        while time.time() < until:
            self._again()
            time.sleep(LIFE_S)
            self._kill()
        self._again()


def _name(process: ProcessId) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/comm").read_text().strip()
    return ""
