"""YAML as a tree that remembers lines: bounded, without aliases' explosions, without types.

Scalars stay text, whatever YAML 1.1 takes them for: `no` is a name, `12:34:56:12:34:56` a MAC
address and not a number in base 60. What a text means is decided by who reads the field.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 16
MAX_VALUES = 1_000_000
"""Of one document, the values behind aliases counted each time."""

_NULLS = frozenset(("", "~", "null", "Null", "NULL"))


@dataclass(slots=True)
class Scalar:
    """A text; `null` for an unquoted nothing."""

    line: int
    text: str
    null: bool
    size: int = 1


@dataclass(slots=True)
class Sequence:
    line: int
    items: list[Node] = field(default_factory=list)
    size: int = 1


@dataclass(slots=True)
class Mapping:
    line: int
    entries: dict[str, Node] = field(default_factory=dict)
    size: int = 1


Node = Scalar | Sequence | Mapping


class DocumentError(Exception):
    """The text is no YAML, or more than is accepted. `line` counts from 1."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line
        self.what = what


def compose(text: str) -> tuple[Node, list[tuple[int, str]]]:
    """The tree of `text`, and the duplicate keys found as (line, key).

    Raises DocumentError.
    """
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise DocumentError(1, f"larger than {MAX_BYTES // 1024 // 1024} MiB")
    builder = _Builder()
    try:
        for event in _events(text):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise DocumentError(mark.line + 1 if mark else 1, f"not YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DocumentError(line, f"not YAML: {error.reason}") from None
    except UnicodeEncodeError:
        raise DocumentError(1, "not YAML: not valid Unicode") from None
    return builder.root or Mapping(1), builder.duplicates


def _events(text: str) -> Iterator[Event]:
    yield from yaml.parse(text, Loader=yaml.CSafeLoader)


class _Builder:
    """Builds the tree from events, on a stack of its own: depth never becomes recursion."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.duplicates: list[tuple[int, str]] = []
        self._documents = 0
        self._stack: list[Sequence | Mapping] = []
        self._keys: list[tuple[int, str] | None] = []
        self._anchors: dict[str, Node] = {}
        self._open_anchors: list[str | None] = []

    def take(self, event: Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, ScalarEvent):
            self._refuse_tag(event, line)
            null = not event.style and event.value in _NULLS
            self._add(Scalar(line, event.value, null), event.anchor)
        elif isinstance(event, MappingStartEvent | SequenceStartEvent):
            self._refuse_tag(event, line)
            opened = Mapping(line) if isinstance(event, MappingStartEvent) else Sequence(line)
            self._open(opened, event.anchor)
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            closed = self._stack.pop()
            self._keys.pop()
            self._add(closed, self._open_anchors.pop())
        elif isinstance(event, AliasEvent):
            target = self._anchors.get(event.anchor or "")
            if target is None:
                raise DocumentError(line, f"alias *{event.anchor} names nothing complete")
            self._add(target, None, line)
        elif isinstance(event, DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise DocumentError(line, "a second document; one file holds one")

    def _open(self, node: Sequence | Mapping, anchor: str | None) -> None:
        if len(self._stack) >= MAX_DEPTH:
            raise DocumentError(node.line, f"nested deeper than {MAX_DEPTH}")
        self._key_expected(node)
        self._stack.append(node)
        self._keys.append(None)
        self._open_anchors.append(anchor)

    def _key_expected(self, node: Node) -> None:
        if self._stack and isinstance(self._stack[-1], Mapping) and self._keys[-1] is None:
            raise DocumentError(node.line, "a key must be a plain text")

    def _add(self, node: Node, anchor: str | None, line: int = 0) -> None:
        if anchor:
            self._anchors[anchor] = node
        if not self._stack:
            self.root = node
            return
        parent = self._stack[-1]
        key = self._keys[-1]
        if isinstance(parent, Mapping) and key is None:
            if not isinstance(node, Scalar):
                raise DocumentError(line or node.line, "a key must be a plain text")
            self._keys[-1] = (line or node.line, node.text)
            return
        parent.size += node.size
        if parent.size > MAX_VALUES:
            raise DocumentError(line or node.line, f"more than {MAX_VALUES} values")
        if isinstance(parent, Sequence):
            parent.items.append(node)
        elif key is not None:
            if key[1] in parent.entries:
                self.duplicates.append(key)
            parent.entries[key[1]] = node
            self._keys[-1] = None

    @staticmethod
    def _refuse_tag(event: ScalarEvent | MappingStartEvent | SequenceStartEvent, line: int) -> None:
        if event.tag is not None:
            raise DocumentError(line, f"tag {event.tag} is not accepted")
