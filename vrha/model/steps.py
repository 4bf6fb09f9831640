"""Steps: idempotent actions of a run, as values. What undoes a step stands in `vrha.core.steps`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vrha.model.spec import InstanceRef, InstanceSpec


@dataclass(frozen=True, slots=True)
class Build:
    """Build an instance beside whatever is there: complete, tested, muted. Then it checks in."""

    node: str
    spec: InstanceSpec
    leases_from: InstanceRef | None = None
    """An instance whose DHCP leases are carried over, when it lives on the same node."""
    leases: str = ""
    """Otherwise the leases that it begins with. Known only when the build is sent: what is
    journaled, shown or undone is without them."""
    ready: bool = False
    """It speaks the moment its node is granted it, and needs no further command; where no watcher
    governs the node it stays muted."""
    kind: Literal["build"] = "build"


@dataclass(frozen=True, slots=True)
class AwaitCheckIn:
    """Wait until the instance has proved itself. Carried out by the orchestrator."""

    instance: InstanceRef
    kind: Literal["await-check-in"] = "await-check-in"


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Make the instance the only one of its router with a right to speak.

    Carried out by the orchestrator, as soon as nobody else can have one any more. `spec` is what
    the instance was built from, where that is not a step of the same run.
    """

    node: str
    instance: InstanceRef
    spec: InstanceSpec | None = None
    kind: Literal["take-over"] = "take-over"


@dataclass(frozen=True, slots=True)
class Confirm:
    """Prove that the instance, built ready and granted, speaks and has announced itself."""

    node: str
    instance: InstanceRef
    kind: Literal["confirm"] = "confirm"


@dataclass(frozen=True, slots=True)
class Swap:
    """Mute `old` and unmute `new` in one kernel transaction."""

    node: str
    old: InstanceRef
    new: InstanceRef
    kind: Literal["swap"] = "swap"


@dataclass(frozen=True, slots=True)
class Peer:
    """The agent at the other end of a move: where it listens and how it is recognised.

    `certificate` is PEM, the only one that is accepted; `token` is good for one stream.
    """

    node: str
    address: str
    certificate: str = field(repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Offer:
    """Be ready to hand `old` over to `new`, which is on the node of `peer`."""

    node: str
    old: InstanceRef
    new: InstanceRef
    peer: Peer
    standby: bool = False
    """Only tell `new` what `old` learns, for as long as both exist; nothing is handed over."""
    kind: Literal["offer"] = "offer"


@dataclass(frozen=True, slots=True)
class Sync:
    """Bring neighbours and connections of `old` into `new`, and keep following them.

    `peer` has offered `old`; None: it is on this node, and both have the same MACs.
    """

    node: str
    old: InstanceRef
    new: InstanceRef
    peer: Peer | None = None
    standby: bool = False
    """`new` is a standby of `old`: it stays muted, and tells nothing."""
    kind: Literal["sync"] = "sync"


@dataclass(frozen=True, slots=True)
class Flip:
    """The traffic moves from `old` to `new`; `old` forwards on as a relay, and is silent.

    `hold`: packets wait for about a millisecond while the last connections are carried over.
    With `from_peer`, `old` is on that node, at the other end of the sync.
    """

    node: str
    old: InstanceRef
    new: InstanceRef
    hold: bool = False
    from_peer: str = ""
    kind: Literal["flip"] = "flip"


@dataclass(frozen=True, slots=True)
class Verify:
    """Prove that packets pass through `new` and that the neighbours have found it.

    `max_lost`: fail when more probes than that were lost since the sync; None: only when none
    comes through.
    """

    node: str
    old: InstanceRef
    new: InstanceRef
    max_lost: int | None = None
    kind: Literal["verify"] = "verify"


@dataclass(frozen=True, slots=True)
class Relay:
    """The instance forwards what still reaches it, silent on ARP, ND, RA and DHCP."""

    node: str
    instance: InstanceRef
    kind: Literal["relay"] = "relay"


@dataclass(frozen=True, slots=True)
class Mute:
    """The kernel drops all that the instance's ports send or would receive."""

    node: str
    instance: InstanceRef
    kind: Literal["mute"] = "mute"


@dataclass(frozen=True, slots=True)
class Unmute:
    """The kernel lets the instance's ports speak."""

    node: str
    instance: InstanceRef
    kind: Literal["unmute"] = "unmute"


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the neighbours by gratuitous ARP and unsolicited NA, repeatedly."""

    node: str
    instance: InstanceRef
    kind: Literal["announce"] = "announce"


@dataclass(frozen=True, slots=True)
class Configure:
    """Bring a live instance to `spec` in place: addresses, routes, rules, DHCP and DNS."""

    node: str
    spec: InstanceSpec
    previous: InstanceSpec
    kind: Literal["configure"] = "configure"


@dataclass(frozen=True, slots=True)
class Destroy:
    """Remove the instance and everything that belongs to it.

    `spec` lets an undo rebuild it; None where the step is never undone.
    """

    node: str
    instance: InstanceRef
    spec: InstanceSpec | None = None
    kind: Literal["destroy"] = "destroy"


Step = (
    Build
    | AwaitCheckIn
    | TakeOver
    | Confirm
    | Swap
    | Offer
    | Sync
    | Flip
    | Verify
    | Relay
    | Mute
    | Unmute
    | Announce
    | Configure
    | Destroy
)
