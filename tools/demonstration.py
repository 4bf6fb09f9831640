"""The demo: a zone, restarts by every strategy under probes, a table, a report."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tools.benchmarks import options
from vrha.errors import PreconditionError, VrhaError

if TYPE_CHECKING:
    from tools.benchmarks.report import Result

CONTEXT = (
    "For context: CloudStack 4.11.1 averaged 21 s (VMware), 26 s (KVM) and 33 s (XenServer) of\n"
    "outage for the same operation on the same test network, 119, 44 and 181 s before it\n"
    "(its developers' own figures, virtual routers in virtual machines)."
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/demo", description=__doc__)
    parser.add_argument("--runs", type=options.count, default=5, help="restarts per strategy (5)")
    parser.add_argument("--scenario", default="seed-10x10")
    parser.add_argument("--report", type=Path, default=Path("reports"), metavar="FOLDER")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return demonstrate(arguments)
    except KeyboardInterrupt:
        print("interrupted; everything was taken down", file=sys.stderr)
        return 130
    except VrhaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def demonstrate(arguments: argparse.Namespace) -> int:
    """Runs the demo. Raises VrhaError when it cannot be carried out."""
    # Here, so that Ctrl-C during half a second of imports is one like every other.
    from tools.benchmarks import report, restart, rows
    from tools.benchmarks.zone import zone
    from vrha.model.runs import Strategy

    _check_folder(arguments.report)
    start = time.monotonic()

    def progress(text: str) -> None:
        report.progress(f"[{time.monotonic() - start:6.1f} s] {text}")

    with zone(arguments.scenario, f"demo-{os.getpid()}", progress) as measured:
        network = measured.network
        progress(f"restart network {network} with cleanup, {arguments.runs} times per strategy")
        wanted = restart.rows_of(measured, (Strategy.HANDOVER, Strategy.PARALLEL, Strategy.SERIAL))
        taken = rows.measure(wanted, arguments.runs, progress)
    progress("everything is taken down again")
    params = {"scenario": arguments.scenario, "interval_ms": 1, "runs": arguments.runs}
    result = report.result("restart", params, taken)
    text = f"{rows.table(result)}\n\n{NOTES}\n\n{CONTEXT}\n"
    print(f"\n{text}")
    _write(arguments.report, result, text)
    return 0


NOTES = (
    "Lost: probes of the worst 1 ms stream (ICMP, UDP; 1:1 and source NAT) per direction, median\n"
    "/ worst of the runs; fresh: each probe from another source port. TCP: long connections\n"
    "through NAT, all runs. `control` is the same probing without a restart: the machine's noise."
)


def _check_folder(folder: Path) -> None:
    """Raises PreconditionError now rather than OSError after minutes of measuring."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise PreconditionError(
            "report-unwritable",
            f"cannot write the report to {folder}: {error.strerror}",
            "Name another folder by --report.",
        ) from error


def _write(folder: Path, result: Result, text: str) -> None:
    from tools.benchmarks import report

    stamp = time.strftime("%Y%m%d-%H%M%S")
    report.write_json(folder / f"demo-{stamp}.json", result)
    host = result["host"]
    page = folder / f"demo-{stamp}.md"
    page.write_text(
        f"# Restart network with cleanup: measured\n\n"
        f"Scenario {result['params']['scenario']}, {result['params']['runs']} restarts per "
        f"strategy, probes every 1 ms.\n"
        f"Kernel {host['kernel']}, {host['cpus']} CPUs, Python {host['python']}.\n\n"
        f"```\n{text}```\n\nRaw values of every run: `demo-{stamp}.json`.\n"
    )
    report.progress(f"report: {page}")


if __name__ == "__main__":
    sys.exit(main())
