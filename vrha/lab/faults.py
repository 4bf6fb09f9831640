"""The loss of a node of a lab, as it looks from outside, and its return."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from vrha.bus.processes import ProcessId
from vrha.errors import NotFoundError
from vrha.lab.wiring import MGMT
from vrha.lab.zone import Lab


def lose(lab: Lab, node: str) -> None:
    """Its cables carry nothing any more, but keep their carrier; its agent and watcher are killed.

    Repeating it changes nothing. Raises NotFoundError `no-host`, VrhaError `lab-command-failed`.
    """
    unplug(lab, cables(lab, node))
    for daemon in (lab.watcher(node), lab.agent(node)):
        if daemon.alive:
            daemon.kill()


def mend(lab: Lab, node: str) -> None:
    """Its cables carry again, and what was killed starts again. Raises as `lose`."""
    plug(lab, cables(lab, node))
    for daemon in (lab.watcher(node), lab.agent(node)):
        if not daemon.alive:
            daemon.start()


def cables(lab: Lab, node: str) -> dict[str, str]:
    """The ends of the node's cables in the fabric, and the switch of each, plugged or not.

    Raises as `lose`.
    """
    if node not in lab.nodes:
        raise NotFoundError("no-host", f"no node {node!r} in this lab", ", ".join(lab.nodes))
    index = lab.nodes.index(node)
    links = lab.run("", ["ip", "-o", "link", "show"])
    ends = re.findall(rf"^\d+: (n{index}(?:m|s\d+))@", links, re.MULTILINE)
    # The node's bridge at the other end of a cable has the name of the switch.
    inside = lab.run(node, ["ip", "-o", "link", "show"])
    bridges = dict(re.findall(r"^\d+: eth(\d+)@.* master (\S+) ", inside, re.MULTILINE))
    return {end: bridges[end.partition("s")[2]] if "s" in end else MGMT for end in ends}


def unplug(lab: Lab, ends: Iterable[str]) -> None:
    """These cables carry nothing, with their carrier kept. Raises VrhaError as `lose`."""
    _ip(lab, [f"link set {end} nomaster" for end in ends])


def plug(lab: Lab, ends: Mapping[str, str]) -> None:
    """These cables carry again, each into its switch. Raises VrhaError as `lose`."""
    _ip(lab, [f"link set {end} master {switch}" for end, switch in ends.items()])


def processes(lab: Lab, node: str) -> list[ProcessId]:
    """All of the node but the one that holds its namespaces.

    They have its host name (uts_namespaces(7)), which programs keep when they go into the
    namespaces of a router.
    """
    holder = lab.place(node).pid
    mine = _uts(holder)
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    found = [ProcessId.of(pid) for pid in pids if pid != holder and _uts(pid) == mine]
    return [process for process in found if process is not None]


def _uts(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/uts").st_ino
    except OSError:
        return None


def _ip(lab: Lab, lines: Iterable[str]) -> None:
    lab.run("", ["ip", "-batch", "-"], stdin="\n".join(lines))
