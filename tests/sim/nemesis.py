"""What can go wrong, as values: the simulator and the live fault tests take the same ones."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

State = Literal["kept", "old", "lost", "resumed"]


@dataclass(frozen=True, slots=True)
class Pause:
    """A process is stopped (SIGSTOP) for `ms`."""

    name: str
    ms: float


@dataclass(frozen=True, slots=True)
class Kill:
    """A process is killed, and begins again after `ms` with the `state` on its disk."""

    name: str
    ms: float
    state: State = "kept"


@dataclass(frozen=True, slots=True)
class Loss:
    """A node falls silent for `ms` with all that it has, and its processes are killed."""

    name: str
    ms: float


@dataclass(frozen=True, slots=True)
class Unplug:
    """The cable of a node into one segment carries nothing for `ms`, with its carrier kept."""

    name: str
    segment: str
    ms: float


@dataclass(frozen=True, slots=True)
class Cut:
    """No datagram passes from any of `these` to any of `those` for `ms`; `both`: nor back."""

    these: tuple[str, ...]
    those: tuple[str, ...]
    ms: float
    both: bool = True


@dataclass(frozen=True, slots=True)
class Silence:
    """Nobody hears anything of any of `names` for `ms`, all from one instant on."""

    names: tuple[str, ...]
    ms: float


@dataclass(frozen=True, slots=True)
class Delay:
    """Datagrams from any of `these` to any of `those` take `by_ms` longer, for `ms`."""

    these: tuple[str, ...]
    those: tuple[str, ...]
    by_ms: float
    ms: float


@dataclass(frozen=True, slots=True)
class Echo:
    """Datagrams from any of `these` to any of `those` come once more `by_ms` later, for `ms`."""

    these: tuple[str, ...]
    those: tuple[str, ...]
    by_ms: float
    ms: float


@dataclass(frozen=True, slots=True)
class Noise:
    """Shares of datagrams that are lost, doubled, late (up to 10 leases), for `ms`."""

    loss: float
    double: float
    late: float
    ms: float


@dataclass(frozen=True, slots=True)
class Stumble:
    """For `ms` processes may be stopped between any two things they do."""

    share: float
    ms: float


@dataclass(frozen=True, slots=True)
class StoreDown:
    """The store refuses everything for `ms`."""

    ms: float


@dataclass(frozen=True, slots=True)
class StoreUnsure:
    """For `ms` this share of commits happens without an answer."""

    share: float
    ms: float


@dataclass(frozen=True, slots=True)
class WallJump:
    """The wall clock of a machine is set by `ms`."""

    name: str
    ms: float


@dataclass(frozen=True, slots=True)
class Move:
    """Somebody asks for a planned move of a router. Not a fault, but in the way of them."""

    router: str


@dataclass(frozen=True, slots=True)
class Elect:
    """A voter comes or goes."""

    name: str


Fault = (
    Pause | Kill | Loss | Unplug | Cut | Silence | Delay | Echo | Noise | Stumble
    | StoreDown | StoreUnsure | WallJump | Move | Elect
)  # fmt: skip


class Nemesis(Protocol):
    """Whoever can do these things to a zone. `strike` returns at once; what it did ends by
    itself."""

    def strike(self, fault: Fault) -> None: ...

    def heal(self) -> None:
        """End whatever still lasts."""


def schedule(
    dice: random.Random,
    nodes: Sequence[str],
    leaders: Sequence[str],
    routers: Sequence[str],
    until_ms: float,
    every_ms: float = 400.0,
) -> Iterator[tuple[float, Fault]]:
    """Faults with their instants, drawn from `dice`."""
    at = 1500.0
    while at < until_ms:
        yield at, draw(dice, nodes, leaders, routers)
        at += dice.expovariate(1 / every_ms)


def draw(
    dice: random.Random, nodes: Sequence[str], leaders: Sequence[str], routers: Sequence[str]
) -> Fault:
    """One fault."""
    everybody = [*nodes, *leaders]
    one = dice.choice(everybody)
    length = dice.choice((100.0, 300.0, 700.0, 1500.0, 4000.0)) * dice.uniform(0.5, 1.5)
    match dice.choices(range(10), weights=(20, 10, 18, 8, 8, 3, 3, 3, 24, 3))[0]:
        case 0:
            return Pause(one, dice.choice((50, 200, 600, 900, 2000, 8000)) * dice.uniform(0.5, 1.0))
        case 1:
            return Kill(one, length, dice.choice(("kept", "resumed", "old", "lost")))
        case 2:
            others = [each for each in everybody if each != one]
            those = dice.sample(others, dice.randint(1, len(others)))
            return Cut((one,), tuple(those), length, dice.random() < 0.6)
        case 3:
            return Noise(dice.uniform(0, 0.4), dice.uniform(0, 0.3), dice.uniform(0, 0.2), length)
        case 4:
            return Stumble(dice.uniform(0.005, 0.05), length)
        case 5:
            return StoreDown(length)
        case 6:
            return StoreUnsure(dice.uniform(0.1, 0.7), length)
        case 7:
            return WallJump(one, dice.choice((-1, 1)) * dice.choice((5e3, 3.6e6, 3e10)))
        case 8:
            return Move(dice.choice(list(routers)))
        case _:
            return Elect(dice.choice(everybody))
