"""What it costs to mute many routers at once: the kernel's sets, and links taken down by `ip`."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tools.benchmarks.ownnode import sh
from vrha.errors import PreconditionError
from vrha.linux.deadman import DeadMan
from vrha.linux.mute import Switch

ROUTERS = (1, 54, 200)
_BRIDGE = "br-many"
_SLICE_MS = 60_000
_SETTLE_S = 0.2


def ports(routers: int) -> list[str]:
    """Names of the ports of this many routers: two networks each, and an uplink for every other."""
    names = (("n0", "n1", "u0"), ("n0", "n1"))
    return [f"vrh{number:08x}-{name}" for number in range(routers) for name in names[number % 2]]


@contextlib.contextmanager
def many(folder: Path) -> Iterator[None]:
    """All these ports on a bridge of the calling thread's namespace."""
    sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
    sh(f"ip link add {_BRIDGE} type bridge")
    sh(f"ip link set {_BRIDGE} up")
    made = ports(max(ROUTERS))
    lines = []
    for number, port in enumerate(made):
        lines += [
            f"link add {port} type veth peer name x{number}",
            f"link set x{number} up",
            f"link set {port} master {_BRIDGE} up",
        ]
    _ip_batch(_file(folder / "make", lines))
    try:
        yield
    finally:
        _ip_batch(_file(folder / "drop", [f"link del {port}" for port in made]))


def run(folder: Path, switch: Switch, dead_man: DeadMan, routers: int) -> dict[str, dict[str, Any]]:
    """Each way once, in turn; every one begins with all ports able to speak."""
    names = ports(routers)
    every = frozenset(ports(max(ROUTERS)))
    down = _file(folder / "down", [f"link set {port} down" for port in names])
    up = _file(folder / "up", [f"link set {port} up" for port in names])

    def speak() -> None:
        switch.change(unmute=every)
        dead_man.grant(every)
        dead_man.arm(_SLICE_MS)
        if not dead_man.fire(_SLICE_MS):
            raise PreconditionError("bench-dead-man", "the lease could not begin")

    taken = {}
    ways: dict[str, Callable[[], None]] = {
        "set active": lambda: switch.change(mute=names),
        "grants": lambda: dead_man.grant(every.difference(names)),
        "ip -batch": lambda: _ip_batch(down),
    }
    for name, way in ways.items():
        speak()
        taken[f"{name}, {routers}"] = {"ms": _timed(way), "count": len(names)}
        if name == "grants":
            again = {"ms": _timed(lambda: dead_man.grant(every)), "count": len(names)}
            taken[f"grants again, {routers}"] = again
    speak()
    floor = taken[f"ip -batch, {routers}"]["ms"]
    if routers == max(ROUTERS):
        taken[f"whole node, {routers}"] = {"ms": _timed(dead_man.mute), "count": len(names)}
    _ip_batch(up)
    time.sleep(_SETTLE_S)
    return {name: run | {"ratio": round(run["ms"] / floor, 5)} for name, run in taken.items()}


def _timed(action: Callable[[], None]) -> float:
    begin = time.perf_counter()
    action()
    return round((time.perf_counter() - begin) * 1000, 3)


def _file(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def _ip_batch(path: Path) -> None:
    done = subprocess.run(
        ["ip", "-batch", str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        raise PreconditionError("bench-setup", f"ip -batch {path.name}: {done.stderr.strip()}")
