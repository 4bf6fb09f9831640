"""What must be right before a run begins, and whether it has begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vrha.errors import InputError, UnreachableError
from vrha.model.probing import Stream
from vrha.probe.channels import Channel
from vrha.probe.fresh import AHEAD
from vrha.probe.kernel import NS_PER_S, allow_open_files


class Start:
    """Tells when probing has begun, and refuses to go on without replies where they are asked."""

    def __init__(
        self,
        channels: Sequence[Channel],
        t0: int,
        require_reply_s: float | None,
        on_ready: Callable[[], None] | None,
    ) -> None:
        self._channels = channels
        self._t0 = t0
        self._require_s = require_reply_s
        self._on_ready = on_ready
        self._waiting = True

    def check(self, now: int) -> None:
        if not self._waiting or now < self._t0:
            return
        silent = self._silent()
        if not silent:
            self._waiting = False
            if self._on_ready is not None:
                self._on_ready()
        elif self._require_s and now - self._t0 > self._require_s * NS_PER_S:
            raise self._no_reply(silent, f"in the first {self._require_s:g} s")

    def at_end(self) -> None:
        """The run is over, maybe before the time by which all had to have replied."""
        silent = self._silent() if self._waiting else []
        if silent:
            raise self._no_reply(silent, "in the whole run")

    def _silent(self) -> list[Channel]:
        return [c for c in self._channels if not c.has_answered] if self._require_s else []

    def _no_reply(self, silent: Sequence[Channel], when: str) -> UnreachableError:
        return UnreachableError(
            "no-reply",
            f"no reply {when}: " + ", ".join(f"{c.stream.name} ({_said(c)})" for c in silent),
            "UDP needs `ping-gap serve` on the target; TCP a listener; check firewalls.",
        )


def _said(channel: Channel) -> str:
    said = ", ".join(sorted(channel.errors))
    return channel.address[0] + (f": {said}" if said else "")


def check_streams(streams: Sequence[Stream]) -> None:
    if not streams:
        raise InputError("no-stream", "nothing to probe")
    for stream in streams:
        stream.check()
    names = [stream.name for stream in streams]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError("bad-stream", f"stream names occur twice: {', '.join(twice)}")
    _room_for_connections(streams)


def _room_for_connections(streams: Sequence[Stream]) -> None:
    """In an outage all attempts of a timeout are open at once."""
    need = 64 + 3 * len(streams) + sum(map(_sockets, streams))
    allowed = allow_open_files(need)
    if allowed < need:
        raise InputError(
            "too-many-connections",
            f"the streams may need {need} open files, but the limit is {allowed}",
            "Use a longer interval or raise `ulimit -n`.",
        )


def _sockets(stream: Stream) -> int:
    """The most that a stream may have open at once."""
    match stream.kind:
        case "tcp-connect" | "http" | "https":
            return int(stream.timeout_ms / stream.interval_ms) + 1
        case "udp-fresh":
            return int(stream.timeout_ms / stream.interval_ms) + 1 + AHEAD
        case _:
            return stream.count
