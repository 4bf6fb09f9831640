"""Leases that are sent to an instance, and sent again only when they are others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from vrha import codec
from vrha.model.messages import PutLeases
from vrha.model.spec import InstanceRef
from vrha.store import Tx

VALID_S = 30.0


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was sent last, when, and to which instance on which node."""

    at: float
    to: tuple[str, InstanceRef]
    digest: bytes

    def is_as(self, other: Pushed | None) -> bool:
        """Whether the same was sent to the same."""
        return other is not None and (self.to, self.digest) == (other.to, other.digest)


def push(
    tx: Tx, to: tuple[str, InstanceRef], body: str, now: float, last: Pushed | None, beside: bool
) -> Pushed | None:
    """Send `body` unless it was the `last` (None: send in any case); None when it was."""
    pushed = Pushed(now, to, hashlib.sha256(body.encode()).digest())
    if pushed.is_as(last):
        return None
    node, instance = to
    message = PutLeases(node, instance, body, VALID_S, beside=beside)
    tx.outbox.enqueue(node, codec.encode(message), now + VALID_S)
    return pushed
