"""Which strategy a restart or move takes: the best that everything in it is capable of."""

from __future__ import annotations

from dataclasses import dataclass

from vrha.core.instance import same_shape
from vrha.core.plan import Live
from vrha.model.runs import Strategy
from vrha.model.spec import InstanceSpec
from vrha.model.state import NodeState

HANDOVER = "handover"
"""Capability of an agent: handovers on its node."""
MOVE = "move"
"""Capability of an agent: handovers to and from other nodes."""
STANDBY = "standby"
"""Capability of an agent: instances that follow those of other nodes."""
STAND_IN = "stand-in"
"""What an agent says that only gives routers away: the one whose place it has is missing."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The strategy, and in words why it is not `handover`."""

    strategy: Strategy
    why: str = ""


def choose(
    preferred: Strategy,
    live: Live,
    spec: InstanceSpec,
    old_node: NodeState | None,
    new_node: NodeState | None,
) -> Choice:
    """`preferred`, or `parallel` where a handover cannot be: that works with every instance."""
    if preferred is not Strategy.HANDOVER:
        return Choice(preferred)
    obstacle = handover_obstacle(live, spec, old_node, new_node)
    return Choice(Strategy.PARALLEL, obstacle) if obstacle else Choice(Strategy.HANDOVER)


def handover_obstacle(
    live: Live, spec: InstanceSpec, old_node: NodeState | None, new_node: NodeState | None
) -> str:
    """Why the traffic of `live` cannot be handed over to an instance of `spec`; empty: it can."""
    if not same_shape(live.spec, spec):
        return "the ports or the rules' backend of the router have changed"
    if old_node is None or new_node is None:
        return "the agent of a node was never heard"
    wanted = HANDOVER if old_node.name == new_node.name else MOVE
    for node in (old_node, new_node):
        if wanted not in node.capabilities:
            return f"the agent of {node.name} (version {node.version}) lacks {wanted!r}"
        if wanted == MOVE and not (node.sync_address and node.certificate):
            return f"the agent of {node.name} does not say where others reach it"
    return ""
