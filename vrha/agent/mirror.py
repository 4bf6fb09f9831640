"""Standbys: what a serving instance knows flows into a muted one on another node, all the time.

One way only: the serving side never takes anything from the other, and no standby speaks. A frame
is taken whole or not at all, and what is stale goes only when all that is true has come. So
whenever the stream breaks, the standby is left with what was true up to that moment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from vrha import codec
from vrha.agent.wire import Neighbourhood, Say, changes_of, frames
from vrha.errors import DeadlineError, RefusedError, StepError, VrhaError
from vrha.linux import neighbours, sysctls
from vrha.linux.build import Stopwatch, Timings, host_ports
from vrha.linux.conntrack import Source, Target
from vrha.linux.ctwire import Kind
from vrha.linux.instances import Instances
from vrha.linux.neighbours import Neighbour
from vrha.model.evidence import Carried, Evidence
from vrha.model.spec import InstanceRef
from vrha.model.state import Following
from vrha.model.steps import Offer, Sync
from vrha.peer import Expectation, Identity, PeerLink, PeerServer, dial

log = logging.getLogger(__name__)

OFFER_S: Final = 60.0
"""How long the serving side waits for the other one."""
DIAL_S, COPY_S = 5.0, 30.0
BEAT_S, SILENT_S = 1.0, 3.0
"""The serving side says something at least every BEAT_S; the other one gives it up after SILENT_S:
what a node that stood still for longer has to tell is history."""
BREATH_S: Final = 0.005
"""How long changes are gathered: of what changes several times only the last state is sent."""
REFRESH_S, FLEETING_S = 20.0, 180
"""Entries that would end within FLEETING_S are told anew every REFRESH_S: packets prolong them
without any event, UDP for as little as 30 s (net/netfilter/nf_conntrack_proto_udp.c)."""
NEIGHBOURS_S: Final = 1.0
"""Neighbours are told no oftener."""


class Mirrors:
    """The standbys of one node, and what other nodes' standbys are told from here."""

    def __init__(
        self,
        instances: Instances,
        identity: Identity,
        server: PeerServer,
        changed: Callable[[], object],
    ) -> None:
        """`changed` is called, in any thread, when a standby follows no more."""
        self._at = instances
        self._identity = identity
        self._server = server
        self._changed = changed
        self._feeds: dict[InstanceRef, _Feed] = {}
        self._followers: dict[InstanceRef, _Follower] = {}

    def close(self) -> None:
        """End all streams; standbys keep what they have."""
        for ref in [*self._feeds, *self._followers]:
            self.end(ref)

    def end(self, ref: InstanceRef) -> None:
        """`ref` is about to go, or to serve: nothing flows out of it or into it any more."""
        for flow in (self._feeds.pop(ref, None), self._followers.pop(ref, None)):
            if flow is not None:
                flow.close()

    def take_over(self, ref: InstanceRef) -> None:
        """The standby is about to serve: what flows into it would be older than what it sees."""
        follower = self._followers.pop(ref, None)
        if follower is not None:
            follower.close()

    def follows(self) -> Mapping[InstanceRef, Following]:
        """The standbys that have all that there is."""
        return {ref: one.following() for ref, one in list(self._followers.items()) if not one.ended}

    def offer(self, step: Offer) -> tuple[Timings, Evidence]:
        """Wait in the background for the agent of the standby, then tell it everything.

        Raises StepError `no-instance`, InputError `peer-certificate`.
        """
        before = self._feeds.pop(step.old, None)
        if before is not None:
            before.close()
        self._at.spec(step.old)
        session = _session(step.old, step.new)
        expected = self._server.expect(session, step.peer.certificate, step.peer.token, OFFER_S)
        self._feeds[step.old] = _Feed(self._at, step.old, expected)
        return (), Evidence()

    def sync(self, step: Sync) -> tuple[Timings, Evidence]:
        """Bring all that the offered instance knows into the standby, and follow it from then on.

        Raises StepError `standby-speaks`, `no-instance`, UnreachableError, RefusedError
        (`peer-refused`, `peer-failed`), DeadlineError (`peer-silent`).
        """
        assert step.peer is not None
        watch = Stopwatch()
        before = self._followers.pop(step.new, None)
        if before is not None:
            before.close()
        spec = self._at.spec(step.new)
        speaking = self._at.switch.active() & self._at.switch.granted()
        if speaking & set(host_ports(spec)):
            raise StepError("standby-speaks", f"{step.new} serves, nothing may be put into it")
        with watch.phase("connect"):
            session = _session(step.old, step.new)
            peer = step.peer
            link = dial(peer.address, self._identity, peer.certificate, session, peer.token, DIAL_S)
        try:
            follower = _Follower(self._at, step, link, self._changed)
        except BaseException:
            link.close()
            raise
        with watch.phase("connections"):
            evidence = follower.catch_up()
        self._followers[step.new] = follower
        follower.start()
        return watch.timings, Evidence(evidence)


