"""Rules that keep the source ports of two instances apart while both translate.

Only the SYNs of source-NATed TCP are given other ports: their connections have a single packet
until the other side answers. A datagram keeps its port, so that an instance which sees the second
one of a flow before it has heard of the first translates it alike.
"""

from __future__ import annotations

from collections.abc import Iterator

from vrha.model.spec import Address, InstanceSpec

TABLE = "vr_overlap"
FIRST, LAST = 16384, 32767
"""Ports of the new instance: machines choose theirs from 32768 (Linux) or 49152 (RFC 6335) on."""


def overlap_text(spec: InstanceSpec, is_new: bool) -> str:
    """nft commands that replace the table; "" when the router translates no sources."""
    rules = list(_rules(spec, is_new))
    if not rules:
        return ""
    chain = "type nat hook postrouting priority srcnat - 1; policy accept;"
    lines = [f"table inet {TABLE} {{}}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    return "\n".join([*lines, "chain apart {", chain, *rules, "}", "}", ""])


def _rules(spec: InstanceSpec, is_new: bool) -> Iterator[str]:
    uplink = spec.uplink
    if uplink is None:
        return
    for public in spec.router.source_nat:
        ip = "ip" if public.version == 4 else "ip6"
        subnets = [
            str(subnet.cidr)
            for network in spec.networks
            for subnet in network.subnets
            if subnet.cidr.version == public.version
        ]
        if not subnets:
            continue
        own = [
            str(n.private) for n in spec.router.static_nat if n.private.version == public.version
        ]
        match = f'oifname "{uplink.name}" {ip} saddr {{ {", ".join(subnets)} }}'
        if own:
            match += f" {ip} saddr != {{ {', '.join(own)} }}"
        match += " tcp flags & (fin | syn | rst | ack) == syn"
        if is_new:
            yield f"{match} snat {ip} to {_at(public)}:{FIRST}-{LAST}"
        else:
            yield f"{match} tcp sport {FIRST}-{LAST} snat {ip} to {_at(public)}:{LAST + 1}-65535"


def _at(address: Address) -> str:
    return str(address) if address.version == 4 else f"[{address}]"
