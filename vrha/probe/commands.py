"""`ping-gap measure` and `ping-gap compare`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import click

from vrha.codec import decode, encode
from vrha.core import compare as comparing
from vrha.core.compare import Comparison, Row
from vrha.errors import InputError
from vrha.model.probing import RECORD_VERSION, Kind, Limits, Record, Stream
from vrha.probe.files import STDOUT, check_writable, read, write
from vrha.probe.options import PORT, Milliseconds, errors, stop_on_signal
from vrha.probe.origins import HERE, Origin, origin_of, placed
from vrha.probe.targets import parse_target

_KINDS: tuple[tuple[str, Kind], ...] = (
    ("udp", "udp"),
    ("udp_fresh", "udp-fresh"),
    ("tcp", "tcp-connect"),
    ("tcp_echo", "tcp-echo"),
    ("tcp_push", "tcp-push"),
)

Command = Callable[..., None]


def _port(name: str, text: str) -> Callable[[Command], Command]:
    return click.option(name, type=PORT, metavar="PORT", help=text)


def _file(name: str, text: str) -> Callable[[Command], Command]:
    return click.option(f"--{name}", f"{name}_out", metavar="FILE", help=text)


def _options(command: Command) -> Command:
    every = (
        click.option("--icmp", is_flag=True, help="ICMP echo (the default)."),
        _port("--udp", "UDP echo to `ping-gap serve`."),
        click.option(
            "--udp-fresh", type=PORT, metavar="PORT", help="UDP echo, each probe from another port."
        ),
        _port("--tcp", "A TCP connection per probe."),
        click.option(
            "--tcp-echo", type=PORT, metavar="PORT", help="Long TCP connections to an echo."
        ),
        click.option(
            "--tcp-push",
            type=PORT,
            metavar="PORT",
            help="Long TCP connections; only the far end sends.",
        ),
        click.option(
            "--count", type=int, default=1, metavar="N", help="Long connections per stream."
        ),
        click.option("-4", "family", flag_value=4, type=int, help="IPv4 only."),
        click.option("-6", "family", flag_value=6, type=int, help="IPv6 only."),
        click.option(
            "--interval",
            type=Milliseconds(),
            help="Between probes [1ms; TCP, HTTP and DNS 10ms; HTTPS 100ms].",
        ),
        click.option(
            "--timeout",
            type=Milliseconds(),
            default="1s",
            show_default=True,
            help="A later answer counts as lost.",
        ),
        click.option(
            "--duration",
            type=Milliseconds("s"),
            default="10s",
            show_default=True,
            help="0: until Ctrl-C.",
        ),
        click.option(
            "--from",
            "names",
            multiple=True,
            metavar="NS|HOST",
            help="Probe from this named namespace, else from this host by --rsh. Repeatable.",
        ),
        click.option("--netns", multiple=True, help="Probe from the namespace at this path."),
        click.option(
            "--rsh",
            default="ssh -o BatchMode=yes",
            show_default=True,
            metavar="COMMAND",
            help="Takes a command to a host.",
        ),
        click.option(
            "--remote-command",
            default="ping-gap",
            show_default=True,
            metavar="COMMAND",
            help="What ping-gap is called there.",
        ),
        click.option("--insecure", is_flag=True, help="HTTPS: take any certificate."),
        click.option(
            "--streams",
            metavar="FILE",
            help="JSON list of streams instead of targets: a file or -.",
        ),
        click.option("--control", is_flag=True, help="Measure this machine's own noise, too."),
        click.option(
            "--mark-from",
            metavar="FILE|-|unix:PATH",
            help="Lines `[TIME] TEXT`, each the begin of a phase; gaps name theirs.",
        ),
        click.option(
            "--settle",
            type=Milliseconds("s"),
            default="5s",
            show_default=True,
            help="Full rate for that long must follow the last gap, or the run does not count.",
        ),
        click.option("--max-lost", type=click.IntRange(0), help="Exit 1 when a stream lost more."),
        click.option(
            "--max-gap", type=Milliseconds(), help="Exit 1 when a gap or stall was longer."
        ),
        click.option("--max-total", type=Milliseconds(), help="Exit 1 when its gaps sum to more."),
        click.option(
            "--json", "json_out", metavar="FILE", help="Write all as JSON to a file or - (stdout)."
        ),
        click.option(
            "--html", "html_out", metavar="FILE", help="Write a report with a plot to a file."
        ),
        _file("csv", "Write a line per gap to a file."),
        click.option(
            "--junit", "junit_out", metavar="FILE", help="Write a JUnit report to a file."
        ),
        click.option(
            "--probes", "probes_out", metavar="FILE", help="Write a CSV line per probe to a file."
        ),
        click.option("--title", default="", help="What the report is about."),
        click.option("--quiet", is_flag=True, help="No progress."),
    )
    for option in reversed(every):
        command = option(command)
    return command


@click.command()
@click.argument("targets", metavar="TARGET...", nargs=-1)
@_options
def measure(targets: tuple[str, ...], **options: Any) -> None:
    """Probe each TARGET and say when it did not answer, and for how long.

    TARGET is a host, or icmp://HOST, udp://HOST:PORT, udp-fresh://HOST:PORT, tcp://HOST:PORT,
    tcp-echo://HOST:PORT, tcp-push://HOST:PORT, http://HOST/PATH, https://HOST/PATH,
    dns://SERVER/NAME/TYPE; with @5ms at the end for an interval of its own, and FROM= before it
    for an origin of its own. Both directions through a router in one run:

    \b
      ping-gap inside=udp://203.0.113.1 outside=udp://198.51.100.7

    where `inside` and `outside` are namespaces (ip netns) or hosts (ssh).
    """
    from vrha.probe.live import view
    from vrha.probe.measure import Request
    from vrha.probe.measure import measure as run
    from vrha.probe.report import show

    with errors():
        streams = _streams(targets, options)
        outputs = {name: options[f"{name}_out"] for name in ("json", "html", "csv", "junit")}
        probes = options["probes_out"]
        check_writable([path for path in (*outputs.values(), probes) if path])
        _check_probes(probes, streams)
        duration = options["duration"] / 1000 or None
        request = Request(
            streams,
            duration,
            _limits(options),
            require_reply_s=max(2.0, options["timeout"] / 1000 + 1),
            mark_from=options["mark_from"],
            control=options["control"],
            probes=probes,
            title=options["title"],
            tool=_tool(),
            rsh=options["rsh"],
            remote_command=options["remote_command"],
        )
        record = run(request, view(sys.stderr, duration, options["quiet"]), stop_on_signal())
        if STDOUT not in (*outputs.values(), probes):
            show(record, sys.stdout)
        _write(record, outputs)
    for line in record.exceeded:
        click.echo(f"ping-gap: {line}", err=True)
    sys.exit(1 if record.exceeded else 0)


def _streams(targets: Sequence[str], options: dict[str, Any]) -> Sequence[tuple[Origin, Stream]]:
    """What to probe, from where. Raises InputError."""
    if (options["streams"] is None) == (not targets):
        raise InputError(
            "no-target", "name targets, or --streams", "See `ping-gap measure --help`."
        )
    if options["streams"] == options["mark_from"] == "-":
        raise InputError("stdin-twice", "--streams and --mark-from cannot both be stdin")
    if options["streams"] is not None:
        body = sys.stdin.buffer.read() if options["streams"] == "-" else read(options["streams"])
        streams = decode(tuple[Stream, ...], body, closed=True)
        return [(HERE, stream) for stream in streams]
    paths = (str(Path(path).absolute()) for path in options["netns"])
    origins = [origin_of(name) for name in (*paths, *options["names"])] or [HERE]
    kinds = [(kind, options[name]) for name, kind in _KINDS if options[name] is not None]
    if options["icmp"] or not kinds:
        kinds.insert(0, ("icmp", None))
    family: Literal[0, 4, 6] = options["family"] or 0

    def streams_of(text: str) -> list[Stream]:
        wanted: list[tuple[Kind | None, int | None]] = [(None, None)] if "://" in text else [*kinds]
        return [
            parse_target(
                text,
                kind=kind,
                port=port,
                interval_ms=options["interval"],
                family=family,
                timeout_ms=options["timeout"],
                verify=not options["insecure"],
                count=options["count"] if _is_long(kind, text) else 1,
            )
            for kind, port in wanted
        ]

    return placed(targets, origins, streams_of)


def _is_long(kind: Kind | None, text: str) -> bool:
    return (kind or text.partition("://")[0]) in ("tcp-echo", "tcp-push")


def _check_probes(path: str | None, streams: Sequence[tuple[Origin, Stream]]) -> None:
    if path == STDOUT:
        raise InputError("bad-output", "--probes needs a file")
    if path and any(origin.host for origin, _ in streams):
        raise InputError("bad-output", "--probes is for probes from this machine, not from hosts")


def _limits(options: dict[str, Any]) -> Limits:
    return Limits(options["max_gap"], options["max_lost"], options["max_total"], options["settle"])


def _tool() -> str:
    try:
        return f"ping-gap {version('vrha')}"
    except PackageNotFoundError:
        return "ping-gap"


def _write(record: Record, outputs: dict[str, str | None]) -> None:
    if outputs["json"]:
        write(outputs["json"], encode(record))
    if outputs["html"]:
        from vrha.render.gappage import page

        write(outputs["html"], page(record).encode())
    if outputs["csv"]:
        from vrha.render.gapcsv import csv_of

        write(outputs["csv"], csv_of(record).encode())
    if outputs["junit"]:
        from vrha.render.junit import junit_of

        write(outputs["junit"], junit_of(record).encode())


@click.command()
@click.argument("before", metavar="A.json")
@click.argument("after", metavar="B.json")
@click.option(
    "--html", "html_out", metavar="FILE", help="Write both plots and the table to a file."
)
@click.option(
    "--json", "json_out", metavar="FILE", help="Write the comparison as JSON to a file or -."
)
@click.option("--fail-if-worse", is_flag=True, help="Exit 1 when a figure became worse.")
def compare(
    before: str, after: str, html_out: str | None, json_out: str | None, fail_if_worse: bool
) -> None:
    """Compare run B with run A, the baseline: what `ping-gap measure --json` wrote."""
    with errors():
        check_writable([path for path in (html_out, json_out) if path])
        a, b = _record(before), _record(after)
        found = comparing.compare(a, b)
        if json_out:
            write(json_out, encode(found))
        if html_out:
            from vrha.render.gappage import compare_page

            write(html_out, compare_page(found, a, b).encode())
        if STDOUT not in (json_out, html_out):
            _show(found)
    sys.exit(1 if fail_if_worse and found.worse else 0)


def _record(path: str) -> Record:
    record = decode(Record, read(path))
    if record.version != RECORD_VERSION:
        raise InputError(
            "bad-record", f"{path} is of version {record.version}, this is {RECORD_VERSION}"
        )
    return record


def _show(found: Comparison) -> None:
    from rich.console import Console

    from vrha.probe.report import print_table

    console = Console(highlight=False)
    rows = [(_cells(row), row.trend == "worse") for row in found.rows]
    print_table(console, ("stream", "figure", "A", "B", "B is"), rows)
    for name, where in (*((n, "A") for n in found.only_a), *((n, "B") for n in found.only_b)):
        console.print(f"{name}: only in {where}", markup=False)


def _cells(row: Row) -> list[str]:
    return [row.stream, row.figure, _value(row, row.a), _value(row, row.b), row.trend]


def _value(row: Row, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} {row.unit}" if row.unit else f"{value:g}"
