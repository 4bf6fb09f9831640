"""Links of the node that are ours: muted in one transaction, deleted by one message.

Deleting links one by one costs an RCU wait each (16 ms), and group by group the same: they all get
one group first, which costs none (net/core/rtnetlink.c, rtnl_group_dellink).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Sequence
from dataclasses import replace

from vrha.core.cleanup.items import Item, Kind, Outcome, Result
from vrha.core.names import PORT_PREFIX
from vrha.linux import mute, nftwire, rtnetlink
from vrha.linux.netlink import Message, Netlink, NetlinkError
from vrha.linux.nftwire import GRANTED
from vrha.linux.sweep.site import Site

SWEPT = 0x3FFF_FFF0
"""First of the link groups that serve for a moment. Below those of instances (`names.link_group`),
above what people choose."""
_GROUPS = 8
_AT_ONCE = 200
"""Messages in one send: if all are refused, the answers must fit into the socket's buffer."""
_SETS = (mute.ACTIVE, mute.RELAY, GRANTED)


def find(at: Site) -> list[Item]:
    found = []
    for link in at.links:
        owner = at.profile.port_owner(link.name, link.alias)
        if owner is not None:
            detail = {"index": link.index, "group": link.group}
            found.append(Item(Kind.PORT, link.name, owner, f"alias {link.alias}", detail))
    return found


def speaking(items: Iterable[Item]) -> frozenset[str]:
    """Owners of those ports that nothing holds back. Raises OSError."""
    with contextlib.closing(Netlink(nftwire.NETLINK_NETFILTER)) as netlink:
        active = mute.listed(netlink, mute.ACTIVE)
    return frozenset(item.owner for item in items if item.name in active)


def silence(at: Site, items: Sequence[Item]) -> None:
    """Nothing passes these ports from now on. Raises OSError, also when only a part is muted."""
    held: set[str] = set()
    if at.profile.governed and _take_out(at, {item.name for item in items}):
        held = {item.name for item in items if item.name.startswith(PORT_PREFIX)}
    indices = [item.number("index") for item in items if item.name not in held]
    _send(at.route, [rtnetlink.set_down(index) for index in indices])


def _take_out(at: Site, names: set[str]) -> bool:
    """Take the ports out of all sets in one transaction, and those that do not exist any more;
    whether there is a table that holds them back from now on."""
    netlink = Netlink(nftwire.NETLINK_NETFILTER)
    # Closing it waits for RCU, 10 ms and more, while what it has deleted is freed.
    at.afterwards.callback(netlink.close)
    try:
        netlink.ask(nftwire.kind(nftwire.GETCHAIN), nftwire.chain("from_instances"))
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    existing = {link.name for link in at.links} - names
    changes = [
        message
        for name in _SETS
        for part in _parts(sorted(mute.listed(netlink, name) - existing))
        for message in mute.membership(name, (), part)
    ]
    if changes:
        netlink.talk(nftwire.transaction(*changes))
    return True


def _parts(names: list[str]) -> Iterable[tuple[str, ...]]:
    # An attribute has at most 65,535 bytes.
    return (tuple(names[at : at + 1000]) for at in range(0, len(names), 1000))


def remove(at: Site, items: Sequence[Item]) -> list[Outcome]:
    """What remains for a moment longer than the message is still removed with its namespace."""
    trouble = ""
    there: frozenset[str] | None = None
    try:
        group = _group(at, items)
        there = _gathered(at, items, group)
        at.route.talk([rtnetlink.delete_group(group)])
    except OSError as error:
        trouble = f": {error.strerror}"
    left = {link.name: link.alias for link in rtnetlink.links(at.route)}
    outcomes = []
    for item in items:
        if item.name not in left:
            was_there = there is None or item.name in there
            outcome = Outcome(item, Result.REMOVED if was_there else Result.GONE)
        elif at.profile.port_owner(item.name, left[item.name]) != item.owner:
            outcome = Outcome(item, Result.KEPT, "it is another's now")
        else:
            outcome = Outcome(item, Result.FAILED, f"the kernel did not delete it{trouble}")
        outcomes.append(outcome)
    return outcomes


def _gathered(at: Site, items: Sequence[Item], group: int) -> frozenset[str]:
    """See that the links, and no others, are in the group: it will go. Raises OSError."""
    others = [item for item in items if item.number("group") != group]
    _send(at.route, [rtnetlink.set_group(item.number("index"), group) for item in others])
    gathered = [link for link in rtnetlink.links(at.route) if link.group == group]
    owners = {item.owner for item in items}
    for link in gathered:
        if at.profile.port_owner(link.name, link.alias) not in owners:
            raise OSError(errno.EBUSY, f"link group {group} is used by {link.name}")
    return frozenset(link.name for link in gathered)


def _group(at: Site, items: Sequence[Item]) -> int:
    """That in which they all are if nothing else is, as those of one instance; else a free one."""
    (first, *others) = {item.number("group") for item in items}
    names = {item.name for item in items}
    if not others and {link.name for link in at.links if link.group == first} == names:
        return first
    used = {link.group for link in at.links}
    for group in range(SWEPT, SWEPT + _GROUPS):
        if group not in used:
            return group
    raise OSError(errno.EBUSY, f"link groups {SWEPT} to {SWEPT + _GROUPS - 1} are all used")


def _send(route: Netlink, messages: Sequence[Message]) -> None:
    """Send all; a link that is gone is no error. Raises NetlinkError for the first other one."""
    for first in range(0, len(messages), _AT_ONCE):
        # What is refused is told anyhow: only the last is asked for, which says that all are done.
        *quiet, last = messages[first : first + _AT_ONCE]
        try:
            route.talk([*(replace(message, ack=False) for message in quiet), last])
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
