"""What is looked at from outside during a fault: probes through every router, and who answers."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any

from tests.system.guestkit import ACK, Dhcp
from tools.soaking.scenario import (
    GUEST,
    GUEST_MAC,
    OUTSIDE,
    ROUTERS,
    gateway,
    hidden_address,
    public_address,
)
from vrha.lab.owners import Answers, OwnerWatch
from vrha.lab.zone import Lab
from vrha.model.probing import Result, Stream

NUMBERS = range(1, len(ROUTERS) + 1)
_INSIDE_MS, _OUTSIDE_MS = 4.0, 10.0
"""Between two questions for each address."""
_PING_S = 1


def streams(lab: Lab) -> tuple[Stream, ...]:
    """Of every router: probes both ways, flows that are new, and established connections by 1:1
    and by source NAT."""
    return tuple(stream for number in NUMBERS for stream in _of(lab, number))


def _of(lab: Lab, number: int) -> Iterator[Stream]:
    own, hidden = lab.netns_path(f"vm{number}"), lab.netns_path(f"hid{number}")
    outer, public, name = lab.netns_path("outside"), public_address(number), f"r{number}"
    yield Stream(f"{name}-out", "icmp", OUTSIDE, netns=own, interval_ms=5)
    yield Stream(f"{name}-in", "icmp", public, netns=outer, interval_ms=5)
    yield Stream(f"{name}-new", "udp-fresh", OUTSIDE, 8, hidden, interval_ms=10)
    yield Stream(f"{name}-tcp-in", "tcp-echo", public, 8, outer, 20, 2)
    yield Stream(f"{name}-tcp-out", "tcp-echo", OUTSIDE, 8, hidden, 20, 2)
    yield Stream(f"{name}-push", "tcp-push", OUTSIDE, 9, hidden, count=2)


@contextlib.contextmanager
def owners(lab: Lab) -> Iterator[list[OwnerWatch]]:
    """Asks every segment who has the addresses of the routers there."""
    with contextlib.ExitStack() as stack:
        watches = [_asks(lab, f"hid{n}", [gateway(n)], _INSIDE_MS) for n in NUMBERS]
        public = [a for n in NUMBERS for a in (hidden_address(n), public_address(n))]
        watches.append(_asks(lab, "outside", public, _OUTSIDE_MS))
        for watch in watches:
            stack.enter_context(watch)
        yield watches


def _asks(lab: Lab, machine: str, addresses: list[str], interval_ms: float) -> OwnerWatch:
    return lab.call(machine, lambda: OwnerWatch(addresses, interval_ms=interval_ms))


def doubles(watches: list[OwnerWatch]) -> dict[str, Answers]:
    """Addresses that ever had two owners."""
    found = {address: a for watch in watches for address, a in watch.results().items()}
    return {address: answers for address, answers in found.items() if answers.doubles}


def unreached(lab: Lab) -> list[str]:
    """Routers through which a machine does not reach the outside, or is not reached."""
    ways = [(n, f"vm{n}", OUTSIDE) for n in NUMBERS]
    ways += [(n, f"hid{n}", OUTSIDE) for n in NUMBERS]
    ways += [(n, "outside", public_address(n)) for n in NUMBERS]
    argv = ["ping", "-q", "-n", "-c", "1", "-W", str(_PING_S)]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    children = [(n, lab.exec(where, [*argv, target], **quiet)) for n, where, target in ways]
    return sorted({f"r{n}" for n, child in children if child.wait(_PING_S + 30)})


class Guest:
    """The machine that has its address from DHCP, and keeps it."""

    def __init__(self, lab: Lab) -> None:
        self._dhcp = Dhcp(lab, GUEST, bytes.fromhex(GUEST_MAC.replace(":", "")))
        if self._dhcp.discover() != ACK:
            raise AssertionError("no address for the guest")

    def problem(self) -> str:
        """Why it would lose its address now; empty when it keeps it."""
        before = self._dhcp.address
        try:
            kind = self._dhcp.reboot()
        except AssertionError as error:
            return str(error)
        return "" if (kind, self._dhcp.address) == (ACK, before) else f"DHCP answer {kind}"


def longest_gap(result: Result) -> float:
    """Of all probes, ms."""
    return max((one.loss.longest_gap_ms for one in result.streams), default=0.0)
