"""The kernel switch of a node: ports of instances are dropped unless they are in set `active`.

One nftables `bridge` table per node. Since the rule goes by name, a port is muted from the
moment it exists, while it may be up and its bridge port forwarding: unmuting is one set element,
a swap of two instances one transaction (include/uapi/linux/netfilter/nf_tables.h).

An active port that is in set `relay` too still forwards what reaches it, but is silent on and deaf
to all by which an owner of addresses shows itself: ARP, neighbour and router discovery, redirects,
DHCP. The bridge cannot tell the router's own DHCP from one that it forwards, so that stops as well.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

from vrha.errors import PreconditionError, StepError
from vrha.linux import tools
from vrha.linux.names import PORT_PREFIX
from vrha.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    Message,
    Netlink,
    NetlinkError,
    attr,
    attributes,
    each_attribute,
    nest,
    text,
)

TABLE = "vrha"
_ACTIVE, _RELAY = "active", "relay"
_NETLINK_NETFILTER = 12
_NFPROTO_BRIDGE, _SUBSYS_NFTABLES = 7, 10
_BATCH_BEGIN, _BATCH_END = 16, 17
_GETCHAIN, _NEWSETELEM, _GETSETELEM, _DELSETELEM = 4, 12, 13, 14
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_ELEM_LIST_TABLE, _ELEM_LIST_SET, _ELEM_LIST_ELEMENTS = 1, 2, 3
_LIST_ELEM, _SET_ELEM_KEY, _DATA_VALUE = 1, 1, 1
_IFNAMSIZ = 16

_LAYOUT = "layout_2"
"""Name of an empty chain that tells which rules stand in the table; a change of them needs a new
one. Version 0.1.0 had none."""

_SAYS = "nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect"

_TABLE_TEXT = f"""\
add table bridge {TABLE}
add set bridge {TABLE} {_ACTIVE} {{ type ifname; comment "instances that may speak"; }}
add set bridge {TABLE} {_RELAY} {{ type ifname; comment "old instances that only forward"; }}
add chain bridge {TABLE} from_instances {{ type filter hook prerouting priority -300; }}
add chain bridge {TABLE} to_instances {{ type filter hook postrouting priority -300; }}
add chain bridge {TABLE} from_relay
add chain bridge {TABLE} to_relay
add chain bridge {TABLE} {_LAYOUT}
flush chain bridge {TABLE} from_instances
flush chain bridge {TABLE} to_instances
flush chain bridge {TABLE} from_relay
flush chain bridge {TABLE} to_relay
add rule bridge {TABLE} from_relay ether type arp drop
add rule bridge {TABLE} from_relay icmpv6 type {{ {_SAYS} }} drop
add rule bridge {TABLE} from_relay icmp type redirect drop
add rule bridge {TABLE} from_relay udp sport {{ 67, 547 }} drop
add rule bridge {TABLE} to_relay ether type arp drop
add rule bridge {TABLE} to_relay icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit }} drop
add rule bridge {TABLE} to_relay udp dport {{ 67, 547 }} drop
add rule bridge {TABLE} from_instances iifname "{PORT_PREFIX}*" iifname != @{_ACTIVE} drop
add rule bridge {TABLE} from_instances iifname "{PORT_PREFIX}*" iifname @{_RELAY} jump from_relay
add rule bridge {TABLE} to_instances oifname "{PORT_PREFIX}*" oifname != @{_ACTIVE} drop
add rule bridge {TABLE} to_instances oifname "{PORT_PREFIX}*" oifname @{_RELAY} jump to_relay
"""
"""One transaction that makes the table, or brings an older one up to date around its elements."""


class Switch:
    """The table of the namespace in which the object was made."""

    def __init__(self, nft: str) -> None:
        """Take over the table that is there, or make it (then everything is muted).

        Raises PreconditionError `no-nf-tables` when the kernel has no nftables for bridges.
        """
        self._nft = nft
        try:
            self._netlink = Netlink(_NETLINK_NETFILTER)
        except OSError as error:
            raise _no_nf_tables(error.strerror or str(error)) from error
        try:
            self.ensure()
        except BaseException:
            self._netlink.close()
            raise

    def close(self) -> None:
        self._netlink.close()

    def ensure(self) -> None:
        """Make the table if it is absent, and bring an older one up to date.

        That is one transaction: what is active meanwhile stays so, and loses no packet.
        """
        if self._is_current():
            return
        done = tools.run([self._nft, "-f", "-"], _TABLE_TEXT)
        if done.returncode != 0 and not self._is_current():
            raise _no_nf_tables(done.complaint)

    def active(self) -> frozenset[str]:
        """Names of all ports that may speak."""
        return self._members(_ACTIVE)

    def relays(self) -> frozenset[str]:
        """Names of all ports that, while active, may only forward."""
        return self._members(_RELAY)

    def change(
        self,
        mute: Iterable[str] = (),
        unmute: Iterable[str] = (),
        relay: Iterable[str] = (),
        serve: Iterable[str] = (),
    ) -> None:
        """Change ports in one transaction; repeating it changes nothing.

        `mute` takes ports out of set `active`, `unmute` adds them; `relay` adds ports to set
        `relay`, `serve` takes them out. A name may be in one of each pair. The two sets do not
        know of each other: who mutes a relay for good names it in `serve` as well.
        Raises StepError `mute-failed`.
        """
        changes = [
            *_membership(_ACTIVE, tuple(unmute), tuple(mute)),
            *_membership(_RELAY, tuple(relay), tuple(serve)),
        ]
        if not changes:
            return
        try:
            self._netlink.talk([_batch(_BATCH_BEGIN), *changes, _batch(_BATCH_END)])
        except NetlinkError as error:
            raise StepError(
                "mute-failed",
                f"the kernel refused to change the sets of ports: {error.strerror}",
                f"Look at `nft list table bridge {TABLE}`; restart the agent if it is missing.",
            ) from error

    def _members(self, name: str) -> frozenset[str]:
        body = _family(_NFPROTO_BRIDGE) + _set_name(name)
        try:
            answers = self._netlink.ask(_kind(_GETSETELEM), body, NLM_F_DUMP)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return frozenset()
            raise
        return frozenset(name for answer in answers for name in _names(answer[4:]))

    def _is_current(self) -> bool:
        body = _family(_NFPROTO_BRIDGE) + text(_CHAIN_TABLE, TABLE) + text(_CHAIN_NAME, _LAYOUT)
        try:
            return bool(self._netlink.ask(_kind(_GETCHAIN), body))
        except NetlinkError:
            return False


def _no_nf_tables(complaint: str) -> PreconditionError:
    return PreconditionError(
        "no-nf-tables",
        f"nftables for bridges does not work: {complaint}",
        "The kernel needs CONFIG_NF_TABLES and CONFIG_NF_TABLES_BRIDGE: modprobe nf_tables"
        " nf_tables_bridge; `vrha doctor` tells more.",
    )


def _kind(message: int) -> int:
    return (_SUBSYS_NFTABLES << 8) | message


def _family(family: int, resource: int = 0) -> bytes:
    return struct.pack("!BBH", family, 0, resource)


def _batch(kind: int) -> Message:
    return Message(kind, 0, _family(socket.AF_UNSPEC, _SUBSYS_NFTABLES), ack=False)


def _set_name(name: str) -> bytes:
    return text(_ELEM_LIST_TABLE, TABLE) + text(_ELEM_LIST_SET, name)


def _membership(name: str, entering: tuple[str, ...], leaving: tuple[str, ...]) -> list[Message]:
    """Messages that put names into a set and take others out.

    Those to be taken out are added first, since the kernel refuses to delete what is absent; no
    packet sees what lies between.
    """
    messages = []
    if entering or leaving:
        messages.append(_elements(_NEWSETELEM, NLM_F_CREATE, name, entering + leaving))
    if leaving:
        messages.append(_elements(_DELSETELEM, 0, name, leaving))
    return messages


def _elements(message: int, flags: int, name: str, members: tuple[str, ...]) -> Message:
    elements = (
        nest(_LIST_ELEM, nest(_SET_ELEM_KEY, attr(_DATA_VALUE, m.encode().ljust(_IFNAMSIZ, b"\0"))))
        for m in members
    )
    body = _family(_NFPROTO_BRIDGE) + _set_name(name) + nest(_ELEM_LIST_ELEMENTS, *elements)
    return Message(_kind(message), flags, body)


def _names(data: bytes) -> list[str]:
    found = []
    for _, element in each_attribute(attributes(data).get(_ELEM_LIST_ELEMENTS, b"")):
        key = attributes(attributes(element)[_SET_ELEM_KEY])[_DATA_VALUE]
        found.append(key.rstrip(b"\0").decode(errors="replace"))
    return found
