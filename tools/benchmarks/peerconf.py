"""The configuration of a keepalived pair that serves what one router of the desired state serves.

Pure text from the router's spec. Sources: keepalived.conf(5), conntrackd.conf(5), and the script
primary-backup.sh and the example of FTFW mode that come with conntrackd.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

from vrha.errors import InputError
from vrha.model.spec import Desired, InstanceSpec, PortSpec

SYNC_PORT = "s0"
"""Interface of the cable between the two, on which conntrackd speaks."""
SYNC_NETWORK = IPv4Network("169.254.77.0/30")
LIBERAL = (("netfilter/nf_conntrack_tcp_be_liberal", "1"),)
"""As OpenStack Neutron sets it in its keepalived routers: while neighbours move, each of the two
sees only a part of a connection's segments."""
VIRTUAL_ROUTER_ID = 51


@dataclass(frozen=True, slots=True)
class Member:
    """One of the two. `own` are the addresses that stay with it, by port."""

    name: str
    node: str
    own: dict[str, IPv4Interface]
    sync: IPv4Interface
    folder: Path
    """Its configuration, pid, lock, socket and state files."""

    @property
    def state(self) -> Path:
        """Where its keepalived says what it has become: `primary`, `backup` or `fault`."""
        return self.folder / "state"

    @property
    def control(self) -> Path:
        """Socket of its conntrackd."""
        return self.folder / "conntrackd.ctl"

    def host_end(self, port: str) -> str:
        """Name of the end of a port that is on the node's bridge."""
        return f"{self.name}{port}"


def members(
    desired: Desired, spec: InstanceSpec, nodes: Iterable[str], folder: Path
) -> tuple[Member, Member]:
    """The pair on the first two nodes. Raises InputError where there is no room for it."""
    places = list(nodes)[:2]
    if len(places) < 2:
        raise InputError("one-node", "a keepalived pair needs two nodes")
    names = ("kap1", "kap2")
    own = {port.name: own_addresses(desired, spec, port) for port in v4_ports(spec)}
    sync = list(SYNC_NETWORK.hosts())
    first, second = (
        Member(
            name,
            places[index],
            {port: pair[index] for port, pair in own.items()},
            IPv4Interface((sync[index], SYNC_NETWORK.prefixlen)),
            folder / name,
        )
        for index, name in enumerate(names)
    )
    return first, second


def v4_ports(spec: InstanceSpec) -> list[PortSpec]:
    """Ports that carry IPv4, the guests' ones first."""
    return [port for port in spec.ports if _v4(port)]


def virtual_addresses(spec: InstanceSpec) -> list[tuple[IPv4Interface, str]]:
    """What moves between the two, each with its port."""
    return [(address, port.name) for port in spec.ports for address in _v4(port)]


def own_addresses(
    desired: Desired, spec: InstanceSpec, port: PortSpec
) -> tuple[IPv4Interface, IPv4Interface]:
    """Two addresses of the port's prefix that nobody has. Raises InputError `prefix-full`.

    Both of the pair keep one for good: a port that loses its last address loses its routes too
    (net/ipv4/fib_frontend.c), and an old master must forward what still reaches it.
    """
    network = _v4(port)[0].network
    taken = set(_taken(desired, spec))
    pools = [s.dhcp for n in desired.networks for s in n.subnets if s.dhcp is not None]
    free: list[IPv4Interface] = []
    candidate = network.broadcast_address
    while len(free) < 2:
        candidate -= 1
        if candidate <= network.network_address:
            raise InputError("prefix-full", f"{network} has no two free addresses")
        pooled = any(
            isinstance(p.first, IPv4Address)
            and isinstance(p.last, IPv4Address)
            and p.first <= candidate <= p.last
            for p in pools
        )
        if candidate not in taken and not pooled:
            free.append(IPv4Interface((candidate, network.prefixlen)))
    return free[0], free[1]


def keepalived_conf(spec: InstanceSpec, member: Member, advert_s: float) -> str:
    """One VRRPv3 instance on the first guest port that carries all addresses."""
    carried = "\n".join(
        f"        {address} dev {port}" for address, port in virtual_addresses(spec)
    )
    notify = "\n".join(
        f'    notify_{event} "{member.folder}/notify {state}"'
        for event, state in (("master", "primary"), ("backup", "backup"), ("fault", "fault"))
    )
    return f"""\
global_defs {{
    router_id {member.name}
    vrrp_version 3
    vrrp_garp_master_repeat 2
    script_user root
    enable_script_security
}}
vrrp_instance router {{
    state BACKUP
    nopreempt
    interface {v4_ports(spec)[0].name}
    virtual_router_id {VIRTUAL_ROUTER_ID}
    priority 100
    advert_int {advert_s:g}
    virtual_ipaddress {{
{carried}
    }}
{notify}
}}
"""


