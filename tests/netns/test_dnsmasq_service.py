"""The rendered files, served by a real dnsmasq behind the rendered rules, to a client by hand."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from tests.netns.fwkit import DEADLINE, Namespace, cable, udp_packet, wait_readable
from vrha.model.spec import (
    Backend,
    DhcpRange,
    Host,
    InstanceRef,
    InstanceSpec,
    Network,
    PortSpec,
    Router,
    Subnet,
)
from vrha.render.dnsmasq import CHECK_ADDRESS, CHECK_NAME, dnsmasq_files
from vrha.render.iptables import iptables_texts
from vrha.render.nft import nft_text

pytestmark = [pytest.mark.root, pytest.mark.unhurried]

KNOWN, STRANGER = "02:00:00:00:0a:01", "02:00:00:00:0a:02"
DISCOVER, OFFER = 1, 2
A, PTR, AAAA = 1, 12, 28


def spec() -> InstanceSpec:
    """One network: a range and a reservation in IPv4, a reservation beside SLAAC in IPv6."""
    addresses = (ip_interface("10.1.0.1/24"), ip_interface("fd00:1::1/64"))
    network = Network(
        "net-a",
        "br-a",
        (
            Subnet(
                addresses[0].network,
                addresses[0].ip,
                DhcpRange(ip_address("10.1.0.100"), ip_address("10.1.0.199")),
            ),
            Subnet(addresses[1].network, addresses[1].ip),
        ),
        hosts=(
            Host("web", KNOWN, (ip_address("10.1.0.5"), ip_address("fd00:1::5"))),
            Host("quiet", "02:00:00:00:0a:03", (ip_address("10.1.0.150"),)),
        ),
        domain="a.example",
    )
    port = PortSpec("n0", "net-a", "br-a", "02:00:00:00:00:01", addresses)
    return InstanceSpec(InstanceRef("r", 1), 1, Router("r", ("net-a",)), (network,), (port,))


@dataclass
class Service:
    """A router with dnsmasq, and one client machine without addresses."""

    vr: Namespace
    client: Namespace
    process: subprocess.Popen[bytes]
    folder: Path


@pytest.fixture(scope="module", params=list(Backend))
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    vr, client = Namespace("vr"), Namespace("client")
    folder = Path(tempfile.mkdtemp(prefix="vrha-dnsmasq-"))
    folder.chmod(0o755)
    process = None
    try:
        cable(vr, "n0", client, "eth0")
        client.ip(f"link set eth0 address {KNOWN}")
        vr.sysctl(net__ipv6__conf__all__forwarding="1")
        vr.ip("addr add 10.1.0.1/24 dev n0", "addr add fd00:1::1/64 dev n0 nodad")
        _load_rules(vr, Backend(request.param))
        process = _start(vr, folder)
        yield Service(vr, client, process, folder)
    finally:
        if process:
            process.terminate()
            process.wait(DEADLINE)
        client.close()
        vr.close()
        shutil.rmtree(folder)


def _load_rules(vr: Namespace, backend: Backend) -> None:
    if backend is Backend.NFTABLES:
        vr.command("nft", "-f", "-", text=nft_text(spec(), fresh=True))
        return
    first, second = iptables_texts(spec())
    vr.command("iptables-legacy-restore", "-w", text=first)
    vr.command("ip6tables-legacy-restore", "-w", text=second)


def _start(vr: Namespace, folder: Path) -> subprocess.Popen[bytes]:
    files = dnsmasq_files(spec(), str(folder))
    (folder / files.conf_name).write_text(files.conf)
    (folder / files.hosts_name).write_text(files.hosts)
    (folder / files.addn_hosts_name).write_text(files.addn_hosts)
    (folder / files.offers_name).write_text("no-ping\n")
    argv = ["dnsmasq", "--keep-in-foreground", f"--conf-file={folder / files.conf_name}"]
    process = vr.run(lambda: subprocess.Popen(argv, stderr=subprocess.DEVNULL))
    deadline = time.monotonic() + DEADLINE
    while not ask(vr, CHECK_NAME, A):
        assert time.monotonic() < deadline, "dnsmasq does not answer"
        assert process.poll() is None, "dnsmasq has ended"
    return process


def ask(space: Namespace, name: str, kind: int, server: str = "127.0.0.1") -> list[bytes]:
    """Data of the answers to a DNS query (RFC 1035)."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    query = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)
    with space.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((server, 53))
        try:
            sock.send(query)
            if not wait_readable(sock, time.monotonic() + 0.5):
                return []
            reply = sock.recv(1500)
        except ConnectionRefusedError:
            return []
    rest, found = reply[len(query) :], []
    for _ in range(struct.unpack("!H", reply[6:8])[0]):
        # Names in answers are pointers to the question here: two bytes.
        length = struct.unpack("!H", rest[10:12])[0]
        found.append(rest[12 : 12 + length])
        rest = rest[12 + length :]
    return found


