"""The kernel switch of a node: ports of instances are dropped unless they are in set `active`.

One nftables `bridge` table per node. Since the rule goes by name, a port is muted from the
moment it exists, while it may be up and its bridge port forwarding: unmuting is one set element,
a swap of two instances one transaction (include/uapi/linux/netfilter/nf_tables.h).

An active port that is in set `relay` too still forwards what reaches it, but is silent on and deaf
to all by which an owner of addresses shows itself: ARP, neighbour and router discovery, redirects,
DHCP. The bridge cannot tell the router's own DHCP from one that it forwards, so that stops as well.

In the governed layout a port speaks only if it is in set `granted` too and while set `live` has its
element, which has a timeout: whoever stops renewing it (see `deadman`) mutes the whole node, relays
as well. The element is the link type of Ethernet, the only one of bridge ports (net/bridge/br_if.c,
br_add_if), so that looking it up is a question that every packet asks alike.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from vrha.core.names import PORT_PREFIX
from vrha.errors import PreconditionError, StepError
from vrha.linux import nftwire, tools
from vrha.linux.netlink import NLM_F_DUMP, Message, Netlink, NetlinkError
from vrha.linux.nftwire import ARM, GRANTED, LIVE, TABLE

ACTIVE, RELAY = "active", "relay"
"""Sets of every table."""

_LAYOUT, _GOVERNED = "layout_2", "governed_1"
"""Names of empty chains that tell which rules stand in the table; a change of them needs new ones.
A governed table has both, so that who knows only the first finds nothing to do. Version 0.1.0 had
none."""

_SAYS = "nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect"

_PARTS = f"""\
add table bridge {TABLE}
add set bridge {TABLE} {ACTIVE} {{ type ifname; comment "instances that may speak"; }}
add set bridge {TABLE} {RELAY} {{ type ifname; comment "old instances that only forward"; }}
add chain bridge {TABLE} from_instances {{ type filter hook prerouting priority -300; }}
add chain bridge {TABLE} to_instances {{ type filter hook postrouting priority -300; }}
add chain bridge {TABLE} from_relay
add chain bridge {TABLE} to_relay
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
"""

# A set with a size is never resized, so a dump of it is whole (net/netfilter/nft_set_hash.c).
_GOVERNMENT = f"""\
add set bridge {TABLE} {GRANTED} {{ type ifname; size 16384; comment "may speak"; }}
add set bridge {TABLE} {LIVE} {{ type iface_type; flags timeout; comment "while the lease lasts"; }}
add set bridge {TABLE} {ARM} {{ type iface_type; flags timeout; comment "before a lease begins"; }}
add rule bridge {TABLE} from_instances iifname "{PORT_PREFIX}*" iifname != @{GRANTED} drop
add rule bridge {TABLE} from_instances iifname "{PORT_PREFIX}*" iiftype != @{LIVE} drop
add rule bridge {TABLE} to_instances oifname "{PORT_PREFIX}*" oifname != @{GRANTED} drop
add rule bridge {TABLE} to_instances oifname "{PORT_PREFIX}*" oiftype != @{LIVE} drop
"""

_INTENTION = f"""\
add rule bridge {TABLE} from_instances iifname "{PORT_PREFIX}*" iifname != @{ACTIVE} drop
add rule bridge {TABLE} from_instances iifname "{PORT_PREFIX}*" iifname @{RELAY} jump from_relay
add rule bridge {TABLE} to_instances oifname "{PORT_PREFIX}*" oifname != @{ACTIVE} drop
add rule bridge {TABLE} to_instances oifname "{PORT_PREFIX}*" oifname @{RELAY} jump to_relay
"""

# `create` is refused when another process was quicker: what it made is never overwritten by less.
_UNGOVERNED_TEXT = f"create chain bridge {TABLE} {_LAYOUT}\n"
_GOVERNED_TEXT = f"""\
add chain bridge {TABLE} {_LAYOUT}
create chain bridge {TABLE} {_GOVERNED}
"""
_TABLE_TEXT = {
    False: _PARTS + _UNGOVERNED_TEXT + _INTENTION,
    True: _PARTS + _GOVERNED_TEXT + _GOVERNMENT + _INTENTION,
}
"""By whether it is governed: one transaction that makes the table, or brings an older one up to
date around its elements."""


class Switch:
    """The table of the namespace in which the object was made."""

    def __init__(self, nft: str, governed: bool = False) -> None:
        """Take over the table that is there, or make it (then everything is muted).

        `governed`: ports need a grant and a living lease too; a table that is not governed yet
        becomes so, which mutes everything until a `DeadMan` lets it speak. Without it, a
        governed table stays as it is.
        Raises PreconditionError `no-nf-tables` when the kernel has no nftables for bridges.
        """
        self._nft, self._governed = nft, governed
        try:
            self._netlink = Netlink(nftwire.NETLINK_NETFILTER)
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
        done = tools.run([self._nft, "-f", "-"], _TABLE_TEXT[self._governed])
        if done.returncode != 0 and not self._is_current():
            raise _no_nf_tables(done.complaint)

    def active(self) -> frozenset[str]:
        """Names of all ports that may speak."""
        return listed(self._netlink, ACTIVE)

    def any_active(self, ports: Iterable[str]) -> bool:
        """Whether one of these may speak; among thousands cheaper than to ask for all."""
        return any(self._has(ACTIVE, port) for port in ports)

    def any_listed(self, ports: Iterable[str]) -> bool:
        """Whether one of these is in any set of those that `change` changes."""
        return any(self._has(ACTIVE, port) or self._has(RELAY, port) for port in ports)

    def all_granted(self, ports: Iterable[str]) -> bool:
        """Whether the watcher permits all of these."""
        return all(self._has(nftwire.GRANTED, port) for port in ports)

    def granted(self) -> frozenset[str]:
        """Names of all ports that the watcher permits; all of them count where none governs."""
        return listed(self._netlink, GRANTED)

    def speaks(self, ports: Iterable[str]) -> bool:
        """Whether any of the ports may speak: active, and permitted where somebody governs."""
        named = self.active() & set(ports)
        return bool(named & self.granted() if self._governed else named)

    def relays(self) -> frozenset[str]:
        """Names of all ports that, while active, may only forward."""
        return listed(self._netlink, RELAY)

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
            *membership(ACTIVE, tuple(unmute), tuple(mute)),
            *membership(RELAY, tuple(relay), tuple(serve)),
        ]
        if not changes:
            return
        try:
            self._netlink.talk(nftwire.transaction(*changes))
        except NetlinkError as error:
            raise StepError(
                "mute-failed",
                f"the kernel refused to change the sets of ports: {error.strerror}",
                f"Look at `nft list table bridge {TABLE}`; restart the agent if it is missing.",
            ) from error

    def _has(self, name: str, port: str) -> bool:
        body = nftwire.members(name, *nftwire.port_elements([port]))
        try:
            return bool(self._netlink.ask(nftwire.kind(nftwire.GETSETELEM), body))
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return False
            raise

    def _is_current(self) -> bool:
        body = nftwire.chain(_GOVERNED if self._governed else _LAYOUT)
        try:
            return bool(self._netlink.ask(nftwire.kind(nftwire.GETCHAIN), body))
        except NetlinkError:
            return False


def _no_nf_tables(complaint: str) -> PreconditionError:
    return PreconditionError(
        "no-nf-tables",
        f"nftables for bridges does not work: {complaint}",
        "The kernel needs CONFIG_NF_TABLES and CONFIG_NF_TABLES_BRIDGE: modprobe nf_tables"
        " nf_tables_bridge; `vrha doctor` tells more.",
    )


def listed(netlink: Netlink, name: str) -> frozenset[str]:
    """Names of the ports in a set of the table; none where it is not there.

    Raises NetlinkError.
    """
    try:
        answers = netlink.ask(nftwire.kind(nftwire.GETSETELEM), nftwire.members(name), NLM_F_DUMP)
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return frozenset()
        raise
    return frozenset(port for answer in answers for port in nftwire.ports(answer))


def membership(name: str, entering: tuple[str, ...], leaving: tuple[str, ...]) -> list[Message]:
    """Messages that put names into a set and take others out.

    Those to be taken out are added first, since the kernel refuses to delete what is absent; no
    packet sees what lies between.
    """
    messages = []
    if entering or leaving:
        messages.append(nftwire.add(name, *nftwire.port_elements(entering + leaving)))
    if leaving:
        messages.append(nftwire.delete(name, *nftwire.port_elements(leaving)))
    return messages
