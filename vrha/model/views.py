"""What the API shows: networks, routers, nodes, runs and events, as people ask for them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vrha.model.evidence import NO_EVIDENCE, Evidence, Measurement
from vrha.model.pauses import Pause
from vrha.model.runs import RunKind, RunStatus, StepStatus, Strategy
from vrha.model.spec import Policy
from vrha.model.state import Upstream


class ChangeKind(StrEnum):
    """How an object differs between two desired states."""

    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Change:
    """One object that differs; `fields` are the paths of its differing fields."""

    kind: ChangeKind
    noun: str
    """`network`, `router` or `node`."""
    name: str
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ApplyResult:
    """What an apply did: the changes, and the runs that carry them out."""

    version: int
    changes: tuple[Change, ...]
    runs: tuple[str, ...]


class RouterStatus(StrEnum):
    """Whether a router is served."""

    ABSENT = "absent"
    """Wanted, and no instance of it exists (yet)."""
    SERVING = "serving"
    CHANGING = "changing"
    """A run is working on it; see `run`."""
    FAILED = "failed"
    """Wanted, not serving, and the last run could not change that."""


@dataclass(frozen=True, slots=True)
class StandbyView:
    """The instance that stands by, whether it knows all that the serving one knows, and its cost.

    `connections` that it has; `changes_per_second` that it is told on average; `memory_kib` of
    its processes. `why`: there is none, and why; all else is empty then.
    """

    instance: str
    node: str
    in_sync: bool
    connections: int = 0
    changes_per_second: float = 0.0
    memory_kib: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class RouterView:
    """One router, where it is served and by which instance."""

    name: str
    networks: tuple[str, ...]
    status: RouterStatus
    instance: str
    node: str
    epoch: int
    run: str
    reason: str
    policy: Policy = Policy.RESURRECT
    priority: int = 0
    standby: StandbyView | None = None
    """None where none is wanted or left."""


@dataclass(frozen=True, slots=True)
class NetworkView:
    """One network and what serves it."""

    name: str
    bridge: str
    subnets: tuple[str, ...]
    router: str
    status: RouterStatus
    node: str
    run: str
    second_dhcp: str = ""
    """Address and node of the second DHCP server; empty: none is wanted."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node: what it hosts and when its agent was last heard (seconds ago, None: never)."""

    name: str
    zone: str
    instances: tuple[str, ...]
    capacity: int
    heard_seconds_ago: float | None
    version: str
    draining: bool = False
    """It takes no new instances: somebody is emptying it."""
    uplinks: tuple[tuple[str, Upstream], ...] = ()
    """Bridges whose upstream gateways have answered before, and whether they do."""


@dataclass(frozen=True, slots=True)
class StepView:
    """One step of a run, in words."""

    seq: int
    what: str
    node: str
    status: StepStatus
    attempt: int
    error: str
    undo: str
    """What undoes the step, in words; empty where nothing need be undone."""
    timings_ms: tuple[tuple[str, float], ...] = ()
    kind: str = ""
    """The kind of the step: `build`, `swap`, `destroy`, ..."""
    evidence: Evidence = NO_EVIDENCE
    began: float | None = None
    """When its last attempt began, by the wall clock of its node (Unix time, s)."""


@dataclass(frozen=True, slots=True)
class RunView:
    """One run with all its steps. Times are ISO 8601 in UTC."""

    id: str
    kind: RunKind
    router: str
    epoch: int
    strategy: Strategy | None
    status: RunStatus
    steps: tuple[StepView, ...]
    undo: tuple[StepView, ...]
    point_of_no_return: int | None
    old: str
    new: str
    reason: str
    detail: str
    leftovers: tuple[str, ...]
    started_at: str
    ended_at: str
    measurement: Measurement | None = None
    """What was measured from outside while the run went on, when somebody did."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened and why; `reason` is a stable word."""

    id: int
    at: str
    kind: str
    run: str
    router: str
    node: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class SignalView:
    """One thing that is known, and how old the news of it is (s; None: it has no age)."""

    what: str
    age_s: float | None = None


@dataclass(frozen=True, slots=True)
class WhyView:
    """Why a node or router (`noun`) is as it is: the `cause` is one word of `vrha.core.causes`.

    `action` is what is done about it, or why nothing is; `reason` why just that. Events are those
    of this node or router, newest first.
    """

    noun: str
    name: str
    node: str
    state: str
    cause: str
    signals: tuple[SignalView, ...]
    action: str
    reason: str
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the orchestrator can work."""

    version: str
    store: bool
    broker: bool
    nodes_heard: int
    open_runs: int
    check_ins_refused: int
    leads: bool = True
    """False: it stands by and only answers what can be read."""
    leader: str = ""
    """The name of the orchestrator that leads; empty: none does at the moment."""
    leader_epoch: int = 0


@dataclass(frozen=True, slots=True)
class NodeSight:
    """One node as the leases of this moment show it.

    `heard_ms_ago`: since its last renewal; None: never. `suppressed_until` is ISO 8601 in UTC,
    empty when it does not flap; `hold` says why its routers are left where they are while it is
    silent.
    """

    name: str
    heard_ms_ago: float | None = None
    silent: bool = False
    recovering: bool = False
    suppressed_until: str = ""
    hold: str = ""


class NodeCondition(StrEnum):
    """How a node is; of several the first in this order."""

    RECOVERING = "recovering"
    """Its routers are being given to others."""
    SILENT = "silent"
    SUPPRESSED = "suppressed"
    """It is heard, fell silent too often, and takes no routers for now."""
    HEARD = "heard"


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node in a status: by its leases where there are some, else by its agent."""

    name: str
    zone: str
    condition: NodeCondition
    heard_ms_ago: float | None
    agent_heard_seconds_ago: float | None
    routers: int
    """How many it serves."""
    draining: bool
    paused: bool
    suppressed_until: str
    hold: str


@dataclass(frozen=True, slots=True)
class BrakeView:
    """What brakes automatic failover. `since` is ISO 8601 in UTC, empty while it is off.

    `recovering` nodes of at most `budget`; when more than `limit` are `silent` at once nothing
    is moved.
    """

    on: bool
    reason: str
    since: str
    recovering: int
    budget: int
    silent: int
    limit: int
    enabled: bool


@dataclass(frozen=True, slots=True)
class OpenRun:
    """One run that has not ended."""

    id: str
    kind: RunKind
    router: str
    started_at: str


@dataclass(frozen=True, slots=True)
class Status:
    """Everything at a glance. `brake` is None where this orchestrator does not watch leases: it
    stands by, or there are none."""

    leader: str
    leader_epoch: int
    leads: bool
    broker: bool
    brake: BrakeView | None
    pauses: tuple[Pause, ...]
    nodes: tuple[NodeStatus, ...]
    open_runs: tuple[OpenRun, ...]
    not_served: tuple[RouterView, ...]
    """Routers that are wanted and have nobody who answers for them, as far as is known."""
