"""What orchestrator and agents say to each other over AMQP. JSON form: docs/protocol.md."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from vrha.model.evidence import NO_EVIDENCE, Evidence
from vrha.model.spec import InstanceRef
from vrha.model.state import ObservedInstance, SelfTest, Upstream
from vrha.model.steps import Step

PROTOCOL_VERSION = 1


@dataclass(frozen=True, slots=True)
class Command:
    """Steps `first_seq`, `first_seq + 1`, .. of a run, for one node, to be taken in order.

    `undo` tells steps of a roll-back from those of the way forward; `token` is the one-time
    token for the check-in of a build among the steps. `order` grows with every command of a run:
    a node refuses a lower one than it has seen. `valid_s`: how many seconds after its receipt a
    step may be begun; None: however late.
    """

    run: str
    router: str
    epoch: int
    node: str
    attempt: int
    first_seq: int
    undo: bool
    steps: tuple[Step, ...]
    token: str = ""
    order: int = 0
    valid_s: float | None = None
    type: Literal["command"] = "command"


class Outcome(StrEnum):
    """How a step ended on its node."""

    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step ended. `timings_ms` names phases of the step and their milliseconds.

    `began` in seconds of the node's wall clock (Unix time); None when it was not begun at all.
    """

    run: str
    router: str
    epoch: int
    node: str
    attempt: int
    seq: int
    undo: bool
    outcome: Outcome
    code: str = ""
    detail: str = ""
    timings_ms: tuple[tuple[str, float], ...] = ()
    evidence: Evidence = NO_EVIDENCE
    began: float | None = None
    type: Literal["step-report"] = "step-report"


@dataclass(frozen=True, slots=True)
class CheckIn:
    """A replacement proves that it is complete and ready. `token` is used up by it."""

    run: str
    router: str
    instance: InstanceRef
    epoch: int
    node: str
    token: str
    self_test: SelfTest
    build_ms: float
    type: Literal["check-in"] = "check-in"


@dataclass(frozen=True, slots=True)
class Inventory:
    """What is on a node: at start of its agent, then periodically, and after every command."""

    node: str
    agent: str
    """Identity of this life of the agent (boot id and start counter)."""
    version: str
    capabilities: tuple[str, ...]
    instances: tuple[ObservedInstance, ...]
    highest_epochs: tuple[tuple[str, int], ...] = ()
    sync_address: str = ""
    """Where other agents reach this one to move routers (`host:port`); empty: nowhere."""
    certificate: str = ""
    """How they recognise it (PEM); made anew at every start of the agent."""
    uplinks: tuple[tuple[str, Upstream], ...] = ()
    """Bridges whose upstream gateways have answered before, and whether they do."""
    type: Literal["inventory"] = "inventory"


@dataclass(frozen=True, slots=True)
class Leases:
    """The DHCP leases of an instance, all of them: after every change, and when its agent starts.

    `epoch` is that of its spec. `number` grows with every such message of this life of the agent.
    """

    node: str
    instance: InstanceRef
    epoch: int
    agent: str
    number: int
    body: str
    """What its dnsmasq keeps in its lease file."""
    type: Literal["leases"] = "leases"


@dataclass(frozen=True, slots=True)
class PutLeases:
    """Give a muted instance the leases of the one that serves; nothing is answered.

    `beside`: the leases are those of the other DHCP server of a network, and `instance` serves.
    `valid_s`: how many seconds after its receipt it may be carried out.
    """

    node: str
    instance: InstanceRef
    body: str
    valid_s: float
    beside: bool = False
    type: Literal["put-leases"] = "put-leases"


Message = Command | StepReport | CheckIn | Inventory | Leases | PutLeases
