"""Looks whether the uplinks of the node still carry, and says so when that changes."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping

from vrha.errors import VrhaError
from vrha.linux.files import SPEC
from vrha.linux.instances import Instances
from vrha.linux.uplinks import Uplinks, gateways_of
from vrha.model.spec import Address, InstanceRef
from vrha.model.state import Upstream

log = logging.getLogger(__name__)

ASK_S = 0.1
"""Between two questions to a gateway."""
FOLLOW_S = 1.0
"""How often it looks which uplinks are in use."""

_Read = tuple[int, tuple[str, tuple[Address, ...]] | None]
"""When the spec of an instance was written, and its uplink: bridge and gateways."""


class Lookout:
    """Of one node. `run` returns when `stop` is set; `uplinks` is safe from any thread."""

    def __init__(self, instances: Instances, changed: Callable[[], None]) -> None:
        """`changed` is called when an uplink has become reachable or unreachable."""
        self._instances = instances
        self._changed = changed
        self._states: Mapping[str, Upstream] = {}
        self._read: dict[InstanceRef, _Read] = {}

    def uplinks(self) -> tuple[tuple[str, Upstream], ...]:
        """Bridges whose gateways have ever answered, and whether they do."""
        return tuple(sorted(self._states.items()))

    def run(self, stop: threading.Event) -> None:
        """Ask until `stop`."""
        follow_at = 0.0
        with contextlib.closing(Uplinks()) as uplinks:
            while not stop.is_set():
                now = time.monotonic()
                if now >= follow_at:
                    follow_at = now + FOLLOW_S
                    uplinks.follow(self._used())
                uplinks.ask()
                # Once more when the time is over: this process may have stood still meanwhile.
                while (left := now + ASK_S - time.monotonic()) > 0:
                    uplinks.hear(left)
                uplinks.hear(0)
                self._say(uplinks.states())

    def _say(self, states: Mapping[str, Upstream]) -> None:
        if states == self._states:
            return
        for bridge, state in states.items():
            if state is not self._states.get(bridge, Upstream.REACHABLE):
                log.warning("uplink %s: gateway %s", bridge, state)
        self._states = states
        self._changed()

    def _used(self) -> dict[str, frozenset[Address]]:
        """Also by instances that are muted: what a standby would have matters as well."""
        seen: dict[InstanceRef, _Read] = {}
        for ref in self._instances.refs():
            with contextlib.suppress(VrhaError, OSError):
                written = (self._instances.folders.path(ref) / SPEC).stat().st_mtime_ns
                kept = self._read.get(ref)
                # A spec may have ten thousand rules: each is read once.
                seen[ref] = kept if kept and kept[0] == written else self._look(ref, written)
        self._read = seen
        return gateways_of(uplink for _, uplink in seen.values() if uplink is not None)

    def _look(self, ref: InstanceRef, written: int) -> _Read:
        spec = self._instances.spec(ref)
        if spec.uplink is None or spec.router.uplink is None:
            return written, None
        return written, (spec.uplink.bridge, spec.router.uplink.gateways)
