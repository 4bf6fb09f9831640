"""Everything that there is on every node, as lines that are the same whenever the zone is at rest.

What belongs to the instance that the store names for a router carries the router's name; what
belongs to any other, or stands on any other node, is a stranger. So a line more is a leak, a line
less is a loss, wherever routers have moved.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.system.labhands import ref_of
from vrha.cli.client import Client
from vrha.core.names import folder_name, host_port_prefix, namespace_name
from vrha.lab.zone import Lab
from vrha.model.views import RouterView

_NEXT = "=== next ==="
_PASSING = re.compile(r"\S*(nft|conntrack|ip|sh|sysctl) ")


def inventory(lab: Lab, client: Client) -> Counter[str]:
    """One line for each object. Raises VrhaError."""
    routers = client.routers()
    found = Counter(f"open run of {run.router}" for run in client.runs(open_only=True))
    found.update(f"router {r.name} {r.status} {r.reason}" for r in routers)
    for node in lab.nodes:
        names = _names(r for r in routers if r.node == node and r.instance)
        for line in _node(lab, node, names):
            found[_plain(line, names) if _is_of(line, names) else f"{node}: {line}"] += 1
    return found


def differences(before: Counter[str], after: Counter[str]) -> list[str]:
    """Lines that are more (+) or less (-) than before."""
    return [f"+ {line}" for line in sorted((after - before).elements())] + [
        f"- {line}" for line in sorted((before - after).elements())
    ]


def _names(routers: Iterator[RouterView]) -> dict[str, str]:
    """What the kernel and the disk call the instances, by how they are called here."""
    names = {}
    for view in routers:
        ref = ref_of(view)
        names[namespace_name(ref)] = f"<{view.name} namespace>"
        names[host_port_prefix(ref)] = f"<{view.name}>-"
        names[folder_name(ref)] = f"<{view.name} folder>"
    return names


def _is_of(line: str, names: Mapping[str, str]) -> bool:
    return any(re.search(rf"{re.escape(name)}(?![0-9])", line) for name in names)


def _plain(line: str, names: Mapping[str, str]) -> str:
    for name, plain in names.items():
        line = re.sub(rf"{re.escape(name)}(?![0-9])", plain, line)
    return re.sub(r"agent-n\d+", "agent-*", line)


def _node(lab: Lab, node: str, names: Mapping[str, str]) -> Iterator[str]:
    state = lab.folder / "state"
    script = [
        "ls /run/netns",
        "ip -o link",
        "nft -s list ruleset",
        f"cd {state} && find agent-{node} watcher-{node} -type f -o -type d",
    ]
    text = f"\necho '{_NEXT}'\n".join(script)
    spaces, links, rules, files = lab.run(node, ["sh", "-c", text]).split(f"{_NEXT}\n")
    for name in spaces.split():
        yield f"namespace {name}"
        # A namespace whose name alone is left is told of by its name.
        inside = ["sh", "-c", f"ip netns exec {name} nft -s list ruleset 2>&1 || true"]
        yield from (f"{name}: {line}" for line in _rules(lab.run(node, inside)))
    for line in links.splitlines():
        name = line.split(": ")[1].split("@")[0]
        master = re.search(r"master (\S+)", line)
        yield f"link {name} of {master[1] if master else '-'}"
    yield from _rules(rules)
    # Whoever has ever hosted a router remembers its epoch.
    yield from (f"file {line}" for line in files.splitlines() if not line.endswith("/epochs.json"))
    yield from (f"process {line}" for line in processes(lab, node))


def _rules(text: str) -> Iterator[str]:
    """The lines of a ruleset with the block in which they stand; ports one by one."""
    table = block = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("table"):
            table = line.rstrip(" {")
        elif line.startswith(("set", "chain", "map")):
            block = line.rstrip(" {")
        ports = re.findall(r'"(vrh[^"*]+)"', line)
        if ports:
            yield from (f"nft {table} {block}: {port}" for port in ports)
        elif line and line != "}" and not line.startswith("elements"):
            yield f"nft {table} {block}: {re.sub(r'packets [0-9]+ bytes [0-9]+', '', line)}"


def processes(lab: Lab, node: str) -> Iterator[str]:
    """Command lines of what runs there (uts_namespaces(7)), but for tools that are gone at once."""
    holder = lab.place(node).pid
    mine = _uts(holder)
    for path in Path("/proc").iterdir():
        if not path.name.isdigit() or int(path.name) == holder or _uts(int(path.name)) != mine:
            continue
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue
        if line and not _PASSING.match(line):
            yield line


def _uts(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/uts").st_ino
    except OSError:
        return None
