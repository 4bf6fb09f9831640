"""Where streams come from: `FROM=TARGET` on the command line, and what becomes of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vrha.errors import InputError
from vrha.model.probing import Stream

NAMESPACES = Path("/run/netns")
_ORIGIN = re.compile(r"(|/(?!/)[^=]*|[\w.][\w.@:%-]*)=(.+)", re.DOTALL)
_INTERVAL = re.compile(r"@[\d.]+(us|ms|s|m)$")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a stream is sent from: this machine, in `netns` if given, or the machine `host`."""

    label: str = ""
    netns: str | None = None
    host: str = ""


HERE = Origin()


def origin_of(text: str) -> Origin:
    """The origin of that name: nothing is this machine, a path a namespace of it, a name that of a
    namespace when `/run/netns` has it, and otherwise a host.

    Raises InputError (`bad-origin`).
    """
    if not text:
        return HERE
    if text.startswith("/"):
        return Origin(Path(text).name, text)
    # A host that looks like an option would be one to the command that takes it there.
    if text.startswith("-") or text in (".", "..") or not text.isprintable() or " " in text:
        raise InputError("bad-origin", f"{text!r} names neither a namespace nor a host")
    if "/" not in text and (NAMESPACES / text).exists():
        return Origin(text, str(NAMESPACES / text))
    return Origin(text, host=text)


def split(text: str) -> tuple[str | None, str]:
    """Origin and target of `FROM=TARGET`; None without an origin of its own."""
    match = _ORIGIN.fullmatch(text)
    return (match[1], match[2]) if match else (None, text)


def placed(
    targets: Sequence[str],
    origins: Sequence[Origin],
    streams_of: Callable[[str], Sequence[Stream]],
) -> tuple[tuple[Origin, Stream], ...]:
    """The streams of all targets with where each is sent from.

    A target without an origin of its own is probed from each of `origins`. Streams are named by
    kind and, where that does not tell them apart, target and origin. Raises InputError
    (`bad-origin`) and what `streams_of` raises.
    """
    several = len({split(target)[1] for target in targets}) > 1
    found: list[tuple[Origin, Stream]] = []
    names: Counter[str] = Counter()
    for text in targets:
        own, target = split(text)
        for origin in origins if own is None else (origin_of(own),):
            for stream in streams_of(target):
                name = _name(stream, target if several else "", origin)
                names[name] += 1
                if names[name] > 1:
                    name += f" #{names[name]}"
                found.append((origin, replace(stream, name=name, netns=origin.netns)))
    return tuple(found)


def _name(stream: Stream, target: str, origin: Origin) -> str:
    shown = _INTERVAL.sub("", target)
    if "://" not in shown:
        shown = f"{stream.kind} {shown}" if shown else stream.kind
    return shown + (f" from {origin.label}" if origin.label else "")
