"""The command `ping-gap`: how long was it gone, and when.

Exit codes: 0 measured, 1 could not measure or a limit was exceeded, 2 usage.
"""

from __future__ import annotations

import sys

import click

from vrha.codec import decode, encode
from vrha.errors import InputError
from vrha.model.probing import Record, Stream
from vrha.probe.files import read, write
from vrha.probe.measurecmd import measure
from vrha.probe.options import PORT, Default, Milliseconds, errors, seconds
from vrha.probe.stopping import stop_on_signal


@click.group(cls=Default, no_args_is_help=True)
@click.version_option(package_name="vrha")
def main() -> None:
    """Measure an outage at 1 ms: ping-gap TARGET, or ping-gap serve on the far end.

    `ping-gap TARGET` is short for `ping-gap measure TARGET`; see `ping-gap measure --help`.
    """


main.add_command(measure)

_parent = click.option("--parent", type=int, help="Stop when the process of this pid has gone.")


@main.command()
@click.option("--port", type=PORT, default=7, show_default=True, help="Echo, connections.")
@click.option("--echo-port", type=PORT, help="Late echo, TCP echo [PORT + 1].")
@click.option("--push-port", type=PORT, help="Messages on connections [PORT + 2].")
@click.option(
    "--delay", type=Milliseconds(), default="3ms", show_default=True, help="Of the late echo."
)
@click.option(
    "--push", type=Milliseconds(), default="10ms", show_default=True, help="Between messages."
)
@click.option("--netns", multiple=True, help="Serve in the namespace at this path.")
@click.option("--loopback", is_flag=True, help="Serve only this machine itself.")
@_parent
def serve(
    port: int,
    echo_port: int | None,
    push_port: int | None,
    delay: float,
    push: float,
    netns: tuple[str, ...],
    loopback: bool,
    parent: int | None,
) -> None:
    """Be the far end of probes until Ctrl-C; prints `ready` when it is.

    \b
    PORT      UDP: echo at once     TCP: accept and close
    PORT + 1  UDP: echo, delayed    TCP: echo on long connections
    PORT + 2                        TCP: sends messages, takes none
    """
    from vrha.probe.responder import Services, responder

    services = Services(port, echo_port, push_port, delay, push, loopback)
    with errors():
        stop = stop_on_signal(parent)
        responder(services, netns or (None,), stop, _say_ready)


@main.command()
@click.option("--streams", help="JSON list of streams: a file or - (stdin).")
@click.option("--duration", type=Milliseconds("s"), help="Without it until SIGTERM or SIGINT.")
@click.option("--json", "json_out", help="Where the result goes: a file or -.")
@click.option("--require-reply", type=Milliseconds("s"), help="Fail when no reply came by then.")
@click.option("--events", is_flag=True, help="Take orders on stdin, tell events on stdout.")
@_parent
def run(
    streams: str | None,
    duration: float | None,
    json_out: str | None,
    require_reply: float | None,
    events: bool,
    parent: int | None,
) -> None:
    """Probe many streams for another program; prints `ready` when probing has begun.

    With --events it is an end of `ping-gap measure`, here or behind ssh.
    """
    if events:
        from vrha.probe.events import attend

        attend()
        return
    if streams is None or json_out is None:
        raise click.UsageError("--streams and --json are needed, or --events")
    from vrha.probe.prober import Prober

    with errors():
        body = sys.stdin.buffer.read() if streams == "-" else read(streams)
        stop = stop_on_signal(parent)
        with Prober(decode(tuple[Stream, ...], body)) as prober:
            result = prober.run(
                seconds(duration),
                stop,
                require_reply_s=seconds(require_reply),
                on_ready=_say_ready,
            )
        write(json_out, encode(result))


@main.command()
@click.argument("a", metavar="A.json")
@click.argument("b", metavar="B.json")
@click.option("--json", "json_out", help="Write the comparison to a file or - (stdout).")
@click.option("--html", help="Write it as a page with plots to a file or - (stdout).")
def compare(a: str, b: str, json_out: str | None, html: str | None) -> None:
    """Say what was better in the run B than in A; both as written by `--json`."""
    from vrha.core.compare import compare as compared
    from vrha.probe.files import STDOUT, check_writable
    from vrha.probe.report import show_comparison

    with errors():
        check_writable([path for path in (json_out, html) if path is not None])
        before, after = _record(a), _record(b)
        comparison = compared(before, after)
        if STDOUT not in (json_out, html):
            show_comparison(comparison, sys.stdout)
        if json_out is not None:
            write(json_out, encode(comparison))
        if html is not None:
            from vrha.render.gappage import compare_page

            write(html, compare_page(comparison, before, after).encode())


@main.command()
@click.argument("where", metavar="unix:PATH")
@click.argument("text", required=False, default="")
def mark(where: str, text: str) -> None:
    """Name what begins now, for the run with `--mark-from unix:PATH`; no TEXT ends it."""
    from vrha.probe.marksource import send_mark

    with errors():
        send_mark(where, text)


def _record(path: str) -> Record:
    try:
        return decode(Record, read(path))
    except InputError as error:
        if error.code != "malformed":
            raise
        hint = "It must be what `ping-gap measure --json` has written."
        raise InputError("no-record", f"{path}: {error.message}", hint) from error


def _say_ready() -> None:
    click.echo("ready")