def test_dns_knows_the_hosts(service: Service) -> None:
    assert ask(service.vr, CHECK_NAME, A) == [socket.inet_aton(CHECK_ADDRESS)]
    for name in ("web", "web.a.example"):
        assert ask(service.vr, name, A) == [socket.inet_aton("10.1.0.5")]
        assert ask(service.vr, name, AAAA) == [socket.inet_pton(socket.AF_INET6, "fd00:1::5")]
    (pointer,) = ask(service.vr, "5.0.1.10.in-addr.arpa", PTR)
    assert pointer == b"\x03web\x01a\x07example\x00"
    assert ask(service.vr, "nobody.a.example", A) == []


def discover(service: Service, mac: str) -> tuple[str, dict[int, bytes]]:
    """Offered address and options for a DHCPDISCOVER from `mac` (RFC 2131)."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    message = struct.pack("!BBBBIHH", 1, 1, 6, 0, int.from_bytes(hardware[2:]), 0, 0x8000)
    message += b"\0" * 16 + hardware.ljust(16, b"\0") + b"\0" * 192
    message += b"\x63\x82\x53\x63" + bytes([53, 1, DISCOVER, 55, 3, 1, 3, 6, 255])
    packet = udp_packet("0.0.0.0", "255.255.255.255", 68, 67, message)
    with service.client.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as sock:
        sock.bind(("eth0", 0x0800))
        sock.sendto(packet, ("eth0", 0x0800, 0, 0, b"\xff" * 6))
        deadline = time.monotonic() + DEADLINE
        while wait_readable(sock, deadline):
            reply = sock.recv(2048)
            body = reply[28:]
            if reply[20:24] == struct.pack("!HH", 67, 68) and hardware in body[28:34]:
                return socket.inet_ntoa(body[16:20]), _options(body[240:])
    raise AssertionError("no offer")


def _options(data: bytes) -> dict[int, bytes]:
    options = {}
    while data and data[0] != 255:
        if data[0] == 0:
            data = data[1:]
            continue
        options[data[0]] = data[2 : 2 + data[1]]
        data = data[2 + data[1] :]
    return options


def test_dhcp_gives_the_fixed_address(service: Service) -> None:
    address, options = discover(service, KNOWN)
    assert address == "10.1.0.5"
    assert options[53] == bytes([OFFER])
    assert options[1] == socket.inet_aton("255.255.255.0")
    assert options[3] == options[6] == socket.inet_aton("10.1.0.1")


def test_dhcp_gives_others_one_of_the_range(service: Service) -> None:
    address, _ = discover(service, STRANGER)
    assert ip_address("10.1.0.100") <= ip_address(address) <= ip_address("10.1.0.199")
    assert address != "10.1.0.150", "reserved for another machine"


def test_router_advertisements_give_an_address(service: Service) -> None:
    deadline = time.monotonic() + 3 * DEADLINE
    line = ""
    while "fd00:1::" not in line and "fd00:1:0:0:" not in line and time.monotonic() < deadline:
        time.sleep(0.1)
        line = service.client.command("ip", "-6", "-o", "addr", "show", "dynamic")
    assert "fd00:1:" in line
    assert "via fe80" in service.client.command("ip", "-6", "route", "show", "default")


def test_dhcpv6_gives_the_fixed_address(service: Service) -> None:
    """SOLICIT to ADVERTISE (RFC 8415 section 18.2.1); the machine is known by its MAC."""
    mac = bytes.fromhex(KNOWN.replace(":", ""))
    client_id = struct.pack("!HHHH", 1, 4 + len(mac), 3, 1) + mac
    identity = struct.pack("!HHIII", 3, 12, 1, 0, 0)
    message = b"\x01vra" + client_id + identity + struct.pack("!HHH", 8, 2, 0)
    index = service.client.run(lambda: socket.if_nametoindex("eth0"))
    with service.client.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::", 546))
        deadline = time.monotonic() + 2 * DEADLINE
        reply = b""
        while not reply and time.monotonic() < deadline:
            # While the link-local address is tentative there is no source to send from.
            try:
                sock.sendto(message, ("ff02::1:2", 547, 0, index))
            except OSError:
                time.sleep(0.1)
            if wait_readable(sock, time.monotonic() + 0.5):
                reply = sock.recv(1500)
    assert reply[:4] == b"\x02vra"
    assert socket.inet_pton(socket.AF_INET6, "fd00:1::5") in reply


def test_dnsmasq_is_not_root_and_can_read_its_hosts_again(service: Service) -> None:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    (uids,) = [line for line in status.splitlines() if line.startswith("Uid:")]
    assert "0" not in uids.split()[1:]
    with (service.folder / "addn-hosts").open("a") as file:
        file.write("10.1.0.77 later.a.example later\n")
    service.process.send_signal(1)
    deadline = time.monotonic() + DEADLINE
    while ask(service.vr, "later", A) != [socket.inet_aton("10.1.0.77")]:
        assert time.monotonic() < deadline
