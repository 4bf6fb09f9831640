"""What must hold where two DHCP servers serve one network (`dhcp_per_network: 2`)."""

from __future__ import annotations

from collections.abc import Iterable

from vrha.config.drafts import NetworkDraft, RouterDraft, plain
from vrha.config.place import Place
from vrha.config.values import NAME, usable_in
from vrha.core.dhcp import PREFIX, name_of_second
from vrha.model.spec import Address, Subnet


def check(network: NetworkDraft) -> None:
    """Put every problem of the second server's address on record."""
    if network.dhcp_per_network == 1 and network.dhcp_peer_address is not None:
        network.dhcp_peer_address[0].wrong("has a meaning with dhcp_per_network: 2 only")
    if network.dhcp_per_network < 2:
        return
    if network.name and not NAME.fullmatch(name_of_second(network.name)):
        longest = 15 - len(PREFIX)
        network.place.wrong(f"dhcp_per_network: 2 needs a name of at most {longest} characters")
    if network.dhcp_peer_address is None:
        network.place.wrong(
            "dhcp_per_network: 2 needs dhcp_peer_address, an unused address for the second server"
        )
    elif network.whole:
        _address(network, *network.dhcp_peer_address)


def _address(network: NetworkDraft, place: Place, peer: Address) -> None:
    subnets = [subnet for _, subnet in network.subnets]
    home = next((subnet for subnet in subnets if peer in subnet.cidr), None)
    if peer.version != 4:
        place.wrong(f"{peer} must be an IPv4 address; DHCPv6 has one server")
    elif home is None:
        place.wrong(f"{peer} is in no subnet of the network")
    elif peer == home.gateway:
        place.wrong(f"{peer} is the gateway's")
    elif not usable_in(peer, home.cidr):
        place.wrong(f"{peer} is the network or broadcast address of {home.cidr}")
    elif home.dhcp and int(home.dhcp.first) <= int(peer) <= int(home.dhcp.last):
        place.wrong(f"{peer} is in the DHCP range")
    elif any(peer in host.addresses for _, host in network.hosts):
        place.wrong(f"{peer} is the address of a host")
    else:
        _range(place, home, subnets)


def _range(place: Place, home: Subnet, subnets: Iterable[Subnet]) -> None:
    others = [s for s in subnets if s is not home and s.cidr.version == 4 and s.dhcp]
    if home.dhcp is None or home.dhcp.first == home.dhcp.last:
        place.wrong(f"{home.cidr} needs a DHCP range of two addresses, to be served in halves")
    elif others:
        place.wrong(f"{others[0].cidr} has a DHCP range as well; two servers serve one IPv4 subnet")


def check_routers(networks: Iterable[NetworkDraft], routers: list[RouterDraft]) -> None:
    """Second servers need the network's router, and a name that no router has."""
    taken = {router.name: router.place for router in routers}
    for network in networks:
        if network.dhcp_per_network < 2 or not network.name:
            continue
        name = name_of_second(network.name)
        if name in taken:
            taken[name].wrong(f"name {name} is that of the second DHCP server of {network.name}")
        served = [r for r in routers if network.name in plain(r.networks)]
        if not served:
            network.place.wrong("dhcp_per_network: 2 needs a router that serves the network")
        for router in served:
            _translated(network, router)


def _translated(network: NetworkDraft, router: RouterDraft) -> None:
    """Nobody outside reaches the second server: it answers its network alone."""
    peer = network.dhcp_peer_address[1] if network.dhcp_peer_address else None
    private = [(place, nat.private) for place, nat in router.static_nat]
    private += [(place, forward.private) for place, forward in router.port_forwards]
    for place, address in private:
        if address == peer:
            place.wrong(f"{address} is the second DHCP server of network {network.name}")