class _Feed:
    """A thread that waits for the standby's agent, and then tells it what happens."""

    def __init__(self, at: Instances, ref: InstanceRef, expected: Expectation) -> None:
        self._at = at
        self._ref = ref
        self._expected = expected
        self._link: PeerLink | None = None
        self._told: list[Neighbour] = []
        self._lock = threading.Lock()
        self._ended = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Returns when no socket is open in the namespace: the end of that is no news."""
        with self._lock:
            self._ended = True
            link = self._link
        self._expected.cancel()
        if link is not None:
            link.close()
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        try:
            link = self._expected.wait(OFFER_S)
            with contextlib.closing(link):
                with self._lock:
                    if self._ended:
                        return
                    self._link = link
                self._tell_all(link)
        except (VrhaError, OSError) as error:
            if not self._ended:
                log.info("the standby of %s is told no more: %s", self._ref, error)

    def _tell_all(self, link: PeerLink) -> None:
        with contextlib.ExitStack() as stack:
            with self._at.inside(self._ref):
                sysctls.apply(sysctls.CONNTRACK)
                source = stack.enter_context(contextlib.closing(Source()))
                news = stack.enter_context(contextlib.closing(neighbours.News()))
            self._tell_neighbours(link)
            self._copy(link, source)
            link.send(Say.COPIED)
            self._follow(link, source, news)

    def _copy(self, link: PeerLink, source: Source) -> None:
        """All entries, and what happens meanwhile: left waiting, it would be too much."""
        for chunk in source.dump():
            for body in (*frames(chunk), *frames(source.pending())):
                link.send(Say.CHANGES, body)

    def _follow(self, link: PeerLink, source: Source, news: neighbours.News) -> None:
        poll = select.poll()
        for one in (source, news, link):
            poll.register(one.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        beat = refresh = time.monotonic()
        met, refresh = beat, refresh + REFRESH_S
        is_stale = False
        while not self._ended:
            poll.poll(max(0.0, (BEAT_S + beat - time.monotonic()) * 1000))
            # Nothing is taken from a standby: this only finds the end of the connection.
            if link.receive(0) is not None:
                raise RefusedError("peer-failed", "the agent of a standby wants to tell something")
            changes = source.pending()
            for body in frames(changes):
                link.send(Say.CHANGES, body)
            if source.overrun:
                self._copy(link, source)
            is_stale |= news.arrived()
            now = time.monotonic()
            if is_stale and now >= met + NEIGHBOURS_S:
                self._tell_neighbours(link)
                met, is_stale = now, False
            if now >= refresh:
                for body in frames(source.fleeting(FLEETING_S)):
                    link.send(Say.CHANGES, body)
                refresh = now + REFRESH_S
            if now >= beat + BEAT_S:
                link.send(Say.BEAT)
                beat = now
            if changes:
                time.sleep(BREATH_S)

    def _tell_neighbours(self, link: PeerLink) -> None:
        with self._at.inside(self._ref):
            known = neighbours.entries()
        if not self._told or _whereabouts(known) != _whereabouts(self._told):
            self._told = known
            link.send(Say.NEIGHBOURS, codec.encode(Neighbourhood.of(known, ())))


class _Follower:
    """The standby's end: a thread that takes what comes, once it has caught up."""

    def __init__(
        self, at: Instances, step: Sync, link: PeerLink, changed: Callable[[], object]
    ) -> None:
        """Raises StepError `no-instance`, `conntrack-socket`."""
        self.ref, self.old = step.new, step.old
        self._at = at
        self._link = link
        self._changed = changed
        self._closing = False
        self._copied = 0
        self._since = time.monotonic()
        self.ended = False
        with at.inside(step.new):
            sysctls.apply(sysctls.CONNTRACK)
            self._target = Target()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def following(self) -> Following:
        target = self._target
        passed = time.monotonic() - self._since
        return Following(self.old, target.held, target.carried().sent - self._copied, passed)

    def start(self) -> None:
        self._since = time.monotonic()
        self._copied = self._target.carried().sent
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        self._link.close()
        self._thread.join()

    def catch_up(self) -> tuple[Carried, ...]:
        """Take all that there is; then what is here and not there goes. Raises VrhaError."""
        known: set[bytes] = set()
        met = Carried("neighbours", 0, 0)
        try:
            for kind, body in self._said(COPY_S):
                if kind == Say.COPIED:
                    self._target.keep_only(known)
                    return met, self._target.carried()
                if kind == Say.CHANGES:
                    for change in changes_of(body):
                        known.discard(change.key) if change.kind is Kind.REMOVED else known.add(
                            change.key
                        )
                met = self._take(kind, body) or met
        except BaseException:
            self._target.close()
            self._link.close()
            raise
        raise AssertionError("a stream that ends raises")

    def _run(self) -> None:
        try:
            for kind, body in self._said(SILENT_S):
                self._take(kind, body)
        except (VrhaError, OSError) as error:
            if not self._closing:
                log.warning("%s follows %s no more: %s", self.ref, self.old, error)
        finally:
            self.ended = True
            self._target.close()
            self._link.close()
            if not self._closing:
                self._changed()

    def _said(self, silent_s: float) -> Iterator[tuple[int, bytes]]:
        while True:
            frame = self._link.receive(silent_s)
            if frame is None:
                raise DeadlineError(
                    "peer-silent", f"the other agent says nothing for {silent_s:g} s"
                )
            yield frame

    def _take(self, kind: int, body: bytes) -> Carried | None:
        """What came of neighbours, if it is about them."""
        if kind == Say.CHANGES:
            self._target.apply(changes_of(body))
        elif kind == Say.NEIGHBOURS:
            known = codec.decode(Neighbourhood, body).table()
            with self._at.opened(self.ref) as inner:
                return neighbours.put(known, inner, self._at.site.home)
        elif kind != Say.BEAT:
            raise RefusedError("peer-failed", f"the other agent says {kind} to a standby")
        return None


def _session(old: InstanceRef, new: InstanceRef) -> str:
    return f"{old}=>{new.generation}"


def _whereabouts(known: list[Neighbour]) -> set[tuple[str, object, bytes]]:
    return {(one.port, one.address, one.mac) for one in known}
