"""What nodes, voters and the leader say to each other about who may own addresses.

All of it goes in signed datagrams that may be lost, doubled, late or out of order: each message
says all that its receiver needs. No instant crosses a machine, only ages.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import IntFlag

from vrha.model.spec import InstanceRef

MAX_ROUTERS = 2000
"""Of one node, so that a grant fits a datagram of 64 KiB."""
MAX_VOTERS = 5
VOTER_COUNTS = (1, 3, 5)
"""An even number stands no more losses than one less; it occurs only while voters change."""

Held = tuple[tuple[str, int], ...]
"""Routers with their epochs, by name."""


def instance_key(ref: InstanceRef) -> str:
    """How a right names one instance of a router."""
    return f"{ref.router}/{ref.generation}"


class Health(IntFlag):
    """What ails a node whose watcher lives; 0: nothing that it knows of."""

    AGENT_DEAD = 1
    AGENT_HUNG = 2
    """Its process is there and has not shown for some seconds that it gets on."""
    AGENT_UNKNOWN = 4
    """None has shown itself to this watcher."""
    STAND_IN = 8
    """A stand-in takes the commands of the agent that is missing."""
    UNANSWERED = 16
    """No majority of its voters has acknowledged its last renewals: its lease runs out."""


WELL = Health(0)
AGENT_FAILS = Health.AGENT_DEAD | Health.AGENT_HUNG


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """What the leader last heard of a node: `health` is as it is since `since_ms` (ms ago).

    `failures` counts how often its agent died or got stuck since this leader leads.
    """

    node: str
    heard_ms_ago: float
    health: Health
    since_ms: float
    failures: int = 0
    heard_by: tuple[str, ...] = ()
    """Voters that hear a node which this leader does not."""
    unanswered: bool = False
    """This leader hears it say that no majority of the voters answers it."""


@dataclass(frozen=True, slots=True)
class Electorate:
    """Those who vote on leases. `version` grows by one when one voter comes or goes."""

    version: int
    voters: tuple[str, ...]

    @property
    def majority(self) -> int:
        return len(self.voters) // 2 + 1

    @property
    def tag(self) -> int:
        """Version and voters in a number: settings of two machines may differ in the voters."""
        return self.version << 32 | zlib.crc32(" ".join(self.voters).encode())


@dataclass(frozen=True, slots=True)
class Renew:
    """A node asks all voters, and tells the leaders, that its `incarnation` goes on.

    `seq` grows by one with each; `electorate` is the tag of the one by which the node counts votes;
    `health` are the bits of Health.
    """

    node: str
    incarnation: int
    seq: int
    electorate: int
    health: int = 0


@dataclass(frozen=True, slots=True)
class Ack:
    """A voter has seen the renewal and has not been asked to stop."""

    voter: str
    node: str
    incarnation: int
    seq: int


@dataclass(frozen=True, slots=True)
class Over:
    """To a node whose `incarnation` is not served any more: it must begin one above `newest`."""

    sender: str
    node: str
    incarnation: int
    newest: int


@dataclass(frozen=True, slots=True)
class Depose:
    """The leader asks a voter to acknowledge no incarnation of `node` up to this one any more.

    `attempt` tells answers to this question from those to an earlier one.
    """

    leader: str
    leader_epoch: int
    attempt: int
    node: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Deposed:
    """A voter's answer: `age_ms` ago it last acknowledged a renewal of the node.

    A voter that never did says for how long it has been running. `newest` is the newest incarnation
    that it has heard of, 0 for none.
    """

    voter: str
    leader_epoch: int
    attempt: int
    node: str
    incarnation: int
    age_ms: float
    newest: int


@dataclass(frozen=True, slots=True)
class Grant:
    """The leader names all routers that an incarnation may have active; every other is muted.

    `number` grows with each grant of one `leader_epoch`. `seq` is the newest renewal of the
    incarnation that the leader has heard. `revoked` are routers that left the node, with the epochs
    that fence the ones which it had. `electorate` is what the node has to count votes by from now
    on.
    """

    leader: str
    leader_epoch: int
    number: int
    node: str
    incarnation: int
    seq: int
    electorate: Electorate
    routers: Held
    revoked: Held = ()


@dataclass(frozen=True, slots=True)
class Holding:
    """The node's answer to a grant, after the kernel has carried it out: what it has from now on.

    `epochs` are the highest that it knows of the routers that the grant named or revoked.
    """

    node: str
    incarnation: int
    leader_epoch: int
    number: int
    routers: Held
    epochs: Held


@dataclass(frozen=True, slots=True)
class Refusal:
    """The node's answer to a grant that it did not take: what it knows, and why.

    `reason` is `stale-leader`, `stale-grant`, `late-grant` or `other-incarnation`.
    """

    node: str
    incarnation: int
    leader_epoch: int
    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Silenced:
    """A voter's answer to a leader that another one has followed."""

    voter: str
    leader_epoch: int


@dataclass(frozen=True, slots=True)
class StandIn:
    """The leader asks the watcher of a node without an agent to let a stand-in run.

    It counts for `seconds`, and for this incarnation.
    """

    leader: str
    leader_epoch: int
    node: str
    incarnation: int
    seconds: float


Message = Renew | Ack | Over | Depose | Deposed | Grant | Holding | Refusal | Silenced | StandIn
