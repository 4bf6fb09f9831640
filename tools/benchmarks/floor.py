"""The floor of a build: the same content by raw netlink, nft and dnsmasq, with no check.

Messages and texts are prepared before any clock starts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vrha.errors import PreconditionError
from vrha.linux import netns, processes, rtnetlink, sysctls, tools
from vrha.linux.addresses import mac_bytes, port_addresses, routes
from vrha.linux.netlink import NLM_F_REQUEST, Message
from vrha.linux.rtnetlink import Link, VethEnd
from vrha.model.spec import InstanceSpec, PortSpec
from vrha.render.dnsmasq import dnsmasq_files
from vrha.render.nft import nft_text

_GROUP = 0x7F
_HEADER = struct.Struct("=IHHII")
_QUERY = b"fl\x01\0\0\x01\0\0\0\0\0\0\x05check\x04vrha\x07invalid\0\0\x01\0\x01"


@dataclass
class Prepared:
    """Everything of the floor that can be made before the clock starts."""

    spec: InstanceSpec
    name: str
    folder: Path
    rules: bytes
    nft: str
    dnsmasq: list[str]
    bridges: dict[str, Link]
    parameters: tuple[tuple[str, str], ...]

    def near(self, port: PortSpec) -> str:
        """Name of the end of a port on its bridge."""
        return f"f{self.spec.ref.generation}{port.name}"


def prepare(state: Path, spec: InstanceSpec) -> Prepared:
    """For an instance of a generation of its own; files are written below `state`."""
    folder = state / f"floor-{spec.ref.generation}"
    folder.mkdir(mode=0o711)
    files = dnsmasq_files(spec, str(folder))
    for name, text in (
        (files.conf_name, files.conf),
        (files.hosts_name, files.hosts),
        (files.addn_hosts_name, files.addn_hosts),
        (files.offers_name, "no-ping\n"),
    ):
        (folder / name).write_text(text)
    with rtnetlink.open_route() as route:
        found = {p.bridge: rtnetlink.link(route, p.bridge) for p in spec.ports}
    return Prepared(
        spec,
        f"floor-{spec.ref.generation}",
        folder,
        nft_text(spec, fresh=True).encode(),
        tools.need("nft"),
        [tools.need("dnsmasq"), f"--conf-file={folder / files.conf_name}"],
        {name: link for name, link in found.items() if link is not None},
        (*sysctls.INSTANCE, *sysctls.CONNTRACK),
    )


def make(prepared: Prepared, dnsmasq: bool = True, answering: bool = True) -> None:
    """Build it; until its ports forward, and with `answering` dnsmasq answers.

    Raises PreconditionError, OSError, CalledProcessError.
    """
    home = netns.current()
    inner = netns.create(prepared.name, home)
    with contextlib.closing(_socket()) as outer:
        with netns.entered(inner, home):
            _fill(prepared)
        _send(outer, _pairs(prepared, inner))
        with netns.entered(inner, home):
            _address(prepared.spec)
            _send(outer, [rtnetlink.set_up(prepared.near(port)) for port in prepared.spec.ports])
            if dnsmasq:
                subprocess.run(prepared.dnsmasq, check=True, timeout=10)
                if answering:
                    _await_dns()
        _await_forwarding(prepared)
    os.close(inner)
    os.close(home)


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, rtnetlink.NETLINK_ROUTE)
    sock.settimeout(10)
    return sock


def _send(sock: socket.socket, messages: list[Message]) -> None:
    """One send; only the last message asks for an acknowledgement."""
    parts = []
    for number, message in enumerate(messages, 1):
        flags = message.flags | NLM_F_REQUEST | (4 if number == len(messages) else 0)
        length = 16 + len(message.body)
        parts.append(_HEADER.pack(length, message.kind, flags, number, 0) + message.body)
    sock.send(b"".join(parts))
    answer = sock.recv(65536)
    code = struct.unpack_from("=i", answer, 16)[0]
    if code:
        raise PreconditionError("bench-setup", f"netlink: {os.strerror(-code)}")


def _fill(prepared: Prepared) -> None:
    with contextlib.closing(_socket()) as sock:
        _send(sock, [rtnetlink.set_up("lo")])
    subprocess.run([prepared.nft, "-f", "-"], input=prepared.rules, check=True, timeout=30)
    for name, value in prepared.parameters:
        fd = os.open(f"/proc/sys/net/{name}", os.O_WRONLY)
        os.write(fd, value.encode())
        os.close(fd)


def _pairs(prepared: Prepared, inner: int) -> list[Message]:
    number = prepared.spec.ref.generation.to_bytes(2, "big")
    return [
        rtnetlink.new_veth(
            VethEnd(prepared.near(port), bytes([0xFE, 0, 0, *number, index])),
            VethEnd(port.name, mac_bytes(port)),
            inner,
            prepared.bridges[port.bridge].index,
            prepared.bridges[port.bridge].mtu,
            _GROUP,
        )
        for index, port in enumerate(prepared.spec.ports)
    ]


def _address(spec: InstanceSpec) -> None:
    index = {port.name: socket.if_nametoindex(port.name) for port in spec.ports}
    messages = [rtnetlink.set_up(port.name) for port in spec.ports]
    messages += [
        rtnetlink.add_address(index[port.name], address)
        for port in spec.ports
        for address in port_addresses(port)
    ]
    messages += [rtnetlink.add_route(r.cidr, r.via, index[r.port], r.onlink) for r in routes(spec)]
    with contextlib.closing(_socket()) as sock:
        _send(sock, messages)


def _await_dns() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 53))
        sock.settimeout(2)
        sock.send(_QUERY)
        sock.recv(512)


def _await_forwarding(prepared: Prepared) -> None:
    with rtnetlink.open_route() as route:
        for port in prepared.spec.ports:
            while (link := rtnetlink.link(route, prepared.near(port))) is not None:
                if link.port_state == rtnetlink.FORWARDING:
                    break


def destroy(prepared: Prepared) -> None:
    """Remove it, made or not, and the ports of all others of its kind."""
    home = netns.current()
    with contextlib.suppress(PreconditionError), contextlib.closing(_socket()) as outer:
        _send(outer, [rtnetlink.delete_group(_GROUP)])
    pid_file = prepared.folder / "dnsmasq.pid"
    if pid_file.exists():
        with netns.entered_named(prepared.name, home) as inner:
            processes.end([int(pid_file.read_text())], inner, grace_s=1.0)
    netns.remove(prepared.name)
    os.close(home)
    shutil.rmtree(prepared.folder)
