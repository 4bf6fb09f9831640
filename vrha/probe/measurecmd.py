"""The command `ping-gap measure`: its options, and what is to be measured by them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from vrha.errors import InputError
from vrha.model.probing import ESTABLISHED, Kind, Limits, Stream
from vrha.probe.options import PORT, Milliseconds, errors, seconds
from vrha.probe.stopping import stop_on_signal

if TYPE_CHECKING:
    from vrha.probe.measure import Plan
    from vrha.probe.origins import Origin

F = TypeVar("F", bound=Callable[..., Any])

_KINDS: tuple[tuple[str, Kind], ...] = (
    ("udp", "udp"),
    ("udp_fresh", "udp-fresh"),
    ("tcp", "tcp-connect"),
    ("tcp_echo", "tcp-echo"),
    ("tcp_push", "tcp-push"),
)


def _target_options(command: F) -> F:
    time, port = Milliseconds(), PORT
    for option in reversed(
        (
            click.option("--icmp", is_flag=True, help="ICMP echo (the default)."),
            click.option("--udp", type=port, help="UDP echo to `ping-gap serve`."),
            click.option("--udp-fresh", type=port, help="UDP echo, each from another source port."),
            click.option("--tcp", type=port, help="A TCP connection per probe."),
            click.option("--tcp-echo", type=port, help="Long TCP connections to an echo."),
            click.option("--tcp-push", type=port, help="Long ones; only the far end sends."),
            click.option("--http", metavar="PATH", help="A GET of this path per probe."),
            click.option("-4", "v4", is_flag=True, help="Only IPv4 addresses of names."),
            click.option("-6", "v6", is_flag=True, help="Only IPv6 addresses of names."),
            click.option("--interval", type=time, help="Between probes [1ms; TCP, HTTP 10ms]."),
            click.option("--timeout", type=time, help="Later answers are lost [1s]."),
            click.option("--count", type=click.IntRange(1), help="Of long connections [1]."),
            click.option("--insecure", is_flag=True, help="HTTPS: take any certificate."),
            click.option("--streams", help="JSON list of streams (file or -) besides targets."),
        )
    ):
        command = option(command)
    return command


def _origin_options(command: F) -> F:
    for option in reversed(
        (
            click.option("--netns", multiple=True, help="Probe from the namespace at this path."),
            click.option(
                "--from", "names", multiple=True, help="Probe from this namespace or host (ssh)."
            ),
            click.option(
                "--rsh",
                default="ssh -o BatchMode=yes",
                show_default=True,
                help="What takes a command to a host.",
            ),
            click.option(
                "--remote-command", default="ping-gap", show_default=True, help="This, there."
            ),
        )
    ):
        command = option(command)
    return command


def _run_options(command: F) -> F:
    for option in reversed(
        (
            click.option(
                "--duration",
                type=Milliseconds("s"),
                default="10s",
                show_default=True,
                help="0: until Ctrl-C.",
            ),
            click.option("--mark-from", help="Marks from a file, - (stdin) or unix:PATH."),
            click.option("--control", is_flag=True, help="Measure the noise of this machine too."),
            click.option("--max-lost", type=click.IntRange(0), help="Exit 1 when one lost more."),
            click.option("--max-gap", type=Milliseconds(), help="Exit 1 at a longer gap, stall."),
            click.option("--max-total", type=Milliseconds(), help="Exit 1 at a longer sum."),
            click.option(
                "--settle",
                type=Milliseconds("s"),
                default="5s",
                show_default=True,
                help="Full rate that must follow the last gap, or the run does not count.",
            ),
        )
    ):
        command = option(command)
    return command


def _output_options(command: F) -> F:
    for option in reversed(
        (
            click.option("--json", "json_out", help="Write the record to a file or - (stdout)."),
            click.option("--csv", help="Write the gaps to a file or -."),
            click.option("--junit", help="Write a JUnit report to a file or -."),
            click.option("--html", help="Write a page with plots to a file or -."),
            click.option("--probes", help="Write the times of each probe (CSV) to a file."),
            click.option("--title", default="", help="Of the page and the record."),
            click.option("--quiet", is_flag=True, help="Say nothing while it lasts."),
        )
    ):
        command = option(command)
    return command


@click.command()
@click.argument("targets", nargs=-1, metavar="TARGET...")
@_target_options
@_origin_options
@_run_options
@_output_options
def measure(**options: Any) -> None:
    """Probe each TARGET and say when it did not answer, and for how long.

    \b
    TARGET is HOST, or a URL with an optional interval:
      icmp://HOST@5ms  udp://HOST:7  tcp://HOST:443  https://HOST/path
      dns://SERVER/NAME/TYPE  udp-fresh://  tcp-echo://  tcp-push://
    FROM=TARGET sends it from a namespace or, by ssh, from a host:
      ping-gap inside=udp://203.0.113.1 outside=udp://203.0.113.10
    """
    from vrha.probe.measure import failed, keep
    from vrha.probe.measure import measure as measured
    from vrha.probe.report import show

    with errors():
        plan = _plan(options)
        record = measured(plan, stop_on_signal())
        # Shown first: what cannot be written would be lost otherwise.
        if "-" not in plan.outputs.records:
            show(record, sys.stdout)
        keep(record, plan.outputs)
    wrong = failed(record)
    for line in wrong:
        click.echo(line, err=True)
    sys.exit(1 if wrong else 0)


def _plan(options: dict[str, Any]) -> Plan:
    from vrha.probe.measure import Outputs, Plan

    rsh, remote = shlex.split(options["rsh"]), options["remote_command"].split()
    if not rsh or not remote:
        raise InputError("bad-command", "--rsh and --remote-command must not be empty")
    return Plan(
        streams=_streams(options),
        duration_s=seconds(options["duration"]) or None,
        limits=Limits(
            options["max_gap"], options["max_lost"], options["max_total"], options["settle"]
        ),
        outputs=Outputs(
            options["json_out"],
            options["csv"],
            options["junit"],
            options["html"],
            options["probes"],
        ),
        title=options["title"],
        mark_from=options["mark_from"],
        control=options["control"],
        quiet=options["quiet"],
        rsh=tuple(rsh),
        remote_command=tuple(remote),
    )


def _streams(options: dict[str, Any]) -> tuple[tuple[Origin, Stream], ...]:
    from vrha.probe.origins import HERE, origin_of, placed

    targets: Sequence[str] = options["targets"]
    if options["streams"] is not None:
        if targets:
            raise click.UsageError("either TARGET or --streams")
        if options["streams"] == options["mark_from"] == "-":
            raise click.UsageError("stdin can be either --streams or --mark-from")
        return tuple((HERE, stream) for stream in _listed(options["streams"]))
    if not targets:
        raise click.UsageError("TARGET or --streams is needed")
    if options["v4"] and options["v6"]:
        raise click.UsageError("either -4 or -6")
    paths = (str(Path(path).absolute()) for path in options["netns"])
    origins = [origin_of(name) for name in (*paths, *options["names"])]
    return placed(targets, origins or (HERE,), lambda target: _of_target(target, options))


def _listed(path: str) -> tuple[Stream, ...]:
    from vrha.codec import decode
    from vrha.probe.files import read

    return decode(tuple[Stream, ...], sys.stdin.buffer.read() if path == "-" else read(path))


def _of_target(target: str, options: dict[str, Any]) -> list[Stream]:
    """The streams of a target: one of a URL, else one of each kind that was asked for."""
    from vrha.probe.targets import parse_target

    if "://" in target:
        streams = [parse_target(target, interval_ms=options["interval"])]
    else:
        wanted = [(kind, options[name]) for name, kind in _KINDS if options[name] is not None]
        if options["icmp"] or not (wanted or options["http"]):
            wanted.insert(0, ("icmp", None))
        streams = [
            parse_target(target, kind=kind, port=port, interval_ms=options["interval"])
            for kind, port in wanted
        ]
        if options["http"]:
            streams.append(
                parse_target(_http(target, options["http"]), interval_ms=options["interval"])
            )
    return [_adjusted(stream, options) for stream in streams]


def _http(target: str, path: str) -> str:
    host, at, interval = target.partition("@")
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"http://{host}/{path.lstrip('/')}{at}{interval}"


def _adjusted(stream: Stream, options: dict[str, Any]) -> Stream:
    family: Literal[0, 4, 6] = 4 if options["v4"] else 6 if options["v6"] else stream.family
    count = options["count"] if options["count"] and stream.kind in ESTABLISHED else stream.count
    return replace(
        stream,
        family=family,
        count=count,
        timeout_ms=options["timeout"] or stream.timeout_ms,
        verify=stream.verify and not options["insecure"],
    )
