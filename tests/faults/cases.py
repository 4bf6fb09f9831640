"""Every place at which something may die during a handover, derived from the plan itself.

The machine of runs is driven through a plan without any node; what it would send says which steps
there are, in which commands, on which node, and what the way back consists of. So a new step has
its cases from the moment it is in a plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network

from vrha.core import plan
from vrha.core.happenings import (
    CheckedIn,
    Dispatch,
    Effect,
    Event,
    Limits,
    Resume,
    StepDone,
    StepFailed,
)
from vrha.core.instance import instance_spec
from vrha.core.run import advance
from vrha.core.steps import node_of
from vrha.model.runs import Run, RunKind, Strategy
from vrha.model.spec import Desired, InstanceRef, InstanceSpec, Network, Router, Subnet, Uplink
from vrha.model.steps import Flip, Peer, Verify

GIVER, TAKER = "giver", "taker"
"""Nodes of a move; a handover on one node has only the giver."""
HANDOVER, HELD, MOVE = "handover", "held", "move"
AGENT, PEER, ORCHESTRATOR, BROKER = "agent", "peer", "orchestrator", "broker"
INSIDE = "flip.inside"
FAILING = "agent.verify.before"
"""Where a case of the way back makes its run fail."""


@dataclass(frozen=True)
class Case:
    """`victim` dies when somebody is at `place`; on the way back if `undo`."""

    scenario: str
    victim: str
    place: str
    node: str
    """Whose agent dies; empty for the others."""
    before_flip: bool
    undo: bool = False

    @property
    def name(self) -> str:
        return f"{self.scenario}-{self.victim}-{self.place}"

    @property
    def kind(self) -> str:
        """What the place is about: a kind of step, or the check-in."""
        return self.place.removeprefix("agent.").removeprefix("orchestrator.").rpartition(".")[0]


def all_cases() -> list[Case]:
    """All of them, in the order of the steps."""
    held = [c for c in _cases(HELD) if c.victim == AGENT and c.kind == "flip"]
    return [*_cases(HANDOVER), *held, *_cases(MOVE)]


def chosen_cases() -> list[Case]:
    """One case of each victim and kind of step; which one turns, so that all points of a step and
    both kinds of handover are met somewhere. The inside of a flip is always met.
    """
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in all_cases():
        groups.setdefault((case.victim, case.kind), []).append(case)
    chosen = {group[5 * turn % len(group)] for turn, group in enumerate(groups.values())}
    chosen |= {c for c in all_cases() if c.place == INSIDE and c.victim in (AGENT, PEER)}
    return [case for case in all_cases() if case in chosen]


def _cases(scenario: str) -> Iterator[Case]:
    there = _journey(_run(scenario), fails=False)
    back = [d for d in _journey(_run(scenario), fails=True) if d.undo]
    is_flipped = False
    for dispatch in (*there, *back):
        for place, node in _agent_places(dispatch):
            is_flipped |= place == "agent.flip.after" or place == INSIDE
            early = not is_flipped
            undo = dispatch.undo
            yield Case(scenario, AGENT, place, node, early, undo)
            if scenario == MOVE:
                other = GIVER if node == TAKER else TAKER
                yield Case(scenario, PEER, place, other, early, undo)
            yield Case(scenario, BROKER, place, "", early, undo)
        for place in _orchestrator_places(dispatch):
            flips = any(isinstance(r.step, Flip) for r in dispatch.records) and not dispatch.undo
            early = not is_flipped or (flips and place.endswith(("journaled", "sending")))
            yield Case(scenario, ORCHESTRATOR, place, "", early, dispatch.undo)
            if place.endswith(".sending"):
                yield Case(scenario, BROKER, place, "", early, dispatch.undo)


def _agent_places(dispatch: Dispatch) -> Iterator[tuple[str, str]]:
    for step in (record.step for record in dispatch.records):
        place = f"agent.{'undo-' if dispatch.undo else ''}{step.kind}"
        yield f"{place}.before", node_of(step)
        if isinstance(step, Flip) and not dispatch.undo:
            yield INSIDE, node_of(step)
        yield f"{place}.after", node_of(step)


def _orchestrator_places(dispatch: Dispatch) -> Iterator[str]:
    kinds = [record.step.kind for record in dispatch.records]
    prefix = f"orchestrator.{'undo-' if dispatch.undo else ''}"
    for point in ("journaled", "sending", "sent"):
        yield f"{prefix}{kinds[0]}.{point}"
    if "build" in kinds and not dispatch.undo:
        yield f"{prefix}check-in.received"
        yield f"{prefix}check-in.accepted"
    for kind in kinds:
        yield f"{prefix}{kind}.reported"
        yield f"{prefix}{kind}.settled"


def _journey(run: Run, fails: bool) -> list[Dispatch]:
    """All that the run sends; with `fails` its verification fails."""
    sent: list[Dispatch] = []
    events: list[Event] = [Resume()]
    while events:
        run, effects = advance(run, events.pop(0), 0.0, Limits(retry_s=0))
        for effect in effects:
            if isinstance(effect, Dispatch):
                sent.append(effect)
                events += _answers(run, effect, fails)
    assert run.status.terminal
    return sent


def _answers(run: Run, effect: Effect, fails: bool) -> Iterator[Event]:
    assert isinstance(effect, Dispatch)
    for record in effect.records:
        key = record.seq, effect.undo, effect.attempt
        if fails and isinstance(record.step, Verify):
            yield StepFailed(*key, "failpoint", "")
            return
        yield StepDone(*key)
        if record.step.kind == "build" and not effect.undo:
            assert run.new is not None
            yield CheckedIn(run.new)


def _run(scenario: str) -> Run:
    old, new = (_spec(InstanceRef("r1", generation)) for generation in (1, 2))
    live = plan.Live(GIVER, old)
    if scenario != MOVE:
        way = plan.Way(Strategy.HANDOVER, hold=scenario == HELD)
        return plan.restart("run", way, live, GIVER, new)
    giver, taker = (Peer(name, "192.0.2.1:1", "PEM") for name in (GIVER, TAKER))
    way = plan.Way(Strategy.HANDOVER, old_peer=giver, new_peer=taker)
    return plan.restart("run", way, live, TAKER, new, RunKind.MOVE)


def _spec(ref: InstanceRef) -> InstanceSpec:
    subnet = Subnet(ip_network("10.1.1.0/24"), ip_address("10.1.1.1"))
    network = Network("blue", "br-blue", (subnet,))
    uplink = Uplink("br-public", (ip_interface("203.0.113.10/24"),), (ip_address("203.0.113.1"),))
    router = Router("r1", ("blue",), uplink)
    return instance_spec(Desired((network,), (router,)), router, ref, ref.generation)
