"""Kernel parameters of an instance and of its node. /proc/sys/net shows the namespace of the
thread that opens the file, so callers enter the namespace first."""

from __future__ import annotations

import os
from collections.abc import Iterable

from vrha.errors import StepError

INSTANCE = (
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/arp_ignore", "1"),
    ("ipv4/conf/all/arp_announce", "2"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/accept_source_route", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/dad_transmits", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
)
"""Before any port exists, so that new ports take the defaults."""

CONNTRACK = (
    ("netfilter/nf_conntrack_events", "1"),
    ("netfilter/nf_conntrack_tcp_be_liberal", "1"),
)
"""After the rules, whose loading brings conntrack in. With the default of 2 for events an entry
born before somebody listens sends none at all (net/netfilter/nf_conntrack_ecache.c). Liberal,
because after a handover an instance may see only one side of a connection for a moment: windows
judged by half of the packets would make good ones invalid (nf_conntrack_proto_tcp.c)."""

NODE = tuple((f"bridge/bridge-nf-call-{f}", "0") for f in ("iptables", "ip6tables", "arptables"))
"""Frames on a node's bridges are not the business of its own IP rules."""

NODE_AT_LEAST = tuple(
    (f"{family}/neigh/default/gc_thresh{level}", number)
    for family in ("ipv4", "ipv6")
    for level, number in ((1, 4096), (2, 8192), (3, 16384))
)
"""Neighbours of all namespaces of a host together (net/core/neighbour.c, neigh_alloc). The default
of 1024 is too few for a node on which instances stand twice during a handover."""


def loose_reverse_path(port: str) -> tuple[str, str]:
    """Accept on `port` any source that some route covers: the uplink may be asymmetric."""
    return (f"ipv4/conf/{port}/rp_filter", "2")


def apply(settings: Iterable[tuple[str, str]], required: bool = True) -> None:
    """Write parameters below /proc/sys/net. Those that do not exist are skipped unless `required`.

    Raises StepError `sysctl-failed`.
    """
    for name, value in settings:
        try:
            fd = os.open(f"/proc/sys/net/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except FileNotFoundError as error:
            if required:
                raise StepError("sysctl-failed", f"no kernel parameter net/{name}") from error
        except OSError as error:
            raise StepError(
                "sysctl-failed",
                f"cannot set net/{name} to {value}: {error.strerror}",
                "In a container /proc/sys must be writable.",
            ) from error


def at_least(settings: Iterable[tuple[str, int]]) -> None:
    """Raise numbers below /proc/sys/net that are lower; those that do not exist are skipped.

    The neighbour table's are the initial namespace's only. Raises StepError `sysctl-failed`.
    """
    low = []
    for name, number in settings:
        try:
            with open(f"/proc/sys/net/{name}", encoding="ascii") as file:
                if int(file.read()) < number:
                    low.append((name, str(number)))
        except FileNotFoundError:
            continue
    # The highest threshold first, so that they stand in order all the time.
    apply(reversed(low), required=False)
