"""The kernel's dead-man switch: the ports of a node speak only while somebody renews its lease.

Set `live` of a governed table (see `mute.Switch`) holds one element with a timeout. Renewing it is
one transaction that deletes it and adds it anew, which the kernel refuses as a whole (ENOENT) once
the element has expired: compare-and-swap on the kernel's own clock. So whoever is stopped between
looking at its clock and renewing cannot revive what has fallen silent. The first activation is
bounded in the same way, by an element of set `arm`.

Adding an element that is there does not renew its timeout (in older kernels), and adding without
deleting first revives unconditionally: neither happens here. Timeouts are counted in jiffies and
rounded down, so a slice ends up to one jiffy early (two where it is no whole number of them), and
late only by as much as the kernel's tick is, as on a virtual machine whose host has no time for it.
Expired elements match no more even before they are collected (net/netfilter/nft_set_hash.c,
nft_rhash_cmp).

A renewal waits while another transaction of nftables is committed in the same network namespace:
a load of 10,000 rules takes some 80 ms.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence

from vrha.errors import PreconditionError, StepError
from vrha.linux import nftwire
from vrha.linux.netlink import NLM_F_DUMP, NLM_F_REQUEST, Message, Netlink, NetlinkError
from vrha.linux.nftwire import ARM, GRANTED, LIVE, TABLE

_HEADER = struct.Struct("=IHHII")
_NLM_F_ACK = 0x4
_NLMSG_ERROR = 2
_BATCH_END_SIZE = 20
_ARPHRD_ETHER = struct.pack("=H", 1)
_ANSWER_LIMIT_S = 0.05
"""The kernel answers within the system call that sends; what is late was lost (netlink(7))."""
_OLDER_LIMIT = 32
"""Answers to earlier changes that may wait in the socket: a refused change leaves one or two."""
_SMALL, _LARGE = 1 << 14, 1 << 20
_AT_ONCE = 1000
"""Ports in one message: an attribute has at most 65,535 bytes."""


class DeadMan:
    """The switch of the namespace in which the object was made; one thread uses it.

    Every change is one transaction on a kept socket. When the kernel's answer is lost, StepError
    `kernel-timeout` says that the change may have been made or not; the socket is another one
    then, so that the answer is never taken for that to a later change. Trying again is safe.
    """

    def __init__(self) -> None:
        """Nothing is changed. Raises PreconditionError `no-dead-man` if the table is not governed,
        `no-nf-tables` when the kernel has no nftables."""
        try:
            self._netlink = Netlink(nftwire.NETLINK_NETFILTER)
        except OSError as error:
            raise PreconditionError(
                "no-nf-tables", f"nftables does not work: {error.strerror}", "modprobe nf_tables"
            ) from error
        self._socket = _open()
        self._seq = 0
        element = nftwire.element(_ARPHRD_ETHER)
        ending = nftwire.element(_ARPHRD_ETHER, timeout_ms=1)
        self._renewal = _Batch(nftwire.delete(LIVE, element), nftwire.add(LIVE, ending))
        self._arming = _Batch(nftwire.flush(ARM), nftwire.add(ARM, ending))
        # Whatever is left of an earlier lease is flushed, since adding would not renew it.
        self._firing = _Batch(
            nftwire.delete(ARM, element), nftwire.flush(LIVE), nftwire.add(LIVE, ending)
        )
        self._muting = _Batch(nftwire.flush(LIVE), nftwire.flush(ARM), nftwire.flush(GRANTED))
        try:
            self.granted()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """What is live stays so until its slice ends."""
        self._socket.close()
        self._netlink.close()

    def renew(self, slice_ms: int) -> bool:
        """Let the node speak for `slice_ms` from now on, if it still may.

        False when its slice has run out, or the table is gone: it stays muted until `arm` and
        `fire`. Raises StepError `dead-man-failed`, `kernel-timeout`.
        """
        return self._holds(self._renewal.lasting(slice_ms))

    def arm(self, arm_ms: int) -> None:
        """Prepare the first activation: `fire` works for `arm_ms` from now on.

        The caller looks between the two whether its lease lasts for both times.
        Raises PreconditionError `no-dead-man`, StepError `dead-man-failed`, `kernel-timeout`.
        """
        if not self._holds(self._arming.lasting(arm_ms)):
            raise _ungoverned()

    def fire(self, slice_ms: int) -> bool:
        """Let the node speak for `slice_ms`; False when `arm` was too long ago, or used up.

        Raises StepError `dead-man-failed`, `kernel-timeout`.
        """
        return self._holds(self._firing.lasting(slice_ms))

    def mute(self) -> None:
        """Silence the node at once and take back all grants, in one transaction.

        Repeating it changes nothing. Raises PreconditionError `no-dead-man`, StepError
        `mute-failed`, `kernel-timeout`.
        """
        if not self._holds(self._muting, "mute-failed"):
            raise _ungoverned()

    def grant(self, ports: frozenset[str]) -> None:
        """Let exactly these ports speak, all in one transaction.

        A port that stays granted is not touched, so it loses no packet. Raises
        PreconditionError `no-dead-man`, StepError `mute-failed`, `kernel-timeout`.
        """
        found = self.granted()
        entering, leaving = ports - found, found - ports
        if not entering and not leaving:
            return
        # The kernel refuses to delete what is absent, as when somebody else was quicker: so it is
        # added first; no packet sees what lies between.
        changes = [nftwire.add(GRANTED, *part) for part in _parts(entering | leaving)]
        changes += [nftwire.delete(GRANTED, *part) for part in _parts(leaving)]
        if not self._holds(_Batch(*changes), "mute-failed"):
            raise _ungoverned()

    def granted(self) -> frozenset[str]:
        """Names of the ports that may speak while the node is live.

        Raises PreconditionError `no-dead-man`, StepError `dead-man-failed`, `kernel-timeout`.
        """
        return frozenset(name for answer in self._dump(GRANTED) for name in nftwire.ports(answer))

    def is_live(self) -> bool:
        """Whether the node may speak now. Raises as `granted` does."""
        return self.remaining_ms() > 0

    def remaining_ms(self) -> int:
        """How long the slice still lasts, in ms rounded to jiffies; 0 when it is over.

        Raises as `granted` does.
        """
        left = (ms for answer in self._dump(LIVE) for ms in nftwire.expirations(answer))
        return max(left, default=0)

    def _dump(self, name: str) -> list[bytes]:
        try:
            return self._netlink.ask(
                nftwire.kind(nftwire.GETSETELEM), nftwire.members(name), NLM_F_DUMP
            )
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                raise _ungoverned() from error
            raise _failed("dead-man-failed", error.errno or errno.EIO) from error

    def _holds(self, batch: _Batch, code: str = "dead-man-failed") -> bool:
        """Whether the kernel made the change; False when something in it was absent."""
        self._seq = (self._seq + 1) & 0xFFFFFFFF
        try:
            self._socket.send(batch.numbered(self._seq))
            answer = self._answer()
        except OSError as error:
            self._socket.close()
            self._socket = _open()
            raise StepError(
                "kernel-timeout",
                f"the kernel's answer to a change of table {TABLE} was lost: {error}",
                "The change may have been made or not; it is safe to try again.",
            ) from error
        if answer not in (0, errno.ENOENT):
            raise _failed(code, answer)
        return answer == 0

    def _answer(self) -> int:
        """Error number of the first answer to the last batch: what was refused comes before the
        acknowledgement of its last change (net/netfilter/nfnetlink.c, nfnetlink_rcv_batch)."""
        for _ in range(_OLDER_LIMIT):
            data = self._socket.recv(_SMALL)
            _, kind, _, seq, _ = _HEADER.unpack_from(data)
            if kind == _NLMSG_ERROR and seq == self._seq:
                return -int(struct.unpack_from("=i", data, _HEADER.size)[0])
        raise TimeoutError("only answers to earlier changes came")


class _Batch:
    """A transaction, packed once. All its messages carry one number; the last is acknowledged."""

    def __init__(self, *changes: Message) -> None:
        self._raw = bytearray()
        self._numbers = []
        for place, message in enumerate(nftwire.transaction(*changes)):
            self._numbers.append(len(self._raw) + 8)
            flags = message.flags | NLM_F_REQUEST | (_NLM_F_ACK if place == len(changes) else 0)
            self._raw += _HEADER.pack(16 + len(message.body), message.kind, flags, 0, 0)
            self._raw += message.body

    def lasting(self, timeout_ms: int) -> _Batch:
        """The same with this timeout of the element with which the last change ends."""
        struct.pack_into("!Q", self._raw, len(self._raw) - _BATCH_END_SIZE - 8, timeout_ms)
        return self

    def numbered(self, seq: int) -> bytearray:
        for place in self._numbers:
            struct.pack_into("=I", self._raw, place, seq)
        return self._raw


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, nftwire.NETLINK_NETFILTER)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGE)
    opened.settimeout(_ANSWER_LIMIT_S)
    opened.bind((0, 0))
    return opened


def _parts(ports: Iterable[str]) -> Iterable[Sequence[bytes]]:
    elements = nftwire.port_elements(sorted(ports))
    return (elements[at : at + _AT_ONCE] for at in range(0, len(elements), _AT_ONCE))


def _failed(code: str, number: int) -> StepError:
    return StepError(
        code,
        f"the kernel refused a change of the sets of table {TABLE}: {os.strerror(number)}",
        f"Look at `nft list table bridge {TABLE}` and at the kernel's log.",
    )


def _ungoverned() -> PreconditionError:
    return PreconditionError(
        "no-dead-man",
        f"the nftables table {TABLE} is missing or has no dead-man switch: nothing is held back",
        "Start the watcher of the node, which makes it.",
    )
