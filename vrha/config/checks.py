"""What must hold between the parts of a desired state."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from vrha.config import shared_dhcp
from vrha.config.drafts import NetworkDraft, Placed, RouterDraft, UplinkDraft, plain
from vrha.config.place import Place
from vrha.config.values import usable_in
from vrha.model.spec import Address, Cidr, Node, PortForward, Subnet
from vrha.render.dnsmasq import SHORTEST_DHCP6
from vrha.render.rules import MAX_FORWARDED_PORTS

MAX_ROUTER_RULES = 50_000
"""Most rules of one router with those of its networks: its command stays below 16 MiB."""


def check(networks: list[NetworkDraft], routers: list[RouterDraft], nodes: Placed[Node]) -> None:
    """Put every problem on record."""
    _unique("name", ((n.place, n.name) for n in networks))
    _unique("name", ((r.place, r.name) for r in routers))
    _unique("name", ((place, node.name) for place, node in nodes))
    _unique("bridge", (n.bridge for n in networks if n.bridge))
    for network in networks:
        _hosts(network)
        shared_dhcp.check(network)
    by_name = {n.name: n for n in networks if n.name}
    owners: dict[str, str] = {}
    for router in routers:
        _networks(router, by_name, owners)
        _router(router, [(at, by_name[name]) for at, name in router.networks if name in by_name])
    _public_addresses(routers)
    shared_dhcp.check_routers(networks, routers)


def _unique(what: str, found: Iterable[tuple[Place, Hashable]]) -> None:
    first: dict[Hashable, Place] = {}
    for place, value in found:
        if value is not None and value in first:
            place.wrong(f"{what} {value} is already used by {_at(first[value])}")
        elif value is not None:
            first[value] = place


def _at(place: Place) -> str:
    return f"{place.path} (line {place.line})"


def _hosts(network: NetworkDraft) -> None:
    _overlaps(network.subnets)
    _unique("name", ((place, host.name.lower()) for place, host in network.hosts))
    _unique("MAC address", ((place, host.mac) for place, host in network.hosts))
    _unique("address", ((place, one) for place, host in network.hosts for one in host.addresses))
    if not network.whole:
        return
    subnets = plain(network.subnets)
    for place, subnet in network.subnets:
        if subnet.dhcp and _too_short(subnet):
            place.wrong(
                f"no DHCPv6 in {subnet.cidr}; the prefix must be /{SHORTEST_DHCP6} or longer"
            )
    for place, host in network.hosts:
        for one in host.addresses:
            _host_address(place, one, subnets)


def _too_short(subnet: Subnet) -> bool:
    return subnet.cidr.version == 6 and subnet.cidr.prefixlen < SHORTEST_DHCP6


def _host_address(place: Place, one: Address, subnets: Iterable[Subnet]) -> None:
    home = next((s for s in subnets if one in s.cidr), None)
    if home is None:
        place.wrong(f"address {one} is in no subnet of the network")
    elif one == home.gateway:
        place.wrong(f"address {one} is the gateway's")
    elif not usable_in(one, home.cidr):
        place.wrong(f"address {one} is the network or broadcast address of {home.cidr}")
    elif _too_short(home):
        place.wrong(
            f"address {one}: no DHCPv6 in {home.cidr}, which is shorter than /{SHORTEST_DHCP6}"
        )


def _overlaps(found: Placed[Subnet]) -> None:
    for i, (place, subnet) in enumerate(found):
        for other, earlier in found[:i]:
            if _overlap(subnet.cidr, earlier.cidr):
                place.wrong(f"{subnet.cidr} overlaps {earlier.cidr} of {_at(other)}")
                break


def _overlap(one: Cidr, other: Cidr) -> bool:
    return one.version == other.version and one.overlaps(other)


def _networks(
    router: RouterDraft, by_name: dict[str, NetworkDraft], owners: dict[str, str]
) -> None:
    for place, name in router.networks:
        if name not in by_name:
            place.wrong(f"there is no network {name}")
        elif name in owners:
            place.wrong(f"network {name} is already in {owners[name]}")
        else:
            owners[name] = _at(place)


def _router(router: RouterDraft, networks: Placed[NetworkDraft]) -> None:
    known = len(networks) == len(router.networks) and all(n.whole for _, n in networks)
    subnets = [placed for _, network in networks for placed in network.subnets]
    _across_networks(networks)
    _size(router, plain(networks))
    if router.uplink is None:
        _no_uplink(router)
    else:
        _uplink(router.uplink, subnets)
        _source_nat(router, router.uplink)
        _static_nat(router, router.uplink)
        _port_forwards(router, router.uplink)
        if known:
            _ingress(router, router.uplink, [s for _, s in subnets])
    if known:
        _private(router, [s for _, s in subnets])
        _routes(router, [s for _, s in subnets])


def _size(router: RouterDraft, networks: Iterable[NetworkDraft]) -> None:
    rules = sum(len(ingress.rules) for _, ingress in router.ingress)
    rules += sum(len(network.egress.rules) for network in networks)
    if rules > MAX_ROUTER_RULES:
        router.place.wrong(
            f"{rules} rules with those of its networks; a router has at most {MAX_ROUTER_RULES}"
        )


def _across_networks(networks: Placed[NetworkDraft]) -> None:
    """Subnets of different networks of one router; those of one network are checked there."""
    for i, (place, network) in enumerate(networks):
        for _, earlier in networks[:i]:
            if earlier is network:
                continue
            for _, subnet in network.subnets:
                for _, other in earlier.subnets:
                    if _overlap(subnet.cidr, other.cidr):
                        place.wrong(
                            f"{subnet.cidr} overlaps {other.cidr} of network {earlier.name}"
                        )


def _no_uplink(router: RouterDraft) -> None:
    for what in (router.source_nat, router.static_nat, router.port_forwards, router.ingress):
        for place, _ in what[:1]:
            place.wrong("the router has no uplink")


def _uplink(uplink: UplinkDraft, subnets: Placed[Subnet]) -> None:
    _unique("address", ((place, one.ip) for place, one in uplink.addresses))
    own = {one.ip for _, one in uplink.addresses}
    prefixes = [one.network for _, one in uplink.addresses]
    families: set[int] = set()
    for place, gateway in uplink.gateways:
        if gateway.version in families:
            place.wrong(f"a second IPv{gateway.version} gateway")
        families.add(gateway.version)
        if gateway in own:
            place.wrong(f"{gateway} is an address of the router itself")
        elif prefixes and not any(gateway in p and usable_in(gateway, p) for p in prefixes):
            place.wrong(f"{gateway} is in no prefix of the uplink's addresses")
    for place, one in uplink.addresses:
        for other, subnet in subnets:
            if _overlap(one.network, subnet.cidr):
                place.wrong(f"{one.network} overlaps {subnet.cidr} of {_at(other)}")


def _on_uplink(uplink: UplinkDraft, place: Place, public: Address) -> bool:
    if any(one.ip == public for _, one in uplink.addresses):
        return True
    place.wrong(f"{public} is no address of the uplink")
    return False


def _source_nat(router: RouterDraft, uplink: UplinkDraft) -> None:
    families: set[int] = set()
    for place, public in router.source_nat:
        _on_uplink(uplink, place, public)
        if public.version in families:
            place.wrong(f"a second IPv{public.version} address; one per family")
        families.add(public.version)


def _static_nat(router: RouterDraft, uplink: UplinkDraft) -> None:
    _unique("public address", ((place, nat.public) for place, nat in router.static_nat))
    _unique("private address", ((place, nat.private) for place, nat in router.static_nat))
    source = set(plain(router.source_nat))
    for place, nat in router.static_nat:
        _on_uplink(uplink, place, nat.public)
        if nat.public in source:
            place.wrong(f"{nat.public} is the router's source NAT address")


def _port_forwards(router: RouterDraft, uplink: UplinkDraft) -> None:
    static = {nat.public for _, nat in router.static_nat}
    groups: dict[tuple[Address, str], Placed[PortForward]] = {}
    for place, forward in router.port_forwards:
        _on_uplink(uplink, place, forward.public)
        if forward.public in static:
            place.wrong(f"{forward.public} is translated as a whole by static NAT")
        key = (forward.public, forward.protocol.value)
        groups.setdefault(key, []).append((place, forward))
    for version in (4, 6):
        _forwarded_ports(router, version)
    for group in groups.values():
        group.sort(key=lambda placed: placed[1].ports)
        widest = group[0]
        for place, forward in group[1:]:
            if forward.ports.first <= widest[1].ports.last:
                place.wrong(f"ports {forward.ports} overlap {widest[1].ports} of {_at(widest[0])}")
            if forward.ports.last > widest[1].ports.last:
                widest = (place, forward)


def _forwarded_ports(router: RouterDraft, version: int) -> None:
    """Every forwarded port is an element of its own in the router's rules."""
    ports = 0
    for place, forward in router.port_forwards:
        if forward.public.version != version:
            continue
        ports += len(forward.ports)
        if ports > MAX_FORWARDED_PORTS:
            place.wrong(
                f"more than {MAX_FORWARDED_PORTS} IPv{version} ports are forwarded;"
                " use static NAT for an address of which all ports are wanted"
            )
            return


