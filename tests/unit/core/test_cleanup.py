"""What may go, in which order, and whose it is."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from vrha.core.cleanup import plan as plans
from vrha.core.cleanup.decide import Agent, Choice, Decision, Reason, Situation, decide
from vrha.core.cleanup.items import Item, Kind, Outcome, Result, worst
from vrha.core.cleanup.profile import Profile
from vrha.core.cleanup.profiles import BUILT_IN, load
from vrha.core.cleanup.profiles.vrha import VRHA
from vrha.core.names import PortTag, host_port
from vrha.errors import NotFoundError
from vrha.model.spec import InstanceRef

REF = InstanceRef("edge", 3)
SERVING = frozenset(["edge-3"])
SWEEP = Decision(Choice.SWEEP, Reason.ORPHANED)


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        (Situation(Agent.ALIVE), Decision(Choice.KEEP, Reason.AGENT_LIVES)),
        (Situation(Agent.ALIVE, forced=True), Decision(Choice.KEEP, Reason.AGENT_LIVES)),
        (Situation(Agent.HUNG, 9e9, forced=True), Decision(Choice.WAIT, Reason.AGENT_HUNG)),
        (Situation(Agent.STOPPED, 9e9), Decision(Choice.KEEP, Reason.STOPPED_BY_HAND)),
        (Situation(Agent.STOPPED, 9e9, forced=True), SWEEP),
        (Situation(Agent.DEAD, 400, 1000), Decision(Choice.WAIT, Reason.GRACE, 600)),
        (Situation(Agent.DEAD, 1000, 1000), SWEEP),
        (
            Situation(Agent.DEAD, 1000, 1000, lease_ms=70),
            Decision(Choice.WAIT, Reason.LEASE_LIVE, 70),
        ),
        (
            Situation(Agent.DEAD, lease_ms=70, forced=True),
            Decision(Choice.WAIT, Reason.LEASE_LIVE, 70),
        ),
        (Situation(Agent.DEAD, lease_ms=0), SWEEP),
        (Situation(Agent.DEAD, serving=SERVING), Decision(Choice.KEEP, Reason.STILL_SERVING)),
        (
            Situation(Agent.DEAD, serving=SERVING, forced=True),
            Decision(Choice.SWEEP, Reason.FORCED),
        ),
        (Situation(Agent.DEAD, serving=frozenset(["other-1"])), SWEEP),
    ],
)
def test_what_may_go(situation: Situation, expected: Decision) -> None:
    assert decide("edge-3", situation) == expected


def test_no_situation_overrules_an_agent_or_a_lease() -> None:
    for agent in Agent:
        for lease in (None, 0.0, 1.0):
            for forced in (False, True):
                for missing in (0.0, 5.0, 1e9):
                    now = Situation(agent, missing, 5.0, lease, SERVING, forced)
                    sweeps = decide("edge-3", now).choice is Choice.SWEEP
                    # Nothing of a stop on purpose is swept without force, which is asked anyway.
                    is_gone = agent in (Agent.DEAD, Agent.STOPPED)
                    allowed = is_gone and not lease and missing >= 5.0 and forced
                    assert sweeps == allowed, now


def test_an_order_with_ports_first_and_names_last() -> None:
    items = [Item(kind, kind.value, "edge-3", "") for kind in Kind]
    (share,) = plans.make("p", items, lambda owner: SWEEP).shares
    kinds = [item.kind for item in share.items]
    assert set(plans.ORDER) == set(Kind) == set(kinds)
    assert kinds.index(Kind.PORT) < kinds.index(Kind.PROCESS) < kinds.index(Kind.RULES)
    assert kinds.index(Kind.RULES) < kinds.index(Kind.IPSET) < kinds.index(Kind.CONNTRACK)
    assert kinds.index(Kind.CONNTRACK) < kinds.index(Kind.FILE)
    assert kinds[-1] is Kind.NAMESPACE


def test_what_is_common_stays_while_an_owner_does() -> None:
    items = [
        Item(Kind.RULES, "c", "", ""),
        Item(Kind.PORT, "a", "a", ""),
        Item(Kind.PORT, "b", "b", ""),
    ]
    kept = Decision(Choice.KEEP, Reason.STILL_SERVING)
    plan = plans.make("p", items, lambda owner: kept if owner == "b" else SWEEP)
    assert [(s.owner, s.decision.choice) for s in plan.shares] == [
        ("", Choice.KEEP),
        ("a", Choice.SWEEP),
        ("b", Choice.KEEP),
    ]
    assert [item.name for item in plan.items(Kind.PORT)] == ["a"]
    assert plans.make("p", items, lambda owner: SWEEP).to_sweep[0].owner == ""
    assert [s.owner for s in plans.only(plan, lambda owner: owner == "a").shares] == ["a"]


def test_the_worst_of_results() -> None:
    item = Item(Kind.PORT, "a", "a", "")
    said = [Outcome(item, result) for result in Result]
    assert worst(said) is Result.FAILED
    assert worst([o for o in said if o.result is not Result.FAILED]) is Result.LEAKED
    assert worst([]) is Result.GONE


def test_names_and_aliases_of_ours() -> None:
    name, alias = host_port(REF, "n0"), str(PortTag(REF, 7, "n0"))
    assert VRHA.port_owner(name, alias) == "edge-3"
    for other in ((name, ""), ("eth0", alias), (f"{name[:-1]}1", alias), (name, f"{alias} ")):
        assert VRHA.port_owner(*other) is None
    assert VRHA.namespace_owner("vrha-edge-3") == "edge-3"
    for name in ("vrha-edge", "qrouter-edge-3", "vrha--3", "vrha-edge-3x"):
        assert VRHA.namespace_owner(name) is None
    assert VRHA.router_of("edge-3") == "edge"


def test_files_and_processes_of_ours() -> None:
    assert VRHA.file_owner("instances/edge-3") == "edge-3"
    for path in ("epochs.json", "cleanup/edge-3", "instances/edge", "edge-3"):
        assert VRHA.file_owner(path) is None
    ours = ["/usr/sbin/dnsmasq", "--conf-file=/var/lib/v/instances/edge-3/dnsmasq.conf"]
    assert VRHA.process_owner(ours, "/var/lib/v") == "edge-3"
    assert VRHA.process_owner(ours, "/var/lib/w") is None
    assert VRHA.process_owner([], "/var/lib/v") is None


def test_profiles_are_found_by_name() -> None:
    assert all(isinstance(load(name), Profile) and load(name).name == name for name in BUILT_IN)
    with pytest.raises(NotFoundError) as caught:
        load("nobody")
    assert (caught.value.code, "vrha" in caught.value.hint) == ("no-profile", True)


def test_a_profile_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(group: str) -> list[EntryPoint]:
        return [EntryPoint("theirs", "vrha.core.cleanup.profiles.vrha:VRHA", group)]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    assert load("theirs") is VRHA
