"""What a sweep leaves alone, told byte by byte; and instances in states that a death leaves."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from vrha.linux import netns
from vrha.watcher.sweeping import Done, run, wanted

SLEEP = "import sys, time; print('in', flush=True); time.sleep(600)"


def sweep(state_dir: Path, force: bool = True, only: tuple[str, ...] = ()) -> Done:
    """As `vrha cleanup run`; instances of these tests are active on a node that nobody governs."""
    return run(wanted("vrha", state_dir, only, force))


def results(done: Done) -> dict[str, str]:
    """Results by kind and name, of those that are not simply removed."""
    return {
        f"{o.item.kind} {o.item.name}": f"{o.result} {o.reason}"
        for o in done.report.outcomes
        if o.result != "removed"
    }


def told(command: str) -> str:
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=30)
    return done.stdout


@contextlib.contextmanager
def living(name: str, *prefix: str) -> Iterator[int]:
    """A process inside a named namespace, which stays until the block ends; its pid."""
    argv = ["nsenter", f"--net={netns.path_of(name)}", *prefix, sys.executable, "-c", SLEEP]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "in\n"
        yield child.pid
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def has_ended(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process, also a child of ours, ends (or has become a zombie) within `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        except OSError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.005)
    return False


def bystanders(state_dir: Path) -> dict[str, object]:
    """All of the node that no sweep may change."""
    files = {
        str(path.relative_to(state_dir)): path.read_bytes() if path.is_file() else b""
        for path in sorted(state_dir.rglob("*"))
        if "cleanup" not in path.parts and path.name != "instances"
    }
    return {
        "names": {name: _inode(name) for name in netns.names()},
        # A bridge that had ports is DOWN without them, and was UNKNOWN before it had any.
        "links": re.sub(r"<\S+>|state \S+", "", told("ip -o link")),
        "addresses": told("ip -o -4 addr"),
        "routes": told("ip route"),
        "nft": told("nft list ruleset"),
        "iptables": told("iptables-legacy-save"),
        "files": files,
    }


def _inode(name: str) -> int:
    return os.stat(netns.path_of(name)).st_ino


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
