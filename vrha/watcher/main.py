"""`vrha-watcher`: the process, without any library of others."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from vrha.errors import VrhaError
from vrha.linux.notify import Init
from vrha.watcher.daemon import Watcher
from vrha.watcher.settings import FILE, load


def run(config: Path, verbose: bool = False) -> None:
    """Watch until SIGTERM or SIGINT. Raises as `load` and `Watcher`."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    stop, told = os.pipe()
    os.set_blocking(told, False)

    def end(_number: int, _frame: FrameType | None) -> None:
        os.write(told, b"\0")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    init = Init()
    Watcher(load(config), init).run(stop)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `vrha-watcher`. Exit code as of `vrha`."""
    parser = argparse.ArgumentParser(
        prog="vrha-watcher",
        description="Hold the lease of this node, and mute its routers when it ends.",
    )
    parser.add_argument("--config", type=Path, default=FILE, help=f"settings file ({FILE})")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    given = parser.parse_args(arguments)
    try:
        run(given.config, given.verbose)
    except VrhaError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
