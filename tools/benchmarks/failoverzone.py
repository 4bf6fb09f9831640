"""vrha under the faults of the bench of failover: a zone with watchers in a lab of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import yaml

from tools.benchmarks import instants
from tools.benchmarks.nodefaults import NodeFaults
from tools.benchmarks.underfault import Scene, under_fault
from tools.benchmarks.zone import Progress, await_serving
from vrha.cli.client import Client
from vrha.config import desired as config
from vrha.config.desired import load
from vrha.errors import DeadlineError, SpecError, VrhaError
from vrha.lab.scenario import Scenario
from vrha.lab.zone import Lab
from vrha.model.spec import Desired
from vrha.model.views import Event, RouterStatus, RouterView
from vrha.probe.process import serving

UNSET = "unset"
"""As policy: the zone says nothing of it."""
POLICIES = ("resurrect", "standby", UNSET)
RESTART_S = 0.1
LIFE_S = 0.5
"""Of an agent that crashes again and again: long enough to have said hello."""
MOVED_S = 20.0
EVACUATED_S = 60.0
READY_S = 60.0
NAMES = frozenset(name for names in instants.FAILOVER for name in names)


def with_policy(plan: Scenario, policy: str) -> Scenario:
    """The scenario with that policy of every router. Raises SpecError while vrha has none such."""
    if policy == UNSET:
        return plan
    routers = [{**router, "policy": policy} for router in plan.zone["routers"]]
    document = {"zone": {**plan.zone, "routers": routers}}
    config.parse(yaml.safe_dump(document["zone"]), plan.name)
    return Scenario(plan.name, document["zone"], plan.segments, plan.machines, plan.nodes)


def missing(plan: Scenario, policy: str) -> str:
    """Why a row of that policy cannot be taken; empty when it can."""
    try:
        with_policy(plan, policy)
    except SpecError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def watched(
    plan: Scenario, profile: str, name: str, progress: Progress
) -> Iterator[tuple[Lab, Client]]:
    """A lab with watchers and responders, whose agents have all been heard; nothing is applied."""
    with Lab.up(plan, name, progress=progress, ephemeral=True) as lab:
        client = Client(str(lab.socket))
        lab.start_daemons(progress, watched=True, profile=profile)
        nodes = load(lab.zone_file).nodes
        client.apply(Desired((), (), nodes))
        wait(lambda: client.health().nodes_heard == len(nodes), READY_S, "all agents are heard")
        with serving(7, [lab.netns_path(machine) for machine in lab.machines]):
            yield lab, client


def take(
    policy: str, profile: str, cause: str, plan: Scenario, name: str, progress: Progress
) -> dict[str, Any]:
    """One run in a zone of its own. Raises VrhaError."""
    plan = with_policy(plan, policy)
    with watched(plan, profile, name, progress) as (lab, client):
        desired = load(lab.zone_file)
        client.apply(desired)
        await_ready(client, policy)
        router = desired.routers[0].name
        node = view_of(client, router).node
        with NodeFaults(lab, plan, node) as faults:
            struck = Struck(lab, client, faults, desired)
            scene = Scene.of(lab, desired)
            seen = latest_event(client)
            row, fault, wire = under_fault(scene, lambda: struck.strike(cause), struck.back)
            # What a dead or frozen node is written in the journal with, while it is still so.
            row |= journal(client, router, node, seen, fault, wire, bool(row["worst_ms"]))
        row["from"], row["to"] = node, view_of(client, router).node
    return row


class Struck:
    """What happens to the node that serves all routers."""

    def __init__(
        self,
        lab: Lab,
        client: Client,
        faults: NodeFaults,
        desired: Desired,
        moved_s: float = MOVED_S,
    ) -> None:
        self.lab, self.client, self.faults = lab, client, faults
        self._routers = desired.routers
        self._agent = lab.agent(faults.node)
        self._moved_s = moved_s
        self._then: Callable[[], bool] = self._moved

    def strike(self, cause: str) -> float:
        """Begin it; when it began (Unix time, s)."""
        uplink = self._routers[0].uplink
        match cause:
            case "control":
                self._then = lambda: True
                return time.time()
            case "node-loss":
                return self.faults.lose_power()
            case "sigstop-node":
                return self.faults.freeze()
            case "cut-off":
                return self.faults.cut_management()
            case "uplink":
                assert uplink is not None
                return self.faults.lose_uplink(uplink.bridge)
            case "agent-kill":
                self._then = self._again
                return self._kill()
            case "agent-crash-loop":
                self._then = self._loop
                return self._kill()
        raise NotImplementedError(cause)

    def back(self) -> bool:
        """Wait for what vrha has to do about it; whether it did."""
        return self._then()

    def _kill(self) -> float:
        began = time.time()
        self._agent.kill()
        return began

    def _again(self) -> bool:
        """The agent is started again as by init, and heard."""
        time.sleep(RESTART_S)
        self._agent.start()
        begun = time.monotonic()

        def heard() -> bool:
            node = next(n for n in self.client.nodes() if n.name == self.faults.node)
            ago = node.heard_seconds_ago
            return ago is not None and ago < time.monotonic() - begun

        return happens(heard, MOVED_S)

    def _loop(self) -> bool:
        """The agent is started and killed until the routers have left the node."""
        until = time.monotonic() + EVACUATED_S
        while not self._elsewhere() and time.monotonic() < until:
            time.sleep(RESTART_S)
            self._agent.start()
            time.sleep(LIFE_S)
            self._agent.kill()
        return self._elsewhere()

    def _moved(self) -> bool:
        return happens(self._elsewhere, self._moved_s)

    def _elsewhere(self) -> bool:
        return all(
            view.node not in ("", self.faults.node) and view.status is RouterStatus.SERVING
            for view in self.client.routers()
        )


def journal(
    client: Client,
    router: str,
    node: str,
    after: int,
    fault: float,
    wire: Mapping[str, float],
    was_out: bool,
) -> dict[str, Any]:
    """The split of a run's outage, from events after `after`, and the run that they name."""
    events = [e for e in events_since(client, after) if _concerns(e, router, node)]
    found = named(events)
    run = next((event.run for event in reversed(events) if event.run), "")
    return {
        "run": run,
        "kind": str(client.run(run).kind) if run else "",
        "journal_ms": {n: round((at - fault) * 1000, 1) for n, at in found.items()},
        # What the wire shows is what counts for everybody alike.
        "phases_ms": instants.split(fault, found | wire) if was_out else {},
    }


