"""Two namespaces joined by a veth pair, and faults on it whose times are known."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tools.benchmarks.gapscore import NS_PER_MS, Fault, Way
from tools.benchmarks.ownnode import inside, own_node, sh
from vrha.errors import PreconditionError
from vrha.linux import tools
from vrha.linux.netlink import NLM_F_CREATE, Message, Netlink, attr, nest, text

FAR, FAR_PATH = "far", "/run/netns/far"
NEAR_ADDRESS = "10.9.0.1"
ECHO_PORT = 7
UNSURE_LIMIT_MS = 0.2
PAUSE_MS = (25.0, 60.0)
"""Between two faults: more than any fault's edge can be off, and never in step with the probes."""

_TABLE, _SET = "fault", "drops"
_RULES = f"""\
table inet {_TABLE} {{
    set {_SET} {{ type ifname; }}
    chain arriving {{ type filter hook prerouting priority -300; iifname @{_SET} drop; }}
}}
"""
_NETLINK_NETFILTER, _SUBSYS_NFTABLES, _NFPROTO_INET = 12, 10, 1
_BATCH_BEGIN, _BATCH_END, _NEWSETELEM, _DELSETELEM = 16, 17, 12, 14
_IFNAMSIZ = 16
_PRIORITY = 5
"""Real-time, so that a fault ends when it should; below the prober's."""


def target(number: int) -> str:
    """An address of the far end, `number` from 0 on."""
    return f"10.9.0.{10 + number}"


@contextlib.contextmanager
def wire(targets: int) -> Iterator[None]:
    """This thread is in the near end from now on, port `near`; the far end has port `far`.

    There is no way back, as of `own_node`. Raises PreconditionError.
    """
    with own_node(()):
        sh(f"ip netns add {FAR}")
        sh(f"ip link add near type veth peer name far netns {FAR}")
        sh(f"ip addr add {NEAR_ADDRESS}/24 dev near")
        for number in range(targets):
            sh(f"ip -n {FAR} addr add {target(number)}/24 dev far")
        sh("ip link set near up")
        sh(f"ip -n {FAR} link set lo up")
        sh(f"ip -n {FAR} link set far up")
        for number in range(targets):
            sh(f"ping -q -c 1 -W 5 {target(number)}")
        yield


class Dropper:
    """Drops all that comes in at `port` while it is on; made in the namespace of the caller."""

    def __init__(self, port: str) -> None:
        """Raises PreconditionError `bench-setup`."""
        done = subprocess.run(
            [tools.need("nft"), "-f", "-"],
            input=_RULES,
            text=True,
            capture_output=True,
            timeout=30,
            check=False,
        )
        if done.returncode != 0:
            raise PreconditionError("bench-setup", f"nft: {done.stderr.strip()}")
        self._netlink = Netlink(_NETLINK_NETFILTER)
        self._on = _transaction(_NEWSETELEM, NLM_F_CREATE, port)
        self._off = _transaction(_DELSETELEM, 0, port)

    def close(self) -> None:
        self._netlink.close()

    def switch(self, on: bool) -> tuple[int, int]:
        """CLOCK_MONOTONIC in ns before and after the kernel took it. Raises OSError."""
        before = time.monotonic_ns()
        self._netlink.talk(self._on if on else self._off)
        return before, time.monotonic_ns()


def _transaction(kind: int, flags: int, port: str) -> list[Message]:
    """Messages of include/uapi/linux/netfilter/nf_tables.h: one set element comes or goes."""
    key = nest(1, attr(1, port.encode().ljust(_IFNAMSIZ, b"\0")))
    body = _family(_NFPROTO_INET) + text(1, _TABLE) + text(2, _SET) + nest(3, nest(1, key))
    return [
        _batch(_BATCH_BEGIN),
        Message((_SUBSYS_NFTABLES << 8) | kind, flags, body),
        _batch(_BATCH_END),
    ]


def _batch(kind: int) -> Message:
    return Message(kind, 0, _family(socket.AF_UNSPEC, _SUBSYS_NFTABLES), ack=False)


def _family(family: int, resource: int = 0) -> bytes:
    return struct.pack("!BBH", family, 0, resource)


Droppers = Mapping[Way, Dropper]


@contextlib.contextmanager
def droppers() -> Iterator[Droppers]:
    """For both ways: requests die as they reach the far end, replies as they come back."""
    with inside(FAR):
        forth = Dropper("far")
    back = Dropper("near")
    try:
        yield {"forth": forth, "back": back}
    finally:
        forth.close()
        back.close()


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault to make, `pause_ms` after the one before."""

    way: Way
    length_ms: float
    pause_ms: float


def plan(lengths_ms: Sequence[float], times: int, seed: int) -> list[Planned]:
    """Each length `times` times in each direction, in an order that depends on `seed` alone."""
    dice = random.Random(seed)
    ways: tuple[Way, ...] = ("forth", "back")
    wanted = [(way, length) for length in lengths_ms for way in ways for _ in range(times)]
    dice.shuffle(wanted)
    return [Planned(way, length, dice.uniform(*PAUSE_MS)) for way, length in wanted]


def play(
    wanted: Sequence[Planned], drop: Droppers, told: Callable[[int], None] = lambda _: None
) -> tuple[list[Fault], list[Fault]]:
    """Make the faults: those whose length is known well enough, and the others.

    Each of the others is made again at the end, once. `told` is called with the number made.
    """
    sure: list[Fault] = []
    unsure: list[Fault] = []

    def make(faults: Sequence[Planned]) -> None:
        for planned in faults:
            fault = _make(planned, drop[planned.way])
            (sure if fault.unsure_ms <= UNSURE_LIMIT_MS else unsure).append(fault)
            told(len(sure))

    with _real_time():
        make(wanted)
        make([Planned(fault.way, fault.wanted_ms, PAUSE_MS[1]) for fault in unsure])
    return sure, unsure


def _make(planned: Planned, dropper: Dropper) -> Fault:
    time.sleep(planned.pause_ms / 1000)
    on = dropper.switch(True)
    try:
        left = on[0] + planned.length_ms * NS_PER_MS - time.monotonic_ns()
        time.sleep(max(0.0, left / 1e9))
    finally:
        off = dropper.switch(False)
    unsure = (on[1] - on[0] + off[1] - off[0]) / 2 / NS_PER_MS
    return Fault(planned.way, planned.length_ms, sum(on) // 2, sum(off) // 2, unsure)


@contextlib.contextmanager
def _real_time() -> Iterator[None]:
    """Where the kernel permits: elsewhere more faults are not sure."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
