"""How a run stands, while it lasts: a view on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, TextIO

from vrha.model.probing import Live, LiveStream

if TYPE_CHECKING:
    from rich.table import Table

SECONDS = 60
LINE_EVERY_S = 5.0
MARKS_SHOWN = 3
_BARS = " ▁▂▃▄▅▆▇█"
_PLAIN_BARS = " .:-=+*%#"
_RATE_MS = 1000.0

MarksSoFar = Callable[[], Sequence[tuple[float, str]]]


@dataclass
class _Track:
    """A stream over the last minute: its newest state, and sent and lost at every new second."""

    now: LiveStream
    at_ms: float
    past: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=SECONDS + 1))

    def take(self, at_ms: float, now: LiveStream) -> None:
        self.now, self.at_ms = now, at_ms
        if not self.past or at_ms - self.past[-1][0] >= _RATE_MS:
            self.past.append((at_ms, now.sent, now.lost))

    @property
    def rate(self) -> float | None:
        """Probes per second of late; None before that is known."""
        before = [past for past in self.past if self.at_ms - past[0] >= _RATE_MS / 2]
        if not before:
            return None
        at_ms, sent, _ = before[-1]
        return (self.now.sent - sent) * 1000 / (self.at_ms - at_ms)

    def answered(self) -> list[float]:
        """The share of the probes that were answered in each second, None of them as 0."""
        shares = []
        for (_, sent, lost), (_, later_sent, later_lost) in pairwise(self.past):
            new = later_sent - sent
            shares.append(min(1.0, max(0.0, 1 - (later_lost - lost) / new)) if new else 0.0)
        return shares


class Board:
    """All streams of all ends as last heard of."""

    def __init__(self, duration_s: float | None, marks: MarksSoFar) -> None:
        self._duration_s = duration_s
        self._marks = marks
        self._tracks: dict[str, _Track] = {}
        self._at_ms = 0.0

    def take(self, live: Live) -> None:
        self._at_ms = max(self._at_ms, live.at_ms)
        for one in live.streams:
            track = self._tracks.setdefault(one.name, _Track(one, live.at_ms))
            track.take(live.at_ms, one)

    def clock(self) -> str:
        """How long it lasts, and will."""
        seconds = max(self._at_ms, 0.0) / 1000
        if self._duration_s is None:
            return f"{seconds:.0f} s, until Ctrl-C"
        return f"{seconds:.0f} s, {max(self._duration_s - seconds, 0.0):.0f} s to go"

    def line(self) -> str:
        """Everything in a line."""
        streams = [track.now for track in self._tracks.values()]
        rates = [track.rate or 0.0 for track in self._tracks.values()]
        lost = sum(one.lost for one in streams)
        longest = max((one.longest_gap_ms for one in streams), default=0.0)
        gone = [f"{one.name} {one.gap_ms:.0f} ms" for one in streams if one.gap_ms]
        now = f"; no answer now: {', '.join(gone)}" if gone else ""
        return f"{self.clock()}: {sum(rates):.0f}/s, {lost} lost, longest gap {longest:.1f} ms{now}"

    def table(self, bars: str = _BARS) -> Table:
        from rich.markup import escape
        from rich.table import Table

        latest = ", ".join(text or "(end)" for _, text in self._marks()[-MARKS_SHOWN:])
        title = self.clock() + (f"; marks: {latest}" if latest else "")
        table = Table(title=escape(title), title_justify="left")
        table.add_column("stream", overflow="fold")
        for head in ("rate/s", "gap now ms", "lost", "longest ms", "rtt ms"):
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column("last minute", no_wrap=True)
        for track in self._tracks.values():
            one = track.now
            style = "red" if one.gap_ms else "yellow" if one.lost else None
            cells = (*_cells(track), _spark(track.answered(), bars))
            table.add_row(*map(escape, cells), style=style)
        return table


def _cells(track: _Track) -> tuple[str, ...]:
    one = track.now
    return (
        one.name,
        "-" if track.rate is None else f"{track.rate:.0f}",
        f"{one.gap_ms:.0f}" if one.gap_ms else "-",
        str(one.lost),
        f"{one.longest_gap_ms:.1f}",
        "-" if one.rtt_ms is None else f"{one.rtt_ms:.3f}",
    )


def _spark(shares: Sequence[float], bars: str) -> str:
    """A bar per second, full when all was answered: never full with a loss, however small."""
    most = len(bars) - 1
    return "".join(bars[most if share == 1 else int(share * (most - 0.01))] for share in shares)


@contextmanager
def watching(board: Board, out: TextIO, quiet: bool) -> Iterator[Callable[[Live], None]]:
    """Shows the board on `out` while the block runs; gives what is to be told each Live."""
    if quiet:
        yield board.take
    elif out.isatty():
        yield from _on_terminal(board, out)
    else:
        yield _Lines(board, out).take


def _on_terminal(board: Board, out: TextIO) -> Iterator[Callable[[Live], None]]:
    from rich.console import Console
    from rich.live import Live as View

    console = Console(file=out, highlight=False)
    bars = _BARS if console.encoding.lower().startswith("utf") else _PLAIN_BARS
    with View(board.table(bars), console=console, transient=True, auto_refresh=False) as view:

        def take(live: Live) -> None:
            board.take(live)
            view.update(board.table(bars), refresh=True)

        yield take


class _Lines:
    def __init__(self, board: Board, out: TextIO) -> None:
        self._board = board
        self._out = out
        self._next = time.monotonic() + LINE_EVERY_S

    def take(self, live: Live) -> None:
        self._board.take(live)
        if time.monotonic() >= self._next:
            self._next += LINE_EVERY_S
            self._out.write(self._board.line() + "\n")
            self._out.flush()
