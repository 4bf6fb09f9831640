"""What differs between two desired states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from vrha.model.spec import Desired
from vrha.model.views import Change, ChangeKind

_NOUNS = (("network", "networks"), ("router", "routers"), ("node", "nodes"))


def diff(old: Desired, new: Desired) -> tuple[Change, ...]:
    """Objects to add, change and remove, networks first, each kind by name.

    The order of objects means nothing. `fields` of a change are paths such as `domain`,
    `uplink.addresses[1]` or `labels.rack`; a list of another length is one path (`hosts`).
    """
    changes: list[Change] = []
    for noun, field in _NOUNS:
        before = {one.name: one for one in getattr(old, field)}
        after = {one.name: one for one in getattr(new, field)}
        for name in sorted(before.keys() | after.keys()):
            if name not in before:
                changes.append(Change(ChangeKind.ADD, noun, name))
            elif name not in after:
                changes.append(Change(ChangeKind.REMOVE, noun, name))
            elif before[name] != after[name]:
                paths = tuple(_paths("", before[name], after[name]))
                changes.append(Change(ChangeKind.CHANGE, noun, name, paths))
    return tuple(changes)


def _paths(path: str, old: Any, new: Any) -> Iterable[str]:
    if old == new:
        return
    if is_dataclass(old) and type(old) is type(new):
        for field in fields(old):
            inner = f"{path}.{field.name}" if path else field.name
            yield from _paths(inner, getattr(old, field.name), getattr(new, field.name))
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        for i, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _paths(f"{path}[{i}]", one, other)
    elif isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            yield from _paths(f"{path}.{key}", old.get(key), new.get(key))
    else:
        yield path
