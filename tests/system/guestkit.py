"""What a tenant machine does on its network: DHCP, DNS, router discovery, asking who answers."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Protocol, TypeVar

from tests.system.zonekit import wait_for
from vrha.lab.zone import Lab
from vrha.linux import frames

DISCOVER, OFFER, REQUEST, ACK, NAK, RELEASE = 1, 2, 3, 5, 6, 7
_MAGIC = b"\x63\x82\x53\x63"
_WAIT_S = 5.0
ROUTER_ADVERTISEMENT = 134


T = TypeVar("T")


class Machines(Protocol):
    """Where the machines are, for instance a lab."""

    def call(self, machine: str, function: Callable[[], T], /) -> T:
        """What `function` returns in the network of the machine."""


@dataclass
class Dhcp:
    """A DHCP client (RFC 2131) of one machine; its messages go where the state says."""

    lab: Machines
    machine: str
    mac: bytes
    address: str = ""
    server: str = ""
    options: Mapping[int, bytes] = field(default_factory=dict)

    def discover(self, wanted: str = "") -> int:
        """A lease from nothing, if possible for `wanted`; the type of the last answer."""
        wish = {50: IPv4Address(wanted).packed} if wanted else {}
        kind = self._ask({53: bytes([DISCOVER]), **wish})
        if kind != OFFER:
            return kind
        offered = {50: IPv4Address(self.address).packed, 54: self.options[54]}
        return self._ask({53: bytes([REQUEST]), **offered})

    def renew(self) -> int:
        """Directly to the server that gave the lease (section 4.3.2, RENEWING)."""
        return self._ask({53: bytes([REQUEST])}, self.address, self.server)

    def rebind(self) -> int:
        """To any server (REBINDING)."""
        return self._ask({53: bytes([REQUEST])}, self.address)

    def reboot(self) -> int:
        """After a start, for the address that it remembers (INIT-REBOOT)."""
        wanted = {50: IPv4Address(self.address).packed}
        return self._ask({53: bytes([REQUEST]), **wanted})

    def release(self) -> None:
        """The lease is given back; nothing answers that (section 4.4.6)."""
        with self.lab.call(self.machine, self._socket) as sock:
            sock.sendto(
                self._message({53: bytes([RELEASE]), 54: self.options[54]}, 0, self.address),
                ("255.255.255.255", 67),
            )

    def _message(self, options: Mapping[int, bytes], number: int, own: str) -> bytes:
        head = struct.pack("!BBBBIHH", 1, 1, 6, 0, number, 0, 0 if own else 0x8000)
        head += IPv4Address(own or "0.0.0.0").packed + bytes(12)
        body = b"".join(bytes([k, len(v)]) + v for k, v in options.items())
        return head + self.mac + bytes(10 + 64 + 128) + _MAGIC + body + b"\xff"

    def _ask(self, options: Mapping[int, bytes], own: str = "", server: str = "") -> int:
        with self.lab.call(self.machine, self._socket) as sock:
            number = time.monotonic_ns() & 0xFFFFFFFF
            message = self._message(options, number, own)
            until = time.monotonic() + _WAIT_S
            sock.settimeout(0.5)
            while time.monotonic() < until:
                sock.sendto(message, (server or "255.255.255.255", 67))
                with suppress(TimeoutError):
                    while True:
                        answer = sock.recv(2048)
                        if answer[4:8] == struct.pack("!I", number):
                            return self._take(answer)
        raise AssertionError("no DHCP server answers")

    def _take(self, answer: bytes) -> int:
        found: dict[int, bytes] = {}
        rest = answer[240:]
        while rest and rest[0] != 255:
            found[rest[0]] = rest[2 : 2 + rest[1]]
            rest = rest[2 + rest[1] :]
        kind = found[53][0]
        if kind in (OFFER, ACK):
            self.address = str(IPv4Address(answer[16:20]))
            self.server = str(IPv4Address(found[54]))
            self.options = found
        return kind

    @staticmethod
    def _socket() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
        sock.bind(("", 68))
        return sock


def resolve(lab: Lab, machine: str, server: str, name: str) -> str:
    """The IPv4 address that the DNS server has for a name; empty when it has none."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    query = b"vr" + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + labels + b"\0\0\x01\0\x01"
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with lab.call(machine, lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(2)
        sock.sendto(query, (server, 53))
        answer = sock.recv(1024)
    (count,) = struct.unpack("!H", answer[6:8])
    return str(IPv4Address(answer[-4:])) if count else ""


@dataclass(frozen=True)
class Heard:
    """Who claimed what, in order: an address by ARP or ND, or (`::`) to be a router."""

    at: float
    address: str
    mac: str


class Watch:
    """Asks on a machine's segment, every 2 ms, who has `addresses`, and hears who answers."""

    def __init__(self, lab: Lab, machine: str, *addresses: str) -> None:
        self.heard: list[Heard] = []
        self.senders: set[str] = set()
        """MACs of all frames that were heard, whatever they said."""
        self._addresses = [ip_address(address) for address in addresses]
        self._sock = lab.call(machine, self._open)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)

    def owners(self, address: str) -> list[str]:
        """MACs that claimed the address, each turn once."""
        turns: list[str] = []
        for one in list(self.heard):
            if one.address == address and turns[-1:] != [one.mac]:
                turns.append(one.mac)
        return turns

    def has_heard(self, address: str, times: int = 1) -> bool:
        """Whether anybody claimed the address, so many times."""
        return sum(1 for one in list(self.heard) if one.address == address) >= times

    def solicit(self) -> None:
        """Ask for router advertisements (RFC 4861 section 4.1)."""
        self._sock.send(_solicitation(self._mac))

    def __enter__(self) -> Watch:
        self._thread.start()
        if self._addresses:
            wait_for(lambda: self.heard, 5, "an answer")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sock.close()

    def _open(self) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sock.bind(("eth0", 3))
        sock.settimeout(0.002)
        self._mac: bytes = sock.getsockname()[4]
        return sock

    def _work(self) -> None:
        due = 0.0
        while not self._stop.is_set():
            if time.monotonic() >= due:
                due = time.monotonic() + 0.002
                for address in self._addresses:
                    self._sock.send(_question(self._mac, address))
            with suppress(TimeoutError):
                self._hear(self._sock.recv(2048))

    def _hear(self, frame: bytes) -> None:
        self.senders.add(frame[6:12].hex(":"))
        for address in self._addresses:
            if isinstance(address, IPv4Address):
                claims = frames.arp_answers(frame, address)
            else:
                claims = frames.advertisement_answers(frame, address)
            if claims:
                self._note(str(address), frame)
        if frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == ROUTER_ADVERTISEMENT:
            self._note("::", frame)

    def _note(self, address: str, frame: bytes) -> None:
        self.heard.append(Heard(time.monotonic(), address, frame[6:12].hex(":")))


@contextmanager
def watching(watches: list[Watch]) -> Iterator[None]:
    """All of them at work."""
    if not watches:
        yield
        return
    with watches[0], watching(watches[1:]):
        yield


def _question(mac: bytes, address: IPv4Address | IPv6Address) -> bytes:
    if isinstance(address, IPv4Address):
        return frames.arp_probe(mac, address)
    return frames.neighbour_solicitation(mac, address)


def _solicitation(mac: bytes) -> bytes:
    source, group = frames.link_local_of(mac), IPv6Address("ff02::2")
    body = bytes(4) + bytes([1, 1]) + mac
    packet = frames._icmpv6(133, source, group, body)
    return b"\x33\x33" + group.packed[12:] + mac + b"\x86\xdd" + packet
