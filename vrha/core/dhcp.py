"""Two DHCP servers of one network: the router's, and a second one with an address of its own.

The second one is kept as a router of its own (`dhcp_of`), so that rights, epochs, runs, failover
and the view of it are those of every router; the two are on different nodes where they can be.
dnsmasq gives both the same subnet:

- to new clients each gives addresses of its own half of the range, so no address is given twice
  whatever one knows of the other;
- renewals and reboots are acknowledged for the whole range (both are authoritative);
- a request that names the other server is not answered (RFC 2131 section 4.3.2: it is not for
  us); an authoritative dnsmasq would refuse it;
- the leases of one are the reservations of the other, see `reservations`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, ip_address

from vrha.core.leases import fitting
from vrha.model.spec import (
    Address,
    Cidr,
    Desired,
    DhcpRange,
    Egress,
    InstanceSpec,
    Interface,
    Network,
    Router,
    Subnet,
    Verdict,
)

PREFIX = "dhcp-"
"""Of the name of a second server; the network's follows."""


def name_of_second(network: str) -> str:
    """Under which name the second DHCP server of `network` is kept."""
    return f"{PREFIX}{network}"


def seconds(networks: Iterable[Network], routers: Sequence[Router]) -> tuple[Router, ...]:
    """The second servers that `networks` ask for; placed where the network's router may be."""
    found = []
    for network in networks:
        owner = next((r for r in routers if network.name in r.networks), None)
        if owner is not None and network.shared_dhcp is not None:
            found.append(
                Router(
                    name_of_second(network.name),
                    (network.name,),
                    backend=owner.backend,
                    zone=owner.zone,
                    labels=owner.labels,
                    dhcp_of=network.name,
                )
            )
    return tuple(found)


def partners(desired: Desired, router: Router) -> tuple[str, ...]:
    """The other DHCP servers of the networks of `router`, by the name they are kept under."""
    if router.dhcp_of:
        owner = desired.router_of(router.dhcp_of)
        return (owner.name,) if owner else ()
    return tuple(r.name for r in desired.routers if r.dhcp_of and r.dhcp_of in router.networks)


def nodes_of_partners(
    desired: Desired, router: Router, hosted: Set[tuple[str, str]]
) -> frozenset[str]:
    """Where the other DHCP servers of its networks are, by what is `hosted` (router, node)."""
    others = partners(desired, router)
    return frozenset(node for name, node in hosted if name in others) if others else frozenset()


def of_second(network: Network) -> tuple[Network, Interface]:
    """What the second server knows of the network, and its own address in it.

    No IPv6, it would advertise itself as a router, and no egress: it forwards nothing. The network
    must be valid.
    """
    subnet, peer = network.shared_dhcp, network.dhcp_peer_address
    assert subnet is not None
    assert isinstance(peer, IPv4Address)
    hosts = tuple(
        replace(host, addresses=inside)
        for host in network.hosts
        if (inside := tuple(a for a in host.addresses if a in subnet.cidr))
    )
    served = replace(network, subnets=(subnet,), hosts=hosts, dns=(), egress=Egress(Verdict.DENY))
    return served, IPv4Interface((peer, subnet.cidr.prefixlen))


def halves(whole: DhcpRange) -> tuple[DhcpRange, DhcpRange]:
    """What the router gives to new clients, and what the second server does."""
    first, last = int(whole.first), int(whole.last)
    middle = first + (last - first) // 2
    return (
        DhcpRange(whole.first, ip_address(middle)),
        DhcpRange(ip_address(middle + 1), whole.last),
    )


def merged(own: str, other: str, shared: Sequence[Cidr]) -> str:
    """One lease file of two: what `other` says of the subnets `shared` counts beside `own`.

    Of two leases for one address, or of one client in these subnets, the one that ends last
    is true.
    """
    lines = [line for line in own.splitlines() if _address_in(line, shared) is None]
    both = [line for text in (own, other) for line in text.splitlines()]
    leases = [line for line in both if _address_in(line, shared) is not None]
    seen: set[str] = set()
    for line in sorted(leases, key=_end_of, reverse=True):
        _, mac, address, _, client = line.split(" ")
        keys = {address, f"{mac} {client}"}
        if not keys & seen:
            lines.append(line)
        seen |= keys
    return fitting("".join(f"{line}\n" for line in lines))


def reservations(spec: InstanceSpec, other: str, own: str) -> str:
    """What the other server has granted, as lines of a dnsmasq host file: who comes here gets the
    same address, and nobody else does.

    Left out is who has a newer lease here, since dnsmasq refuses a client that has another
    address than the one reserved for it; and hosts with fixed addresses.
    """
    networks = [n for n in spec.networks if n.shared_dhcp is not None]
    shared = [subnet.cidr for n in networks if (subnet := n.shared_dhcp)]
    hosts = [host for network in networks for host in network.hosts]
    fixed: set[str] = {host.mac.lower() for host in hosts}
    fixed |= {str(address) for host in hosts for address in host.addresses}
    newest_last = sorted(own.splitlines(), key=_end_of)
    mine = {
        line.split(" ")[1]: line.split(" ")
        for line in newest_last
        if _address_in(line, shared) is not None
    }
    found = []
    for line in merged("", other, shared).splitlines():
        end, mac, address, _, _ = line.split(" ")
        here = mine.get(mac)
        newer_here = here is not None and here[2] != address and int(here[0]) >= int(end)
        if mac not in fixed and address not in fixed and not newer_here:
            found.append(f"{mac},{address}\n")
            fixed |= {mac, address}
    return "".join(sorted(found))


def superseded(own: str, other: str, shared: Sequence[Cidr]) -> frozenset[str]:
    """Leases of `own` that are not true any more: the other server gave the address to another
    client since, or another address to the client. For the sake of one a true client would be
    refused (dnsmasq: "address in use", "wrong address").
    """
    since = [line.split(" ") for line in merged("", other, shared).splitlines()]
    by_address = {words[2]: words for words in since}
    by_client = {(words[1], words[4]): words for words in since}
    found = set()
    for line in own.splitlines():
        if _address_in(line, shared) is None:
            continue
        end, mac, address, _, client = line.split(" ")
        here = by_address.get(address)
        there = by_client.get((mac, client))
        given_away = here is not None and here[1] != mac and int(here[0]) > int(end)
        moved = there is not None and there[2] != address and int(there[0]) > int(end)
        if given_away or moved:
            found.add(line)
    return frozenset(found)


def shared_cidrs(networks: Iterable[Network]) -> tuple[Cidr, ...]:
    """The subnets that two servers serve."""
    return tuple(subnet.cidr for n in networks if (subnet := n.shared_dhcp) is not None)


def other_server(router: Router, network: Network, subnet: Subnet) -> Address | None:
    """Address of the other DHCP server of the subnet; None: there is none."""
    if network.shared_dhcp != subnet:
        return None
    return subnet.gateway if router.dhcp_of else network.dhcp_peer_address


def _end_of(line: str) -> int:
    first = line.partition(" ")[0]
    return int(first) if first.isdigit() else 0


def _address_in(line: str, shared: Sequence[Cidr]) -> Address | None:
    """The address of a lease in one of these subnets."""
    words = line.split(" ")
    # An IPv6 lease has an IAID where a MAC would be.
    if len(words) != 5 or words[1].count(":") != 5:
        return None
    try:
        address = ip_address(words[2])
    except ValueError:
        return None
    return address if any(address in cidr for cidr in shared) else None
