"""Tells the orchestrator of the DHCP leases of this node's instances.

What it tells is what the lease file says, whole, so that any message may be lost or come twice.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from vrha.core.leases import cleaned, holders
from vrha.errors import StepError, VrhaError
from vrha.linux.files import SPEC
from vrha.linux.instances import Instances
from vrha.linux.leasewatch import LeaseWatch
from vrha.model.messages import Leases, PutLeases
from vrha.model.spec import InstanceRef

log = logging.getLogger(__name__)

SETTLE_S = 0.01
"""After a change: dnsmasq may still be writing."""
APART_S = 0.2
"""Between two messages of one instance."""
RENEWED_S = 10.0
"""Between two messages of one instance that differ by nothing but when leases end."""
FRESH_S = 2.0
"""A new instance has what it was built with; others have more to say while one takes over."""
RETRY_S = 0.5
STOP_S = 0.5
"""How soon a stop is noticed."""


def give_leases(instances: Instances, message: PutLeases) -> None:
    """Carry the message out. Raises StepError as `Instances.refresh_leases` and `reserve`."""
    leases = cleaned(message.body)
    if message.beside:
        instances.reserve(message.instance, leases)
    else:
        instances.refresh_leases(message.instance, leases.encode())


@dataclass(slots=True)
class _Told:
    at: float
    body: str | None
    built: int = 0
    """When its spec was written."""
    epoch: int = 0


class LeaseTeller:
    """One agent's. `run` is for a thread of its own; all at once after a start of the agent."""

    def __init__(
        self,
        instances: Instances,
        node: str,
        life: str,
        tell: Callable[[Leases], None],
    ) -> None:
        """`life` names this life of the agent; `tell` raises VrhaError.

        Raises PreconditionError `no-inotify`.
        """
        self._instances, self._node, self._life, self._tell = instances, node, life, tell
        self._watch = LeaseWatch(instances.folders)
        self._told: dict[InstanceRef, _Told] = {}
        self._due: dict[InstanceRef, float] = {}
        self._number = 0

    def run(self, stop: threading.Event) -> None:
        """Tell of every change, until `stop`."""
        try:
            for ref in self._watch.all():
                self._told[ref] = _Told(-math.inf, None)
                self._due[ref] = 0.0
            while not stop.is_set():
                self._tell_due(stop)
                soonest = min(self._due.values(), default=math.inf) - time.monotonic()
                for ref in self._watch.changed(min(soonest, STOP_S)):
                    self._note(ref)
        finally:
            self._watch.close()

    def _note(self, ref: InstanceRef) -> None:
        now = time.monotonic()
        if ref not in self._told:
            self._told[ref] = _Told(now + FRESH_S - APART_S, "")
        due = max(now + SETTLE_S, self._told[ref].at + APART_S)
        # What was put off for being a renewal only may be more now.
        self._due[ref] = min(due, self._due.get(ref, math.inf))

    def _tell_due(self, stop: threading.Event) -> None:
        for ref in [ref for ref, at in self._due.items() if at <= time.monotonic()]:
            if stop.is_set():
                return
            del self._due[ref]
            try:
                self._tell_of(ref)
            except VrhaError as error:
                log.info("leases of %s not delivered yet: %s", ref, error.code)
                again = time.monotonic() + RETRY_S
                self._due = {one: max(at, again) for one, at in self._due.items()} | {ref: again}
                return

    def _tell_of(self, ref: InstanceRef) -> None:
        told = self._told[ref]
        try:
            epoch = self._epoch(ref, told)
        except (StepError, OSError):
            # Gone, or not complete yet: then its spec is written after its leases.
            if self._instances.folders.path(ref).exists():
                self._due[ref] = time.monotonic() + RETRY_S
            else:
                del self._told[ref]
            return
        body = cleaned(self._instances.leases(ref).decode(errors="replace"))
        if body == told.body:
            return
        now = time.monotonic()
        renewed = told.body is not None and holders(body) == holders(told.body)
        if renewed and now < told.at + RENEWED_S:
            self._due[ref] = told.at + RENEWED_S
            return
        self._number += 1
        self._tell(Leases(self._node, ref, epoch, self._life, self._number, body))
        told.at, told.body = now, body

    def _epoch(self, ref: InstanceRef, told: _Told) -> int:
        """From the spec, which may have 20,000 rules: read again only when it was written again."""
        built = (self._instances.folders.path(ref) / SPEC).stat().st_mtime_ns
        if built != told.built:
            told.built, told.epoch = built, self._instances.spec(ref).epoch
        return told.epoch
