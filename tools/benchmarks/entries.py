"""Connection tracking entries of other tenants' traffic, put into an instance before a run.

They are established TCP connections with source NAT that nobody uses and that end in five days,
so that a handover has all of them to carry and probes meet none of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path

from vrha.errors import StepError
from vrha.linux.conntrack import Target
from vrha.linux.ctwire import Change, Kind
from vrha.linux.netlink import Message, Netlink, attr, nest

_NETLINK_NETFILTER, _DELETE_CONNTRACK = 12, 0x102
_IPV4 = struct.pack("!BBH", 2, 0, 0)
"""nfgenmsg: the family."""
_TCP, _ESTABLISHED, _LIBERAL = 6, 3, 0x0A
_STATUS = 0x0E
"""IPS_SEEN_REPLY, IPS_ASSURED, IPS_CONFIRMED (uapi/linux/netfilter/nf_conntrack_common.h)."""
_TIMEOUT_S = 5 * 24 * 3600
_FIRST_TARGET = IPv4Address("198.18.0.1")
"""Of the benchmarking networks (RFC 2544), which no lab has."""
_PORTS = range(1024, 61024)
_AT_ONCE = 5000

Inside = Callable[[Callable[[], int]], int]
"""Calls a function in the network namespace of an instance."""


def reset(inside: Inside, private: IPv4Address, public: IPv4Address, number: int) -> int:
    """Forget all connections, then make `number` of `private`, translated to `public`.

    How many entries are there now. Raises StepError `bench-entries` when it is fewer.
    """
    found = inside(lambda: _reset(private, public, number))
    if found < number:
        raise StepError("bench-entries", f"{found} of {number} entries were taken")
    return found


def present() -> int:
    """Entries in the calling thread's namespace."""
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def _reset(private: IPv4Address, public: IPv4Address, number: int) -> int:
    with Netlink(_NETLINK_NETFILTER) as kernel:
        kernel.talk([Message(_DELETE_CONNTRACK, 0, b"\0\0\0\0")])
    with closing(Target()) as target:
        for start in range(0, number, _AT_ONCE):
            stop = min(number, start + _AT_ONCE)
            target.apply([_entry(private, public, place) for place in range(start, stop)])
    return present()


def _entry(private: IPv4Address, public: IPv4Address, place: int) -> Change:
    far = _FIRST_TARGET + place // len(_PORTS)
    port = _PORTS[place % len(_PORTS)]
    nat_port = nest(3, attr(1, struct.pack("!H", port)), attr(2, struct.pack("!H", port)))
    tcp = attr(1, bytes((_ESTABLISHED,)))
    tcp += attr(4, bytes((_LIBERAL, _LIBERAL))) + attr(5, bytes((_LIBERAL, _LIBERAL)))
    return Change(
        Kind.SET,
        key=_IPV4 + nest(1, _tuple(private, far, port, 443)),
        update=_number(3, _STATUS) + _number(7, _TIMEOUT_S) + nest(4, nest(1, tcp)),
        create=nest(2, _tuple(far, private, 443, port)) + nest(6, attr(1, public.packed), nat_port),
    )


def _tuple(source: IPv4Address, target: IPv4Address, source_port: int, target_port: int) -> bytes:
    ends = nest(1, attr(1, source.packed), attr(2, target.packed))
    ports = attr(2, struct.pack("!H", source_port)) + attr(3, struct.pack("!H", target_port))
    return ends + nest(2, attr(1, bytes((_TCP,))), ports)


def _number(kind: int, value: int) -> bytes:
    """nfnetlink counts in network byte order, unlike rtnetlink."""
    return attr(kind, struct.pack("!I", value))
