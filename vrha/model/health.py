"""What is remembered of a node that fell silent, beyond the life of one leader."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """How a node behaved lately; all times are Unix seconds, 0: never.

    `penalty` is as it was at `penalised_at`, and fades. Until `suppressed_until` the node flaps;
    until `fail_back_until` it has been back for too short a time. `away`: the silence of this
    moment is one of a node that was failed over, so that its return begins that time.
    """

    node: str
    penalty: float = 0.0
    penalised_at: float = 0.0
    suppressed_until: float = 0.0
    failed_over_at: float = 0.0
    fail_back_until: float = 0.0
    away: bool = False
