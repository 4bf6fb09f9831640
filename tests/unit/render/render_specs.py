"""A small spec to vary."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from vrha.model.spec import (
    DhcpRange,
    Host,
    InstanceRef,
    InstanceSpec,
    Network,
    PortSpec,
    Router,
    Subnet,
    Uplink,
)


def small() -> InstanceSpec:
    """One IPv4 network with a DHCP range and one host; an uplink; no rule."""
    network = Network(
        "net-a",
        "br-a",
        (
            Subnet(
                ip_network("10.1.0.0/24"),
                ip_address("10.1.0.1"),
                DhcpRange(ip_address("10.1.0.10"), ip_address("10.1.0.20")),
            ),
        ),
        hosts=(Host("vm1", "02:00:00:00:02:01", (ip_address("10.1.0.5"),)),),
        domain="a.example",
        dns=(ip_address("192.0.2.53"),),
    )
    uplink = Uplink("br-up", (ip_interface("198.51.100.2/24"),), (ip_address("198.51.100.1"),))
    ports = (
        PortSpec("n0", "net-a", "br-a", "02:00:00:00:00:01", (ip_interface("10.1.0.1/24"),)),
        PortSpec("u0", "", "br-up", "02:00:00:00:00:02", uplink.addresses),
    )
    router = Router("r1", ("net-a",), uplink)
    return InstanceSpec(InstanceRef("r1", 1), 1, router, (network,), ports)
