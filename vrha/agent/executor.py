"""Carries out commands on this node: one function per kind of step, each idempotent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from vrha import failpoints
from vrha.agent.epochs import Epochs
from vrha.agent.herald import Herald
from vrha.agent.mirror import Mirrors
from vrha.agent.moves import Moves
from vrha.errors import InputError, PreconditionError, StepError, VrhaError
from vrha.linux.build import Timings
from vrha.linux.node import NodeKernel
from vrha.model.evidence import NO_EVIDENCE, Evidence
from vrha.model.messages import CheckIn, Command, Message, Outcome, StepReport
from vrha.model.spec import InstanceRef
from vrha.model.steps import (
    Announce,
    AwaitCheckIn,
    Build,
    Configure,
    Confirm,
    Destroy,
    Flip,
    Mute,
    Offer,
    Relay,
    Step,
    Swap,
    Sync,
    TakeOver,
    Unmute,
    Verify,
)

log = logging.getLogger(__name__)

CAPABILITIES = ("serial", "parallel", "handover", "nftables", "iptables")


@dataclass(frozen=True, slots=True)
class Hands:
    """What carries out steps; no `moves` and `mirrors` where agents do not reach each other."""

    kernel: NodeKernel
    moves: Moves | None = None
    mirrors: Mirrors | None = None
    herald: Herald | None = None

    def hands_over(self, instance: InstanceRef) -> bool:
        """Whether the instance is, or may be, on its way to another one."""
        moves = self.moves is not None and self.moves.busy
        return moves or self.kernel.handovers.touches(instance)

    @property
    def moving(self) -> Moves:
        """Raises PreconditionError `no-moves`."""
        if self.moves is None:
            raise PreconditionError(
                "no-moves", "this agent takes part in no moves", "Set sync_listen in its settings."
            )
        return self.moves

    @property
    def mirroring(self) -> Mirrors:
        """Raises PreconditionError `no-moves`."""
        if self.mirrors is None:
            raise PreconditionError(
                "no-moves", "this agent keeps no standbys", "Set sync_listen in its settings."
            )
        return self.mirrors

    def leave(self, ref: InstanceRef) -> None:
        """Nothing flows between the instance and other nodes any more."""
        if self.moves is not None:
            self.moves.end(ref)
        if self.mirrors is not None:
            self.mirrors.end(ref)


Done = tuple[Timings, Evidence]
"""Phases of a step, and what it carried and measured."""


def _build(hands: Hands, step: Step) -> Done:
    assert isinstance(step, Build)
    timings = hands.kernel.build(step.spec, step.leases_from, step.leases)
    if step.ready:
        hands.kernel.ready(step.spec.ref)
    else:
        # Before the check-in: whoever is handed the traffic must be able to speak at once.
        hands.kernel.await_permission(step.spec.ref)
    return timings, NO_EVIDENCE


def _confirm(hands: Hands, step: Step) -> Done:
    assert isinstance(step, Confirm)
    if hands.mirrors is not None:
        # What still flows in would be older than what it sees itself from now on.
        hands.mirrors.take_over(step.instance)
    hands.kernel.await_permission(step.instance)
    if hands.herald is None:
        raise PreconditionError("not-governed", "no watcher governs this node")
    return (), Evidence(announced_at=hands.herald.confirm(step.instance))


def _swap(hands: Hands, step: Step) -> Done:
    assert isinstance(step, Swap)
    hands.kernel.swap(step.old, step.new)
    return (), NO_EVIDENCE


def _offer(hands: Hands, step: Step) -> Done:
    assert isinstance(step, Offer)
    if step.standby:
        return hands.mirroring.offer(step)
    return hands.moving.offer(step)


def _sync(hands: Hands, step: Step) -> Done:
    assert isinstance(step, Sync)
    if step.standby:
        done = hands.mirroring.sync(step)
        # Where it was not known who serves, every other instance was made a relay.
        hands.kernel.ready(step.new)
        return done
    if step.peer is not None:
        return hands.moving.sync(step)
    return hands.kernel.handovers.sync(step.old, step.new)


def _flip(hands: Hands, step: Step) -> Done:
    assert isinstance(step, Flip)
    if step.from_peer:
        return hands.moving.flip(step)
    return hands.kernel.handovers.flip(step.old, step.new, step.hold), NO_EVIDENCE


def _verify(hands: Hands, step: Step) -> Done:
    assert isinstance(step, Verify)
    if hands.moves is not None and hands.moves.takes(step.new):
        return hands.moves.verify(step)
    return hands.kernel.handovers.verify(step.old, step.new, step.max_lost)


def _relay(hands: Hands, step: Step) -> Done:
    assert isinstance(step, Relay)
    hands.kernel.relay(step.instance)
    return (), NO_EVIDENCE


def _mute(hands: Hands, step: Step) -> Done:
    assert isinstance(step, Mute)
    hands.kernel.mute(step.instance)
    return (), NO_EVIDENCE


def _unmute(hands: Hands, step: Step) -> Done:
    assert isinstance(step, Unmute)
    if hands.mirrors is not None:
        hands.mirrors.take_over(step.instance)
    if hands.moves is not None:
        hands.moves.take_back(step.instance)
    else:
        hands.kernel.unmute(step.instance)
    return (), NO_EVIDENCE


def _announce(hands: Hands, step: Step) -> Done:
    assert isinstance(step, Announce)
    hands.kernel.announce(step.instance)
    if hands.moves is not None:
        hands.moves.bring_back(step.instance)
    return (), NO_EVIDENCE


def _configure(hands: Hands, step: Step) -> Done:
    assert isinstance(step, Configure)
    return hands.kernel.configure(step.spec, step.previous), NO_EVIDENCE


def _destroy(hands: Hands, step: Step) -> Done:
    assert isinstance(step, Destroy)
    hands.leave(step.instance)
    return hands.kernel.destroy(step.instance), NO_EVIDENCE


def _not_ours(hands: Hands, step: Step) -> Done:
    raise InputError("not-for-agents", f"{step.kind} is a step of the orchestrator")


ACTIONS: dict[type[Step], Callable[[Hands, Step], Done]] = {
    Build: _build,
    AwaitCheckIn: _not_ours,
    TakeOver: _not_ours,
    Confirm: _confirm,
    Swap: _swap,
    Offer: _offer,
    Sync: _sync,
    Flip: _flip,
    Verify: _verify,
    Relay: _relay,
    Mute: _mute,
    Unmute: _unmute,
    Announce: _announce,
    Configure: _configure,
    Destroy: _destroy,
}


@dataclass(frozen=True, slots=True)
class Executor:
    """Takes commands for `node`; refuses what is older than what it has seen, and what is over."""

    node: str
    hands: Hands
    epochs: Epochs
    takes: frozenset[type[Step]] | None = None
    """The only kinds of steps that are taken; None: all."""

    def may_run_beside_others(self, command: Command) -> bool:
        """Whether all that the command does concerns nobody's traffic but that of instances which
        are not being handed over: to build, to let speak, to destroy what is muted."""
        return all(self._disturbs_nobody(step) for step in command.steps)

    def _disturbs_nobody(self, step: Step) -> bool:
        match step:
            case Build() | Confirm():
                return True
            case Unmute(instance=instance) | Announce(instance=instance):
                return not self.hands.hands_over(instance)
            case Destroy(instance=instance):
                return self.hands.kernel.is_muted(instance)
        return False

    def execute(self, command: Command, received: float) -> tuple[Message, ...]:
        """Take the steps in order, stop at the first that fails; what there is to say about it.

        `received`: when the command came, in seconds of the monotonic clock. Nothing is said
        before the batch has ended: between muting the old and announcing the new one not even a
        message may cost time. Raises InputError for a command to another node.
        """
        if command.node != self.node:
            raise InputError("wrong-node", f"command for {command.node} reached {self.node}")
        refusal = self._refusal(command)
        if refusal is not None:
            log.warning("run %s: refused: %s", command.run, refusal.detail)
            return (refusal,)
        said: list[Message] = []
        for index, step in enumerate(command.steps):
            report, proof = self._take(command, index, step, received)
            said += [*proof, report]
            if report.outcome is not Outcome.DONE:
                break
        return tuple(said)

    def _refusal(self, command: Command) -> StepReport | None:
        """Why the command is not taken at all; None when it is, and remembered as the newest."""
        mark = command.epoch, command.order
        try:
            highest = self.epochs.raise_to(command.router, mark)
        except StepError as error:
            return _report(command, 0, Outcome.FAILED, error.code, error.message)
        if mark == highest:
            return None
        code = "stale-epoch" if command.epoch < highest[0] else "stale-command"
        detail = f"epoch {mark[0]}, order {mark[1]} of {command.router} is over; "
        detail += f"this node has {highest[0]}, {highest[1]}"
        return _report(command, 0, Outcome.REFUSED, code, detail)

    def _take(
        self, command: Command, index: int, step: Step, received: float
    ) -> tuple[StepReport, tuple[CheckIn, ...]]:
        began, start = time.time(), time.monotonic()
        if command.valid_s is not None and start > received + command.valid_s:
            detail = f"it came {start - received:.1f} s ago and was valid for {command.valid_s:g} s"
            return _report(command, index, Outcome.REFUSED, "expired", detail), ()
        if self.takes is not None and type(step) not in self.takes:
            detail = f"a stand-in for the agent of {self.node} takes no {step.kind}"
            return _failed(command, index, "stand-in", detail, began, start), ()
        proof: tuple[CheckIn, ...] = ()
        try:
            place = f"agent.{'undo-' if command.undo else ''}{step.kind}"
            failpoints.reach(f"{place}.before")
            timings, evidence = ACTIONS[type(step)](self.hands, step)
            failpoints.reach(f"{place}.after")
            if isinstance(step, Build) and command.token:
                proof = (self._check_in(command, step, start),)
        except VrhaError as error:
            log.warning("run %s: %s failed: %s", command.run, step.kind, error)
            return _failed(command, index, error.code, error.message, began, start), ()
        except Exception as error:
            # Also what is a bug: the run must hear of it now, not at its deadline.
            log.exception("run %s: %s failed", command.run, step.kind)
            code = "os-error" if isinstance(error, OSError) else "internal"
            detail = f"{type(error).__name__}: {error}"
            return _failed(command, index, code, detail, began, start), ()
        total = _total(start)
        log.info("run %s: %s done in %.1f ms", command.run, step.kind, total[1])
        done = _report(
            command,
            index,
            Outcome.DONE,
            timings=(*timings, total),
            evidence=evidence,
            began=began,
        )
        return done, proof

    def _check_in(self, command: Command, step: Build, start: float) -> CheckIn:
        self_test = self.hands.kernel.self_test(step.spec)
        return CheckIn(
            run=command.run,
            router=command.router,
            instance=step.spec.ref,
            epoch=command.epoch,
            node=self.node,
            token=command.token,
            self_test=self_test,
            build_ms=(time.monotonic() - start) * 1000,
        )


def _total(start: float) -> tuple[str, float]:
    return ("total", (time.monotonic() - start) * 1000)


def _failed(
    command: Command, index: int, code: str, detail: str, began: float, start: float
) -> StepReport:
    spent = (_total(start),)
    return _report(command, index, Outcome.FAILED, code, detail, spent, began=began)


def _report(
    command: Command,
    index: int,
    outcome: Outcome,
    code: str = "",
    detail: str = "",
    timings: Timings = (),
    evidence: Evidence = NO_EVIDENCE,
    began: float | None = None,
) -> StepReport:
    return StepReport(
        run=command.run,
        router=command.router,
        epoch=command.epoch,
        node=command.node,
        attempt=command.attempt,
        seq=command.first_seq + index,
        undo=command.undo,
        outcome=outcome,
        code=code,
        detail=detail,
        timings_ms=timings,
        evidence=evidence,
        began=began,
    )
