"""Sends test packets through the routers that serve here, one router after the other.

A router may be sick while all that belongs to it is there: somebody has flushed its rules, or
switched its forwarding off. Only one that was well before counts as sick when nothing comes
through any more, twice in a row, and while its gateway answers the node itself: then the fault is
inside.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable

from vrha.core.names import host_port_prefix
from vrha.errors import VrhaError
from vrha.linux.canary import Canary
from vrha.linux.instances import Instances
from vrha.model.evidence import Measured
from vrha.model.spec import InstanceRef
from vrha.model.state import Upstream

log = logging.getLogger(__name__)

PACE_S = 2.0
"""Between two routers."""
AGAIN_S = 0.5
"""Before one that has failed is tried again."""
FAILURES = 2

Place = Callable[[InstanceRef], contextlib.AbstractContextManager[bool]]
"""The node for as long as an examination takes; False when the instance is being handed over."""


class Checkup:
    """Of one node. `run` returns when `stop` is set; `sick` is safe from any thread."""

    def __init__(
        self,
        instances: Instances,
        place: Place,
        uplinks: Callable[[], Iterable[tuple[str, Upstream]]],
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called when an instance has become sick, or well again."""
        self._instances = instances
        self._place = place
        self._uplinks = uplinks
        self._changed = changed
        self._well: set[InstanceRef] = set()
        self._failures: dict[InstanceRef, int] = {}

    def sick(self) -> frozenset[InstanceRef]:
        """Instances through which nothing comes any more."""
        return frozenset(ref for ref, count in self._failures.items() if count >= FAILURES)

    def run(self, stop: threading.Event) -> None:
        """Examine one instance after the other until `stop`."""
        last: InstanceRef | None = None
        pause = PACE_S
        while not stop.wait(pause):
            pause = PACE_S
            try:
                last = self._next(last)
                if last is not None and self._examine(last):
                    pause = AGAIN_S
            except (VrhaError, OSError) as error:
                log.warning("checkup of %s: %s", last, error)

    def _next(self, last: InstanceRef | None) -> InstanceRef | None:
        """One that has just failed once more; else the next one that serves."""
        doubtful = [ref for ref, count in self._failures.items() if count < FAILURES]
        serving = self._serving()
        self._well &= set(serving)
        self._failures = {ref: n for ref, n in self._failures.items() if ref in serving}
        for ref in doubtful:
            if ref in serving:
                return ref
        after = [ref for ref in serving if last is None or ref > last]
        return next(iter(after or serving), None)

    def _serving(self) -> list[InstanceRef]:
        switch = self._instances.switch
        relays = switch.relays()
        # The sets are read once, however many instances there are.
        speaking = {name.rpartition("-")[0] for name in switch.active() & switch.granted()}
        speaking -= {name.rpartition("-")[0] for name in relays}
        refs = self._instances.refs()
        return [ref for ref in refs if host_port_prefix(ref).rstrip("-") in speaking]

    def _examine(self, ref: InstanceRef) -> bool:
        """Whether it is to be examined again soon."""
        with self._place(ref) as free:
            comes_through = self._comes_through(ref) if free else None
        if comes_through is None:
            return False
        was_sick = self.sick()
        if comes_through:
            self._well.add(ref)
            self._failures.pop(ref, None)
        elif ref in self._well and self._is_reached(ref):
            self._failures[ref] = self._failures.get(ref, 0) + 1
        if self.sick() != was_sick:
            log.warning("%s is %s", ref, "sick" if ref in self.sick() else "well again")
            self._changed()
        return self._failures.get(ref) == 1

    def _is_reached(self, ref: InstanceRef) -> bool:
        spec = self._instances.spec(ref)
        states = dict(self._uplinks())
        return spec.uplink is not None and states.get(spec.uplink.bridge) is Upstream.REACHABLE

    def _comes_through(self, ref: InstanceRef) -> bool | None:
        """Whether anything does; None where nothing can be sent."""
        with self._instances.apart() as at:
            canary = Canary(at.spec(ref), at.site.route, at.site.home)
            try:
                canary.prepare(ref)
                canary.start()
            finally:
                measured = canary.stop()
        return judge(measured)


def judge(measured: Iterable[Measured]) -> bool | None:
    """Whether any stream came through; None when none could be sent at all."""
    found = [each for each in measured if each.unavailable in ("", "no-reply")]
    return any(not each.unavailable for each in found) if found else None
