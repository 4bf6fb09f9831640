"""Nameless network namespaces and probes for behaviour tests of the firewall.

A namespace lives as long as this process holds its descriptor, so a crash leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import count
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 5.0
"""Seconds within which a packet that passes must have arrived."""
MARKER_PORT = 9999
"""UDP port that every rule set of these tests lets through, in every direction."""
FIRST_PORT = 20_000
"""Source ports of probes count up from here; no test listens on one."""
CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75

_libc = ctypes.CDLL(None, use_errno=True)
_serial = count(1)


class Namespace:
    """One network namespace without a name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fd = _in_thread(self._create)
        self.ip("link set lo up")

    def _create(self) -> int:
        if _libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def run(self, function: Callable[[], T]) -> T:
        """What `function` returns, called in a thread that is in this namespace."""

        def inside() -> T:
            if _libc.setns(self.fd, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            return function()

        return _in_thread(inside)

    def command(self, *argv: str, text: str = "", check: bool = True) -> str:
        """Standard output of a command in this namespace; its error output fails the test."""

        def call() -> subprocess.CompletedProcess[str]:
            return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=20)

        done = self.run(call)
        assert not check or done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def ip(self, *lines: str) -> None:
        self.command("ip", "-batch", "-", text="\n".join(lines) + "\n")

    def sysctl(self, **values: str) -> None:
        """Set sysctls; `__` stands for a dot."""

        def write() -> None:
            for name, value in values.items():
                with open("/proc/sys/" + name.replace("__", "/"), "w") as file:
                    file.write(value)

        self.run(write)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of this namespace, usable from any thread."""
        return self.run(lambda: socket.socket(family, kind, protocol))

    def close(self) -> None:
        os.close(self.fd)


def _in_thread(function: Callable[[], T]) -> T:
    outcome: list[T] = []
    problem: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            problem.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if problem:
        raise problem[0]
    return outcome[0]


def cable(left: Namespace, left_name: str, right: Namespace, right_name: str) -> None:
    """A veth pair between two namespaces, both ends up."""
    left.ip(
        f"link add {left_name} type veth peer name {right_name} netns "
        f"/proc/{os.getpid()}/fd/{right.fd}",
        f"link set {left_name} up",
    )
    right.ip(f"link set {right_name} up")


@dataclass(frozen=True, slots=True)
class Packet:
    """What a sniffer saw of one packet. `ports` are (0, type) for ICMP."""

    source: str
    destination: str
    protocol: int
    source_port: int
    port: int
    payload: bytes


@dataclass
class Host:
    """A machine in the tests, with a sniffer on its only port."""

    space: Namespace
    sniffer: socket.socket = field(init=False)
    seen: list[Packet] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sniffer = self.space.socket(
            socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)
        )
        self.sniffer.setblocking(False)

    def drain(self) -> None:
        """Read what has arrived since."""
        while True:
            try:
                data, (_, _, direction, *_) = self.sniffer.recvfrom(2048)
            except BlockingIOError:
                return
            packet = _parse(data)
            if packet and direction != socket.PACKET_OUTGOING:
                self.seen.append(packet)

    def wait(self, wanted: Callable[[Packet], bool], deadline: float) -> Packet | None:
        """The first packet that `wanted` likes, or None at `deadline` (monotonic seconds)."""
        while True:
            self.drain()
            for packet in self.seen:
                if wanted(packet):
                    return packet
            if time.monotonic() >= deadline:
                return None
            wait_readable(self.sniffer, deadline)

    def close(self) -> None:
        self.sniffer.close()
        self.space.close()


@dataclass(frozen=True, slots=True)
class Flow:
    """Who sends what to whom: `what` is `udp`, `tcp`, `icmp` or the number of a protocol.

    `port` is a destination port, or the type of ICMP. `tcp-invalid` is a lone segment that no
    connection can start with: SYN and FIN at once.
    """

    source: str
    destination: str
    what: str
    port: int = 0

    @property
    def family(self) -> int:
        return socket.AF_INET6 if ":" in self.destination else socket.AF_INET

    @property
    def icmp(self) -> int:
        v6 = self.family == socket.AF_INET6
        return socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP


class Probe:
    """One packet of a flow, sent by a real socket and recognised anywhere by its nonce."""

    def __init__(self, space: Namespace, flow: Flow) -> None:
        self.flow = flow
        serial = next(_serial)
        self.nonce = b"probe-%06d" % serial
        kinds = {"udp": (socket.SOCK_DGRAM, 0), "tcp": (socket.SOCK_STREAM, 0)}
        raw = {"icmp": flow.icmp, "tcp-invalid": socket.IPPROTO_TCP}
        kind, protocol = kinds.get(flow.what) or (
            socket.SOCK_RAW,
            raw[flow.what] if flow.what in raw else int(flow.what),
        )
        self.socket = space.socket(flow.family, kind, protocol)
        if flow.family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        else:
            self.socket.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        self.socket.setblocking(False)
        # A port of its own: nothing earlier can be taken for this probe, and source NAT keeps it.
        self.source_port = FIRST_PORT + serial % 40_000
        self.socket.bind((flow.source, self.source_port))

    def send(self) -> None:
        target = (self.flow.destination, self.flow.port)
        if self.flow.what == "tcp":
            self.socket.connect_ex(target)
        elif self.flow.what == "udp":
            self.socket.sendto(self.nonce, target)
        else:
            head = b""
            if self.flow.what == "tcp-invalid":
                ports = (self.source_port, self.flow.port)
                head = struct.pack("!HHIIBBHHH", *ports, 1, 0, 0x50, 0x03, 1024, 0, 0)
            body = _icmp_message(self.flow, self.nonce) if self.flow.what == "icmp" else self.nonce
            self.socket.sendto(head + body, (self.flow.destination, 0))

    def matches(self, packet: Packet) -> bool:
        """Whether `packet` is this probe; its addresses may have been translated."""
        if self.flow.what == "tcp":
            return packet.protocol == socket.IPPROTO_TCP and packet.source_port == self.source_port
        if self.flow.what == "icmp" and packet.port != self.flow.port:
            return False
        return self.nonce in packet.payload

    def answer(self, deadline: float) -> str:
        """Who answered; empty if nobody did before `deadline`."""
        if self.flow.what == "tcp":
            return self._connected(deadline)
        while wait_readable(self.socket, deadline):
            data, peer = self.socket.recvfrom(2048)
            if self.flow.what == "udp" or (self.nonce in data and not self._own(data)):
                return str(peer[0])
        return ""

    def _connected(self, deadline: float) -> str:
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_WRITE)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return ""
        failed = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return "" if failed else str(self.socket.getpeername()[0])

    def _own(self, data: bytes) -> bool:
        header = 0 if self.flow.family == socket.AF_INET6 else (data[0] & 15) * 4
        return data[header] == self.flow.port

    def close(self) -> None:
        self.socket.close()


def _icmp_message(flow: Flow, nonce: bytes) -> bytes:
    identity = next(_serial) & 0xFFFF
    body = struct.pack("!BBHHH", flow.port, 0, 0, identity, 1) + nonce
    if flow.family == socket.AF_INET6:
        return body  # the kernel fills in the checksum
    return body[:2] + checksum(body) + body[4:]


def udp_packet(source: str, destination: str, source_port: int, port: int, data: bytes) -> bytes:
    """An IPv4 packet from its first byte on."""
    udp = struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0)
    head += socket.inet_aton(source) + socket.inet_aton(destination)
    return head[:10] + checksum(head) + head[12:] + udp


def checksum(data: bytes) -> bytes:
    """The internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)


