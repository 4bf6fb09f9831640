"""Two like routers with NAT, tenants and an outside host, for the tests of connection tracking."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tests.netns.nodekit import Machine, machine, until
from vrha.linux import conntrack, netns
from vrha.linux.ctwire import Change, Kind
from vrha.linux.netlink import attr, attributes

T = TypeVar("T")

OUT, OUT6 = "203.0.113.1", "2001:db8::1"
SHARED, ONE = "203.0.113.10", "203.0.113.11"
VM1, VM2, VM3 = "10.1.1.11", "10.1.1.12", "10.1.1.13"
FORWARDED, LABELLED, ZONED = 8080, 7001, 7002
"""Ports: of the port forward; of flows that get a mark and a label; of flows in zone 5."""

RULES = f"""
table ip nat {{
  chain pre {{
    type nat hook prerouting priority -100;
    iifname p0 ip daddr {ONE} dnat to {VM1}
    iifname p0 ip daddr {SHARED} tcp dport {FORWARDED} dnat to {VM2}:80
  }}
  chain post {{
    type nat hook postrouting priority 100;
    oifname p0 ip saddr {VM1} snat to {ONE}
    oifname p0 ip saddr 10.1.1.0/24 snat to {SHARED}
  }}
}}
table ip6 nat {{
  chain post {{
    type nat hook postrouting priority 100;
    oifname p0 ip6 saddr fd00:1::12 snat to 2001:db8::10
  }}
}}
table inet filter {{
  ct helper control {{
    type "ftp" protocol tcp;
  }}
  chain zones {{
    type filter hook prerouting priority -300;
    udp dport {ZONED} ct zone set 5
    udp sport {ZONED} ct zone set 5
  }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    tcp dport {LABELLED} ct mark set 0x2a ct label set 3
    tcp dport 21 ct helper set "control"
    iifname g0 accept
    ct status dnat accept
  }}
  chain input {{
    type filter hook input priority 0; policy accept;
    ct state invalid drop
  }}
}}
"""


@dataclass(frozen=True)
class Vr:
    """A router: ports g0 and p0, with the same addresses and MACs as the other one."""

    name: str

    def run(self, *argv: str, stdin: str | None = None, ok: bool = True) -> str:
        full = ["ip", "netns", "exec", self.name, *argv]
        done = subprocess.run(full, input=stdin, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 or not ok, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def inside(self, make: Callable[[], T]) -> T:
        home = netns.current()
        try:
            with netns.entered_named(self.name, home):
                return make()
        finally:
            os.close(home)

    def wire(self, state: str) -> None:
        """Connect ("up") its bridge ports or not ("down")."""
        for port in ("g", "p"):
            ip(f"link set {port}-{self.name} {state}")
        if state == "up":
            until(lambda: "LOWERLAYERDOWN" not in self.run("ip", "link"))

    @contextlib.contextmanager
    def source(self, *ignored: conntrack.Target, **options: int) -> Iterator[conntrack.Source]:
        made = self.inside(lambda: conntrack.Source(**options))
        for target in ignored:
            made.ignore(target.port_id)
        with contextlib.closing(made):
            yield made

    @contextlib.contextmanager
    def target(self) -> Iterator[conntrack.Target]:
        with contextlib.closing(self.inside(conntrack.Target)) as made:
            yield made

    def entries(self, *filters: str) -> dict[str, int]:
        """Entries as conntrack(8) shows them, with their seconds left; use counts left out."""
        shown = {}
        for family in ("ipv4", "ipv6"):
            out = self.run("conntrack", "-L", "-f", family, "-o", "extended", *filters)
            for line in out.splitlines():
                words = line.split()
                left = int(words.pop(4))
                line = re.sub(r" use=\d+| (packets|bytes)=\d+", "", " ".join(words))
                shown[line] = left
        return shown


@dataclass(frozen=True)
class World:
    """Everything on the bridges br-a (inside) and br-up (outside) of the node."""

    a: Vr
    b: Vr
    vm1: Machine
    vm2: Machine
    vm3: Machine
    out: Machine

    def flip(self) -> None:
        """All traffic goes through B."""
        self.a.wire("down")
        self.b.wire("up")


def ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True, capture_output=True, timeout=10)


def _router(name: str) -> Vr:
    ip(f"netns add {name}")
    made = Vr(name)
    made.run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad")
    for port, inner, bridge, mac in (("g", "g0", "br-a", "01"), ("p", "p0", "br-up", "02")):
        ip(
            f"link add {port}-{name} type veth peer name {inner} "
            f"address 02:76:00:00:00:{mac} netns {name}"
        )
        ip(f"link set {port}-{name} master {bridge}")
    made.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    made.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
    made.run("nft", "-f", "-", stdin=RULES)
    made.run("sh", "-c", "echo 1 > /proc/sys/net/netfilter/nf_conntrack_events")
    lines = """link set lo up
        addr add 10.1.1.1/24 dev g0
        addr add fd00:1::1/64 dev g0 nodad
        addr add 203.0.113.10/24 dev p0
        addr add 203.0.113.11/24 dev p0
        addr add 2001:db8::10/64 dev p0 nodad
        link set g0 up
        link set p0 up"""
    made.run("ip", "-batch", "-", stdin=lines)
    return made


def world() -> World:
    """Make it in the node of the calling thread; traffic goes through A."""
    a, b = _router("vr-a"), _router("vr-b")
    inside = {"via": "10.1.1.1", "via6": "fd00:1::1"}
    made = World(
        a,
        b,
        machine("vm1", "br-a", f"{VM1}/24", "fd00:1::11/64", **inside),
        machine("vm2", "br-a", f"{VM2}/24", "fd00:1::12/64", **inside),
        machine("vm3", "br-a", f"{VM3}/24", "fd00:1::13/64", **inside),
        machine("out", "br-up", f"{OUT}/24", f"{OUT6}/64"),
    )
    made.out.run("ip", "-6", "route", "add", "fd00:1::/64", "via", "2001:db8::10")
    a.wire("up")
    for vm in (made.vm1, made.vm2, made.vm3):
        assert until(lambda vm=vm: vm.pings(OUT, 1) and vm.pings(OUT6, 1))
    return made


def connected(
    closing: contextlib.ExitStack,
    client: Machine,
    target: str,
    port: int,
    server: Machine,
    listen: int = 0,
    source: int = 0,
) -> tuple[socket.socket, socket.socket]:
    """A TCP connection to `target`, and its end on the server."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with server.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", listen or port))
        listener.listen()
        listener.settimeout(5)
        ours = closing.enter_context(client.socket(family, socket.SOCK_STREAM))
        ours.settimeout(5)
        if source:
            ours.bind(("", source))
        ours.connect((target, port))
        theirs = closing.enter_context(listener.accept()[0])
    theirs.settimeout(5)
    return ours, theirs


