"""Entries of the node's own connection tracking that name addresses of an owner's namespaces.

Entries inside a namespace go with it. Those of the node's own come of traffic that its bridges hand
to iptables (net.bridge.bridge-nf-call-iptables); without the router they would live on for days and
keep packets from being judged anew. Entries in a zone are the L2 agent's, which lives on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from ipaddress import ip_address

from vrha.core.cleanup.items import Item, Kind, Outcome, Result
from vrha.linux import ctentries
from vrha.linux.netlink import attributes
from vrha.linux.sweep import insides
from vrha.linux.sweep.site import Site

_TUPLES, _IP, _ZONE = (1, 2), 1, 18
_SHOWN = 5


def find(at: Site) -> list[Item]:
    """One item for each owner whose addresses are in an entry. Raises StepError."""
    named = {address for body in ctentries.entries() for address in _addresses(body)}
    whose = _whose(at, named) if named else {}
    found = []
    for owner, addresses in sorted(whose.items()):
        used = sorted(str(ip_address(address)) for address in addresses)
        more = f" and {len(used) - _SHOWN} more" if len(used) > _SHOWN else ""
        name = f"connections of {', '.join(used[:_SHOWN])}{more}"
        why = "addresses in a namespace of it, and in no other"
        found.append(Item(Kind.CONNTRACK, name, owner, why, {"addresses": " ".join(used)}))
    return found


def remove(at: Site, items: Sequence[Item]) -> Iterator[Outcome]:
    """Raises StepError `conntrack-dump`, `conntrack-delete`."""
    entries = [(body, _addresses(body)) for body in ctentries.entries()]
    for item in items:
        wanted = {ip_address(each).packed for each in str(item.detail["addresses"]).split()}
        gone = ctentries.delete([body for body, named in entries if wanted & named])
        yield Outcome(item, Result.REMOVED if gone else Result.GONE)


def _whose(at: Site, named: Set[bytes]) -> dict[str, Set[bytes]]:
    """Those of the addresses that only one namespace has, by its owner."""
    places = [place for place in insides.look(at) if place.addresses & named]
    if not places:
        return {}
    every = Counter(a for place in (*places, *insides.of_others(at)) for a in place.addresses)
    every.update(insides.addresses(at.route))
    found: dict[str, set[bytes]] = {}
    for place in places:
        sole = {a for a in place.addresses & named if every[a] == 1 and _is_routed(a)}
        if sole:
            found.setdefault(place.owner, set()).update(sole)
    return dict(found)


def _is_routed(address: bytes) -> bool:
    return not ip_address(address).is_link_local


def _addresses(body: bytes) -> frozenset[bytes]:
    """Those of both directions of an entry; none of one in a zone."""
    fields = attributes(body[4:])
    if int.from_bytes(fields.get(_ZONE, b""), "big"):
        return frozenset()
    return frozenset(
        address
        for number in _TUPLES
        if number in fields
        for address in attributes(attributes(fields[number]).get(_IP, b"")).values()
        if len(address) in (4, 16)
    )
