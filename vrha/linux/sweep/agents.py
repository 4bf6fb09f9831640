"""Which agents of a profile live on this node."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vrha.linux.sweep import scan
from vrha.linux.sweep.site import Site


def living(at: Site) -> dict[str, int]:
    """Pid of a process of each agent that lives, by name; looked for now, not when `at` was made.

    An agent runs in the node's own network namespace. It is told by its command line, as its
    interpreter or a library that sets titles of processes has made it (`neutron-l3-agent: master
    process [...]`); a zombie has none.
    """
    found: dict[str, int] = {}
    if at.profile.agents:
        for pid in scan.processes_by_namespace().get(at.scan.home, ()):
            name = program(scan.arguments(pid))
            if name in at.profile.agents:
                found[name] = pid
    return found


def program(arguments: Sequence[str]) -> str:
    """Name of the program that a process runs; of an interpreter, its script."""
    words = [word for argument in arguments[:1] for word in argument.split()[:1]]
    name = os.path.basename(words[0]).rstrip(":") if words else ""
    if name.startswith("python"):
        script = next((each for each in arguments[1:] if not each.startswith("-")), "")
        return os.path.basename(script)
    return name
