"""The command `ping-gap`: how long was it gone, and when.

Exit codes: 0 measured, 1 could not measure or a limit was exceeded, 2 usage.
"""

from __future__ import annotations

import sys

import click

from vrha.codec import decode, encode
from vrha.model.probing import Stream
from vrha.probe.commands import compare, measure
from vrha.probe.options import PORT, Milliseconds, errors, seconds, stop_on_signal


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

    `ping-gap TARGET...` is short for `ping-gap measure TARGET...`; see `ping-gap measure --help`.
    """


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
@click.option("--loopback", is_flag=True, help="Serve this machine itself only.")
@click.option("--netns", multiple=True, help="Serve in the namespace at this path.")
@_parent
def serve(
    port: int,
    echo_port: int | None,
    push_port: int | None,
    delay: float,
    push: float,
    loopback: bool,
    netns: tuple[str, ...],
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
@click.option("--events", is_flag=True, help="Be an end of another ping-gap, by stdin and stdout.")
@_parent
def run(
    streams: str | None,
    duration: float | None,
    json_out: str | None,
    require_reply: float | None,
    events: bool,
    parent: int | None,
) -> None:
    """Probe many streams for another program; prints `ready` when probing has begun."""
    if events:
        from vrha.probe.events import attend

        attend()
        return
    if streams is None or json_out is None:
        raise click.UsageError("it needs --streams and --json")
    from vrha.probe.files import read, write
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
@click.argument("where", metavar="unix:PATH")
@click.argument("text", default="")
def mark(where: str, text: str) -> None:
    """Tell a run with `--mark-from unix:PATH` what begins now; without TEXT that it ends."""
    from vrha.probe.marksource import send_mark

    with errors():
        send_mark(where, text or "-")


def _say_ready() -> None:
    click.echo("ready")


main.add_command(measure)
main.add_command(compare)
