"""How a run stands, on a terminal or line by line."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

from vrha.model.probing import Live, LiveStream

if TYPE_CHECKING:
    from rich.console import RenderableType

BARS = "▁▂▃▄▅▆▇█"
NOTHING = "·"
SECONDS = 60
"""Of a sparkline, one character each."""
LINE_EVERY_S = 5.0


_COLUMNS = ("stream", "rate /s", "lost", "gap now ms", "longest ms", "rtt ms", "last 60 s")
_TEXTS = ("stream", "last 60 s")


class View(Protocol):
    """Use as a context manager; `show` is told how it stands, `mark` what somebody did."""

    def __enter__(self) -> View: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, live: Live) -> None: ...

    def mark(self, text: str) -> None: ...


class Trail:
    """What one stream did lately: its rate now, and how much came back in each second."""

    def __init__(self) -> None:
        self._last: tuple[float, int, int] | None = None
        self._second = (0, 0)
        self._second_from = 0.0
        self.shares: deque[float | None] = deque(maxlen=SECONDS)
        self.rate: float | None = None

    def add(self, at_ms: float, stream: LiveStream) -> None:
        """Take what is known at `at_ms` after t0."""
        if self._last is None:
            self._second_from = at_ms
            self._second = (stream.sent, stream.lost)
        else:
            before_ms, sent, _ = self._last
            if at_ms > before_ms:
                self.rate = (stream.sent - sent) / (at_ms - before_ms) * 1000
        self._last = (at_ms, stream.sent, stream.lost)
        if at_ms - self._second_from >= 1000:
            sent, lost = stream.sent - self._second[0], stream.lost - self._second[1]
            self.shares.append(None if sent <= 0 else max(0.0, 1 - lost / sent))
            self._second_from = at_ms
            self._second = (stream.sent, stream.lost)

    def sparkline(self) -> str:
        """A bar per second: full when everything was answered."""
        return "".join(
            NOTHING if share is None else BARS[min(len(BARS) - 1, int(share * len(BARS)))]
            for share in self.shares
        )


class Terminal:
    """A table that is drawn anew while the run lasts."""

    def __init__(self, out: TextIO, duration_s: float | None) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._duration_s = duration_s
        self._streams: dict[str, LiveStream] = {}
        self._trails: dict[str, Trail] = {}
        self._marks: deque[str] = deque(maxlen=3)
        self._at_ms = 0.0
        self._live = RichLive(console=Console(file=out), auto_refresh=False, transient=True)

    def __enter__(self) -> Terminal:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, live: Live) -> None:
        self._at_ms = max(self._at_ms, live.at_ms)
        for stream in live.streams:
            self._streams[stream.name] = stream
            self._trails.setdefault(stream.name, Trail()).add(live.at_ms, stream)
        self._live.update(self._table(), refresh=True)

    def mark(self, text: str) -> None:
        self._marks.append(f"{self._at_ms / 1000:.1f} s {text or '(end)'}")

    def _table(self) -> RenderableType:
        from rich.markup import escape
        from rich.table import Table

        of = "" if self._duration_s is None else f" of {self._duration_s:g} s"
        marks = "; ".join(self._marks)
        table = Table(
            title=f"{self._at_ms / 1000:.1f} s{of}" + (f"   {escape(marks)}" if marks else ""),
            caption="Ctrl-C ends and reports",
        )
        for title in (
            "stream",
            "rate /s",
            "lost",
            "gap now ms",
            "longest ms",
            "rtt ms",
            "last 60 s",
        ):
            table.add_column(title, justify="left" if title in ("stream", "last 60 s") else "right")
        for name, stream in self._streams.items():
            trail = self._trails[name]
            table.add_row(
                escape(name),
                "" if trail.rate is None else f"{trail.rate:.0f}",
                str(stream.lost),
                f"{stream.gap_ms:.0f}" if stream.gap_ms else "",
                f"{stream.longest_gap_ms:.0f}" if stream.longest_gap_ms else "",
                "" if stream.rtt_ms is None else f"{stream.rtt_ms:.2f}",
                trail.sparkline(),
                style="bold red" if stream.gap_ms else "yellow" if stream.lost else None,
            )
        return table


class Lines:
    """A line now and then, for logs; `quiet` says nothing."""

    def __init__(self, out: TextIO, quiet: bool) -> None:
        self._out = out
        self._quiet = quiet
        self._next = time.monotonic() + LINE_EVERY_S
        self._streams: dict[str, LiveStream] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def show(self, live: Live) -> None:
        self._streams |= {stream.name: stream for stream in live.streams}
        if self._quiet or time.monotonic() < self._next:
            return
        self._next += LINE_EVERY_S
        streams = self._streams.values()
        silent = [stream.name for stream in streams if stream.gap_ms]
        now = f"; silent now: {', '.join(silent)}" if silent else ""
        lost, sent = sum(each.lost for each in streams), sum(each.sent for each in streams)
        print(f"{live.at_ms / 1000:.0f} s: {lost} of {sent} lost{now}", file=self._out, flush=True)

    def mark(self, text: str) -> None:
        if not self._quiet:
            print(f"mark: {text or '(end)'}", file=self._out, flush=True)


def view(out: TextIO, duration_s: float | None, quiet: bool) -> View:
    """What fits `out`."""
    return Terminal(out, duration_s) if out.isatty() and not quiet else Lines(out, quiet)
