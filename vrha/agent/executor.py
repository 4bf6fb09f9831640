"""Carries out commands on this node: one function per kind of step, each idempotent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from vrha import failpoints
from vrha.agent.epochs import Epochs
from vrha.errors import InputError, StepError, VrhaError
from vrha.linux.build import Timings
from vrha.linux.node import NodeKernel
from vrha.model.evidence import NO_EVIDENCE, Evidence
from vrha.model.messages import CheckIn, Command, Message, Outcome, StepReport
from vrha.model.steps import (
    Announce,
    AwaitCheckIn,
    Build,
    Configure,
    Destroy,
    Flip,
    Mute,
    Relay,
    Step,
    Swap,
    Sync,
    Unmute,
    Verify,
)

log = logging.getLogger(__name__)

CAPABILITIES = ("serial", "parallel", "handover", "nftables", "iptables")

Done = tuple[Timings, Evidence]
"""Phases of a step, and what it carried and measured."""


def _build(kernel: NodeKernel, step: Step) -> Done:
    assert isinstance(step, Build)
    return kernel.build(step.spec, step.leases_from), NO_EVIDENCE


def _swap(kernel: NodeKernel, step: Step) -> Done:
    assert isinstance(step, Swap)
    kernel.swap(step.old, step.new)
    return (), NO_EVIDENCE


def _sync(kernel: NodeKernel, step: Step) -> Done:
    assert isinstance(step, Sync)
    return kernel.handovers.sync(step.old, step.new)


def _flip(kernel: NodeKernel, step: Step) -> Done:
    assert isinstance(step, Flip)
    return kernel.handovers.flip(step.old, step.new, step.hold), NO_EVIDENCE


def _verify(kernel: NodeKernel, step: Step) -> Done:
    assert isinstance(step, Verify)
    return kernel.handovers.verify(step.old, step.new, step.max_lost)


def _relay(kernel: NodeKernel, step: Step) -> Done:
    assert isinstance(step, Relay)
    kernel.relay(step.instance)
    return (), NO_EVIDENCE


def _mute(kernel: NodeKernel, step: Step) -> Done:
    assert isinstance(step, Mute)
    kernel.mute(step.instance)
    return (), NO_EVIDENCE


def _unmute(kernel: NodeKernel, step: Step) -> Done:
    assert isinstance(step, Unmute)
    kernel.unmute(step.instance)
    return (), NO_EVIDENCE


def _announce(kernel: NodeKernel, step: Step) -> Done:
    assert isinstance(step, Announce)
    kernel.announce(step.instance)
    return (), NO_EVIDENCE


def _configure(kernel: NodeKernel, step: Step) -> Done:
    assert isinstance(step, Configure)
    return kernel.configure(step.spec, step.previous), NO_EVIDENCE


def _destroy(kernel: NodeKernel, step: Step) -> Done:
    assert isinstance(step, Destroy)
    return kernel.destroy(step.instance), NO_EVIDENCE


def _not_ours(kernel: NodeKernel, step: Step) -> Done:
    raise InputError("not-for-agents", f"{step.kind} is a step of the orchestrator")


ACTIONS: dict[type[Step], Callable[[NodeKernel, Step], Done]] = {
    Build: _build,
    AwaitCheckIn: _not_ours,
    Swap: _swap,
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
    kernel: NodeKernel
    epochs: Epochs

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
        mark, highest = (command.epoch, command.order), self.epochs.highest(command.router)
        if mark < highest:
            code = "stale-epoch" if command.epoch < highest[0] else "stale-command"
            detail = f"epoch {mark[0]}, order {mark[1]} of {command.router} is over; "
            detail += f"this node has {highest[0]}, {highest[1]}"
            return _report(command, 0, Outcome.REFUSED, code, detail)
        try:
            self.epochs.raise_to(command.router, mark)
        except StepError as error:
            return _report(command, 0, Outcome.FAILED, error.code, error.message)
        return None

    def _take(
        self, command: Command, index: int, step: Step, received: float
    ) -> tuple[StepReport, tuple[CheckIn, ...]]:
        start = time.monotonic()
        if command.valid_s is not None and start > received + command.valid_s:
            detail = f"it came {start - received:.1f} s ago and was valid for {command.valid_s:g} s"
            return _report(command, index, Outcome.REFUSED, "expired", detail), ()
        proof: tuple[CheckIn, ...] = ()
        try:
            place = f"agent.{'undo-' if command.undo else ''}{step.kind}"
            failpoints.reach(f"{place}.before")
            timings, evidence = ACTIONS[type(step)](self.kernel, step)
            failpoints.reach(f"{place}.after")
            if isinstance(step, Build) and command.token:
                proof = (self._check_in(command, step, start),)
        except VrhaError as error:
            log.warning("run %s: %s failed: %s", command.run, step.kind, error)
            return _report(command, index, Outcome.FAILED, error.code, error.message), ()
        except Exception as error:
            # Also what is a bug: the run must hear of it now, not at its deadline.
            log.exception("run %s: %s failed", command.run, step.kind)
            code = "os-error" if isinstance(error, OSError) else "internal"
            detail = f"{type(error).__name__}: {error}"
            return _report(command, index, Outcome.FAILED, code, detail), ()
        total = ("total", (time.monotonic() - start) * 1000)
        log.info("run %s: %s done in %.1f ms", command.run, step.kind, total[1])
        done = _report(command, index, Outcome.DONE, timings=(*timings, total), evidence=evidence)
        return done, proof

    def _check_in(self, command: Command, step: Build, start: float) -> CheckIn:
        self_test = self.kernel.self_test(step.spec)
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


def _report(
    command: Command,
    index: int,
    outcome: Outcome,
    code: str = "",
    detail: str = "",
    timings: Timings = (),
    evidence: Evidence = NO_EVIDENCE,
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
    )
