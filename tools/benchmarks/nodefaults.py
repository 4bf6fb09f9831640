"""Faults of a whole node of a lab, as they look from outside, and the end of them.

A silent cable keeps its carrier: the switch neither takes a frame from it nor gives it one, and
the addresses that it has learned there stay. So nothing tells the other nodes of the loss but
silence. All cables of a node fall silent in one transaction of nftables, which waits for nobody:
links and ports are changed under a lock that others hold for a long time (RTNL).
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from vrha.bus.processes import ProcessId
from vrha.errors import InputError, PreconditionError, VrhaError
from vrha.lab.faults import processes
from vrha.lab.scenario import Scenario
from vrha.lab.zone import Lab
from vrha.linux import nftwire
from vrha.linux.netlink import Netlink

_SILENT = "silent"
_HOOKS = f"""\
add table bridge {nftwire.TABLE}
add set bridge {nftwire.TABLE} {_SILENT} {{ type ifname; }}
add chain bridge {nftwire.TABLE} from_cables {{ type filter hook prerouting priority -300; }}
add chain bridge {nftwire.TABLE} to_cables {{ type filter hook postrouting priority -300; }}
flush chain bridge {nftwire.TABLE} from_cables
flush chain bridge {nftwire.TABLE} to_cables
add rule bridge {nftwire.TABLE} from_cables iifname @{_SILENT} drop
add rule bridge {nftwire.TABLE} to_cables oifname @{_SILENT} drop
"""
"""In the lab's fabric, which has no router of its own."""
TABLE = "vrha-bench-cut"


def data_cables(scenario: Scenario, node: str) -> dict[str, str]:
    """The node's cables into the switches, by segment: names of their ends in the fabric."""
    index = scenario.nodes.index(node)
    return {segment: f"n{index}s{number}" for number, segment in enumerate(scenario.segments)}


def management_cable(scenario: Scenario, node: str) -> str:
    """The end in the fabric of the cable that is the node's way to broker and voters."""
    return f"n{scenario.nodes.index(node)}m"


class NodeFaults:
    """Faults of one node; those of cables and stopped processes end with the context.

    Each tells when it began (Unix time, s). Raises NotFoundError `lab-gone`, VrhaError
    `lab-command-failed` where there is no nftables for bridges.
    """

    def __init__(self, lab: Lab, scenario: Scenario, node: str) -> None:
        self.lab, self.node = lab, node
        self._data = data_cables(scenario, node)
        self._management = management_cable(scenario, node)
        self._stopped: list[ProcessId] = []
        lab.run("", ["nft", "-f", "-"], stdin=_HOOKS)
        self._nftables = lab.call("", lambda: Netlink(nftwire.NETLINK_NETFILTER))
        self._cutter: Sequence[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._nftables:
            self.end()

    def processes(self) -> list[ProcessId]:
        """As `vrha.lab.faults.processes`, of this node."""
        return processes(self.lab, self.node)

    def lose_power(self) -> float:
        """Every cable falls silent at once, then all processes are killed."""
        doomed = self.processes()
        began = self._silence([*self._data.values(), self._management])
        for process in doomed:
            process.kill()
        return began

    def cut_management(self) -> float:
        """Nothing gets from or to its watcher and agent; its routers' segments stay."""
        return self._silence([self._management])

    def lose_uplink(self, segment: str) -> float:
        """Its cable into one segment falls silent. Raises InputError `no-segment`."""
        if segment not in self._data:
            raise InputError("no-segment", f"no segment {segment!r} in this lab")
        return self._silence([self._data[segment]])

    def freeze(self) -> float:
        """SIGSTOP to all of its processes; its kernel goes on."""
        self._stopped = self.processes()
        began = time.time()
        for process in self._stopped:
            process.kill(signal.SIGSTOP)
        return began

    def drop_adverts(self, prefix: Sequence[str]) -> float:
        """Nothing of VRRP goes out or in, where `prefix` makes a program run on the node."""
        hooks = (
            f"add chain inet {TABLE} {hook} {{ type filter hook {hook} priority -500; }}\n"
            f"add rule inet {TABLE} {hook} ip protocol vrrp drop"
            for hook in ("input", "output")
        )
        self._cutter = prefix
        began = time.time()
        self._nft(prefix, "\n".join([f"add table inet {TABLE}", *hooks]))
        return began

    def end(self) -> None:
        """Cables carry again, stopped processes go on. Idempotent."""
        for process in self._stopped:
            process.kill(signal.SIGCONT)
        self._stopped = []
        if self._cutter is not None:
            with suppress(VrhaError, OSError):
                self._nft(self._cutter, f"delete table inet {TABLE}")
        self._cutter = None
        # A lab that went down has no cables any more.
        with suppress(OSError):
            self._nftables.talk(nftwire.transaction(nftwire.flush(_SILENT)))

    def _silence(self, cables: Iterable[str]) -> float:
        silent = nftwire.add(_SILENT, *nftwire.port_elements(cables))
        began = time.time()
        self._nftables.talk(nftwire.transaction(silent))
        return began

    def _nft(self, prefix: Sequence[str], rules: str) -> None:
        pipe = subprocess.PIPE
        argv = [*prefix, "nft", "-f", "-"]
        child = self.lab.exec(self.node, argv, stdin=pipe, stderr=pipe, text=True)
        _, said = child.communicate(rules + "\n", timeout=10)
        if child.returncode:
            raise PreconditionError("bench-setup", f"nft: {said.strip()}")
