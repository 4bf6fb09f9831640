"""DHCP, DNS and router advertisements of one instance: the files of its one dnsmasq.

dnsmasq opens lease file and pid file as root and then becomes user `dnsmasq` (Debian's default for
`user=`); it rereads the two host files as that user on SIGHUP. So the folder must be searchable
and the host files readable by all (0755, 0644); the lease file stays open and needs no owner.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address

from vrha.core.dhcp import halves, other_server
from vrha.errors import InputError
from vrha.model.spec import DhcpRange, InstanceSpec, Network, Router, Subnet
from vrha.render.templates import dnsmasq_token, render

CHECK_NAME = "check.vrha.invalid"
"""A name that every instance resolves: a query for it on 127.0.0.1 proves that DNS works."""
CHECK_ADDRESS = "127.0.0.1"

MAX_LEASES = 65536
"""Upper bound of dhcp-lease-max: what one dnsmasq may be made to remember by its tenants."""

SHORTEST_DHCP6 = 64
"""Prefix length: dnsmasq serves DHCPv6 in no shorter prefix."""


@dataclass(frozen=True, slots=True)
class DnsmasqFiles:
    """Texts of the files that dnsmasq reads, and the names of all its files in its folder."""

    conf: str
    hosts: str
    addn_hosts: str
    conf_name: str = "dnsmasq.conf"
    hosts_name: str = "dhcp-hosts"
    addn_hosts_name: str = "addn-hosts"
    leases_name: str = "leases"
    offers_name: str = "offers.conf"
    """Holds `no-ping`, or nothing where dnsmasq has to ask before it offers an address."""
    pid_name: str = "dnsmasq.pid"
    shared_name: str = "shared-hosts"
    """What the other DHCP server has granted, where a network has two."""


@dataclass(frozen=True, slots=True)
class Scope:
    """One subnet's `dhcp-range`. `tag` names the subnet, `words` are the values of the line."""

    tag: str
    version: int
    gateway: str
    domain: str
    words: tuple[str, ...]
    other: str = ""
    """Address of the other DHCP server of the subnet."""
    others_words: tuple[str, ...] = ()
    """Values of a second line: what the other one gives to new clients."""


def dnsmasq_files(spec: InstanceSpec, folder: str) -> DnsmasqFiles:
    """The files of the dnsmasq of `spec`, which keeps all its state in `folder` (absolute path).

    Raises InputError (`not-a-token`, `control-character`, `dhcp-prefix`).
    """
    names = DnsmasqFiles("", "", "")
    tenants = [port for port in spec.ports if not port.is_uplink]
    uplink = spec.uplink
    networks = [(port.name, _network(spec, port.network)) for port in tenants]
    scopes = [scope for port, n in networks for scope in _scopes(spec.router, port, n)]
    conf = render(
        "dnsmasq.conf.j2",
        ref=spec.ref,
        folder=folder,
        names=names,
        uplink=uplink.name if uplink else "",
        ports=[port.name for port in tenants],
        servers=list(dict.fromkeys(server for _, n in networks for server in n.dns)),
        domains=list(dict.fromkeys(n.domain for _, n in networks if n.domain)),
        zones=[(n.domain, subnet.cidr) for _, n in networks if n.domain for subnet in n.subnets],
        scopes=scopes,
        others=[scope.other for scope in scopes if scope.other],
        lease_max=_lease_max(spec),
        check_name=CHECK_NAME,
        check_address=CHECK_ADDRESS,
    )
    return DnsmasqFiles(conf, _dhcp_hosts(spec), _names(spec))


def _network(spec: InstanceSpec, name: str) -> Network:
    for network in spec.networks:
        if network.name == name:
            return network
    raise InputError("unknown-network", f"{spec.ref} has a port on {name} but not the network")


def _scopes(router: Router, port: str, network: Network) -> list[Scope]:
    scopes = []
    for number, subnet in enumerate(network.subnets):
        tag = f"{port}s{number}"
        other = other_server(router, network, subnet)
        if other is not None:
            scopes.append(_shared_scope(router, tag, network, subnet, str(other)))
            continue
        words_of = _v4_words if subnet.cidr.version == 4 else _v6_words
        words = words_of(network, subnet)
        if words:
            domain = network.domain
            scopes.append(Scope(tag, subnet.cidr.version, str(subnet.gateway), domain, words))
    return scopes


