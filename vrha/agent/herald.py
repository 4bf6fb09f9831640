"""Tells the neighbours of instances that have just been granted to this node.

No command is needed for that: an instance that was built ready speaks as soon as the watcher
permits it, and nobody finds it before it was announced. In a thread of its own, with kernel sockets
of its own; it does nothing but to announce what may speak anyway.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vrha.core.names import parse_tag
from vrha.errors import PreconditionError, StepError, VrhaError
from vrha.linux import announce, rtnetlink
from vrha.linux.announce import Announcer
from vrha.linux.closing import SlowCloser
from vrha.linux.deadman import DeadMan
from vrha.linux.hint import Hinted
from vrha.linux.instances import Instances
from vrha.linux.node import ANNOUNCE_MS
from vrha.model.spec import InstanceRef

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""How often it looks without having been told to."""
DEAF_LOOK_S = 0.03
"""The same while the node has no lease."""
RETRY_S = 2.0
"""Before it begins anew after an error."""
CONFIRM_S = 10.0
"""How long the announcement of an instance that may speak is waited for."""


@dataclass(order=True)
class _Due:
    """The next announcement of an instance, on the monotonic clock."""

    at: float
    ref: InstanceRef
    began: float = field(compare=False)
    turn: int = field(compare=False)
    ports: Sequence[Announcer] = field(compare=False)


class Herald:
    """Of one node. `run` returns when `stop` is set."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances
        self._changed = threading.Condition()
        self._announced: dict[InstanceRef, float] = {}

    def run(self, stop: threading.Event) -> None:
        """Announce what is granted from now on, until `stop`."""
        while not stop.is_set():
            try:
                with (
                    self._instances.apart() as at,
                    contextlib.closing(Hinted()) as hinted,
                    contextlib.closing(_Watch(at, hinted, self._note)) as watch,
                ):
                    watch.run(stop)
            except PreconditionError as error:
                log.warning("%s", error)
                stop.wait(RETRY_S)
            except (VrhaError, OSError) as error:
                log.error("announcements: %s", error)
                stop.wait(RETRY_S)

    def confirm(self, ref: InstanceRef) -> float:
        """Wait until the instance has announced itself; when that was (Unix time, s).

        Raises StepError `not-announced`.
        """
        with self._changed:
            if self._changed.wait_for(lambda: ref in self._announced, CONFIRM_S):
                return self._announced[ref]
        raise StepError(
            "not-announced",
            f"{ref} may speak, but did not announce itself within {CONFIRM_S:g} s",
            "The agent's log says why; its neighbours find it when their entries expire.",
        )

    def _note(self, ref: InstanceRef) -> None:
        with self._changed:
            self._announced[ref] = time.time()
            self._changed.notify_all()


class _Watch:
    """One life of the herald, with what it saw last."""

    def __init__(self, at: Instances, hinted: Hinted, note: Callable[[InstanceRef], None]) -> None:
        self._at = at
        self._dead_man = DeadMan()
        self._live = False
        self._hinted = hinted
        self._note = note
        self._granted: frozenset[str] = frozenset()
        self._due: list[_Due] = []
        self._closer = SlowCloser()

    def close(self) -> None:
        for due in self._due:
            self._end(due)
        self._closer.drain()
        self._dead_man.close()

    def run(self, stop: threading.Event) -> None:
        # What was granted before may be news as well: another announcement does no harm.
        while not stop.is_set():
            self._look()
            self._send()
            wait = LOOK_S if self._live else DEAF_LOOK_S
            if self._due:
                wait = min(wait, self._due[0].at - time.monotonic())
            if wait > 0:
                self._hinted.wait(min(wait, LOOK_S))

    def _look(self) -> None:
        # Without a lease nothing that is announced gets out: it is announced when there is one.
        self._live = bool(self._dead_man.remaining_ms())
        granted = self._at.switch.granted() if self._live else frozenset()
        new, self._granted = granted - self._granted, granted
        if not new:
            return
        active, relays = self._at.switch.active(), self._at.switch.relays()
        speaking = (granted & active) - relays
        names: dict[InstanceRef, bool] = {}
        for link in rtnetlink.links(self._at.site.route):
            tag = parse_tag(link.alias)
            if tag is not None and link.name in new:
                names[tag.ref] = names.get(tag.ref, True) and link.name in speaking
        for ref in sorted(ref for ref, speaks in names.items() if speaks):
            self._begin(ref)

    def _begin(self, ref: InstanceRef) -> None:
        try:
            spec = self._at.spec(ref)
            with self._at.inside(ref):
                ports = announce.open_ports(spec)
        except StepError as error:
            log.warning("%s is not announced: %s", ref, error)
            return
        now = time.monotonic()
        heapq.heappush(self._due, _Due(now, ref, now, 0, ports))
        # The first one at once: of many instances that are granted together the last should not
        # wait until the sockets of all are open.
        self._send()

    def _send(self) -> None:
        while self._due and self._due[0].at <= time.monotonic():
            due = heapq.heappop(self._due)
            try:
                announce.send_bursts(due.ports, (0,), lambda: None)
            except StepError as error:
                log.warning("%s: %s", due.ref, error)
                self._end(due)
                continue
            if due.turn == 0:
                self._note(due.ref)
            if due.turn + 1 == len(ANNOUNCE_MS):
                self._end(due)
                continue
            due.turn += 1
            due.at = due.began + ANNOUNCE_MS[due.turn] / 1000
            heapq.heappush(self._due, due)

    def _end(self, due: _Due) -> None:
        for sock, _ in due.ports:
            self._closer.close(sock)
