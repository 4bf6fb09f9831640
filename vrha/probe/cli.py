"""The command `ping-gap`: how long was it gone, and when.

Exit codes: 0 measured, 1 could not measure or a limit was exceeded, 2 usage.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import click

from vrha.codec import decode, encode
from vrha.errors import InputError, VrhaError
from vrha.model.probing import Kind, Stream
from vrha.probe.prober import Prober
from vrha.probe.report import excess, show
from vrha.probe.responder import Services, responder

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4, "": 1.0}
TCP_INTERVAL_MS = 10.0
START_LIMIT_S = 1.0
_PORT = click.IntRange(1, 65535)


class Milliseconds(click.ParamType[float]):
    """A time like `1ms`, `0.5s`, `2m`; a bare number is in the unit given."""

    name = "TIME"

    def __init__(self, bare: str = "ms") -> None:
        self._bare = bare

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s|m|)", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no time; write it like 1ms, 0.5s or 2m", param, ctx)
        return float(match[1]) * _UNITS[match[2] or self._bare]


class _Default(click.Group):
    """A group whose first argument may be a target instead of a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "--version"):
            args = ["measure", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Default, no_args_is_help=True)
@click.version_option(package_name="vrha")
def main() -> None:
    """Measure an outage at 1 ms: ping-gap TARGET, or ping-gap serve on the far end.

    `ping-gap TARGET` is short for `ping-gap measure TARGET`; see `ping-gap measure --help`.
    """


@main.command()
@click.argument("target")
@click.option("--icmp", is_flag=True, help="ICMP echo (the default).")
@click.option("--udp", type=_PORT, help="UDP echo to `ping-gap serve`.")
@click.option("--udp-fresh", type=_PORT, help="UDP echo, each probe from another source port.")
@click.option("--tcp", type=_PORT, help="A TCP connection per probe.")
@click.option("--tcp-echo", type=_PORT, help="A long TCP connection to an echo.")
@click.option("--tcp-push", type=_PORT, help="A long TCP connection; only the far end sends.")
@click.option("--interval", type=Milliseconds(), help="Between probes [1ms; TCP 10ms].")
@click.option(
    "--duration", type=Milliseconds("s"), default="10s", show_default=True, help="0: until Ctrl-C."
)
@click.option("--netns", multiple=True, help="Probe from the namespace at this path.")
@click.option("--from", "names", multiple=True, help="Probe from this named namespace.")
@click.option("--json", "json_out", help="Write the result as JSON to a file or - (stdout).")
@click.option(
    "--max-lost",
    type=click.IntRange(0),
    help="Exit 1 when a stream lost more.",
)
@click.option("--max-gap", type=Milliseconds(), help="Exit 1 when a gap or stall was longer.")
def measure(
    target: str,
    icmp: bool,
    udp: int | None,
    udp_fresh: int | None,
    tcp: int | None,
    tcp_echo: int | None,
    tcp_push: int | None,
    interval: float | None,
    duration: float,
    netns: tuple[str, ...],
    names: tuple[str, ...],
    json_out: str | None,
    max_lost: int | None,
    max_gap: float | None,
) -> None:
    """Probe TARGET and say when it did not answer, and for how long."""
    paths = (*netns, *(f"/run/netns/{name}" for name in names)) or (None,)
    kinds: list[tuple[Kind, int | None]] = [
        ("udp", udp),
        ("udp-fresh", udp_fresh),
        ("tcp-connect", tcp),
        ("tcp-echo", tcp_echo),
        ("tcp-push", tcp_push),
    ]
    wanted = [(kind, port) for kind, port in kinds if port is not None]
    if icmp or not wanted:
        wanted.insert(0, ("icmp", 7))
    with _errors(), Prober(_streams(target, wanted, interval, paths)) as prober:
        result = prober.run(
            duration / 1000 or None, _stop_on_signal(), require_reply_s=START_LIMIT_S
        )
        if json_out is not None:
            _write(json_out, encode(result))
        if json_out != "-":
            show(result, sys.stdout)
    too_much = excess(result, max_lost, max_gap)
    for line in too_much:
        click.echo(line, err=True)
    sys.exit(1 if too_much else 0)


_parent = click.option("--parent", type=int, help="Stop when the process of this pid has gone.")