def talks(sender: socket.socket, receiver: socket.socket) -> bool:
    """Whether what one end sends arrives at the other."""
    sender.send(b"word")
    try:
        return receiver.recv(100) == b"word"
    except TimeoutError:
        return False


def bulk(source: conntrack.Source, target: conntrack.Target) -> int:
    """Copy all; how many changes that was."""
    return sum(apply(target, chunk) for chunk in source.dump())


def apply(target: conntrack.Target, changes: list[Change]) -> int:
    target.apply(changes)
    return len(changes)


def settled(source: conntrack.Source, target: conntrack.Target) -> int:
    """Follow until nothing more happens; how many changes that was."""
    total = 0
    while changes := source.pending():
        total += apply(target, changes)
    return total


def same(a: Vr, b: Vr, *filters: str, slack: float = 4.0) -> bool:
    """Whether both hold the same entries with the same timeouts, give or take `slack` seconds."""
    began = time.monotonic()
    first, second = a.entries(*filters), b.entries(*filters)
    # Time goes on while the second one is listed.
    slack += time.monotonic() - began
    assert first.keys() == second.keys(), sorted(first.keys() ^ second.keys())
    return all(abs(first[line] - second[line]) <= slack for line in first)


def labels(vr: Vr) -> dict[bytes, bytes]:
    """Labels of the entries that have any, by key; conntrack(8) shows only those with names."""
    with vr.source() as source:
        changes = [change for chunk in source.dump() for change in chunk]
    found = {change.key: attributes(change.update).get(22, b"") for change in changes}
    return {key: value for key, value in found.items() if value}


def alter(vr: Vr, port: int, mark: int | None = None, timeout: int | None = None) -> None:
    """Change the entries to this destination port; conntrack(8) fails to where there is NAT."""
    with vr.source() as source, vr.target() as target:
        for change in [change for chunk in source.dump() for change in chunk]:
            if port.to_bytes(2, "big") not in change.key[-12:]:
                continue
            update = change.update
            if mark is not None:
                update += attr(8, mark.to_bytes(4, "big"))
            if timeout is not None:
                update += attr(7, timeout.to_bytes(4, "big"))
            target.apply([Change(Kind.SET, change.key, change.create, update)])
        assert target.carried().sent > 0
        assert target.carried().refused == ()