def conntrackd_conf(spec: InstanceSpec, member: Member) -> str:
    """FTFW over the cable; what arrives goes into the kernel at once."""
    ignored = ["127.0.0.1", str(member.sync.ip)]
    ignored += [str(address.ip) for address in member.own.values()]
    ignored += [str(address.ip) for address, _port in virtual_addresses(spec)]
    addresses = "\n".join(f"            IPv4_address {address}" for address in ignored)
    return f"""\
Sync {{
    Mode FTFW {{
        DisableExternalCache On
    }}
    Multicast {{
        IPv4_address 225.0.0.50
        Group 3780
        IPv4_interface {member.sync.ip}
        Interface {SYNC_PORT}
        SndSocketBuffer 1249280
        RcvSocketBuffer 1249280
        Checksum on
    }}
}}
General {{
    HashSize 32768
    HashLimit 131072
    LogFile {member.folder}/conntrackd.log
    LockFile {member.folder}/conntrackd.lock
    UNIX {{
        Path {member.control}
    }}
    NetlinkBufferSize 2097152
    NetlinkBufferSizeMaxGrowth 8388608
    Filter From Userspace {{
        Protocol Accept {{
            TCP
            UDP
            ICMP
        }}
        Address Ignore {{
{addresses}
        }}
    }}
}}
"""


def notify_script(member: Member, conntrackd: str) -> str:
    """What keepalived runs with its new state; `conntrackd` is the program's path, "" without it.

    The steps of primary-backup.sh that have a meaning without an external cache. Its `-t` is left
    out: 60 s later it would flush the entries that the other has sent into this kernel.
    """
    lines = ["#!/bin/sh"]
    if conntrackd:
        command = f"{conntrackd} -C {member.folder}/conntrackd.conf"
        lines += [
            'case "$1" in',
            f"primary) {command} -f; {command} -R; {command} -B ;;",
            f"backup) {command} -n ;;",
            "esac",
        ]
    # Last, and by one rename: who reads it finds the rest done.
    lines += [f'echo "$1" >{member.state}.new', f"mv {member.state}.new {member.state}"]
    return "\n".join(lines) + "\n"


def accept_lines(spec: InstanceSpec, table: str) -> str:
    """For nft: what the router's own rules, which drop all other input, must let in."""
    guest = v4_ports(spec)[0].name
    return (
        f'insert rule inet {table} input iifname "{guest}" ip protocol vrrp accept\n'
        f'insert rule inet {table} input iifname "{SYNC_PORT}" accept\n'
    )


def node_lines(spec: InstanceSpec, member: Member) -> list[str]:
    """For `ip -batch` on the node: its ports on the bridges; the namespace is there."""
    lines = []
    for port in v4_ports(spec):
        near = member.host_end(port.name)
        lines += [
            f"link add {near} type veth peer name {port.name} netns {member.name}",
            f"link set {near} master {port.bridge} up",
        ]
    return lines


def inner_lines(spec: InstanceSpec, member: Member) -> list[str]:
    """For `ip -batch` in its namespace: addresses that stay, and routes, on both alike."""
    lines = ["link set lo up"]
    for port, address in member.own.items():
        lines += [f"address add {address} dev {port}", f"link set {port} up"]
    uplink = spec.router.uplink
    if uplink is not None:
        lines += [f"route add default via {g}" for g in uplink.gateways if g.version == 4]
    routes = (route for route in spec.router.routes if route.cidr.version == 4)
    return lines + [f"route add {route.cidr} via {route.via}" for route in routes]


def local_addresses(fib_trie: str) -> frozenset[str]:
    """Own IPv4 addresses of a network namespace, from its /proc/net/fib_trie."""
    return frozenset(re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", fib_trie))


def _v4(port: PortSpec) -> list[IPv4Interface]:
    return [address for address in port.addresses if isinstance(address, IPv4Interface)]


def _taken(desired: Desired, spec: InstanceSpec) -> Iterator[object]:
    for address, _port in virtual_addresses(spec):
        yield address.ip
    for network in desired.networks:
        for host in network.hosts:
            yield from host.addresses
    if spec.router.uplink is not None:
        yield from spec.router.uplink.gateways
    for route in spec.router.routes:
        yield route.via