def _shared_scope(router: Router, tag: str, network: Network, subnet: Subnet, other: str) -> Scope:
    assert subnet.dhcp is not None
    of_router, of_second = halves(subnet.dhcp)
    mine, others = (of_second, of_router) if router.dhcp_of else (of_router, of_second)
    words = _range_words(network, subnet, mine), _range_words(network, subnet, others)
    return Scope(tag, 4, str(subnet.gateway), network.domain, words[0], other, words[1])


def _range_words(network: Network, subnet: Subnet, given: DhcpRange) -> tuple[str, ...]:
    lease = str(network.lease_seconds)
    return (str(given.first), str(given.last), str(subnet.cidr.netmask), lease)


def _v4_words(network: Network, subnet: Subnet) -> tuple[str, ...]:
    lease = str(network.lease_seconds)
    mask = str(subnet.cidr.netmask)
    if subnet.dhcp:
        return _range_words(network, subnet, subnet.dhcp)
    if _has_hosts(network, subnet):
        return (str(subnet.cidr.network_address), "static", mask, lease)
    return ()


def _v6_words(network: Network, subnet: Subnet) -> tuple[str, ...]:
    """Range, static addresses beside SLAAC, or SLAAC alone.

    SLAAC needs a /64 (RFC 4862 section 5.5.3) and dnsmasq no prefix shorter than that.
    """
    length = subnet.cidr.prefixlen
    lease = str(network.lease_seconds)
    start = str(subnet.cidr.network_address)
    if subnet.dhcp or _has_hosts(network, subnet):
        if length < SHORTEST_DHCP6:
            raise InputError(
                "dhcp-prefix",
                f"network {network.name}: no DHCPv6 in {subnet.cidr}, the prefix is too short",
                "Use a /64, or leave out the DHCP range and fixed addresses of this subnet.",
            )
        if subnet.dhcp:
            return (str(subnet.dhcp.first), str(subnet.dhcp.last), str(length), lease)
        modes = ("static", "slaac") if length == 64 else ("static",)
        return (start, *modes, str(length), lease)
    if length == 64:
        return (start, "slaac", "ra-names", str(length), lease)
    return ()


def _has_hosts(network: Network, subnet: Subnet) -> bool:
    return any(address in subnet.cidr for host in network.hosts for address in host.addresses)


def _lease_max(spec: InstanceSpec) -> int:
    """As many leases as there are addresses to give, within bounds."""
    ranges = [subnet.dhcp for n in spec.networks for subnet in n.subnets if subnet.dhcp]
    dynamic = sum(int(r.last) - int(r.first) + 1 for r in ranges)
    fixed = sum(max(1, len(host.addresses)) for n in spec.networks for host in n.hosts)
    return max(1, min(dynamic + fixed, MAX_LEASES))


def _dhcp_hosts(spec: InstanceSpec) -> str:
    """One line per host: its MAC, at most one IPv4 address, all IPv6 addresses, its name."""
    lines = []
    for network in spec.networks:
        for host in network.hosts:
            v4 = [str(a) for a in host.addresses if a.version == 4]
            v6 = [f"[{a}]" for a in host.addresses if isinstance(a, IPv6Address)]
            lines.append((host.mac.lower(), *v4[:1], *v6, host.name))
            lines += [(host.mac.lower(), address, host.name) for address in v4[1:]]
    return "".join(",".join(map(dnsmasq_token, line)) + "\n" for line in lines)


def _names(spec: InstanceSpec) -> str:
    """Names of hosts with fixed addresses; the first name of a line is what PTR answers."""
    lines = []
    for network in spec.networks:
        for host in network.hosts:
            full = [f"{host.name}.{network.domain}"] if network.domain else []
            lines += [(address, *full, host.name) for address in host.addresses]
    return "".join(" ".join(map(dnsmasq_token, line)) + "\n" for line in lines)
