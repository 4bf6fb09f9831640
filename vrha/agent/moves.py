"""Handing a router over to another node: this agent gives, or takes.

The two instances have MACs of their own, and both forward for a while. The taker leads: it copies
and follows the state of the old one over the stream, has it silenced, and only when that is
confirmed lets its own instance speak. So there are never two that answer (I1).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from vrha import codec, failpoints
from vrha.agent.stream import Answer, Stream
from vrha.agent.wire import Neighbourhood, Say, count_of
from vrha.errors import RefusedError, StepError, UnreachableError, VrhaError
from vrha.linux import announce, neighbours, overlap, sysctls
from vrha.linux.build import Stopwatch, Timings, host_ports
from vrha.linux.handover import LEASE_ROUNDS, judge_answers
from vrha.linux.hold import Hold
from vrha.linux.instances import Instances
from vrha.linux.neighbour_check import neighbour_check
from vrha.linux.node import NodeKernel
from vrha.linux.urgency import urgent
from vrha.model.evidence import Carried, Evidence
from vrha.model.spec import InstanceRef, InstanceSpec
from vrha.model.steps import Flip, Offer, Sync, Verify
from vrha.peer import Expectation, Identity, PeerLink, PeerServer, dial

log = logging.getLogger(__name__)

OFFER_S = 120.0
"""How long an offer stands."""
DIAL_S, COPY_S, ANSWER_S = 5.0, 30.0, 5.0
"""Seconds for the connection, between frames of the copy, and for an answer."""
TURN_MS = (0, 1)
"""The first announcements; after the last of them neighbours send to the new one."""
LAST_S = 0.03
"""How long the last neighbours may take to turn to the new one while its packets are held."""
HOLD_S = 0.05
"""Longest hold: should this agent die in it, or be slower than packets should wait."""
ANNOUNCE_MS = (5, 20, 100)
QUIET_S, BUSY_S, _LOOK_S = 0.06, 5.0, 0.02
"""The old one counts as unused after sending nothing for QUIET_S; BUSY_S is the limit for that."""


class Moves:
    """The moves of one node."""

    def __init__(self, kernel: NodeKernel, identity: Identity, server: PeerServer) -> None:
        self._kernel = kernel
        self._at = kernel.instances
        self._identity = identity
        self._server = server
        self._giving: dict[InstanceRef, _Giving] = {}
        self._taking: dict[InstanceRef, _Taking] = {}

    def close(self) -> None:
        """End all streams; what serves goes on serving."""
        for ref in [*self._giving, *self._taking]:
            self.end(ref)

    @property
    def busy(self) -> bool:
        """Whether a router is on its way from here or to here."""
        takes = any(not taking.stream.ended for taking in list(self._taking.values()))
        return takes or self.gives

    @property
    def gives(self) -> bool:
        """Whether a router is being given away, or offered."""
        return any(giving.lives for giving in list(self._giving.values()))

    def end(self, ref: InstanceRef) -> None:
        """`ref` is about to go, or to be left alone: nothing of it flows any more."""
        giving = self._giving.pop(ref, None)
        if giving is not None:
            giving.close()
        taking = self._taking.pop(ref, None)
        if taking is not None:
            taking.close()
            self.join(ref)

    # --- giving -----------------------------------------------------------------------------

    def offer(self, step: Offer) -> tuple[Timings, Evidence]:
        """Wait in the background for the agent that takes the router.

        Raises StepError `not-active`, `no-instance`, InputError `peer-certificate`.
        """
        self.end(step.old)
        if not self._at.active_ports(step.old):
            raise StepError("not-active", f"{step.old} does not serve, there is nothing to give")
        spec = self._at.spec(step.old)
        session = _session(step.old, step.new)
        expected = self._server.expect(session, step.peer.certificate, step.peer.token, OFFER_S)
        self._giving[step.old] = _Giving(self, spec, expected)
        return (), Evidence()

    def give(self, giving: _Giving, link: PeerLink) -> None:
        """All state, and what follows, until the stream ends. In a thread of its own.

        Raises VrhaError.
        """
        ref, spec = giving.ref, giving.spec
        with self._at.apart() as at:
            with at.opened(ref) as inner:
                heard = neighbour_check(spec, inner, at.site.home, at.closer)
            with at.inside(ref):
                sysctls.apply(sysctls.CONNTRACK)
                overlap.keep_apart(at.site.rule_tools.nft, spec, is_new=False)
                known = neighbours.entries()
                stream = Stream(link, self._answers(giving, at))
            try:
                link.send(Say.NEIGHBOURS, codec.encode(Neighbourhood.of(known, heard)))
                stream.copy()
            except BaseException:
                stream.abandon()
                raise
            giving.flows(stream)
            stream.run()

    def _answers(self, giving: _Giving, at: Instances) -> dict[Say, Answer]:
        """None waits for this agent's steps: one of them may be waiting for the agent that asks."""
        ref = giving.ref

        def silence() -> tuple[Say, bytes]:
            with giving.still_given():
                at.silence(ref)
            return Say.SILENT, b""

        def count() -> tuple[Say, bytes]:
            sent = sum(port["tx_packets"] for port in at.packets(ref).values())
            return Say.COUNTED, str(sent).encode()

        return {
            Say.LEASES: lambda: (Say.LEASES_ARE, at.leases(ref)),
            Say.SILENCE: silence,
            Say.COUNT: count,
        }

    def take_back(self, ref: InstanceRef) -> None:
        """`ref` serves again, and whoever was taking it may not silence it any more.

        Raises as NodeKernel.unmute.
        """
        giving = self._giving.get(ref)
        if giving is not None:
            giving.revoke()
        stream = giving.stream if giving else None
        if stream is None:
            self._kernel.unmute(ref)
            return
        with contextlib.ExitStack() as stack:
            try:
                self._hold_live(self._at.spec(ref), stack)
            except StepError as error:
                log.warning("%s takes its traffic back without a hold: %s", ref, error)
            stack.enter_context(urgent())
            self._kernel.unmute(ref)
            # Connections that began at the other one in its last moment.
            stream.await_last(LAST_S)

    def _hold_live(self, spec: InstanceSpec, stack: contextlib.ExitStack) -> None:
        """As `_held`, for a relay. One that never came from another node has no queues; then a
        connection that began a moment ago may lose a packet."""
        if Hold(self._at.site.route, host_ports(spec)).lossless:
            stack.enter_context(self._held(spec))

    def bring_back(self, ref: InstanceRef) -> None:
        """`ref` serves again: what the taker has granted meanwhile, then the end of the stream."""
        giving = self._giving.get(ref)
        stream = giving.stream if giving else None
        if stream is not None:
            try:
                leases = stream.ask(Say.LEASES, Say.LEASES_ARE, ANSWER_S)
                self._at.put_leases(ref, leases)
                stream.ask(Say.FLUSH, Say.FLUSHED, ANSWER_S)
            except (VrhaError, OSError) as error:
                log.warning("not all comes back to %s: %s", ref, error)
        self.end(ref)
        self.join(ref)

    def join(self, ref: InstanceRef) -> None:
        """The overlap of `ref` with another instance is over."""
        with contextlib.suppress(VrhaError), self._at.inside(ref):
            overlap.join(self._at.site.rule_tools.nft)

    # --- taking -----------------------------------------------------------------------------

    def sync(self, step: Sync) -> tuple[Timings, Evidence]:
        """Bring the state of the offered instance into ours, and follow it.

        Raises UnreachableError, RefusedError (`peer-refused`), DeadlineError (`peer-silent`),
        StepError.
        """
        assert step.peer is not None
        watch = Stopwatch()
        taking = self._taking.get(step.new)
        if taking is not None and not taking.stream.ended:
            # The command came twice; its token is used up.
            return watch.timings, Evidence((*taking.carried, taking.stream.target.carried()))
        self.end(step.new)
        spec = self._at.spec(step.new)
        with watch.phase("connect"):
            link = dial(
                step.peer.address,
                self._identity,
                step.peer.certificate,
                _session(step.old, step.new),
                step.peer.token,
                DIAL_S,
            )
        try:
            with self._at.inside(step.new):
                sysctls.apply(sysctls.CONNTRACK)
                answers: dict[Say, Answer] = {
                    Say.LEASES: lambda: (Say.LEASES_ARE, self._at.leases(step.new))
                }
                stream = Stream(link, answers)
        except BaseException:
            link.close()
            raise
        try:
            with watch.phase("neighbours"):
                place = self._neighbourhood(stream)
                with self._at.opened(step.new) as inner:
                    carried = neighbours.put(place.table(), inner, self._at.site.home)
            with watch.phase("connections"):
                _expect(stream, Say.COPIED)
            with self._at.inside(step.new):
                overlap.keep_apart(self._at.site.rule_tools.nft, spec, is_new=True)
        except BaseException:
            stream.abandon()
            raise
        self._taking[step.new] = _Taking(stream, place, [carried])
        return watch.timings, Evidence((carried, stream.target.carried()))

    def _neighbourhood(self, stream: Stream) -> Neighbourhood:
        body = _expect(stream, Say.NEIGHBOURS)
        return codec.decode(Neighbourhood, body)

    def flip(self, step: Flip) -> tuple[Timings, Evidence]:
        """Silence the old one, then let ours speak; a flip that has happened stays so.

        Raises StepError `not-synced`, `cannot-follow`, `peer-failed`, and as `sync`.
        """
        watch = Stopwatch()
        spec = self._at.spec(step.new)
        if self._speaks(spec):
            with watch.phase("announce"):
                self._kernel.announce(step.new)
            return watch.timings, Evidence()
        taking = self._taking_of(step.new)
        with watch.phase("leases"):
            self._bring_leases(step.new, taking)
        with watch.phase("drain"):
            taking.stream.catch_up()
        with contextlib.ExitStack() as stack:
            with watch.phase("prepare"):
                ports = stack.enter_context(self._at.announcer(spec))
                held = stack.enter_context(self._held(spec))
                stack.enter_context(urgent())
                taking.stream.flush(ANSWER_S)
            with watch.phase("flip"):
                taking.stream.ask(Say.SILENCE, Say.SILENT, ANSWER_S)
                failpoints.reach("flip.inside")
                ours = host_ports(spec)
                self._at.switch.change(unmute=ours, serve=ours)
                announce.send_bursts(ports, TURN_MS, lambda: None)
            with watch.phase("held"):
                taking.stream.await_last(LAST_S)
                held.release()
        with watch.phase("announce"):
            self._kernel.announce(step.new, ANNOUNCE_MS)
        return watch.timings, Evidence()

    def _bring_leases(self, ref: InstanceRef, taking: _Taking) -> None:
        """Again while more are granted: bringing them takes a moment."""
        brought = None
        for _ in range(LEASE_ROUNDS):
            leases = taking.stream.ask(Say.LEASES, Say.LEASES_ARE, ANSWER_S)
            count = self._at.put_leases(ref, leases, complete=True)
            if count is None:
                break
            brought = count
        if brought is not None:
            taking.carried.append(Carried("leases", brought, brought))

    def _speaks(self, spec: InstanceSpec) -> bool:
        active = set(self._at.active_ports(spec.ref)) - set(self._at.relay_ports(spec.ref))
        return active >= set(host_ports(spec))

    @contextlib.contextmanager
    def _held(self, spec: InstanceSpec) -> Iterator[Hold]:
        """Packets to the new one wait until it knows what the old one knew: then neither NAT
        ports nor states can differ.
        """
        held = Hold(self._at.site.route, host_ports(spec))
        try:
            if not Hold.available():
                held.engage(HOLD_S)
            yield held
        finally:
            held.release()
            held.close()

    def verify(self, step: Verify) -> tuple[Timings, Evidence]:
        """The neighbours answer ours, and nobody sends to the old one any more.

        When the other agent has died since the flip, ours serves all the same, and announces
        itself once more in place of the second. Raises StepError `neighbours-silent`,
        `relay-busy`, `not-synced`.
        """
        watch = Stopwatch()
        taking = self._taking.get(step.new)
        if taking is None:
            raise StepError("not-synced", f"nothing has come into {step.new} from another node")
        spec = self._at.spec(step.new)
        with watch.phase("neighbours"), self._at.opened(step.new) as inner:
            answers = neighbour_check(spec, inner, self._at.site.home, self._at.closer)
        judge_answers(spec, taking.place.heard, answers)
        with watch.phase("quiet"):
            try:
                self._await_quiet(step.old, taking.stream)
            except VrhaError as error:
                if not (taking.stream.ended or isinstance(error, UnreachableError)):
                    raise
                log.warning("%s is not seen to be quiet: %s", step.old, error)
                self._kernel.announce(step.new)
        self.join(step.new)
        return watch.timings, Evidence((*taking.carried, taking.stream.target.carried()))

    def _await_quiet(self, old: InstanceRef, stream: Stream) -> None:
        """Wait until the old one sends nothing: silenced, it sends only what it forwards."""
        begin = since = time.monotonic()
        seen = -1
        while True:
            sent = count_of(stream.ask(Say.COUNT, Say.COUNTED, ANSWER_S))
            now = time.monotonic()
            if sent != seen:
                seen, since = sent, now
            elif now - since >= QUIET_S:
                return
            if now - begin > BUSY_S:
                raise StepError(
                    "relay-busy",
                    f"neighbours still send to {old} {BUSY_S:g} s after the announcements",
                    "Does one of them have a fixed ARP entry, or does a switch filter ARP?",
                )
            time.sleep(_LOOK_S)

    def takes(self, ref: InstanceRef) -> bool:
        """Whether `ref` is being taken from another node."""
        return ref in self._taking

    def _taking_of(self, ref: InstanceRef) -> _Taking:
        taking = self._taking.get(ref)
        if taking is None or taking.stream.ended:
            raise StepError("not-synced", f"nothing flows into {ref} from another node")
        return taking


