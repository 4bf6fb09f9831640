"""The loss of a node of a lab, as it looks from outside, and its return."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vrha.errors import NotFoundError
from vrha.lab.wiring import MGMT
from vrha.lab.zone import Lab


def lose(lab: Lab, node: str) -> None:
    """Its cables carry nothing any more, but keep their carrier; its agent and watcher are killed.

    Repeating it changes nothing. Raises NotFoundError `no-host`, VrhaError `lab-command-failed`.
    """
    _ip(lab, [f"link set {cable} nomaster" for cable in _cables(lab, node)])
    for daemon in (lab.watcher(node), lab.agent(node)):
        if daemon.alive:
            daemon.kill()


def mend(lab: Lab, node: str) -> None:
    """Its cables carry again, and what was killed starts again. Raises as `lose`."""
    lines = []
    for cable in _cables(lab, node):
        end = cable.partition("s")[2]
        switch = _master(lab, node, f"eth{end}") if end else MGMT
        lines.append(f"link set {cable} master {switch}")
    _ip(lab, lines)
    for daemon in (lab.watcher(node), lab.agent(node)):
        if not daemon.alive:
            daemon.start()


def _cables(lab: Lab, node: str) -> list[str]:
    """Their ends in the fabric."""
    if node not in lab.nodes:
        raise NotFoundError("no-host", f"no node {node!r} in this lab", ", ".join(lab.nodes))
    index = lab.nodes.index(node)
    links = lab.run("", ["ip", "-o", "link", "show"]).splitlines()
    found = (re.match(rf"\d+: (n{index}(?:m|s\d+))@", line) for line in links)
    return [match[1] for match in found if match]


def _master(lab: Lab, node: str, link: str) -> str:
    """The bridge of the node at the other end has the switch's name."""
    shown = lab.run(node, ["ip", "-o", "link", "show", "dev", link])
    match = re.search(r" master (\S+)", shown)
    if match is None:
        raise NotFoundError("no-host", f"{link} of {node} is on no bridge")
    return match[1]


def _ip(lab: Lab, lines: Sequence[str]) -> None:
    lab.run("", ["ip", "-batch", "-"], stdin="\n".join(lines))
