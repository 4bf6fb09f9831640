"""Ways to remove many virtual routers from a node, each as its users would."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.benchmarks.sweepbuild import FLOOR_GROUP, Routers
from vrha.errors import PreconditionError
from vrha.linux import netns, rtnetlink, tools
from vrha.probe.process import own_environment
from vrha.watcher import sweeping

_LIMIT_S = 120.0
Phases = dict[str, float]
"""ms by phase, of those ways that tell."""
Act = Callable[[], Phases]


@dataclass(frozen=True, slots=True)
class Way:
    """`prepare` makes, before the clock starts, the action that is measured, for routers that were
    built with link group `group`; None: with an agent's."""

    prepare: Callable[[Routers, Path], Act]
    group: int | None = None


def _floor(made: Routers, state: Path) -> Act:
    """The one message that deletes all ports, of whose group they were built; then the names."""
    route = rtnetlink.open_route()

    def act() -> Phases:
        with route:
            for child in made.children:
                child.kill()
            route.talk([rtnetlink.delete_group(FLOOR_GROUP)])
            for name in made.spaces:
                netns.remove(name)
        return {}

    return act


def _names_only(made: Routers, state: Path) -> Act:
    """Only the names, in process: the kernel takes the ports away when it gets to it."""

    def act() -> Phases:
        for name in made.spaces:
            netns.remove(name)
        return {}

    return act


def _nothing(made: Routers, state: Path) -> Act:
    return dict


def _engine(made: Routers, state: Path) -> Act:
    return sweep_of("vrha", state)


def sweep_of(profile: str, state_dir: Path) -> Act:
    """Our sweep, in process."""
    what = sweeping.wanted(profile, state_dir, force=True)

    def act() -> Phases:
        done = sweeping.run(what)
        if done.exit_code:
            raise PreconditionError("bench-sweep", f"{done.report}"[:500])
        return dict(done.report.timings)

    return act


def _program(made: Routers, state: Path) -> Act:
    command = [sys.executable, "-m", "vrha.watcher.cleanup"]
    command += ["--profile", "vrha", "--state-dir", str(state), "--force"]
    return lambda: _ran(command)


def _ip_each(made: Routers, state: Path) -> Act:
    ip = tools.need("ip")

    def act() -> Phases:
        for name in made.spaces:
            _ran([ip, "netns", "del", name])
        return {}

    return act


def _ip_batch(made: Routers, state: Path) -> Act:
    lines = state / "batch"
    lines.write_text("".join(f"netns del {name}\n" for name in made.spaces))
    command = [tools.need("ip"), "-batch", str(lines)]
    return lambda: _ran(command)


def _ran(command: Sequence[str]) -> Phases:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LIMIT_S, env=own_environment()
        )
    except subprocess.TimeoutExpired as error:
        raise PreconditionError("bench-sweep", f"{command[0]} did not end") from error
    if done.returncode != 0:
        raise PreconditionError("bench-sweep", f"{' '.join(command)}: {done.stderr.strip()[:500]}")
    return {}


CONTROL, FLOOR = "control", "floor"
WAYS: Mapping[str, Way] = {
    CONTROL: Way(_nothing),
    FLOOR: Way(_floor, FLOOR_GROUP),
    "names only": Way(_names_only),
    "engine": Way(_engine),
    "program": Way(_program),
    "ip netns del": Way(_ip_each),
    "ip -batch": Way(_ip_batch),
}