def _ingress(router: RouterDraft, uplink: UplinkDraft, subnets: list[Subnet]) -> None:
    _unique("address", ((place, one.address) for place, one in router.ingress))
    public = {one.ip for _, one in uplink.addresses}
    translated = {one.version for _, one in router.source_nat}
    for place, ingress in router.ingress:
        one = ingress.address
        if one in public:
            continue
        if not any(one in s.cidr for s in subnets):
            place.wrong(f"{one} is neither an address of the uplink nor in a routed subnet")
        elif one.version in translated:
            place.wrong(f"{one} is translated (source NAT); name its public address instead")


def _private(router: RouterDraft, subnets: list[Subnet]) -> None:
    pairs = [(place, nat.public, nat.private) for place, nat in router.static_nat]
    pairs += [(place, pf.public, pf.private) for place, pf in router.port_forwards]
    for place, public, private in pairs:
        home = next((s for s in subnets if private in s.cidr), None)
        if public.version != private.version:
            place.wrong(f"{public} and {private} are of different families")
        elif home is None:
            place.wrong(f"{private} is in no network of the router")
        elif private == home.gateway or not usable_in(private, home.cidr):
            place.wrong(f"{private} is no host's address in {home.cidr}")


def _routes(router: RouterDraft, subnets: list[Subnet]) -> None:
    _unique("destination", ((place, route.cidr) for place, route in router.routes))
    prefixes = [s.cidr for s in subnets]
    own: set[Address] = {s.gateway for s in subnets}
    defaults: set[int] = set()
    if router.uplink is not None:
        prefixes += [one.network for _, one in router.uplink.addresses]
        own |= {one.ip for _, one in router.uplink.addresses}
        defaults = {gateway.version for _, gateway in router.uplink.gateways}
    for place, route in router.routes:
        if route.via in own:
            place.wrong(f"via {route.via} is the router itself")
        elif not any(route.via in p and usable_in(route.via, p) for p in prefixes):
            place.wrong(f"via {route.via} is in no prefix that the router is connected to")
        if route.cidr.prefixlen == 0 and route.cidr.version in defaults:
            place.wrong("the uplink's gateway is the default route already")
        elif route.cidr in prefixes:
            place.wrong(f"{route.cidr} is connected to the router itself")


def _public_addresses(routers: list[RouterDraft]) -> None:
    """One public address has one router on each bridge (I1)."""
    first: dict[tuple[str, Address], tuple[RouterDraft, Place]] = {}
    for router in routers:
        if router.uplink is None or router.uplink.bridge is None:
            continue
        for place, one in router.uplink.addresses:
            owner, at = first.setdefault((router.uplink.bridge, one.ip), (router, place))
            if owner is not router:
                place.wrong(f"{one.ip} is already used by {_at(at)} on the same bridge")
