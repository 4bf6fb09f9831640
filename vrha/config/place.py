"""Places in a document: where a value stands, and the list of everything that is wrong."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

from vrha.config.document import Mapping, Node, Scalar, Sequence

MAX_PROBLEMS = 1000


class Problems:
    """Everything wrong with one document, as `source:line: path: what`."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._found: list[tuple[int, int, str]] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, line: int, path: str, what: str) -> None:
        where = f"{self._source}:{line}: " + (f"{path}: " if path else "")
        self._found.append((line, len(self._found), where + what))

    def lines(self) -> list[str]:
        """In order of the lines; the first thousand."""
        lines = [text for _, _, text in sorted(self._found)]
        more = len(lines) - MAX_PROBLEMS
        return lines[:MAX_PROBLEMS] + ([f"... and {more} more"] if more > 0 else [])


class Place:
    """One value of the document, present or not, with its path."""

    __slots__ = ("_key", "_parent", "line", "node", "problems")

    def __init__(
        self,
        problems: Problems,
        node: Node | None,
        parent: Place | None = None,
        key: str | int = "",
    ) -> None:
        self.problems = problems
        self.node = None if isinstance(node, Scalar) and node.null else node
        self.line: int = node.line if node is not None else (parent.line if parent else 1)
        self._parent = parent
        self._key = key

    @property
    def path(self) -> str:
        if self._parent is None:
            return ""
        before = self._parent.path
        if isinstance(self._key, int):
            return f"{before}[{self._key}]"
        return f"{before}.{self._key}" if before else self._key

    @property
    def present(self) -> bool:
        return self.node is not None

    @property
    def count(self) -> int | None:
        """How many items this has; None where it is no list."""
        return len(self.node.items) if isinstance(self.node, Sequence) else None

    def wrong(self, what: str) -> None:
        self.problems.add(self.line, self.path, what)

    def fields(self, *allowed: str) -> dict[str, Place] | None:
        """Places of all `allowed` keys; None, with a problem, where this is no mapping."""
        if not isinstance(self.node, Mapping):
            self.wrong("must be a mapping" if self.present else "is missing")
            return None
        for key, node in self.node.entries.items():
            if key not in allowed:
                place = Place(self.problems, node, self, _shown(key))
                close = get_close_matches(key, allowed, 1)
                place.wrong(
                    f"unknown key; did you mean {close[0]}?" if close else _unknown(allowed)
                )
        entries = self.node.entries
        return {key: Place(self.problems, entries.get(key), self, key) for key in allowed}

    def entries(self, limit: int) -> list[tuple[str, Place]]:
        """Keys and places of a free mapping, of at most `limit` keys; [] if absent."""
        if self.node is None:
            return []
        if not isinstance(self.node, Mapping):
            self.wrong("must be a mapping")
            return []
        if len(self.node.entries) > limit:
            self.wrong(f"has {len(self.node.entries)} keys; the limit is {limit}")
            return []
        return [
            (key, Place(self.problems, node, self, _shown(key)))
            for key, node in self.node.entries.items()
        ]

    def items(self, limit: int) -> list[Place]:
        """Places of a list of at most `limit` items; [] if absent."""
        if self.node is None:
            return []
        if not isinstance(self.node, Sequence):
            self.wrong("must be a list")
            return []
        if len(self.node.items) > limit:
            self.wrong(f"has {len(self.node.items)} items; the limit is {limit}")
            return []
        return [Place(self.problems, node, self, i) for i, node in enumerate(self.node.items)]

    def text(self) -> str | None:
        """The text here; None, with a problem, where there is none."""
        if self.node is None:
            self.wrong("is missing")
            return None
        if not isinstance(self.node, Scalar):
            self.wrong("must be a single value")
            return None
        return self.node.text


def _unknown(allowed: Collection[str]) -> str:
    return f"unknown key; there are {', '.join(allowed)}"


def _shown(key: str) -> str:
    return key if key.isprintable() and len(key) <= 60 else ascii(key[:60])
