"""Specs, tenant machines and an inventory of a node, for the tests of the kernel half."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

from vrha.linux import netns
from vrha.model.spec import (
    Backend,
    DhcpRange,
    Host,
    Ingress,
    InstanceRef,
    InstanceSpec,
    Network,
    PortSpec,
    Protocol,
    Router,
    Rule,
    StaticNat,
    Subnet,
    Uplink,
)

MACS = {
    "n0": "02:76:00:00:{g:02x}:00",
    "n1": "02:76:00:00:{g:02x}:01",
    "u0": "02:76:00:00:{g:02x}:02",
}


def spec_of(
    generation: int = 1, backend: Backend = Backend.NFTABLES, epoch: int = 0
) -> InstanceSpec:
    """A router with two networks (one of them with IPv6 too), an uplink, NAT and DHCP."""
    networks = (
        Network(
            "red",
            "br-a",
            (
                Subnet(
                    ip_network("10.1.1.0/24"),
                    ip_address("10.1.1.1"),
                    DhcpRange(ip_address("10.1.1.100"), ip_address("10.1.1.199")),
                ),
                Subnet(ip_network("fd00:1::/64"), ip_address("fd00:1::1")),
            ),
            hosts=(Host("vm1", "02:00:00:00:00:11", (ip_address("10.1.1.11"),)),),
            domain="red.example",
        ),
        Network("blue", "br-b", (Subnet(ip_network("10.1.2.0/24"), ip_address("10.1.2.1")),)),
    )
    public = ip_address("203.0.113.11")
    router = Router(
        "edge",
        ("red", "blue"),
        Uplink(
            "br-up",
            (
                ip_interface("203.0.113.10/24"),
                ip_interface("203.0.113.11/24"),
                ip_interface("2001:db8::10/64"),
            ),
            (ip_address("203.0.113.1"), ip_address("2001:db8::1")),
        ),
        source_nat=(ip_address("203.0.113.10"),),
        static_nat=(StaticNat(public, ip_address("10.1.1.11")),),
        ingress=(Ingress(public, (Rule(Protocol.ICMP), Rule(Protocol.UDP))),),
        backend=backend,
    )
    mac = {name: form.format(g=generation) for name, form in MACS.items()}
    ports = (
        PortSpec("n0", "red", "br-a", mac["n0"], tuple(s.interface for s in networks[0].subnets)),
        PortSpec("n1", "blue", "br-b", mac["n1"], tuple(s.interface for s in networks[1].subnets)),
        PortSpec("u0", "", "br-up", mac["u0"], router.uplink.addresses if router.uplink else ()),
    )
    return InstanceSpec(
        InstanceRef("edge", generation), epoch or generation, router, networks, ports
    )


def with_uplink_address(spec: InstanceSpec, address: str) -> InstanceSpec:
    """The same with one more public address."""
    assert spec.router.uplink is not None
    addresses = (*spec.router.uplink.addresses, ip_interface(address))
    ports = tuple(replace(p, addresses=addresses) if p.is_uplink else p for p in spec.ports)
    uplink = replace(spec.router.uplink, addresses=addresses)
    return replace(spec, router=replace(spec.router, uplink=uplink), ports=ports)


@dataclass(frozen=True)
class Machine:
    """A namespace on a bridge of the node, with addresses on its port e0."""

    name: str

    def run(self, *argv: str, ok: bool = True) -> str:
        """Output of a command inside."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, *argv], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0 or not ok, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def pings(self, target: str, count: int = 2) -> bool:
        """Whether any of `count` pings is answered."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, "ping", "-n", "-q", "-i", "0.1", "-W", "0.3"]
            + ["-c", str(count), target],
            capture_output=True,
            timeout=30,
        )
        return done.returncode == 0

    def neighbour(self, address: str) -> str:
        """MAC of the neighbour, empty when not known."""
        words = self.run("ip", "neigh", "show", address, "dev", "e0").split()
        return words[words.index("lladdr") + 1] if "lladdr" in words else ""


def machine(name: str, bridge: str, *addresses: str, via: str = "", via6: str = "") -> Machine:
    """Make a machine; it goes with the node."""

    def ip(line: str) -> None:
        subprocess.run(["ip", *line.split()], check=True, capture_output=True, timeout=10)

    ip(f"netns add {name}")
    ip(f"link add p-{name} type veth peer name e0 netns {name}")
    ip(f"link set p-{name} master {bridge} up")
    ip(f"-n {name} link set lo up")
    ip(f"-n {name} link set e0 up")
    for address in addresses:
        ip(f"-n {name} addr add {address} dev e0" + (" nodad" if ":" in address else ""))
    if via:
        ip(f"-n {name} route add default via {via}")
    if via6:
        ip(f"-n {name} -6 route add default via {via6} dev e0")
    return Machine(name)


def inventory(state_dir: Path) -> dict[str, list[str]]:
    """Everything that an instance could leave behind on this node."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, timeout=10).stdout
    active = subprocess.run(
        ["nft", "list", "set", "bridge", "vrha", "active"],
        capture_output=True,
        text=True,
        timeout=10,
    ).stdout
    return {
        "namespaces": netns.names(),
        "links": sorted(line.split(": ")[1].split("@")[0] for line in links.splitlines()),
        "processes": sorted(_dnsmasqs(state_dir)),
        "files": sorted(str(p) for p in state_dir.rglob("*")),
        "active": [active],
        "descriptors": [str(len(os.listdir("/proc/self/fd")))],
    }


def _dnsmasqs(state_dir: Path) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(state_dir) in line:
            found.append(f"{pid} {line}")
    return found