class _Giving:
    """A thread that waits for the taker, and then holds the stream."""

    def __init__(self, moves: Moves, spec: InstanceSpec, expected: Expectation) -> None:
        self.spec = spec
        self.ref = spec.ref
        self._moves = moves
        self._expected = expected
        self._link: PeerLink | None = None
        self._stream: Stream | None = None
        self._revoked = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="giving", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def still_given(self) -> Iterator[None]:
        """It is not revoked during the block. Raises RefusedError (`not-given`)."""
        with self._lock:
            if self._revoked:
                raise RefusedError("not-given", f"{self.ref} is not given away any more")
            yield

    def revoke(self) -> None:
        """The taker may silence the instance no more; what flows goes on flowing."""
        with self._lock:
            self._revoked = True

    def flows(self, stream: Stream) -> None:
        """The state has been sent, and `stream` is about to run."""
        with self._lock:
            self._stream = stream

    @property
    def stream(self) -> Stream | None:
        """What flows; None before and after that."""
        with self._lock:
            return None if self._stream is None or self._stream.ended else self._stream

    @property
    def lives(self) -> bool:
        """Whether the taker is waited for, or the stream flows."""
        return self._thread.is_alive()

    def close(self) -> None:
        with self._lock:
            self._revoked = True
            link, stream = self._link, self._stream
        self._expected.cancel()
        if stream is not None:
            stream.close()
        elif link is not None:
            link.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            link = self._expected.wait(OFFER_S)
            try:
                with self.still_given():
                    self._link = link
                self._moves.give(self, link)
            finally:
                link.close()
        except (VrhaError, OSError) as error:
            if not self._revoked:
                log.warning("%s is not given away: %s", self.ref, error)
        finally:
            self._moves.join(self.ref)


class _Taking:
    """The taker's stream with its thread, and what it keeps between its steps."""

    def __init__(self, stream: Stream, place: Neighbourhood, carried: list[Carried]) -> None:
        self.stream = stream
        self.place = place
        self.carried = carried
        self._thread = threading.Thread(target=stream.run, name="taking", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.stream.close()
        self._thread.join()


def _session(old: InstanceRef, new: InstanceRef) -> str:
    return f"{old}>{new.generation}"


def _expect(stream: Stream, wanted: Say) -> bytes:
    kind, body = stream.receive(COPY_S)
    if kind != wanted:
        raise RefusedError("peer-failed", f"the other agent said {kind} in place of {wanted}")
    return body