@main.command()
@click.option("--port", type=_PORT, default=7, show_default=True, help="Echo, connections.")
@click.option("--echo-port", type=_PORT, help="Late echo, TCP echo [PORT + 1].")
@click.option("--push-port", type=_PORT, help="Messages on connections [PORT + 2].")
@click.option(
    "--delay", type=Milliseconds(), default="3ms", show_default=True, help="Of the late echo."
)
@click.option(
    "--push", type=Milliseconds(), default="10ms", show_default=True, help="Between messages."
)
@click.option("--netns", multiple=True, help="Serve in the namespace at this path.")
@_parent
def serve(
    port: int,
    echo_port: int | None,
    push_port: int | None,
    delay: float,
    push: float,
    netns: tuple[str, ...],
    parent: int | None,
) -> None:
    """Be the far end of probes until Ctrl-C; prints `ready` when it is.

    \b
    PORT      UDP: echo at once     TCP: accept and close
    PORT + 1  UDP: echo, delayed    TCP: echo on long connections
    PORT + 2                        TCP: sends messages, takes none
    """
    services = Services(port, echo_port, push_port, delay, push)
    with _errors():
        stop = _stop_on_signal(parent)
        responder(services, netns or (None,), stop, _say_ready)


@main.command()
@click.option("--streams", required=True, help="JSON list of streams: a file or - (stdin).")
@click.option("--duration", type=Milliseconds("s"), help="Without it until SIGTERM or SIGINT.")
@click.option("--json", "json_out", required=True, help="Where the result goes: a file or -.")
@click.option("--require-reply", type=Milliseconds("s"), help="Fail when no reply came by then.")
@_parent
def run(
    streams: str,
    duration: float | None,
    json_out: str,
    require_reply: float | None,
    parent: int | None,
) -> None:
    """Probe many streams for another program; prints `ready` when probing has begun."""
    with _errors():
        body = sys.stdin.read() if streams == "-" else _read(streams)
        stop = _stop_on_signal(parent)
        with Prober(decode(tuple[Stream, ...], body)) as prober:
            result = prober.run(
                _seconds(duration),
                stop,
                require_reply_s=_seconds(require_reply),
                on_ready=_say_ready,
            )
        _write(json_out, encode(result))


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _streams(
    target: str,
    wanted: Iterable[tuple[Kind, int | None]],
    interval: float | None,
    paths: Sequence[str | None],
) -> list[Stream]:
    return [
        Stream(
            name=kind + (f" from {Path(path).name}" if path else ""),
            kind=kind,
            target=target,
            port=port or 7,
            netns=path,
            interval_ms=interval or (TCP_INTERVAL_MS if kind.startswith("tcp") else 1.0),
        )
        for path in paths
        for kind, port in wanted
    ]


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except VrhaError as error:
        _fail(error)


def _fail(error: VrhaError) -> NoReturn:
    click.echo(f"ping-gap: {error}", err=True)
    sys.exit(2 if isinstance(error, InputError) else 1)


def _stop_on_signal(parent: int | None = None) -> threading.Event:
    """An event set by the first SIGINT or SIGTERM, or when process `parent` has gone.

    A second signal ends the process at once.
    """
    stop = threading.Event()

    def handle(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    if parent is not None:
        threading.Thread(target=_stop_with, args=(parent, stop), daemon=True).start()
    return stop


def _stop_with(parent: int, stop: threading.Event) -> None:
    # PR_SET_PDEATHSIG would fire when the thread that forked us ends, not its process.
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(parent)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.poll()
        os.close(fd)
    stop.set()


def _say_ready() -> None:
    click.echo("ready")


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeError) as error:
        raise InputError("unreadable", f"cannot read {path}: {error}") from error


def _write(path: str, body: bytes) -> None:
    """Write to a file whole or not at all, or to stdout, or straight into what is no file."""
    if path == "-":
        sys.stdout.buffer.write(body + b"\n")
        sys.stdout.buffer.flush()
        return
    try:
        if path.startswith(("/proc/", "/dev/")):
            Path(path).write_bytes(body + b"\n")
            return
        part = Path(f"{path}.{os.getpid()}.part")
        try:
            part.write_bytes(body + b"\n")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise VrhaError("unwritable", f"cannot write {path}: {error.strerror}") from error
