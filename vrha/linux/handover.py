"""Handing the traffic of an instance over to its replacement on the same node.

Both have the same MACs. While the replacement is muted everything that the old one knows is
brought into it and followed. Then one nftables transaction lets the new one speak and silences
the old one, which still forwards; and one rtnetlink message batch moves the MACs to the new ports.
Until that batch the old one gets all unicast frames, afterwards the new one: there is no moment
in which nobody forwards, and none in which two answer.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from vrha import failpoints
from vrha.errors import StepError, VrhaError
from vrha.linux import announce, neighbours, overlap, sysctls
from vrha.linux.addresses import mac_bytes
from vrha.linux.build import Stopwatch, Timings, host_ports, port_states
from vrha.linux.canary import Canary, remove_leftovers
from vrha.linux.fdb import set_fdb
from vrha.linux.following import Following
from vrha.linux.hold import Hold
from vrha.linux.instances import Instances
from vrha.linux.neighbour_check import PortAnswers, neighbour_check
from vrha.linux.netlink import Message, NetlinkError
from vrha.linux.urgency import urgent
from vrha.model.evidence import Carried, Evidence, Measured
from vrha.model.spec import InstanceRef, InstanceSpec

log = logging.getLogger(__name__)

LINGER_S = 0.05
"""Seconds in which the silenced instance still forwards what had reached it before the flip."""
SETTLE_S = 0.0008
"""Seconds until frames on their way to the old ports have passed, while new ones are held."""
PROOF_S = 0.03
"""Seconds of probes that must have come through the new one before it is believed."""
LEASE_ROUNDS = 3
"""How often leases are brought at most, when more are granted all the time."""
SWITCH_S = 0.0005
"""How long another thread may hold this one up."""
CATCH_UP_S = 5.0
"""Seconds for the changes that have piled up since the sync began."""


@dataclass(slots=True)
class _Session:
    """What is kept between the steps of one handover; gone when the agent starts again."""

    old: InstanceRef
    new: InstanceRef
    following: Following
    canary: Canary | None
    heard: tuple[PortAnswers, ...] = ()
    """Who answered the old one."""
    carried: list[Carried] = field(default_factory=list)

    def close(self) -> tuple[Measured, ...]:
        self.following.close()
        return self.canary.stop() if self.canary else ()


class Handovers:
    """The handovers of one node. Every step may be repeated, also by the next agent."""

    def __init__(self, instances: Instances) -> None:
        self._at = instances
        self._sessions: list[_Session] = []

    def close(self) -> None:
        """Stop following; what serves goes on serving."""
        while self._sessions:
            self._sessions.pop().close()

    def tidy(self) -> None:
        """Remove what an agent that was killed has left of its handovers: none of them goes on.

        Never raises; call it before the first step.
        """
        for ref in self._at.refs():
            try:
                self._tidy(ref)
            except (VrhaError, OSError) as error:
                log.warning("of a handover of %s something may be left: %s", ref, error)

    def _tidy(self, ref: InstanceRef) -> None:
        with self._at.inside(ref):
            overlap.join(self._at.site.rule_tools.nft)
            is_marked = any(n.state & neighbours.PERMANENT for n in neighbours.entries())
        if is_marked:
            remove_leftovers(self._at.spec(ref), [ref], self._at.site.route, self._at.site.home)

    def touches(self, ref: InstanceRef) -> bool:
        """Whether the instance is being handed over."""
        return any(ref in (session.old, session.new) for session in tuple(self._sessions))

    def end(self, ref: InstanceRef) -> None:
        """`ref` is about to go: stop following it."""
        # Others may end theirs at the same time.
        for session in [s for s in tuple(self._sessions) if ref in (s.old, s.new)]:
            self._sessions.remove(session)
            session.close()

    def sync(self, old: InstanceRef, new: InstanceRef) -> tuple[Timings, Evidence]:
        """Bring neighbours and connections of `old` into `new`, and follow them.

        Raises StepError `no-instance`, and those of the parts.
        """
        watch = Stopwatch()
        self.end(new)
        spec = self._at.spec(old)
        with self._at.opened(old) as source, self._at.opened(new) as target, ExitStack() as stack:
            if not self._at.active_ports(new):
                with watch.phase("freeze"):
                    self._bind(spec)
            for ref in (old, new):
                with self._at.inside(ref):
                    sysctls.apply(sysctls.CONNTRACK)
            following = Following(source, target, self._at.site.home)
            stack.callback(following.close)
            canary = Canary(spec, self._at.site.route, self._at.site.home)
            stack.callback(canary.stop)
            with watch.phase("neighbours"):
                heard = neighbour_check(spec, source, self._at.site.home, self._at.closer)
                carried = [neighbours.copy(source, target, self._at.site.home)]
                canary.prepare(old)
                canary.prepare(new)
            with watch.phase("connections"):
                carried.append(following.copy())
            with watch.phase("canary"):
                canary.start()
            stack.pop_all()
        self._sessions.append(_Session(old, new, following, canary, heard, carried))
        return watch.timings, Evidence(tuple(carried))

    def flip(self, old: InstanceRef, new: InstanceRef, hold: bool) -> Timings:
        """Turn the traffic from `old` to `new`; `old` becomes a relay.

        The way back is the same call with the two exchanged. Raises StepError `no-instance`,
        `not-active` (neither of them serves), `port-not-forwarding` and `flip-failed` (then `old`
        serves as before), those of the hold and of `sync`, `dnsmasq-failed`, `announce-failed`.
        """
        watch = Stopwatch()
        spec = self._at.spec(new)
        leaving = self._at.active_ports(old)
        # Ports that are heard already must not be held any more.
        hold = hold and bool(leaving) and not self._at.relay_ports(old)
        if not leaving and not self._at.active_ports(new):
            raise StepError("not-active", f"neither {old} nor {new} serves")
        if leaving:
            self._prepare(old, new, watch)
        moves = self._moves(spec)
        session = self._session(old, new)
        with ExitStack() as stack:
            with watch.phase("prepare"):
                ports = stack.enter_context(self._at.announcer(spec))
                held = stack.enter_context(self._held(spec)) if hold else None
                stack.enter_context(_no_interruption())
            with watch.phase("drain"):
                if session is not None and session.canary is not None and leaving:
                    session.canary.distrust_lossy()
                _drain(session)
            with watch.phase("flip"):
                self._turn(old, leaving, spec, moves)
            if held is not None:
                with watch.phase("held"):
                    time.sleep(SETTLE_S)
                    _drain(session)
                    held.release()
            announce.send_bursts(ports, (0,), lambda: None)
        if leaving:
            with watch.phase("linger"):
                time.sleep(LINGER_S)
                _drain(session)
        return watch.timings

    def verify(
        self, old: InstanceRef, new: InstanceRef, max_lost: int | None
    ) -> tuple[Timings, Evidence]:
        """Whether packets pass through `new`.

        Raises StepError `neighbours-silent`, `canary-silent`, `too-many-lost`.
        """
        watch = Stopwatch()
        spec = self._at.spec(new)
        session = self._session(old, new)
        with watch.phase("neighbours"), self._at.opened(new) as inner:
            answers = neighbour_check(spec, inner, self._at.site.home, self._at.closer)
        measured: tuple[Measured, ...] = ()
        if session is not None and session.canary is not None:
            with watch.phase("canary"):
                time.sleep(PROOF_S)
                measured, session.canary = session.canary.stop(), None
        judge_answers(spec, session.heard if session else (), answers)
        judge(measured, max_lost)
        carried = tuple(session.carried[:-1]) if session else ()
        if session is not None:
            carried += (session.following.carried(),)
        return watch.timings, Evidence(carried, measured)

    def _bind(self, spec: InstanceSpec) -> None:
        try:
            self._at.site.route.talk(self._moves(spec))
        except NetlinkError as error:
            raise StepError(
                "flip-failed", f"the bridge refused the MACs of {spec.ref}: {error.strerror}"
            ) from error

    def _moves(self, spec: InstanceSpec) -> list[Message]:
        index = self._at.port_indices(spec)
        return [set_fdb(index[port.name], mac_bytes(port)) for port in spec.ports]

    def _turn(
        self,
        old: InstanceRef,
        leaving: Sequence[str],
        spec: InstanceSpec,
        moves: Sequence[Message],
    ) -> None:
        """The flip itself. Its two calls are a tenth of a millisecond apart.

        All messages of the second are one sendmsg, so not even SIGKILL can divide them.
        """
        ports = host_ports(spec)
        self._at.switch.change(unmute=ports, relay=leaving, serve=ports)
        failpoints.reach("flip.inside")
        try:
            self._at.site.route.talk(moves)
        except NetlinkError as error:
            if leaving:
                try:
                    self._bind(self._at.spec(old))
                finally:
                    self._at.switch.change(mute=ports, serve=(*ports, *leaving))
            raise StepError(
                "flip-failed", f"the bridge refused the MACs of {spec.ref}: {error.strerror}"
            ) from error

    def _prepare(self, old: InstanceRef, new: InstanceRef, watch: Stopwatch) -> None:
        """Bring what must not wait for the flip: what another life of the agent had followed, and
        the leases granted meanwhile.

        What fails here fails the step while `old` serves unharmed. One of them is a relay already
        on the way back, when `old` is the sick one, and when another life of the agent has begun
        to flip: then nothing is better than to go on.
        """
        is_again = bool(self._at.relay_ports(old))
        has_begun = is_again or bool(self._at.relay_ports(new))
        try:
            if not has_begun:
                self._refuse_deaf(new)
            if self._session(old, new) is None:
                with watch.phase("resync"):
                    if has_begun:
                        self._follow(old, new)
                    else:
                        self.sync(old, new)
            # A relay has granted none, and what it knows is older.
            if not is_again:
                with watch.phase("leases"):
                    self._bring_leases(old, new)
            with watch.phase("catch-up"):
                _catch_up(self._session(old, new))
        except (VrhaError, OSError):
            if not has_begun:
                raise
            log.exception("not all of %s could be brought into %s", old, new)

    def _refuse_deaf(self, ref: InstanceRef) -> None:
        _, bad = port_states(self._at.site.route, self._at.spec(ref))
        if bad:
            raise StepError(
                "port-not-forwarding", f"ports {', '.join(bad)} of {ref} forward no longer"
            )

    def _follow(self, old: InstanceRef, new: InstanceRef) -> None:
        """Only the connections, at once."""
        with self._at.opened(old) as source, self._at.opened(new) as target:
            following = Following(source, target, self._at.site.home)
        try:
            carried = following.copy()
        except BaseException:
            following.close()
            raise
        self._sessions.append(_Session(old, new, following, None, (), [carried]))

    def _bring_leases(self, old: InstanceRef, new: InstanceRef) -> None:
        """Again while more are granted: bringing them takes a moment."""
        brought = None
        for _ in range(LEASE_ROUNDS):
            count = self._at.put_leases(new, self._at.leases(old))
            if count is None:
                break
            brought = count
        session = self._session(old, new)
        if session is not None and brought is not None:
            session.carried.insert(0, Carried("leases", brought, brought))

    @contextmanager
    def _held(self, spec: InstanceSpec) -> Iterator[Hold]:
        held = Hold(self._at.site.route, host_ports(spec))
        try:
            held.engage()
            yield held
        finally:
            held.release()
            held.close()

    def _session(self, one: InstanceRef, other: InstanceRef) -> _Session | None:
        pair = {one, other}
        return next((s for s in self._sessions if {s.old, s.new} == pair), None)


def judge_answers(
    spec: InstanceSpec, before: Sequence[PortAnswers], after: Sequence[PortAnswers]
) -> None:
    """Whether those who answered the old instance answer the new one.

    One machine may have gone just now; a gateway, or all machines of a port, are not silent by
    chance. Raises StepError `neighbours-silent`.
    """
    heard = {answers.port: set(answers.answered) for answers in before}
    gateways = set(spec.router.uplink.gateways) if spec.router.uplink else set()
    for answers in after:
        known = heard.get(answers.port, set())
        lost = known & set(answers.silent)
        if lost & gateways or (lost and not answers.answered):
            who = ", ".join(sorted(map(str, lost)))
            raise StepError(
                "neighbours-silent",
                f"port {answers.port} of {spec.ref}: {who} answered before, and no longer do",
            )


def judge(measured: Sequence[Measured], max_lost: int | None) -> None:
    """Whether what was measured is good enough. Raises StepError `canary-silent`,
    `too-many-lost`.
    """
    for stream in measured:
        if stream.unavailable or not stream.sent:
            continue
        if stream.lost and _ends_silent(stream):
            raise StepError("canary-silent", f"{stream.stream}: no probe comes through any more")
        if max_lost is not None and stream.lost > max_lost:
            raise StepError(
                "too-many-lost",
                f"{stream.stream}: {stream.lost} of {stream.sent} probes lost, limit {max_lost}",
            )


def _ends_silent(stream: Measured) -> bool:
    """Whether nothing has come back since the beginning of the last gap."""
    start, length = stream.gaps_ms[-1] if stream.gaps_ms else (0.0, 0.0)
    # Probes that a busy process never sent have taken their time, too.
    end = (stream.sent + stream.late_ticks) * stream.interval_ms
    return length > 10 * stream.interval_ms and start + length >= end - 2 * stream.interval_ms


def _catch_up(session: _Session | None) -> None:
    """Raises StepError `cannot-follow`."""
    if session is None or session.following.catch_up(CATCH_UP_S):
        return
    raise StepError(
        "cannot-follow",
        f"connections of {session.old} change faster than they can be carried over",
        "Try again when there is less load on the node.",
    )


def _drain(session: _Session | None) -> None:
    if session is None:
        return
    try:
        session.following.drain()
    except VrhaError:
        log.exception("connections of %s could not be followed to the end", session.old)


@contextmanager
def _no_interruption() -> Iterator[None]:
    """A garbage collection or a busy thread in the wrong millisecond would be a gap."""
    was_enabled, interval = gc.isenabled(), sys.getswitchinterval()
    gc.disable()
    sys.setswitchinterval(SWITCH_S)
    try:
        with urgent():
            yield
    finally:
        sys.setswitchinterval(interval)
        if was_enabled:
            gc.enable()
