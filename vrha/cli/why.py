"""`why` of nodes and routers: the verdict, its signals, the action, and what happened last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from vrha.cli.output import clean, show
from vrha.cli.settings import Settings
from vrha.core.causes import GONE
from vrha.errors import UnreachableError
from vrha.model.views import SignalView, WhyView


def show_why(
    settings: Settings,
    noun: str,
    name: str,
    ask: Callable[[str], WhyView],
    more: Callable[[], Sequence[str]] = list,
) -> None:
    """Print what `ask` says of `name`, and in the table form the lines of `more`.

    Raises as `ask`; that no orchestrator answers is a verdict too, and is printed before.
    """
    try:
        found = ask(name)
    except UnreachableError:
        gone = _gone(noun, name)
        show(settings, gone, lambda: "\n".join(_lines(gone)))
        raise
    show(settings, found, lambda: "\n".join([*_lines(found), *more()]))


def _gone(noun: str, name: str) -> WhyView:
    signals = tuple(SignalView(signal.what, signal.age_s) for signal in GONE.signals)
    return WhyView(noun, name, "", "unknown", GONE.cause, signals, GONE.action, GONE.reason)


def _lines(found: WhyView) -> Iterator[str]:
    yield clean(f"{found.name} is {found.state}")
    yield clean(f"cause: {found.cause}" + (f" (node {found.node})" if found.node else ""))
    for signal in found.signals:
        yield clean(f"  {signal.what}{_age(signal.age_s)}")
    yield clean(f"action: {found.action}")
    yield clean(f"  because {found.reason}")
    for event in found.events:
        what = (event.at, event.kind, event.reason, event.detail)
        yield clean("  ".join(word for word in what if word))


def _age(seconds: float | None) -> str:
    return "" if seconds is None else f": {seconds:.1f} s ago"
