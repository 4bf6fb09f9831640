"""What has to be done so that the router's standby is what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from vrha.core.instance import same_service, same_shape
from vrha.core.outcome import is_unsettled
from vrha.core.placement import Candidate, Placement, place
from vrha.core.plan import Live
from vrha.model.spec import InstanceSpec, Policy, Router
from vrha.model.state import Activity, ObservedInstance, RouterState


class Need(StrEnum):
    """What is missing."""

    NOTHING = "nothing"
    BUILD = "build"
    """There is none, or none that can become what is wanted."""
    CONFIGURE = "configure"
    FOLLOW = "follow"
    """It is complete, and has not got what the serving instance knows."""
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of the standby's node: whether it may keep the standby, and what it has.

    `found` is None where it was not looked at since the standby was last touched.
    """

    usable: bool
    found: tuple[ObservedInstance, ...] | None

    def instance(self, state: RouterState) -> ObservedInstance | None:
        return next((i for i in self.found or () if i.ref == state.standby), None)


def standby_of(state: RouterState) -> Live | None:
    """The instance that stands by; needs the whole state, not its brief."""
    if state.standby is None or state.standby_spec is None:
        return None
    return Live(state.standby_node, state.standby_spec)


def is_wanted(router: Router | None) -> bool:
    return router is not None and router.policy is Policy.STANDBY


def is_in_sync(state: RouterState, seen: ObservedInstance | None) -> bool:
    """Whether the standby knows what the serving instance knows."""
    follows = seen.follows if seen is not None else None
    return follows is not None and follows.old == state.active


def need(
    router: Router | None, state: RouterState, wanted: InstanceSpec | None, seen: Seen
) -> Need:
    """The next thing to do; `wanted` is what the router's instances should be now.

    While nobody serves, or it is not known who does, the standby is left as it is.
    """
    if not is_wanted(router) or wanted is None:
        return Need.NOTHING if state.standby is None else Need.REMOVE
    if state.active is None or is_unsettled(state):
        return Need.NOTHING
    if state.standby is None or state.standby_node == state.node or not seen.usable:
        return Need.BUILD
    if state.standby_spec is not None and not same_service(state.standby_spec, wanted):
        return Need.CONFIGURE if same_shape(state.standby_spec, wanted) else Need.BUILD
    if seen.found is None:
        return Need.NOTHING
    there = seen.instance(state)
    if there is None or there.activity is Activity.PARTIAL:
        return Need.BUILD
    if there.activity is not Activity.MUTED or is_in_sync(state, there):
        return Need.NOTHING
    return Need.FOLLOW


def place_standby(router: Router, candidates: Sequence[Candidate], serving: str) -> Placement:
    """A node other than `serving`, in another zone where one fits."""
    zone = next((c.node.zone for c in candidates if c.node.name == serving), "")
    others = [c for c in candidates if c.node.name != serving]
    away = place(router, [c for c in others if c.node.zone != zone])
    return away if away.node else place(router, others)
