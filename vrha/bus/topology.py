"""Exchanges and queues of vrha, and which message goes where.

Commands go through `vrha.down` (direct) to the quorum queue of their node; what nodes say goes
through `vrha.up` (topic) to the orchestrator's queue. What no handler accepts ends in
`vrha.dead`. The orchestrator declares everything; an agent only reads its own queue, so its
broker user needs no right to configure.
"""

from __future__ import annotations

from kombu import Exchange, Queue

MAX_DOWN = 16 * 1024 * 1024
"""Largest command in bytes: a build with 20,000 rules per list fits."""
MAX_UP = 256 * 1024
"""Largest message of a node in bytes."""
DELIVERY_LIMIT = 5
"""How often a message whose handler failed is delivered again before it is dead."""

DOWN = Exchange("vrha.down", type="direct", durable=True)
UP = Exchange("vrha.up", type="topic", durable=True)
DEAD = Exchange("vrha.dead", type="fanout", durable=True)


def down_key(node: str) -> str:
    """Routing key of a command to `node` on `vrha.down`."""
    return node


def up_key(node: str, kind: str) -> str:
    """Routing key on `vrha.up` of what `node` says; brokers can restrict a user to its node."""
    return f"node.{node}.{kind}"


def node_queue(node: str) -> Queue:
    """Commands to one node; full at 10,000 messages, then publishers are refused (nack)."""
    return _quorum(f"vrha.node.{node}", DOWN, down_key(node), 10_000)


def orchestrator_queue() -> Queue:
    """What nodes say to the orchestrator."""
    return _quorum("vrha.orchestrator", UP, "node.#", 100_000)


def dead_queue() -> Queue:
    """The last messages that no handler accepted; the oldest are dropped."""
    return Queue(
        "vrha.dead",
        DEAD,
        durable=True,
        queue_arguments={
            "x-queue-type": "quorum",
            "x-max-length": 1_000,
            "x-max-length-bytes": 64 * 1024 * 1024,
            "x-overflow": "drop-head",
        },
    )


def _quorum(name: str, exchange: Exchange, key: str, max_length: int) -> Queue:
    return Queue(
        name,
        exchange,
        routing_key=key,
        durable=True,
        queue_arguments={
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": DEAD.name,
            "x-max-length": max_length,
            "x-overflow": "reject-publish",
        },
    )
