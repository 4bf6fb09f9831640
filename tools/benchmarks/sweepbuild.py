"""Virtual routers to be swept, all alike, by raw netlink: a namespace with two veths and rules.

Their names, tags, link groups and place in the node's table are those of an agent's, so that the
sweep under measurement knows them. They are on two bridges, on which others live as well.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path

from vrha.core.names import PortTag, host_mac, host_port, link_group, namespace_name
from vrha.errors import PreconditionError
from vrha.linux import netns, rtnetlink, tools
from vrha.linux.mute import Switch
from vrha.linux.rtnetlink import Link, VethEnd
from vrha.model.spec import InstanceRef

BRIDGES = {"n0": "br-nets", "u0": "br-up"}
"""Bridge of each port."""
FLOOR_GROUP = 0x7F
"""Link group of all ports that one message is to delete."""
_AT_ONCE = 50
"""Links in one send: the kernel's answers have to fit in the socket's buffer."""
_GONE_S = 30.0
_RULES = b"""\
table ip vr {
 map to_private { type ipv4_addr : ipv4_addr; elements = { 198.18.0.9 : 10.0.0.9 }; }
 chain pre { type nat hook prerouting priority -100; dnat to ip daddr map @to_private; }
 chain post { type nat hook postrouting priority 100; oifname "u0" masquerade; }
 chain passing { type filter hook forward priority 0; ct state established,related accept; }
}
"""


@dataclass(frozen=True, slots=True)
class Naming:
    """How an agent calls what it makes: by number of the router, and `n0` or `u0` for its ports."""

    space: Callable[[int], str]
    host: Callable[[int, str], str]
    inner: Callable[[int, str], str]
    alias: Callable[[int, str], str]
    group: int | None = None
    """Link group of all ports; None: one for each router."""


def ref(number: int) -> InstanceRef:
    """The router of this number."""
    return InstanceRef(f"s{number:03}", 1)


OURS = Naming(
    space=lambda number: namespace_name(ref(number)),
    host=lambda number, port: host_port(ref(number), port),
    inner=lambda number, port: port,
    alias=lambda number, port: str(PortTag(ref(number), 1, port)),
)


@dataclass
class Routers:
    """What was built: names as the kernel has them, ports by index, and the children inside."""

    spaces: list[str] = field(default_factory=list)
    ports: dict[int, str] = field(default_factory=dict)
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)


def address(number: int) -> str:
    """Where it answers on the bridge of its uplink."""
    return f"198.18.{10 + number // 250}.{1 + number % 250}"


def build(made: Routers, count: int, switch: Switch, naming: Naming, *, inhabited: bool) -> None:
    """`count` routers that speak; `inhabited`: with a dnsmasq in each.

    `made` tells at any moment what there is to be cleared. Raises PreconditionError, OSError.
    """
    nft, dnsmasq = tools.need("nft"), tools.need("dnsmasq")
    home = netns.current()
    try:
        with rtnetlink.open_route() as route:
            bridges = {port: _bridge(route, name) for port, name in BRIDGES.items()}
            for number in range(count):
                inner = netns.create(naming.space(number), home)
                made.spaces.append(naming.space(number))
                try:
                    route.talk(_pairs(number, inner, bridges, naming))
                    with netns.entered(inner, home):
                        _fill(number, nft, naming)
                        if inhabited:
                            made.children.append(_child(dnsmasq, naming.inner(number, "n0")))
                finally:
                    os.close(inner)
            names = [naming.host(number, port) for number in range(count) for port in BRIDGES]
            for part in _parts(names):
                route.talk([rtnetlink.set_up(name) for name in part])
            wanted = set(names)
            made.ports = {
                link.index: link.name for link in rtnetlink.links(route) if link.name in wanted
            }
            for part in _parts(names):
                switch.change(unmute=part)
    finally:
        os.close(home)


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE))


def left_of(made: Routers) -> list[str]:
    """What is still there of it: ports, processes and names."""
    ports = [f"port {name}" for name in _ports_left(made)]
    children = [f"process {child.pid}" for child in made.children if child.poll() is None]
    return ports + children + [f"name {name}" for name in netns.names() if name in made.spaces]


def clear(made: Routers, switch: Switch) -> None:
    """Remove what is left, by all means. Raises PreconditionError when ports remain."""
    for part in _parts(list(made.ports.values())):
        switch.change(mute=part)
    for child in made.children:
        child.kill()
    for child in made.children:
        child.wait(10)
    for name in made.spaces:
        netns.remove(name)
    until = time.monotonic() + _GONE_S
    while left := _ports_left(made):
        if time.monotonic() > until:
            raise PreconditionError("bench-leak", f"ports do not go: {', '.join(left[:5])}")
        time.sleep(0.01)


def _ports_left(made: Routers) -> list[str]:
    with rtnetlink.open_route() as route:
        return [link.name for link in rtnetlink.links(route) if link.index in made.ports]


def _bridge(route: rtnetlink.Netlink, name: str) -> Link:
    found = rtnetlink.link(route, name)
    if found is None:
        raise PreconditionError("bench-setup", f"there is no bridge {name}")
    return found


def _pairs(
    number: int, inner: int, bridges: Mapping[str, Link], naming: Naming
) -> list[rtnetlink.Message]:
    one = ref(number)
    group = link_group(one) if naming.group is None else naming.group
    messages = []
    for place, (port, bridge) in enumerate(bridges.items()):
        host, mac = naming.host(number, port), host_mac(one, place)
        ends = VethEnd(host, mac), VethEnd(naming.inner(number, port), b"\x02" + mac[1:])
        messages += [
            rtnetlink.new_veth(*ends, inner, bridge.index, bridge.mtu, group),
            rtnetlink.tag_link(host, naming.alias(number, port)),
        ]
    return messages


def _fill(number: int, nft: str, naming: Naming) -> None:
    # What hundreds of new ports say of themselves by IPv6 at once, bridges and probers would feel.
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    addresses = {"n0": IPv4Interface("10.0.0.1/24"), "u0": IPv4Interface(f"{address(number)}/15")}
    with rtnetlink.open_route() as route:
        at = {link.name: link.index for link in rtnetlink.links(route)}
        names = {port: naming.inner(number, port) for port in BRIDGES}
        route.talk([rtnetlink.set_up(name) for name in ("lo", *names.values())])
        route.talk([rtnetlink.add_address(at[names[port]], a) for port, a in addresses.items()])
    subprocess.run([nft, "-f", "-"], input=_RULES, check=True, timeout=30)


def _child(dnsmasq: str, interface: str) -> subprocess.Popen[bytes]:
    command = [dnsmasq, "--conf-file=/dev/null", "--keep-in-foreground", "--user=root"]
    command += ["--pid-file", "--no-resolv", "--no-hosts", "--bind-interfaces"]
    command += [f"--interface={interface}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
