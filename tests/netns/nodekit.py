"""Specs, tenant machines and an inventory of a node, for the tests of the kernel half."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import time
from collections.abc import Callable
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


def mac_of(generation: int, port: int) -> str:
    """MAC of a port of an instance."""
    return f"02:76:00:00:{generation:02x}:{port:02x}"


def spec_of(generation: int = 1, backend: Backend = Backend.NFTABLES) -> InstanceSpec:
    """A router with two networks (one of them with IPv6 too), an uplink, NAT and DHCP.

    Its epoch is its generation.
    """
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
    inside = [
        PortSpec(
            f"n{index}",
            network.name,
            network.bridge,
            mac_of(generation, index),
            tuple(subnet.interface for subnet in network.subnets),
        )
        for index, network in enumerate(networks)
    ]
    assert router.uplink is not None
    outside = PortSpec("u0", "", "br-up", mac_of(generation, 2), router.uplink.addresses)
    ref = InstanceRef("edge", generation)
    return InstanceSpec(ref, generation, router, networks, (*inside, outside))


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
        ping = f"ping -n -q -i 0.1 -W 0.3 -c {count} {target}"
        argv = ["ip", "netns", "exec", self.name, *ping.split()]
        return subprocess.run(argv, capture_output=True, timeout=30).returncode == 0

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket inside."""
        home = netns.current()
        try:
            with netns.entered_named(self.name, home):
                return socket.socket(family, kind, protocol)
        finally:
            os.close(home)

    def resolve(self, server: str, name: str) -> str:
        """The IPv4 address of a name by the DNS server, empty when there is none."""
        labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
        query = b"tt\x01\0\0\x01\0\0\0\0\0\0" + labels + b"\0\0\x01\0\x01"
        with self.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1)
            sock.sendto(query, (server, 53))
            answer = sock.recv(512)
        return str(ip_address(answer[-4:])) if answer[7] else ""

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


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether the condition came true within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


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
        "descriptors": [str(_descriptors())],
    }


def _descriptors() -> int:
    """How many files are open once the background has closed its packet sockets."""
    until(lambda: not any(map(_is_packet_socket, os.listdir("/proc/self/fd"))), 2)
    return len(os.listdir("/proc/self/fd"))


def _is_packet_socket(fd: str) -> bool:
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.fstat(int(fd)).st_mode):
            with socket.socket(fileno=os.dup(int(fd))) as sock:
                return sock.family == socket.AF_PACKET
    return False


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