def named(events: Iterable[Event]) -> dict[str, float]:
    """The instant of the first event of each name, which may be the kind or the reason of an event.

    What an event is told of later has its instant in the detail (ISO 8601). Unix times, s.
    """
    found: dict[str, float] = {}
    for event in events:
        for word in NAMES.intersection((event.kind, event.reason)):
            found.setdefault(word, _moment(event.detail) or _moment(event.at) or 0.0)
    return found


def events_since(client: Client, after: int) -> list[Event]:
    """All events with a number above `after`."""
    found: list[Event] = []
    while more := client.events(found[-1].id if found else after, limit=1000):
        found += more
    return found


def latest_event(client: Client) -> int:
    """The number of the last event so far; 0 without any."""
    events = events_since(client, 0)
    return events[-1].id if events else 0


def _concerns(event: Event, router: str, node: str) -> bool:
    return event.router == router if event.router else event.node == node


def _moment(text: str) -> float | None:
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    return None


def await_ready(client: Client, policy: str, timeout_s: float = READY_S) -> None:
    """Wait until all routers serve, and with `standby` have one in sync. Raises DeadlineError."""
    await_serving(client, timeout_s)
    if policy == "standby":
        wait(lambda: all(map(_stands_by, client.routers())), timeout_s, "standbys are in sync")


def _stands_by(view: RouterView) -> bool:
    """Whether a warm instance knows all that the serving one knows."""
    standby = getattr(view, "standby", None)
    return standby is not None and bool(standby.in_sync)


def view_of(client: Client, router: str) -> RouterView:
    """The router as it stands."""
    return next(view for view in client.routers() if view.name == router)


def wait(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Raises DeadlineError `bench-late`."""
    if not happens(condition, timeout_s):
        raise DeadlineError("bench-late", f"not within {timeout_s:g} s: {what}")


def happens(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it comes true in that time; an orchestrator that does not answer says no."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return True
        except VrhaError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
