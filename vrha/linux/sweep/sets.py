"""Sets of ipset in the node's own network namespace, over netlink: no program is needed.

Formats: include/uapi/linux/netfilter/ipset/ip_set.h, net/netfilter/ipset/ip_set_core.c.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from vrha.core.cleanup.items import Item, Kind, Outcome, Result
from vrha.core.cleanup.profile import nobody
from vrha.errors import StepError
from vrha.linux.netlink import (
    NLM_F_DUMP,
    NLM_F_EXCL,
    Message,
    Netlink,
    NetlinkError,
    attr,
    attributes,
    text,
)
from vrha.linux.nftwire import NETLINK_NETFILTER
from vrha.linux.sweep.site import Site

_MODULE = Path("/sys/module/ip_set")
"""Without it there are no sets, and to ask for them would load it."""
_SUBSYS, _DESTROY, _LIST = 6, 3, 7
_PROTOCOL, _SETNAME, _FLAGS = 1, 2, 6
_NET_BYTEORDER, _LIST_SETNAME = 0x4000, 4
_HEADER = struct.pack("!BBH", 2, 0, 0) + attr(_PROTOCOL, b"\6")
_IN_USE: Final = 4100
"""IPSET_ERR_BUSY. nftables lets go of a deleted rule's set some time later."""
_LET_GO_S, _LOOK_S = 1.0, 0.01


def find(at: Site) -> list[Item]:
    """Raises StepError `ipset-failed`."""
    if at.profile.set_owner is nobody or not _MODULE.exists():
        return []
    found = []
    with Netlink(NETLINK_NETFILTER) as netlink:
        for name in _names(netlink):
            owner = at.profile.set_owner(name)
            if owner is not None:
                found.append(Item(Kind.IPSET, name, owner, "its name"))
    return found


def remove(at: Site, items: Sequence[Item]) -> Iterator[Outcome]:
    """One by one: the kernel has no transaction for them."""
    with Netlink(NETLINK_NETFILTER) as netlink:
        for item in items:
            yield _removed(netlink, item)


def _removed(netlink: Netlink, item: Item) -> Outcome:
    # EXCL: the kernel is to say when there is none (flag_exist).
    order = Message((_SUBSYS << 8) | _DESTROY, NLM_F_EXCL, _HEADER + text(_SETNAME, item.name))
    until = time.monotonic() + _LET_GO_S
    while True:
        try:
            netlink.talk([order])
            return Outcome(item, Result.REMOVED)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return Outcome(item, Result.GONE)
            if error.errno != _IN_USE:
                return Outcome(item, Result.FAILED, error.strerror or "")
            if time.monotonic() > until:
                return Outcome(item, Result.FAILED, "a rule still uses it")
        time.sleep(_LOOK_S)


def _names(netlink: Netlink) -> list[str]:
    flags = attr(_FLAGS | _NET_BYTEORDER, struct.pack("!I", _LIST_SETNAME))
    try:
        answers = netlink.ask((_SUBSYS << 8) | _LIST, _HEADER + flags, NLM_F_DUMP)
    except NetlinkError as error:
        raise StepError("ipset-failed", f"the kernel does not show its ipsets: {error}") from error
    named = (attributes(answer[4:]).get(_SETNAME) for answer in answers)
    return sorted(name.rstrip(b"\0").decode() for name in named if name is not None)
