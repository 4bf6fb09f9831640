"""Watchers of a lab: who votes, and the settings of every side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vrha.fencing import keys
from vrha.fencing.endpoint import PORT
from vrha.lab import wiring

ORCHESTRATOR = "orchestrator"
_MOST_VOTERS = 3


def socket_of(folder: Path, node: str) -> Path:
    """Where the watcher of a node tells its status; `folder` as of Watching."""
    return folder / node / "watcher.sock"


class Watching:
    """Settings by which the nodes and the orchestrator of a lab own addresses."""

    def __init__(
        self,
        folder: Path,
        nodes: Sequence[str],
        profile: str = "default",
        cleanup: Mapping[str, Any] | None = None,
    ) -> None:
        """Makes the keys below `folder`. `cleanup`: settings of all watchers."""
        self._folder = folder
        self._nodes = tuple(nodes)
        self._profile = profile
        self._cleanup = dict(cleanup or {})
        # Two could not lose one: the orchestrator makes them three.
        candidates = (*nodes, ORCHESTRATOR)
        self.voters = candidates[:_MOST_VOTERS] if len(nodes) > 1 else candidates[:1]
        for _ in keys.make(folder, keys.pairs(nodes, self.voters, [ORCHESTRATOR])):
            pass
        self._addresses = {
            node: f"{wiring.node_address(index).ip}:{PORT}" for index, node in enumerate(nodes)
        }
        self._addresses[ORCHESTRATOR] = f"{wiring.MGMT_ADDRESS.ip}:{PORT}"

    def of_node(
        self, node: str, state_dir: Path, stand_in: Sequence[str], sweep: Sequence[str]
    ) -> dict[str, Any]:
        """The watcher's settings; `stand_in` is the command of a stand-in for the agent, `sweep`
        that of a sweep of what it left."""
        others = {*self.voters, ORCHESTRATOR} - {node}
        socket = str(socket_of(self._folder, node))
        return {
            "node": node,
            "listen": self._addresses[node],
            "voters": list(self.voters),
            "leaders": [ORCHESTRATOR],
            "keys": str(self._folder / node),
            "state_dir": str(state_dir),
            "socket": socket,
            "profile": self._profile,
            "agent": {"stand_in": list(stand_in)},
            "cleanup": {"command": [*sweep, "--watcher", socket], **self._cleanup},
            "peers": {
                name: self._addresses[name]
                for name in sorted(others | (set(self._nodes) if node in self.voters else set()))
                if name != node
            },
        }

    def of_orchestrator(self) -> dict[str, Any]:
        """The table `ownership` of the orchestrator's settings, without its peers."""
        return {
            "listen": self._addresses[ORCHESTRATOR],
            "voters": list(self.voters),
            "keys": str(self._folder / ORCHESTRATOR),
            "profile": self._profile,
            "peers": {node: self._addresses[node] for node in self._nodes},
        }
