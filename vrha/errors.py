"""The exception tree of vrha.

Every failure that a user can meet carries a stable `code` and says what to do next (`hint`)::

    VrhaError                        exit 1
    ├── InputError                   exit 2   the request itself is wrong
    │   └── SpecError                         a desired-state file, all problems at once
    ├── PreconditionError            exit 1   the machine lacks something; nothing was changed
    ├── RefusedError                 exit 4   a guard said no; nothing was changed
    │   └── NotLeaderError                    another orchestrator decides
    ├── NotFoundError                exit 2   no such object
    ├── UnreachableError             exit 5   broker, store or orchestrator cannot be reached
    ├── DeadlineError                exit 3   not finished in time; it may still be running
    └── StepError                    exit 1   one step of a run failed on its node
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "DeadlineError",
    "InputError",
    "NotFoundError",
    "NotLeaderError",
    "PreconditionError",
    "RefusedError",
    "SpecError",
    "StepError",
    "UnreachableError",
    "VrhaError",
]


class VrhaError(Exception):
    """Base of all errors of vrha; `code` is stable, `hint` names the next thing to do."""

    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]" + (f"\n  {self.hint}" if self.hint else "")


class InputError(VrhaError):
    """The request itself is wrong."""

    exit_code = 2


class SpecError(InputError):
    """A desired-state document with all its problems, each `file:line: path: what is wrong`."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("spec-invalid", "\n".join(problems), "Nothing was applied.")


class PreconditionError(VrhaError):
    """The machine lacks something that the operation needs; nothing was changed."""


class RefusedError(VrhaError):
    """A guard refused the operation; nothing was changed."""

    exit_code = 4


class NotLeaderError(RefusedError):
    """Another orchestrator leads (`not-leader`): `holder`, since `epoch`; empty: nobody does."""

    def __init__(self, holder: str, epoch: int) -> None:
        who = f"orchestrator {holder} leads" if holder else "no orchestrator leads now"
        super().__init__(
            "not-leader",
            f"{who} (leader epoch {epoch}), this one stands by; nothing was changed",
            "Ask the one that leads; `vrha orchestrator status` names it.",
        )
        self.holder = holder
        self.epoch = epoch


class NotFoundError(InputError):
    """No object of that name."""


class UnreachableError(VrhaError):
    """Broker, store or orchestrator cannot be reached."""

    exit_code = 5


class DeadlineError(VrhaError):
    """Not finished within its deadline; the operation may still be running."""

    exit_code = 3


class StepError(VrhaError):
    """One step of a run failed on its node."""
