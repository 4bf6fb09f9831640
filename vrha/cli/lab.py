"""`vrha lab`: a whole zone in namespaces on this machine."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import asdict

import click

from vrha.cli.client import Client
from vrha.errors import InputError, VrhaError
from vrha.lab.faults import lose, mend
from vrha.lab.life import check_root, remove
from vrha.lab.scenario import scenario_names
from vrha.lab.state import lab_names
from vrha.lab.streams import prepare
from vrha.lab.zone import Lab, LabStatus

_AGENTS_S = 20.0

_NAME = click.option("--name", default="lab", show_default=True, help="Name of the lab.")


def _say(message: str) -> None:
    click.echo(message, err=True)


@click.group()
def lab() -> None:
    """A whole zone in network namespaces on this machine: try everything, touch nothing."""


@lab.command()
@click.argument("scenario", default="seed-10x10")
@_NAME
@click.option("--no-daemons", is_flag=True, help="Only machines, nodes and networks.")
@click.option(
    "--watched/--unwatched",
    default=True,
    show_default=True,
    help="A watcher on each node too: leases, grants and failover.",
)
def up(scenario: str, name: str, no_daemons: bool, watched: bool) -> None:
    """Build SCENARIO and start RabbitMQ, an orchestrator, and on each node an agent and a watcher.

    SCENARIO is the name of a shipped one or the path of a file.
    """
    # An end by SIGTERM must clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Until the end the lab is ours and ends with us, also by kill -9.
    made = Lab.up(scenario, name=name, progress=_say, ephemeral=True)
    streams = None
    try:
        if not no_daemons:
            made.start_daemons(progress=_say, watched=watched)
            streams = prepare(made)
            _await_agents(made)
        made.keep()
    except BaseException:
        made.down()
        raise
    option = "" if name == "lab" else f" --name {name}"
    click.echo(f"lab {name} is up: {len(made.machines)} machines, {len(made.nodes)} nodes")
    click.echo(f"  desired state: {made.zone_file}")
    click.echo(f"  API socket:    {made.socket}")
    if streams is not None:
        click.echo(f"  for --measure: {streams}")
    click.echo(f"  try:           vrha lab exec{option} {made.machines[0]} -- ip address")
    click.echo(f"  remove:        vrha lab down{option}")


def _await_agents(made: Lab) -> None:
    """Wait until every agent was heard: who applies at once gets its routers on all nodes."""
    client = Client(str(made.socket))
    deadline = time.monotonic() + _AGENTS_S
    while time.monotonic() < deadline:
        heard = {event.node for event in client.events() if event.kind == "agent-started"}
        if heard >= set(made.nodes):
            return
        time.sleep(0.05)
    _say("not every agent was heard yet; `vrha events` and the logs tell more")


@lab.command(name="exec", context_settings={"ignore_unknown_options": True})
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_NAME
def exec_(host: str, command: tuple[str, ...], name: str) -> None:
    """Run COMMAND on HOST, a machine or node of the lab; write `--` before COMMAND."""
    check_root()
    try:
        child = Lab.find(name).exec(host, command)
    except (FileNotFoundError, PermissionError) as error:
        raise InputError("no-command", f"{command[0]}: {error.strerror}") from error
    # Ctrl-C goes to the whole terminal group: the command decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _frame: child.send_signal(number))
    status = child.wait()
    sys.exit(status if status >= 0 else 128 - status)


@lab.command()
@_NAME
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def status(name: str, as_json: bool) -> None:
    """Show what a lab holds and what of it is alive."""
    check_root()
    found = Lab.find(name).status()
    click.echo(json.dumps(asdict(found), indent=2) if as_json else _describe(found))


def _describe(found: LabStatus) -> str:
    machines: dict[str, list[str]] = {}
    for machine, segment in found.machines.items():
        machines.setdefault(segment, []).append(machine)
    lines = [f"lab {found.name} ({found.scenario}): {found.state}"]
    lines += [f"  {segment}: {' '.join(names)}" for segment, names in machines.items()]
    lines.append(f"  nodes: {' '.join(found.nodes)}")
    lines += [f"  {name}: {'alive' if ok else 'not running'}" for name, ok in found.daemons.items()]
    return "\n".join([*lines, f"  API socket: {found.socket}", f"  files: {found.folder}"])


@lab.command()
@_NAME
@click.option("--all", "every", is_flag=True, help="All labs of this machine.")
def down(name: str, every: bool) -> None:
    """Remove a lab, also a crashed one: its processes, namespaces and files, nothing else."""
    check_root()
    names = lab_names() if every else [name]
    problems: list[VrhaError] = []
    for each in names:
        try:
            remove(each)
            click.echo(f"lab {each} is gone")
        except VrhaError as error:
            problems.append(error)
    if problems:
        raise problems[0]


@lab.command(name="lose")
@click.argument("node")
@_NAME
def lose_(node: str, name: str) -> None:
    """NODE falls silent, as by a power cut: its routers have to serve elsewhere."""
    check_root()
    lose(Lab.find(name), node)
    click.echo(f"{node} is lost; `vrha router list` and `vrha node why {node}` show what follows")


@lab.command(name="mend")
@click.argument("node")
@_NAME
def mend_(node: str, name: str) -> None:
    """NODE is back after `lose`."""
    check_root()
    mend(Lab.find(name), node)
    click.echo(f"{node} is back")


@lab.command(name="scenarios")
def scenarios() -> None:
    """List the shipped scenarios."""
    for name in scenario_names():
        click.echo(name)
