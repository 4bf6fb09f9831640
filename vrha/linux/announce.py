"""Telling the neighbours of an instance where its addresses are now.

Frames are built first and sent in bursts, because a port that has just begun to forward loses
the first ones now and then. Raw sockets instead of arping, which waits 1 s per address.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address

from vrha.errors import StepError
from vrha.linux import frames
from vrha.linux.addresses import port_addresses
from vrha.model.spec import InstanceSpec, PortSpec

Announcer = tuple[socket.socket, list[bytes]]
"""A raw socket on a port of an instance, and the frames that it has to send."""


def announcements(port: PortSpec) -> list[bytes]:
    """All frames that announce the addresses of a port: two per IPv4, one per IPv6 address."""
    mac = bytes.fromhex(port.mac.replace(":", ""))
    found: list[bytes] = []
    for interface in port_addresses(port):
        if isinstance(interface.ip, IPv4Address):
            found += frames.gratuitous_arps(mac, IPv4Address(interface.ip))
        else:
            found.append(frames.unsolicited_advertisement(mac, IPv6Address(interface.ip)))
    return found


def open_ports(spec: InstanceSpec) -> list[Announcer]:
    """A raw socket on each port with its frames; call it inside the instance's namespace.

    The sockets receive nothing. Raises StepError `announce-failed`.
    """
    opened: list[Announcer] = []
    try:
        for port in spec.ports:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            opened.append((sock, announcements(port)))
            sock.bind((port.name, 0))
    except OSError as error:
        for sock, _ in opened:
            sock.close()
        raise StepError("announce-failed", f"cannot send from {spec.ref}: {error}") from error
    return opened


def send_bursts(
    ports: Sequence[Announcer],
    delays_ms: Sequence[int],
    check: Callable[[], None],
) -> None:
    """Send all frames at each of `delays_ms` milliseconds after now; `check` runs before each.

    Raises what `check` raises, and StepError `announce-failed` when a port is down.
    """
    begin = time.monotonic()
    for delay in delays_ms:
        time.sleep(max(0.0, begin + delay / 1000 - time.monotonic()))
        check()
        try:
            for sock, burst in ports:
                for frame in burst:
                    sock.send(frame)
        except OSError as error:
            raise StepError("announce-failed", f"cannot announce: {error}") from error
