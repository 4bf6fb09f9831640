"""The kernel switch of a node: ports of instances are dropped unless they are in set `active`.

One nftables `bridge` table per node. Since the rule goes by name, a port is muted from the
moment it exists, while it may be up and its bridge port forwarding: unmuting is one set element,
a swap of two instances one transaction (include/uapi/linux/netfilter/nf_tables.h).
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
_SET = "active"
_NETLINK_NETFILTER = 12
_NFPROTO_BRIDGE, _SUBSYS_NFTABLES = 7, 10
_BATCH_BEGIN, _BATCH_END = 16, 17
_GETSET, _NEWSETELEM, _GETSETELEM, _DELSETELEM = 10, 12, 13, 14
_ELEM_LIST_TABLE, _ELEM_LIST_SET, _ELEM_LIST_ELEMENTS = 1, 2, 3
_LIST_ELEM, _SET_ELEM_KEY, _DATA_VALUE = 1, 1, 1
_IFNAMSIZ = 16

_TABLE_TEXT = f"""\
create table bridge {TABLE}
add set bridge {TABLE} {_SET} {{ type ifname; comment "instances that may speak"; }}
add chain bridge {TABLE} from_instances {{ type filter hook prerouting priority -300; }}
add chain bridge {TABLE} to_instances {{ type filter hook postrouting priority -300; }}
add rule bridge {TABLE} from_instances iifname "{PORT_PREFIX}*" iifname != @{_SET} drop
add rule bridge {TABLE} to_instances oifname "{PORT_PREFIX}*" oifname != @{_SET} drop
"""


class Switch:
    """The set `active` of the namespace in which the object was made."""

    def __init__(self, nft: str) -> None:
        """Take over the table that is there, or make it (everything muted).

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
        """Make the table if it is absent; an existing one is not touched."""
        if self._exists():
            return
        done = tools.run([self._nft, "-f", "-"], _TABLE_TEXT)
        if done.returncode != 0 and not self._exists():
            raise _no_nf_tables(done.complaint)

    def active(self) -> frozenset[str]:
        """Names of all ports that may speak."""
        body = _family(_NFPROTO_BRIDGE) + _set_name()
        try:
            answers = self._netlink.ask(_kind(_GETSETELEM), body, NLM_F_DUMP)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return frozenset()
            raise
        return frozenset(name for answer in answers for name in _names(answer[4:]))

    def change(self, mute: Iterable[str] = (), unmute: Iterable[str] = ()) -> None:
        """Mute some ports and unmute others in one transaction; repeating it changes nothing.

        The names to be muted are added first in the same batch, since the kernel refuses to
        delete what is absent; the intermediate state is never visible to a packet.
        Raises StepError `mute-failed`.
        """
        off, on = tuple(mute), tuple(unmute)
        if not off and not on:
            return
        messages = [_batch(_BATCH_BEGIN), _elements(_NEWSETELEM, NLM_F_CREATE, off + on)]
        if off:
            messages.append(_elements(_DELSETELEM, 0, off))
        messages.append(_batch(_BATCH_END))
        try:
            self._netlink.talk(messages)
        except NetlinkError as error:
            raise StepError(
                "mute-failed",
                f"the kernel refused to change the set of active ports: {error.strerror}",
                f"Look at `nft list table bridge {TABLE}`; restart the agent if it is missing.",
            ) from error

    def _exists(self) -> bool:
        body = _family(_NFPROTO_BRIDGE) + text(1, TABLE) + text(2, _SET)
        try:
            return bool(self._netlink.ask(_kind(_GETSET), body))
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


def _set_name() -> bytes:
    return text(_ELEM_LIST_TABLE, TABLE) + text(_ELEM_LIST_SET, _SET)


def _elements(message: int, flags: int, names: tuple[str, ...]) -> Message:
    elements = (
        nest(_LIST_ELEM, nest(_SET_ELEM_KEY, attr(_DATA_VALUE, n.encode().ljust(_IFNAMSIZ, b"\0"))))
        for n in names
    )
    body = _family(_NFPROTO_BRIDGE) + _set_name() + nest(_ELEM_LIST_ELEMENTS, *elements)
    return Message(_kind(message), flags, body)


def _names(data: bytes) -> list[str]:
    found = []
    for _, element in each_attribute(attributes(data).get(_ELEM_LIST_ELEMENTS, b"")):
        key = attributes(attributes(element)[_SET_ELEM_KEY])[_DATA_VALUE]
        found.append(key.rstrip(b"\0").decode(errors="replace"))
    return found
