"""Whole tables of nftables in the node's own network namespace."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence

from vrha.core.cleanup.items import Item, Kind, Outcome, Result
from vrha.linux import nftwire
from vrha.linux.netlink import NLM_F_DUMP, Message, Netlink, NetlinkError, attributes, text
from vrha.linux.sweep.site import Site

_GETTABLE, _DELTABLE, _NAME = 1, 2, 1
_FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
_ABSENT = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT)


def find(at: Site) -> list[Item]:
    """Raises NetlinkError; a kernel without nftables has none."""
    with Netlink(nftwire.NETLINK_NETFILTER) as netlink:
        there = _listed(netlink)
    return [Item(Kind.TABLE, t, "", "its name") for t in at.profile.tables if t in there]


def remove(at: Site, items: Sequence[Item]) -> Iterator[Outcome]:
    """Each with all that is in it."""
    with Netlink(nftwire.NETLINK_NETFILTER) as netlink:
        for item in items:
            family, _, name = item.name.partition(" ")
            header = struct.pack("!BBH", _FAMILIES[family], 0, 0)
            order = Message(nftwire.kind(_DELTABLE), 0, header + text(_NAME, name))
            try:
                netlink.talk(nftwire.transaction(order))
            except NetlinkError as error:
                gone = error.errno == errno.ENOENT
                result, reason = (
                    (Result.GONE, "") if gone else (Result.FAILED, error.strerror or "")
                )
                yield Outcome(item, result, reason)
            else:
                yield Outcome(item, Result.REMOVED)


def _listed(netlink: Netlink) -> set[str]:
    names = {number: name for name, number in _FAMILIES.items()}
    header = struct.pack("!BBH", 0, 0, 0)
    try:
        answers = netlink.ask(nftwire.kind(_GETTABLE), header, NLM_F_DUMP)
    except NetlinkError as error:
        if error.errno in _ABSENT:
            return set()
        raise
    return {
        f"{names.get(answer[0])} {attributes(answer[4:])[_NAME].rstrip(bytes(1)).decode()}"
        for answer in answers
    }