@contextmanager
def server(space: Namespace, flow: Flow) -> Iterator[socket.socket | None]:
    """A real socket that waits at the end of `flow`, where its protocol has such a thing."""
    if flow.what not in ("udp", "tcp"):
        yield None
        return
    kind = socket.SOCK_DGRAM if flow.what == "udp" else socket.SOCK_STREAM
    with space.socket(flow.family, kind) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((flow.destination, flow.port))
        if flow.what == "tcp":
            sock.listen()
        sock.setblocking(False)
        yield sock


def serve_once(sock: socket.socket, deadline: float) -> str:
    """Answer one client; its address as the server sees it, empty if none came."""
    if not wait_readable(sock, deadline):
        return ""
    if sock.type == socket.SOCK_STREAM:
        connection, peer = sock.accept()
        connection.close()
    else:
        data, peer = sock.recvfrom(2048)
        sock.sendto(data, peer)
    return str(peer[0])


def _parse(data: bytes) -> Packet | None:
    if not data:
        return None
    if data[0] >> 4 == 4:
        protocol, rest = data[9], data[(data[0] & 15) * 4 :]
        source, destination = data[12:16], data[16:20]
    elif data[0] >> 4 == 6 and len(data) >= 40:
        protocol, rest = data[6], data[40:]
        source, destination = data[8:24], data[24:40]
    else:
        return None
    source_port = port = 0
    if protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) and len(rest) >= 8:
        source_port, port = struct.unpack("!HH", rest[:4])
    elif protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6) and rest:
        port = rest[0]
    return Packet(
        str(ip_address(source)), str(ip_address(destination)), protocol, source_port, port, rest
    )


def wait_readable(sock: socket.socket, deadline: float) -> bool:
    """Whether `sock` became readable before `deadline` (monotonic seconds)."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return bool(selector.select(max(0.0, deadline - time.monotonic())))
