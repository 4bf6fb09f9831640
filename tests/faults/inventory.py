"""Everything that a zone consists of, as lines that are the same before and after a run.

Only what must differ is made alike: the number of a generation, what derives from it, and which
of the nodes it is that serves.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import amqp

from tests.system.zonekit import Zone
from vrha.bus import topology

_NEXT = "=== next ==="
_PORT = re.compile(r"vrh[0-9a-f]{8}-")
_PASSING = re.compile(r"process: \d+ of \S*(nft|conntrack|ip6?tables-restore|ip) ")
_OPEN_RATE = 125_000_000_000
_ERLANG = ("beam", "epmd", "erl_child_setup", "inet_gethost", "rabbitmq")


def inventory(zone: Zone) -> list[str]:
    """One line for each object."""
    serving = zone.router().node
    lines: list[str] = []
    for node in zone.lab.nodes:
        role = "serving node" if node == serving else "other node"
        lines += [f"{role}: {line}" for line in _node(zone, node)]
    lines += [f"process: {line}" for line in _processes(zone)]
    lines += [f"queue: {line}" for line in _queues(zone)]
    lines += [f"store: {line}" for line in _store(zone)]
    lines += [f"router: {r.name} {r.status} {r.reason}" for r in zone.client.routers()]
    lines += [f"open run: {run.id}" for run in zone.client.runs(open_only=True)]
    return sorted(lines)


def at_rest(zone: Zone) -> list[str]:
    """The inventory without tools that an agent has just started: they are gone a moment later."""
    return [line for line in inventory(zone) if not _PASSING.match(line)]


def assert_same(before: list[str], zone: Zone, timeout_s: float = 15.0) -> None:
    """Wait until the inventory is what it was. AssertionError with the difference."""
    deadline = time.monotonic() + timeout_s
    while (after := inventory(zone)) != before and time.monotonic() < deadline:
        time.sleep(0.2)
    changed = [
        line
        for line in difflib.unified_diff(before, after, lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    assert not changed, "left behind (+) or missing (-):\n" + "\n".join(changed)


def _node(zone: Zone, node: str) -> Iterator[str]:
    state = zone.lab.folder / "state" / f"agent-{node}"
    names, links, fdb, qdiscs, rules, files = _ask(
        zone,
        node,
        "ls /run/netns",
        "ip -j link show",
        "bridge -j fdb show",
        "tc -j qdisc show",
        "nft -s list ruleset",
        f"cd {state} && find . -type f -o -type d",
    )
    instances = names.split()
    inner = {name: _instance(zone, node, name) for name in instances}
    for name in instances:
        yield from (f"{_plain(name)}: {line}" for line in inner[name][1])
    yield from (f"namespace {_plain(name)}" for name in instances)
    own: dict[str, set[str]] = {}
    for link in json.loads(links):
        name = link["ifname"]
        yield f"link {_plain(name)} of {link.get('master', '-')}, {link['operstate']}"
        own[name] = {link["address"]} if "address" in link else set()
        own[name] |= {mac for macs, _ in inner.values() for mac in macs if name.startswith("vrh")}
    yield from _entries(json.loads(fdb), own)
    yield from _qdiscs(json.loads(qdiscs))
    yield from _rules("nft", rules)
    yield from (f"file {_plain(line)}" for line in files.splitlines())
    agent = zone.lab.agent(node)
    held = f"/proc/{agent.pid}/fd"
    targets = [_target(f"{held}/{fd}") for fd in os.listdir(held)]
    yield f"agent holds {sum('/run/netns/vrha' in target for target in targets)} namespaces"


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


def _instance(zone: Zone, node: str, name: str) -> tuple[set[str], list[str]]:
    """MACs of the ports of an instance, and its lines."""
    inside = f"ip netns exec {name}"
    links, neighbours, rules, tables, tables6, tracked = _ask(
        zone,
        node,
        f"ip -n {name} -j addr show",
        f"ip -n {name} -j neigh show nud permanent",
        f"{inside} nft -s list ruleset",
        f"{inside} iptables-legacy-save 2>/dev/null || true",
        f"{inside} ip6tables-legacy-save 2>/dev/null || true",
        f"{inside} sysctl -n net.netfilter.nf_conntrack_tcp_be_liberal",
    )
    lines = [f"liberal {tracked.strip()}"]
    macs = set()
    for link in json.loads(links):
        macs.add(link.get("address", ""))
        # Link-local ones derive from the MAC.
        found = sorted(a["local"] for a in link["addr_info"] if a["scope"] == "global")
        lines.append(f"port {link['ifname']} {link['operstate']} {' '.join(found)}")
    lines += [f"neighbour {n['dst']} is {n.get('lladdr')}" for n in json.loads(neighbours or "[]")]
    lines += [*_rules("nft", rules), *_rules("iptables", tables), *_rules("ip6tables", tables6)]
    return macs, lines


def _entries(fdb: Sequence[dict[str, Any]], own: dict[str, set[str]]) -> Iterator[str]:
    """Entries that nobody has learned; those of a port's own MACs go with the port, and groups
    with whoever listens to them.
    """
    for entry in fdb:
        if int(entry["mac"][:2], 16) & 1:
            continue
        fixed = entry["state"] in ("permanent", "static") or "sticky" in entry.get("flags", ())
        if fixed and entry["mac"] not in own.get(entry["ifname"], ()):
            yield f"fdb {entry['mac']} at {_plain(entry['ifname'])} {entry.get('flags', [])}"


def _qdiscs(qdiscs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Queues that hold something back; an open one stays for the life of its port."""
    for qdisc in qdiscs:
        options = qdisc.get("options", {})
        if qdisc["kind"] == "tbf" and options.get("rate", 0) != _OPEN_RATE:
            yield f"queue of {_plain(qdisc['dev'])} holds: {options}"


