"""What is the matter with a node, told apart by its signals; what is done about it, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from vrha.model.ownership import Health


class Cause(StrEnum):
    """One verdict; the same word stands in events, API and log."""

    SERVING = "serving"
    """Nothing is the matter."""
    AGENT_DEAD = "agent-dead"
    AGENT_HUNG = "agent-hung"
    NODE_SILENT = "node-silent"
    NODE_CUT_OFF = "node-cut-off"
    BROKER_GONE = "broker-gone"
    ORCHESTRATOR_GONE = "orchestrator-gone"
    UPLINK_DEAD = "uplink-dead"
    VR_SICK = "vr-sick"


@dataclass(frozen=True, slots=True)
class Meaning:
    """By what a cause is known, what is done about it, and why just that."""

    signals: str
    action: str
    reason: str


MEANINGS: Mapping[Cause, Meaning] = {
    Cause.SERVING: Meaning("the watcher renews and its agent beats", "none", "nothing ails it"),
    Cause.AGENT_DEAD: Meaning(
        "the watcher renews and says that the agent's process has ended",
        "wait for init to start it again; when it stays away its routers move to other nodes",
        "the kernel forwards on without an agent, so nothing hurries",
    ),
    Cause.AGENT_HUNG: Meaning(
        "the watcher renews and says that the agent shows no progress",
        "wait for it; when it stays stuck it is killed and its routers move to other nodes",
        "the kernel forwards on without an agent, so nothing hurries",
    ),
    Cause.NODE_SILENT: Meaning(
        "no renewals from the watcher, and nothing else is heard of the node",
        "its lease is ended by the voters, then other nodes take its routers",
        "a dead node and one that is cut off look alike: only the end of its lease tells that it"
        " is mute",
    ),
    Cause.NODE_CUT_OFF: Meaning(
        "no renewals from the watcher, or none that voters answer, but the node is heard",
        "its lease is ended by the voters, then other nodes take its routers",
        "it may still speak to tenants until its lease is over",
    ),
    Cause.BROKER_GONE: Meaning(
        "the orchestrator has no broker, and watchers renew",
        "none: what serves goes on; nothing is moved until commands can be sent again",
        "leases do not depend on the broker",
    ),
    Cause.ORCHESTRATOR_GONE: Meaning(
        "no orchestrator answers",
        "none from here: routers serve on, and watchers keep their leases by the voters",
        "an orchestrator that stands by takes over by itself; otherwise start one",
    ),
    Cause.UPLINK_DEAD: Meaning(
        "the watcher renews and says that the uplink has no carrier, or no neighbour answers",
        "the node mutes itself when a second view confirms it, and other nodes take its routers",
        "a router without an uplink serves nobody",
    ),
    Cause.VR_SICK: Meaning(
        "the watcher renews, and test packets do not come through the router",
        "the node mutes it when a second view confirms it, and another node takes it",
        "a router that forwards nothing serves nobody",
    ),
}


@dataclass(frozen=True, slots=True)
class Signal:
    """One thing that is known, and how old the news of it is (None: it has no age)."""

    what: str
    age_s: float | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """All that there is to judge a node by.

    `health` with `heard_ms_ago` and `since_ms` is what its watcher said last (None: nothing is
    known of one); `silent_after_ms` is the silence that is suspicious. `reached_by` names the
    other way by which a silent node is heard. `doing` is what is done about it now, `hold` why
    something is not done that would be otherwise.
    """

    node: str
    health: Health | None = None
    heard_ms_ago: float | None = None
    since_ms: float | None = None
    failures: int = 0
    inventory_s_ago: float | None = None
    broker: bool = True
    silent_after_ms: float = 400.0
    reached_by: str = ""
    unanswered: bool = False
    """Its watcher says that no majority of the voters acknowledges what it sends."""
    uplink_dead_ms: float | None = None
    sick: tuple[str, ...] = ()
    doing: str = ""
    hold: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The cause, what speaks for it, what is done about it (or why nothing is), and why so."""

    cause: Cause
    signals: tuple[Signal, ...]
    action: str
    reason: str


GONE = Verdict(
    Cause.ORCHESTRATOR_GONE,
    (Signal(MEANINGS[Cause.ORCHESTRATOR_GONE].signals),),
    MEANINGS[Cause.ORCHESTRATOR_GONE].action,
    MEANINGS[Cause.ORCHESTRATOR_GONE].reason,
)

INVENTORY_OLD_S = 15.0


def judge(known: Known) -> Verdict:
    """What is the matter with the node. What keeps tenants from being served comes first."""
    cause = _cause(known)
    meaning = MEANINGS[cause]
    action = known.doing or meaning.action
    if known.hold:
        action = f"{action}; held: {known.hold}"
    return Verdict(cause, tuple(_signals(known)), action, meaning.reason)


def _cause(known: Known) -> Cause:
    if known.unanswered:
        return Cause.NODE_CUT_OFF
    if known.heard_ms_ago is not None and known.heard_ms_ago > known.silent_after_ms:
        return Cause.NODE_CUT_OFF if known.reached_by else Cause.NODE_SILENT
    if known.uplink_dead_ms is not None:
        return Cause.UPLINK_DEAD
    if known.sick:
        return Cause.VR_SICK
    health = known.health or Health(0)
    if health & Health.AGENT_DEAD:
        return Cause.AGENT_DEAD
    if health & Health.AGENT_HUNG:
        return Cause.AGENT_HUNG
    if not known.broker:
        return Cause.BROKER_GONE
    return Cause.NODE_SILENT if _is_lost(known) else Cause.SERVING


def _is_lost(known: Known) -> bool:
    """Without a watcher the agent's reports are all there is to go by."""
    old = known.inventory_s_ago is None or known.inventory_s_ago > INVENTORY_OLD_S
    return known.heard_ms_ago is None and old


def _signals(known: Known) -> Iterator[Signal]:
    if known.heard_ms_ago is None:
        yield Signal(f"no watcher of {known.node} was heard")
    else:
        yield Signal(f"last renewal of the watcher of {known.node}", known.heard_ms_ago / 1000)
    if known.health is not None:
        since = None if known.since_ms is None else known.since_ms / 1000
        yield Signal(_agent(known.health), since)
        if known.health & Health.STAND_IN:
            yield Signal("a stand-in gives its routers away")
    if known.failures:
        yield Signal(f"the agent failed {known.failures} times under this leader")
    if known.reached_by:
        yield Signal(f"the node is heard by way of {known.reached_by}")
    if known.uplink_dead_ms is not None:
        yield Signal("the uplink is dead", known.uplink_dead_ms / 1000)
    for router in known.sick:
        yield Signal(f"test packets do not come through {router}")
    if known.inventory_s_ago is None:
        yield Signal("no report of an agent")
    else:
        yield Signal("last report of the agent", known.inventory_s_ago)
    yield Signal("the orchestrator has its broker" if known.broker else "there is no broker")


def _agent(health: Health) -> str:
    if health & Health.AGENT_DEAD:
        return "the watcher says that the agent is dead"
    if health & Health.AGENT_HUNG:
        return "the watcher says that the agent is stuck"
    if health & Health.AGENT_UNKNOWN:
        return "the watcher has seen no agent"
    return "the watcher says that the agent is well"
