"""`vrha-watcher`: the process, without any library of others."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

from vrha.errors import VrhaError
from vrha.linux.notify import Init
from vrha.watcher.settings import FILE, load

SYSTEMD = Path("/run/systemd/system")
"""Is there where systemd is process 1 (sd_booted(3))."""
_ALONE = ("agent_unit", "agent_pid_file", "agent_command")


class _Runs(Protocol):
    def run(self, stop: int) -> None: ...


def run(config: Path, verbose: bool = False) -> None:
    """Watch until SIGTERM or SIGINT. Raises as `load` and `Watcher`."""
    from vrha.watcher.daemon import Watcher

    _log(verbose)
    init = Init()
    _until_told(Watcher(load(config), init))


def _log(verbose: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def _until_told(watcher: _Runs) -> None:
    stop, told = os.pipe()
    os.set_blocking(told, False)

    def end(_number: int, _frame: FrameType | None) -> None:
        os.write(told, b"\0")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    watcher.run(stop)


def _run_alone(given: argparse.Namespace) -> None:
    from vrha.watcher.alone import Alone, AloneSettings
    from vrha.watcher.mainprocess import Command, MainProcess, PidFile, Unit

    _log(given.verbose)
    agents: list[MainProcess] = [
        *map(Unit, given.agent_unit),
        *map(PidFile, given.agent_pid_file),
        *map(Command, given.agent_command),
    ]
    # A program of the service manager's own unit is not held back by what this one may not do.
    unit = ("systemctl", "start", f"vrha-cleanup@{given.profile}.service")
    itself = ("vrha-cleanup", "--profile", given.profile)
    command = given.sweep_command or (unit if SYSTEMD.is_dir() else itself)
    socket = given.socket or Path(f"/run/vrha/watcher-{given.profile}.sock")
    times = (given.grace, given.pause)
    settings = AloneSettings(given.profile, agents, command, socket, *times, given.sweep_stopped)
    alone = Alone(settings)
    Init().ready(f"watches agents of {given.profile}")
    _until_told(alone)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vrha-watcher",
        description="Hold the lease of this node, and mute its routers when it ends; or, with"
        " --profile, watch the agent of another and sweep what it leaves.",
    )
    parser.add_argument("--config", type=Path, default=FILE, help=f"settings file ({FILE})")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    alone = parser.add_argument_group("beside the agent of another: no lease, no keys, no settings")
    alone.add_argument("--profile", help="whose remains are swept: neutron")
    for option, what in (
        ("--agent-unit", "the agent's unit of systemd"),
        ("--agent-pid-file", "the file with the agent's pid, where it has no unit"),
        ("--agent-command", "a pattern of the agent's command line, where it has neither"),
    ):
        text = f"{what}; may be repeated: all of them must be gone"
        alone.add_argument(option, action="append", default=[], help=text)
    alone.add_argument("--grace", type=_seconds, default=60.0, help="seconds to come back (60)")
    alone.add_argument(
        "--pause", type=_seconds, default=60.0, help="seconds before something is tried again (60)"
    )
    alone.add_argument(
        "--sweep-command", type=shlex.split, help="what sweeps, in place of vrha-cleanup"
    )
    alone.add_argument(
        "--sweep-stopped",
        action="store_true",
        help="also after a stop on purpose (systemctl stop), which otherwise keeps everything",
    )
    alone.add_argument("--socket", type=Path, help="/run/vrha/watcher-PROFILE.sock")
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 86400:
        raise argparse.ArgumentTypeError("must be 0 to 86400")
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `vrha-watcher`. Exit code as of `vrha`."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if bool(given.profile) != any(getattr(given, name) for name in _ALONE):
        parser.error("--profile and one of --agent-unit, --agent-pid-file, --agent-command")
    try:
        if given.profile:
            _run_alone(given)
        else:
            run(given.config, given.verbose)
    except VrhaError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
