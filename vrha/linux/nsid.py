"""Numbers by which one network namespace knows others: proof that one of them has ended.

A number lasts as long as the namespace that it stands for, whoever holds that: a name, a process,
an open file, a socket. Formats: include/uapi/linux/net_namespace.h; net/core/net_namespace.c.
"""

from __future__ import annotations

import errno
import struct

from vrha.linux.netlink import NLM_F_DUMP, Message, Netlink, NetlinkError, attr, attributes, u32

_RTM_NEWNSID, _RTM_GETNSID = 88, 90
_NSID, _PID, _FD = 1, 2, 3
_FAMILY = b"\0\0\0\0"
_ANY = attr(_NSID, struct.pack("=i", -1))


def of_file(route: Netlink, fd: int) -> int:
    """Number of the namespace of this file; -1 when it has none yet. Raises NetlinkError."""
    return _number(route.ask(_RTM_GETNSID, _FAMILY + u32(_FD, fd)))


def of_process(route: Netlink, pid: int) -> int:
    """Number of the namespace in which the process is. As `of_file`."""
    return _number(route.ask(_RTM_GETNSID, _FAMILY + u32(_PID, pid)))


def give_to_file(route: Netlink, fd: int) -> int:
    """Number of the namespace of this file, a new one if it has none. Raises NetlinkError."""
    return _given(route, u32(_FD, fd))


def give_to_process(route: Netlink, pid: int) -> int:
    """As `give_to_file`, for the namespace in which the process is."""
    return _given(route, u32(_PID, pid))


def all_known(route: Netlink) -> frozenset[int]:
    """Numbers of all namespaces that have one and have not ended. Raises NetlinkError."""
    return frozenset(_number([answer]) for answer in route.ask(_RTM_GETNSID, _FAMILY, NLM_F_DUMP))


def is_held(route: Netlink, number: int) -> bool:
    """Whether anything still holds the namespace of that number: one that nothing holds is not
    found any more, though the kernel may take a while to take it apart. Raises NetlinkError.
    """
    try:
        route.ask(_RTM_GETNSID, _FAMILY + attr(_NSID, struct.pack("=i", number)))
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def _given(route: Netlink, which: bytes) -> int:
    found = _number(route.ask(_RTM_GETNSID, _FAMILY + which))
    if found < 0:
        route.talk([Message(_RTM_NEWNSID, 0, _FAMILY + _ANY + which)])
        found = _number(route.ask(_RTM_GETNSID, _FAMILY + which))
    return found


def _number(answers: list[bytes]) -> int:
    found = attributes(answers[0][len(_FAMILY) :]) if answers else {}
    return int(struct.unpack("=i", found[_NSID])[0]) if _NSID in found else -1
