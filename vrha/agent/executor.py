"""Carries out commands on this node: one function per kind of step, each idempotent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from vrha.agent.epochs import Epochs
from vrha.errors import InputError, StepError, VrhaError
from vrha.linux.build import Timings
from vrha.linux.node import NodeKernel
from vrha.model.messages import CheckIn, Command, Message, Outcome, StepReport
from vrha.model.steps import (
    Announce,
    AwaitCheckIn,
    Build,
    Configure,
    Destroy,
    Mute,
    Step,
    Swap,
    Unmute,
)

log = logging.getLogger(__name__)

CAPABILITIES = ("serial", "parallel", "nftables", "iptables")


def _build(kernel: NodeKernel, step: Step) -> Timings:
    assert isinstance(step, Build)
    return kernel.build(step.spec, step.leases_from)


def _swap(kernel: NodeKernel, step: Step) -> Timings:
    assert isinstance(step, Swap)
    kernel.swap(step.old, step.new)
    return ()


def _mute(kernel: NodeKernel, step: Step) -> Timings:
    assert isinstance(step, Mute)
    kernel.mute(step.instance)
    return ()


def _unmute(kernel: NodeKernel, step: Step) -> Timings:
    assert isinstance(step, Unmute)
    kernel.unmute(step.instance)
    return ()


def _announce(kernel: NodeKernel, step: Step) -> Timings:
    assert isinstance(step, Announce)
    kernel.announce(step.instance)
    return ()


def _configure(kernel: NodeKernel, step: Step) -> Timings:
    assert isinstance(step, Configure)
    return kernel.configure(step.spec, step.previous)


def _destroy(kernel: NodeKernel, step: Step) -> Timings:
    assert isinstance(step, Destroy)
    return kernel.destroy(step.instance)


def _not_ours(kernel: NodeKernel, step: Step) -> Timings:
    raise InputError("not-for-agents", f"{step.kind} is a step of the orchestrator")


ACTIONS: dict[type[Step], Callable[[NodeKernel, Step], Timings]] = {
    Build: _build,
    AwaitCheckIn: _not_ours,
    Swap: _swap,
    Mute: _mute,
    Unmute: _unmute,
    Announce: _announce,
    Configure: _configure,
    Destroy: _destroy,
}


@dataclass(frozen=True, slots=True)
class Executor:
    """Takes commands for `node`; refuses those of lower epochs than it has seen."""

    node: str
    kernel: NodeKernel
    epochs: Epochs

    def execute(self, command: Command) -> tuple[Message, ...]:
        """Take the steps in order, stop at the first that fails; what there is to say about it.

        Nothing is said before the batch has ended: between muting the old and announcing the
        new one not even a message may cost time. Raises InputError for a command to another
        node.
        """
        if command.node != self.node:
            raise InputError("wrong-node", f"command for {command.node} reached {self.node}")
        highest = self.epochs.highest(command.router)
        if command.epoch < highest:
            log.warning("run %s: epoch %d < %d: refused", command.run, command.epoch, highest)
            detail = f"epoch {command.epoch} of {command.router} is over; this node has {highest}"
            return (_report(command, 0, Outcome.REFUSED, "stale-epoch", detail),)
        try:
            self.epochs.raise_to(command.router, command.epoch)
        except StepError as error:
            log.error("run %s: %s", command.run, error)
            return (_report(command, 0, Outcome.FAILED, error.code, error.message),)
        said: list[Message] = []
        for index, step in enumerate(command.steps):
            report, proof = self._take(command, index, step)
            said += [*proof, report]
            if report.outcome is not Outcome.DONE:
                break
        return tuple(said)

    def _take(
        self, command: Command, index: int, step: Step
    ) -> tuple[StepReport, tuple[CheckIn, ...]]:
        start = time.monotonic()
        proof: tuple[CheckIn, ...] = ()
        try:
            timings = ACTIONS[type(step)](self.kernel, step)
            if isinstance(step, Build) and command.token:
                proof = (self._check_in(command, step, start),)
        except VrhaError as error:
            log.warning("run %s: %s failed: %s", command.run, step.kind, error)
            return _report(command, index, Outcome.FAILED, error.code, error.message), ()
        except OSError as error:
            log.exception("run %s: %s failed", command.run, step.kind)
            return _report(command, index, Outcome.FAILED, "os-error", str(error)), ()
        total = ("total", (time.monotonic() - start) * 1000)
        log.info("run %s: %s done in %.1f ms", command.run, step.kind, total[1])
        return _report(command, index, Outcome.DONE, timings=(*timings, total)), proof

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
    )
