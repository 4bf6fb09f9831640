"""What holder, voter and leader ask their daemon to do, in the order given."""

from __future__ import annotations

from dataclasses import dataclass

from vrha.model.ownership import Electorate, Held, Message


@dataclass(frozen=True, slots=True)
class Send:
    """To one of that name."""

    to: str
    message: Message


@dataclass(frozen=True, slots=True)
class Tell:
    """To all voters and to every leader there may be."""

    message: Message


@dataclass(frozen=True, slots=True)
class Mute:
    """The kernel ends the slice and mutes every router; then `incarnation` is kept durably.

    No message may leave before both are done.
    """

    incarnation: int


@dataclass(frozen=True, slots=True)
class Permit:
    """`epochs` and `electorate` are kept durably; then the kernel lets just these routers speak,
    as long as there are slices. No message may leave before both are done."""

    routers: Held
    epochs: Held
    electorate: Electorate


@dataclass(frozen=True, slots=True)
class Relieve:
    """For `seconds` a stand-in may take the place of an agent that is dead or stuck."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Right:
    """That `node` may have `router` active from `epoch` on.

    `router` may be one instance of it, as `ROUTER/GENERATION`.

    `leaving`: it is asked to give it up; `epoch` then is the one which fences that.
    No node: nobody has it, and nobody had since `epoch`.
    """

    router: str
    node: str
    epoch: int
    leaving: bool = False

    @property
    def owned(self) -> str:
        """The router, whatever instance of it the right is for."""
        return self.router.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Commit:
    """One transaction, refused unless the leader still leads.

    What stands after it in a list of commands is carried out only when it went through; a leader
    whose commit was refused leads no more. `incarnations` are nodes with those that may be granted
    something.
    """

    rights: tuple[Right, ...] = ()
    incarnations: tuple[tuple[str, int], ...] = ()
    electorates: tuple[Electorate, ...] = ()


@dataclass(frozen=True, slots=True)
class StepDown:
    """Somebody leads whose epoch is `leader_epoch`."""

    leader_epoch: int


Command = Send | Tell | Mute | Permit | Relieve | Commit | StepDown
