"""DHCP clients of both versions on a bridge of the node."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import TypeVar

from tests.netns.nodekit import machine
from tests.system.guestkit import Dhcp
from vrha.linux import netns

T = TypeVar("T")

SOLICIT, ADVERTISE, REQUEST6, RENEW6, REBIND6, REPLY = 1, 2, 3, 5, 6, 7
NO_BINDING = 3
_WAIT_S = 5.0


class Node:
    """Calls functions in machines of this node."""

    def call(self, name: str, function: Callable[[], T]) -> T:
        home = netns.current()
        try:
            with netns.entered_named(name, home):
                return function()
        finally:
            os.close(home)


def _ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True, capture_output=True, timeout=10)


def mac_of_guest(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 9, number])


def guest(number: int) -> Dhcp:
    """A machine `gN` on bridge `br-a` without an address, and its client; it goes with the node."""
    name, mac = f"g{number}", mac_of_guest(number)
    machine(name, "br-a")
    _ip(f"-n {name} link set e0 down")
    _ip(f"-n {name} link set e0 name eth0 address {mac.hex(':')}")
    _ip(f"-n {name} link set eth0 up")
    return Dhcp(Node(), name, mac)


def settle(client: Dhcp) -> None:
    """The machine uses the address of its lease."""
    _ip(f"-n {client.machine} addr replace {client.address}/24 dev eth0")


@dataclass
class Dhcp6:
    """A DHCPv6 client (RFC 8415) for one address of a machine of `guest`."""

    machine: str
    mac: bytes
    address: str = ""
    server: bytes = b""
    status: int = 0
    """Status code of the last answer for the address; 0 is success (section 21.13)."""

    def solicit(self) -> int:
        """A lease from nothing: the type of the last answer."""
        if self._ask(SOLICIT, self._identity("")) != ADVERTISE:
            return 0
        return self._ask(REQUEST6, self._identity(self.address), self.server)

    def request(self) -> int:
        """Again for the address (section 18.2.10.1: after NoBinding)."""
        return self._ask(REQUEST6, self._identity(self.address), self.server)

    def renew(self) -> int:
        """To the server that gave the lease; 0 when it does not answer."""
        return self._ask(RENEW6, self._identity(self.address), self.server)

    def rebind(self) -> int:
        """To any server; 0 when none answers."""
        return self._ask(REBIND6, self._identity(self.address))

    def _identity(self, address: str) -> bytes:
        inner = b""
        if address:
            inner = struct.pack("!HH", 5, 24) + IPv6Address(address).packed + bytes(8)
        return struct.pack("!HHIII", 3, 12 + len(inner), 1, 0, 0) + inner

    def _ask(self, kind: int, identity: bytes, server: bytes = b"") -> int:
        number = os.urandom(3)
        duid = struct.pack("!HH", 3, 1) + self.mac
        body = struct.pack("!HH", 1, len(duid)) + duid + identity + struct.pack("!HHH", 8, 2, 0)
        if server:
            body += struct.pack("!HH", 2, len(server)) + server
        with Node().call(self.machine, self._socket) as sock:
            index = Node().call(self.machine, lambda: socket.if_nametoindex("eth0"))
            until = time.monotonic() + _WAIT_S
            sock.settimeout(0.3)
            while time.monotonic() < until:
                # While the link-local address is tentative there is no source to send from.
                with suppress(OSError):
                    sock.sendto(bytes([kind]) + number + body, ("ff02::1:2", 547, 0, index))
                    answer = sock.recv(2048)
                    if answer[1:4] == number:
                        self._take(answer[4:])
                        return answer[0]
                time.sleep(0.01)
        return 0

    def _take(self, rest: bytes) -> None:
        self.status = 0
        for code, value in _options(rest):
            if code == 2:
                self.server = value
            elif code == 3:
                for inner, data in _options(value[12:]):
                    if inner == 5:
                        self.address = str(IPv6Address(data[:16]))
                    elif inner == 13:
                        (self.status,) = struct.unpack("!H", data[:2])

    @staticmethod
    def _socket() -> socket.socket:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(("::", 546))
        return sock


def _options(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        code, length = struct.unpack("!HH", data[:4])
        found.append((code, data[4 : 4 + length]))
        data = data[4 + length :]
    return found