def _rules(what: str, text: str) -> Iterator[str]:
    """The lines of a ruleset with the block in which they stand."""
    block = ""
    for line in text.splitlines():
        words = _plain(re.sub(r"\[\d+:\d+\]", "", line.split("#")[0].strip()))
        if words and words != "}":
            members = re.sub(r"\s+", " ", words)
            yield f"{what} {block}{members}"
        if line.startswith("table"):
            block = f"{words.rstrip(' {')}: "


def _processes(zone: Zone) -> Iterator[str]:
    lines = zone.lab.run("", ["ps", "-ww", "-eo", "args"]).splitlines()[1:]
    ours = [
        re.sub(r"agent-n\d/instances/r1-\d+", "agent-*/instances/r1-*", line)
        for line in lines
        if not any(word in line for word in _ERLANG) and not line.startswith(("ps ", "["))
    ]
    yield from (f"{count} of {line[:200]}" for line, count in Counter(ours).items())


def _queues(zone: Zone) -> Iterator[str]:
    """Messages that wait, and those that nobody took; an expired command is meant to end there."""
    url = urlsplit(zone.lab.broker().url)

    def look() -> Iterator[str]:
        connection = amqp.Connection(
            host=f"{url.hostname}:{url.port}",
            userid=url.username,
            password=url.password,
            connect_timeout=5,
            read_timeout=5,
        )
        connection.connect()
        channel = connection.channel()
        queues = [topology.orchestrator_queue(), *map(topology.node_queue, zone.lab.nodes)]
        for queue in queues:
            count = channel.queue_declare(queue.name, passive=True).message_count
            yield f"{queue.name}: {count} messages"
        while message := channel.basic_get(topology.dead_queue().name):
            why = message.headers.get("x-first-death-reason")
            if why != "expired":
                yield f"dead ({why}): {bytes(message.body)[:300]!r}"
        # What was only looked at goes back.
        connection.close()

    yield from zone.lab.call("n1", lambda: list(look()))


def _store(zone: Zone) -> Iterator[str]:
    path = zone.lab.folder / "state" / "orchestrator" / "orchestrator.db"
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        (waiting,) = db.execute("select count(*) from outbox").fetchone()
        (due,) = db.execute("select count(*) from runs where not terminal").fetchone()
    finally:
        db.close()
    yield f"{waiting} commands to send, {due} open runs"


def _ask(zone: Zone, where: str, *commands: str) -> list[str]:
    """What each of the commands says, by one shell."""
    script = "\n".join(f"{command} || exit 1\necho '{_NEXT}'" for command in commands)
    return zone.lab.run(where, ["sh", "-c", script]).split(f"{_NEXT}\n")[:-1]


def _plain(text: str) -> str:
    """Without the number of the generation."""
    return re.sub(r"r1-\d+", "r1-*", _PORT.sub("vrh*-", text))
