"""Programs of the system that vrha runs: found once, started without a shell, with a deadline."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from vrha.errors import PreconditionError, StepError

_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": _SYSTEM_PATH, "LC_ALL": "C"}

PACKAGE_OF = {
    "nft": "nftables",
    "dnsmasq": "dnsmasq-base",
    "iptables-legacy-restore": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "rabbitmq-server": "rabbitmq-server",
}
"""Debian package of each program."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """What it said went wrong, at most 2,000 characters."""
        said = (self.stderr or self.stdout).strip()
        return said[:2000] or f"exit code {self.returncode}"


def find(program: str) -> str | None:
    """Absolute path of a program; daemons often lack /usr/sbin in their PATH."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")


def need(program: str) -> str:
    """Absolute path of a program. Raises PreconditionError `missing-tool:<program>`."""
    path = find(program)
    if path is None:
        raise PreconditionError(
            f"missing-tool:{program}",
            f"{program} is not installed",
            f"apt-get install {PACKAGE_OF.get(program, program)}",
        )
    return path


def run(argv: Sequence[str], given: str = "", timeout: float = 30.0) -> Finished:
    """Run a program to its end in the calling thread's network namespace; `given` is its input.

    `timeout` in seconds; raises StepError `tool-timeout` when it is over (the program is
    killed), `tool-failed` when it cannot be started.
    """
    try:
        done = subprocess.run(
            list(argv),
            input=given,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=ENVIRONMENT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StepError("tool-timeout", f"{argv[0]} did not end within {timeout:g} s") from error
    except OSError as error:
        raise StepError("tool-failed", f"{argv[0]}: {error.strerror}") from error
    return Finished(done.returncode, done.stdout, done.stderr)
