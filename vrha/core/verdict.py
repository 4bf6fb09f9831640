"""Whether a run is within its limits, whether it counts at all, and what limits what it says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vrha.model.probing import ConnectionsResult, Limits, Result, StreamResult

LATE_SHARE = 0.01
WARNING = "warning: "


def settled(result: Result, settle_ms: float) -> bool:
    """Whether at least `settle_ms` of full rate follow the last lost probe of every stream."""
    return all(_quiet_ms(one, result) >= settle_ms for one in result.streams if one.loss.gaps)


def _quiet_ms(one: StreamResult, result: Result) -> float:
    last = one.loss.gaps[-1]
    return 0.0 if last.unrestored else result.duration_ms - last.start_ms - last.length_ms


def exceeded(result: Result, limits: Limits) -> tuple[str, ...]:
    """The limits that were exceeded, in words that begin with the stream.

    A run that has not settled is within no limit.
    """
    lines = [line for one in result.streams for line in _stream(one, limits)]
    lines += [line for one in result.connections for line in _connections(one, limits)]
    asked = (limits.gap_ms, limits.lost, limits.total_ms) != (None, None, None)
    if asked and not settled(result, limits.settle_ms):
        lines.append(unsettled(result, limits.settle_ms))
    return tuple(lines)


def unsettled(result: Result, settle_ms: float) -> str:
    """Why a run does not count, in words."""
    least = min(_quiet_ms(one, result) for one in result.streams if one.loss.gaps)
    return (
        f"the run does not count: {settle_ms / 1000:g} s of full rate must follow the last gap, "
        f"and {least / 1000:.1f} s did"
    )


def _stream(one: StreamResult, limits: Limits) -> Iterator[str]:
    name, loss = one.stream.name, one.loss
    if limits.lost is not None and loss.lost > limits.lost:
        yield f"{name}: {loss.lost} lost, allowed {limits.lost}"
    if limits.gap_ms is not None and loss.longest_gap_ms > limits.gap_ms:
        yield f"{name}: a gap of {loss.longest_gap_ms:.1f} ms, allowed {limits.gap_ms:g} ms"
    total = sum(gap.length_ms for gap in loss.gaps)
    if limits.total_ms is not None and total > limits.total_ms:
        yield f"{name}: gaps of {total:.1f} ms in all, allowed {limits.total_ms:g} ms"


def _connections(one: ConnectionsResult, limits: Limits) -> Iterator[str]:
    dead, stall = one.total - one.alive, one.longest_stall_ms or 0.0
    if limits.lost is not None and dead > limits.lost:
        yield f"{one.stream.name}: {dead} connections dead, allowed {limits.lost}"
    if limits.gap_ms is not None and stall > limits.gap_ms:
        yield f"{one.stream.name}: a stall of {stall:.1f} ms, allowed {limits.gap_ms:g} ms"


def notes(result: Result, control: StreamResult | None = None) -> tuple[str, ...]:
    """What the reader must know to trust the figures."""
    lines = _together(
        (one.stream.name, line) for one in result.streams for line in _limits_of(one, result)
    )
    lines += _together(
        (one.stream.name, line) for one in result.connections for line in _errors(one)
    )
    if result.clock_steps:
        lines.append(
            f"warning: the clock was set {result.clock_steps} times during the run; "
            "round-trip times near it are up to 5 ms too long"
        )
    if control is not None:
        lines.append(_floor(control))
    shortest = min((one.stream.interval_ms for one in result.streams), default=0.0)
    fastest = (one.loss for one in result.streams if one.stream.interval_ms == shortest)
    pause = max((loss.longest_pause_ms for loss in fastest if loss.longest_pause_ms), default=None)
    realtime = "yes" if result.realtime else "no (gaps of a few ms may be this machine)"
    lines.append(
        f"{result.duration_ms / 1000:.1f} s; resolution is the interval; "
        f"late ticks {result.late_ticks}, longest pause of the prober {_ms(pause)} ms; "
        f"realtime scheduling {realtime}"
    )
    return tuple(lines)


def _together(said: Iterable[tuple[str, str]]) -> list[str]:
    """Lines `NAME: TEXT`; of streams about which the same is to be said the first is named."""
    names: dict[str, list[str]] = {}
    for name, text in said:
        names.setdefault(text, []).append(name)
    return [_of(each, text) for text, each in names.items()]


def _of(names: Sequence[str], text: str) -> str:
    who = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    if text.startswith(WARNING):
        return f"{WARNING}{who}: {text.removeprefix(WARNING)}"
    return f"{who}: {text}"


def _limits_of(one: StreamResult, result: Result) -> Iterator[str]:
    """What limits it, without its name."""
    ticks = one.loss.sent + one.late_ticks
    if one.late_ticks > LATE_SHARE * ticks:
        held = result.duration_ms / max(one.loss.sent, 1)
        yield (
            f"warning: this machine does not hold "
            f"{one.stream.interval_ms:g} ms: {one.late_ticks} of {ticks} probes "
            f"({100 * one.late_ticks / ticks:.1f} %) were not sent; "
            f"it held {held:.2f} ms on average"
        )
    if one.receive_drops:
        yield (
            f"warning: {one.receive_drops} replies arrived faster than "
            "they were read: they count as lost but the network delivered them"
        )
    if one.loss.late:
        yield (
            f"{one.loss.late} replies came later than {one.stream.timeout_ms:g} ms "
            "and count as lost"
        )
    yield from _errors(one)


def _errors(one: StreamResult | ConnectionsResult) -> Iterator[str]:
    if one.errors:
        said = ", ".join(f"{name} {count}" for name, count in one.errors)
        yield f"errors: {said}"


def _floor(control: StreamResult) -> str:
    loss = control.loss
    return (
        f"noise floor, to this machine itself: {loss.lost} of {loss.sent} lost, "
        f"longest gap {loss.longest_gap_ms:.1f} ms, longest silence {_ms(loss.longest_silence_ms)} "
        f"ms, rtt max {_ms(loss.rtt_max_ms)} ms, late ticks {control.late_ticks}"
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
