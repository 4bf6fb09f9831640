"""Neutron's own clean-up as a peer: `neutron-netns-cleanup --force` for routers of a dead L3 agent.

It comes from the Python package neutron in a virtual environment of its own. The routers have the
namespaces and the links that an L3 agent makes; veths stand for ports of Open vSwitch, which it
removes more slowly still. Without `check_child_processes_interval` at 0 it would never exit.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

from tools.benchmarks.sweepbuild import Naming, Routers
from tools.benchmarks.sweepways import Act, Phases, Way, sweep_of
from vrha.errors import NotFoundError, PreconditionError
from vrha.watcher import sweeping

PROGRAM = "neutron-netns-cleanup"
_SPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
_LIMIT_S = 300.0
_INNER = {"n0": "qr-", "u0": "qg-"}


def _id(number: int) -> str:
    return str(uuid.uuid5(_SPACE, f"router {number}"))


NAMING = Naming(
    space=lambda number: f"qrouter-{_id(number)}",
    host=lambda number, port: f"q{number:03}{port}",
    inner=lambda number, port: _INNER[port] + _id(number)[:11],
    alias=lambda number, port: "",
    group=0,
)


def ways(venv: Path | None) -> dict[str, Way | str]:
    """Of the rows; a text instead says why one is missing."""
    found: dict[str, Way | str] = {PROGRAM: _peer(venv), "engine, neutron": Way(_engine)}
    try:
        sweeping.wanted("neutron", None)
    except NotFoundError as error:
        found["engine, neutron"] = error.message
    return found


def _peer(venv: Path | None) -> Way | str:
    if venv is None:
        return "no --neutron-venv DIR (python3 -m venv DIR; DIR/bin/pip install neutron)"
    program = venv / "bin" / PROGRAM
    if not os.access(program, os.X_OK):
        return f"{program}: not installed"
    return Way(lambda made, state: _cleanup(program, state))


def _cleanup(program: Path, state: Path) -> Act:
    folder = state / "neutron"
    folder.mkdir(exist_ok=True)
    settings = folder / "neutron.conf"
    settings.write_text(
        f"[DEFAULT]\nstate_path = {folder}\n[oslo_concurrency]\nlock_path = {folder}/lock\n"
        "[agent]\nroot_helper = env\ncheck_child_processes_interval = 0\n"
    )
    command = [str(program), "--config-file", str(settings), "--agent-type", "l3", "--force"]
    path = f"{program.parent}:{os.environ.get('PATH', '')}"

    def act() -> Phases:
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_LIMIT_S,
                env={**os.environ, "PATH": path},
            )
        except subprocess.TimeoutExpired as error:
            raise PreconditionError("bench-sweep", f"{PROGRAM} did not end") from error
        if done.returncode:
            raise PreconditionError("bench-sweep", f"{PROGRAM}: {done.stderr.strip()[-500:]}")
        return {}

    return act


def _engine(made: Routers, state: Path) -> Act:
    return sweep_of("neutron", state / "neutron")
