"""The keepalived pair as a row of the restart bench: its planned switchover under probes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from tools.benchmarks.keepalived import KeepalivedPair, missing, serving_pair
from tools.benchmarks.probing import under_probes
from tools.benchmarks.rows import Row
from tools.benchmarks.streams import streams_of
from tools.benchmarks.zone import Progress
from vrha.errors import VrhaError
from vrha.linux import tools

PEERS = {"keepalived": False, "keepalived+conntrackd": True}
"""Name of the row, and whether conntrackd runs beside."""


def row_of(stack: ExitStack, name: str, scenario: str, lab: str, progress: Progress) -> Row:
    """The row, whose pair serves in a lab of its own until `stack` ends."""
    with_conntrackd = PEERS[name]
    reason = missing(with_conntrackd)
    if reason:
        return Row(name, missing=reason)
    try:
        pair = stack.enter_context(serving_pair(scenario, lab, with_conntrackd, progress))
    except VrhaError as error:
        return Row(name, missing=str(error))
    return Row(name, MeasuredPair(pair).switchover)


class MeasuredPair:
    """A pair that serves."""

    def __init__(self, pair: KeepalivedPair) -> None:
        self.pair = pair
        self.streams = streams_of(pair.lab, pair.desired)
        self._public = str(pair.desired.routers[0].static_nat[0].public)

    def switchover(self) -> dict[str, Any]:
        """One measured switchover; as before each run of the others, all connections are forgotten.

        Raises VrhaError.
        """
        if conntrack := tools.find("conntrack"):
            for member in self.pair.members:
                self.pair.run_inside(member, conntrack, "-F")
        self.pair.ready()
        row, _ = under_probes(self.pair.lab, self.streams, self._public, self.pair.switchover)
        return row
