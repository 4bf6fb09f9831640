"""Which port of a bridge a MAC address is behind, by hand-packed rtnetlink messages.

Formats: include/uapi/linux/neighbour.h; the kernel's side is net/bridge/br_fdb.c.
"""

from __future__ import annotations

import errno
import socket
import struct

from vrha.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    Message,
    Netlink,
    NetlinkError,
    attr,
    u32,
)

_RTM_NEWNEIGH, _RTM_GETNEIGH = 28, 30
_NTF_MASTER, _NTF_STICKY = 0x04, 0x40
_NUD_NOARP = 0x40
_NDA_LLADDR, _NDA_MASTER = 2, 9
_NDMSG = struct.Struct("=BBHiHBB")


def set_fdb(port_index: int, mac: bytes) -> Message:
    """Bind `mac` (6 bytes) to a bridge port for good; an entry on another port moves at once.

    Sticky: a plain static entry would follow the next frame with that source that comes in by
    another port (br_fdb_update). It goes with its port.
    """
    body = _NDMSG.pack(socket.AF_BRIDGE, 0, 0, port_index, _NUD_NOARP, _NTF_MASTER | _NTF_STICKY, 0)
    return Message(_RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body + attr(_NDA_LLADDR, mac))


def fdb_port(netlink: Netlink, bridge_index: int, mac: bytes) -> int | None:
    """Index of the port behind which the bridge knows `mac`; None when it knows none.

    One entry is asked for (Linux 5.0), not the whole table. Of a bridge that filters VLANs only
    the entry without a VLAN is seen.
    """
    body = _NDMSG.pack(socket.AF_BRIDGE, 0, 0, 0, 0, 0, 0)
    body += attr(_NDA_LLADDR, mac) + u32(_NDA_MASTER, bridge_index)
    try:
        answers = netlink.ask(_RTM_GETNEIGH, body)
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return int(_NDMSG.unpack_from(answers[0])[3])
