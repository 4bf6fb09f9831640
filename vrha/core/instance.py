"""From desired state to the complete description of one instance."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from vrha.core.dhcp import of_second
from vrha.model.spec import (
    Desired,
    InstanceRef,
    InstanceSpec,
    Network,
    Policy,
    PortSpec,
    Router,
)


def mac_of(ref: InstanceRef, port: str) -> str:
    """A locally administered unicast MAC, the same for the same instance and port."""
    digest = hashlib.sha256(f"{ref.router}#{ref.generation}/{port}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def instance_spec(desired: Desired, router: Router, ref: InstanceRef, epoch: int) -> InstanceSpec:
    """What a node needs to build generation `ref` of `router`. The router must be valid."""
    networks = tuple(n for name in router.networks if (n := desired.network(name)) is not None)
    if router.dhcp_of:
        return _second_dhcp(networks[0], router, ref, epoch)
    ports = [
        PortSpec(
            name=f"n{index}",
            network=network.name,
            bridge=network.bridge,
            mac=mac_of(ref, f"n{index}"),
            addresses=tuple(subnet.interface for subnet in network.subnets),
        )
        for index, network in enumerate(networks)
    ]
    if router.uplink is not None:
        uplink = PortSpec(
            "u0", "", router.uplink.bridge, mac_of(ref, "u0"), router.uplink.addresses
        )
        ports.append(uplink)
    return InstanceSpec(ref, epoch, router, networks, tuple(ports))


def _second_dhcp(network: Network, router: Router, ref: InstanceRef, epoch: int) -> InstanceSpec:
    """It has an address of its own, and is nobody's gateway."""
    served, address = of_second(network)
    port = PortSpec("n0", network.name, network.bridge, mac_of(ref, "n0"), (address,))
    return InstanceSpec(ref, epoch, router, (served,), (port,))


def same_service(one: InstanceSpec, other: InstanceSpec) -> bool:
    """Whether two specs describe the same service, whichever instance provides it."""
    return _faceless(one) == _faceless(other)


def same_shape(one: InstanceSpec, other: InstanceSpec) -> bool:
    """Whether a live instance of `one` can become `other` in place: same ports and backend."""
    ports = [[(p.name, p.network, p.bridge) for p in spec.ports] for spec in (one, other)]
    return ports[0] == ports[1] and one.router.backend is other.router.backend


def reconfigured(live: InstanceSpec, wanted: InstanceSpec) -> InstanceSpec:
    """`wanted` as the live instance carries it: with its name and its MAC addresses."""
    return replace(in_disguise(live, wanted), ref=live.ref)


def in_disguise(live: InstanceSpec, wanted: InstanceSpec) -> InstanceSpec:
    """`wanted` with the MAC addresses of `live`, so that no neighbour notices the change."""
    macs = {port.name: port.mac for port in live.ports}
    ports = tuple(replace(port, mac=macs[port.name]) for port in wanted.ports)
    return replace(wanted, ports=ports)


def _faceless(spec: InstanceSpec) -> InstanceSpec:
    """The spec without the identity of its instance and without what no node reads."""
    return replace(
        spec,
        ref=InstanceRef(spec.router.name, 0),
        epoch=0,
        router=replace(spec.router, zone="", labels={}, policy=Policy.RESURRECT, priority=0),
        ports=tuple(replace(port, mac="") for port in spec.ports),
    )
