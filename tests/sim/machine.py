"""What processes run on: clocks that drift, kernels, disks, the store.

Times are in ms; true time is that of the event queue, which nobody else can see.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from vrha.core.ownership.book import Book
from vrha.core.ownership.commands import Commit
from vrha.core.ownership.timing import PROFILES, Timing
from vrha.model.health import NodeHealth
from vrha.model.ownership import Electorate, Held

FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Violation:
    """Two nodes that could speak for one router at the same time."""

    at_ms: float
    router: str
    nodes: tuple[str, str]

    def __str__(self) -> str:
        return f"at {self.at_ms:.1f} ms {' and '.join(self.nodes)} both own {self.router}"


@dataclass(frozen=True, slots=True)
class Needless:
    """A node was deposed that a majority of the voters heard."""

    at_ms: float
    node: str

    def __str__(self) -> str:
        return f"at {self.at_ms:.1f} ms {self.node} is deposed, and voters hear it"


@dataclass(frozen=True, slots=True)
class Unbraked:
    """`what` of the brake did not hold; whom it concerns."""

    at_ms: float
    what: str
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        return f"at {self.at_ms:.1f} ms {self.what}: {', '.join(self.nodes)}"


Wrong = Violation | Needless | Unbraked


@dataclass(frozen=True, slots=True)
class Setup:
    """What a zone is made of."""

    nodes: tuple[str, ...] = ("n1", "n2", "n3")
    leaders: tuple[str, ...] = ("o1", "o2")
    voters: tuple[str, ...] = ("n1", "n2", "n3")
    routers: tuple[str, ...] = ("r1", "r2", "r3", "r4")
    timing: Timing = PROFILES["default"]
    rates: tuple[tuple[str, float], ...] = ()
    decide_ms: float = 50.0
    braked: bool = False
    """Who is given up is decided as by the orchestrator, with its brake."""


@dataclass(slots=True)
class Clock:
    """Reads `offset + rate * true time`; the wall clock jumps besides."""

    offset: float
    rate: float
    jump: float = 0.0

    def read(self, true: float) -> float:
        return self.offset + self.rate * true

    def true(self, read: float) -> float:
        return (read - self.offset) / self.rate


@dataclass(slots=True)
class Kernel:
    """What lets routers speak; it goes on while processes are stopped."""

    granted: dict[str, int] = field(default_factory=dict)
    live_until: float = -FOREVER

    @property
    def routers(self) -> Set[str]:
        """Of the instances."""
        return {key.partition("/")[0] for key in self.granted}


class Store:
    """One row of leadership and a book; compare-and-set."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.holder = ""
        self.epoch = 0
        self.beat = 0
        self.up = True
        self.unsure = 0.0
        self.health: dict[str, NodeHealth] = {}

    def commit(self, epoch: int, commit: Commit, dice: float) -> bool:
        """A commit whose answer is lost has happened all the same."""
        if not self.up or epoch != self.epoch:
            return False
        self.book.apply(commit)
        return dice >= self.unsure

    def copy(self) -> Book:
        book = self.book
        return Book(book.electorates, dict(book.rights), dict(book.incarnations), dict(book.epochs))


@dataclass(slots=True)
class Disk:
    """What a watcher keeps: its last incarnation, the highest epochs, its electorate."""

    incarnation: int
    epochs: Held
    electorate: Electorate
