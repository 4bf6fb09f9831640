"""Who owns an IPv4 address, asked on the wire again and again: never more than one may answer.

Every question is a broadcast from a MAC of its own, so that the answers to it can be counted even
when two owners have the same MAC, as the two instances of a handover on one node have.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

from vrha.linux import frames
from vrha.linux.packetsocket import ARP_REPLY, open_packets

_SENDERS = 4096
"""How many MACs ask in turn; an answer later than after so many questions is miscounted."""
_LATE_S = 0.3
"""How long answers are awaited after the last question."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back for one address.

    `interval_ms` between questions as they were really sent, on average; `doubles` are questions
    that two or more answered, `overlap_ms` the longest time in which every question was such a
    one. `turns` are the MACs that answered, each turn once.
    """

    asked: int
    answered: int
    doubles: int
    overlap_ms: float
    interval_ms: float
    turns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Question:
    at: float
    answers: list[str]


class OwnerWatch:
    """Asks on the segment of a device for `addresses`, every `interval_ms` each, in a thread.

    Construct it in the network namespace of the device (`Lab.call`); use it as a context, then
    read `results`. Raises OSError when there is no such device.
    """

    def __init__(
        self, addresses: Iterable[str], device: str = "eth0", interval_ms: float = 1.0
    ) -> None:
        self._addresses = [IPv4Address(address) for address in addresses]
        self._interval_s = interval_ms / 1000
        self._asked: dict[IPv4Address, list[_Question]] = {a: [] for a in self._addresses}
        self._sock = open_packets(device, frames.ETH_P_ARP, ARP_REPLY)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="owners", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sock.close()

    def results(self) -> Mapping[str, Answers]:
        """By address; complete once the context has ended."""
        return {str(address): _count(asked) for address, asked in self._asked.items()}

    def _work(self) -> None:
        number, due = 0, time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            for address in self._addresses:
                self._asked[address].append(_Question(time.monotonic(), []))
                self._sock.send(frames.arp_probe(_sender(number), address))
            number += 1
            due += self._interval_s
            self._drain()
        until = time.monotonic() + _LATE_S
        while time.monotonic() < until:
            self._drain()
            time.sleep(0.01)

    def _drain(self) -> None:
        while True:
            try:
                frame = self._sock.recv(128)
            except BlockingIOError:
                return
            asked = self._asked.get(IPv4Address(frame[28:32]))
            if not asked or frame[:4] != _sender(0)[:4]:
                continue
            latest = len(asked) - 1
            place = latest - (latest - int.from_bytes(frame[4:6], "big")) % _SENDERS
            if place >= 0:
                asked[place].answers.append(frame[22:28].hex(":"))


def _sender(number: int) -> bytes:
    return b"\x02\x9a\x0a\x0a" + (number % _SENDERS).to_bytes(2, "big")


def _count(asked: list[_Question]) -> Answers:
    longest = since = last = 0.0
    turns: list[str] = []
    for question in asked:
        for mac in question.answers:
            if turns[-1:] != [mac]:
                turns.append(mac)
        if len(question.answers) > 1:
            since = since or question.at
            last = question.at
            longest = max(longest, last - since)
        else:
            since = 0.0
    spent = asked[-1].at - asked[0].at if len(asked) > 1 else 0.0
    interval = 1000 * spent / (len(asked) - 1) if len(asked) > 1 else 0.0
    doubles = sum(1 for question in asked if len(question.answers) > 1)
    return Answers(
        len(asked),
        sum(1 for question in asked if question.answers),
        doubles,
        1000 * longest + interval if doubles else 0.0,
        interval,
        tuple(turns),
    )
