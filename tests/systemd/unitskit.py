"""A node in a box, run by its units: a watcher, an agent, one router that serves; and its faults.

There is no broker, no store and no orchestrator: nothing that is shown here depends on them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.systemd import inside
from tests.systemd.box import Box, boxed, until
from vrha.fencing import keys
from vrha.lab.daemons import toml

AGENT, WATCHER, ZONE = "vrha-agent.service", "vrha-watcher.service", "zone.service"
_ZONE = """\
[Service]
# Its machines are not this one, which may be busy.
CPUSchedulingPolicy=fifo
CPUSchedulingPriority=10
ExecStart={python} -m tests.systemd.inside serve
Environment=PYTHONPATH={path}
"""
SWEPT_S, DIES_S = 60.0, 30.0
GRACE_S, QUIET_S = 2.0, 2.0
_ENDED = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) WARNING .*agent has ended, pid")
_REPLY = re.compile(r"^\[(\d+\.\d+)\] .*icmp_seq=(\d+) ", re.MULTILINE)


@dataclass(frozen=True)
class Fault:
    """What was seen of one; times in ms from its begin. None: it did not happen, or was not asked.

    `died_ms`: the kernel was done with the process. `muted_ms`: the last probe that was answered
    before the longest gap, which is `silent_ms`. `.._back_ms`: until the daemon serves again, by
    its own word. `swept_ms`: until nothing of any instance is there.
    """

    died_ms: float | None = None
    noticed_ms: float | None = None
    muted_ms: float | None = None
    silent_ms: float = 0.0
    lost: int = 0
    sent: int = 0
    agent_back_ms: float | None = None
    watcher_back_ms: float | None = None
    swept_ms: float | None = None
    same_dnsmasq: bool = True

    def told(self) -> Mapping[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Replies:
    """Answers to probes 1 ms apart: instants (s, time.time()) and numbers."""

    answers: tuple[tuple[float, int], ...]

    @property
    def lost(self) -> int:
        """Of those up to the last that was answered."""
        numbers = {number for _, number in self.answers}
        return max(numbers) - min(numbers) + 1 - len(numbers)

    def gap_after(self, instant: float) -> tuple[float, float]:
        """Begin and end of the longest time without an answer after `instant`."""
        times = sorted(at for at, _ in self.answers if at >= instant - 0.005)
        return max(itertools.pairwise(times), key=lambda pair: pair[1] - pair[0])


class Node:
    """A node in a box."""

    def __init__(self, box: Box) -> None:
        self.box = box
        box.add_unit(ZONE, _ZONE.format(python=box.python, path=box.path))
        others = {name: at for name, at in inside.ADDRESSES.items() if name != inside.NODE}
        agent = {
            "node": inside.NODE,
            "governed": True,
            "inventory_s": 1.0,
            # Nobody listens there.
            "bus": {"urls": ["amqp://nobody:nothing@127.0.0.1:9/none"]},
        }
        watcher = {
            "node": inside.NODE,
            "listen": inside.ADDRESSES[inside.NODE],
            "voters": list(inside.VOTERS),
            "leaders": [inside.LEADER],
            "keys": f"/etc/vrha/keys/{inside.NODE}",
            "peers": others,
            "cleanup": {"grace_s": GRACE_S},
        }
        (box.etc / "agent.toml").write_text(toml(agent))
        (box.etc / "watcher.toml").write_text(toml(watcher))
        ways = keys.pairs([inside.NODE], inside.VOTERS, [inside.LEADER])
        assert list(keys.make(box.etc / "keys", ways))

    def start(self) -> None:
        """Boot it, start its units, and wait until the router serves."""
        self.box.boot()
        self.box.systemctl("start", ZONE, WATCHER, AGENT)

    def build(self, own_dnsmasq: bool = True) -> None:
        """The router; with `own_dnsmasq` its dnsmasq is one that the agent itself started."""
        self.box.module("tests.systemd.inside", "build")
        if not own_dnsmasq:
            return
        os.kill(self._dnsmasq_anywhere(), signal.SIGKILL)
        until(self.dnsmasq, "the agent starts the dnsmasq that died")

    def _dnsmasq_anywhere(self) -> int:
        """As the box counts it: what `build` started is in no unit."""
        pid = next(iter((self.box.lib / "vrha-agent/instances").glob("edge-*/dnsmasq.pid")))
        return self.box.host_pid(int(pid.read_text()))

    def dnsmasq(self) -> list[int]:
        """Pids of the dnsmasq in the agent's unit."""
        found = []
        for pid in self.box.pids(AGENT):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/exe").endswith("dnsmasq"):
                    found.append(pid)
        return found

    @contextlib.contextmanager
    def probing(self, found: list[Replies]) -> Iterator[None]:
        """Probe through the router during the block; `found` gets what came."""
        ping = f"ip netns exec client ping -D -i 0.001 -W 1 {inside.TARGET}"
        out = self.box.folder / "host" / "ping"
        with out.open("wb") as file:
            process = subprocess.Popen(self.box.inside(*ping.split()), stdout=file)
            try:
                # It may be long in starting, and what happens meanwhile would not be seen.
                until(lambda: "icmp_seq" in out.read_text(), "ping is answered")
                yield
            finally:
                if (child := _child(process.pid)) is not None:
                    os.kill(child, signal.SIGINT)
                process.wait(10)
        found.append(
            Replies(tuple((float(at), int(n)) for at, n in _REPLY.findall(out.read_text())))
        )

    def _state(self, unit: str) -> tuple[int, float, str]:
        """Restarts, when it last became active (s, CLOCK_MONOTONIC), and its state."""
        names = ("NRestarts", "ActiveEnterTimestampMonotonic", "ActiveState")
        text = self.box.systemctl("show", *(f"--property={name}" for name in names), unit)
        told = dict(line.split("=", 1) for line in text.splitlines())
        return int(told[names[0]]), int(told[names[1]]) / 1e6, told[names[2]]

    def fault(self, units: Mapping[str, signal.Signals], settle_s: float = 0.5) -> Fault:
        """Send the main processes of `units` a signal, and see all of them come back."""
        before = {unit: self._state(unit) for unit in units}
        pids = {unit: self.box.main_pid(unit) for unit in units}
        dnsmasq = self.dnsmasq()
        replies: list[Replies] = []
        with self.probing(replies):
            time.sleep(0.1)
            with _pidfd(pids[next(iter(units))]) as pidfd:
                began, at = time.monotonic(), time.time()
                for unit, number in units.items():
                    os.kill(pids[unit], number)
                assert select.select([pidfd], [], [], DIES_S)[0], "it does not die"
                died = (time.monotonic() - began) * 1000
            until(lambda: all(self._is_back(u, before[u]) for u in units), f"{[*units]} are back")
            back = {unit: (self._state(unit)[1] - began) * 1000 for unit in units}
            until(self._answers, "the router serves")
            time.sleep(settle_s)
        (seen,) = replies
        begin, end = seen.gap_after(at)
        gap = (end - begin) * 1000
        return Fault(
            died_ms=died,
            noticed_ms=self._noticed_ms(at) if AGENT in units and WATCHER not in units else None,
            muted_ms=(begin - at) * 1000 if WATCHER in units else None,
            silent_ms=gap,
            lost=seen.lost,
            sent=max(number for _, number in seen.answers),
            agent_back_ms=back.get(AGENT),
            watcher_back_ms=back.get(WATCHER),
            same_dnsmasq=self.dnsmasq() == dnsmasq != [],
        )

    def quiet(self) -> Fault:
        """Nothing happens: what the machine itself loses."""
        return self.during(lambda: time.sleep(QUIET_S))

    def during(self, what: Callable[[], object]) -> Fault:
        """What is lost while something is done that should lose nothing."""
        replies: list[Replies] = []
        at = time.time()
        with self.probing(replies):
            what()
        begin, end = replies[0].gap_after(at)
        sent = max(number for _, number in replies[0].answers)
        return Fault(silent_ms=(end - begin) * 1000, lost=replies[0].lost, sent=sent)

    def reboot(self) -> Fault:
        """A power cut, and the same machine again: until its daemons serve."""
        began = time.monotonic()
        self.box.crash()
        self.start()
        back = {unit: (self._state(unit)[1] - began) * 1000 for unit in (AGENT, WATCHER)}
        swept = self._state("vrha-cleanup-boot.service")[1]
        return Fault(
            agent_back_ms=back[AGENT],
            watcher_back_ms=back[WATCHER],
            swept_ms=(swept - began) * 1000,
        )

    def gone(self) -> Fault:
        """The agent dies and cannot come back, and the node is cut off: until all is swept.

        Zone and agent are there again in the end, the router is not.
        """
        settings = self.box.etc / "agent.toml"
        right = settings.read_text()
        settings.write_text("node = 0\n")
        replies: list[Replies] = []
        try:
            with self.probing(replies):
                time.sleep(0.1)
                pids = [self.box.main_pid(unit) for unit in (AGENT, ZONE)]
                began, at = time.monotonic(), time.time()
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                until(lambda: not self.instances(), "all is swept", SWEPT_S)
                swept = (time.monotonic() - began) * 1000
            noticed = self._noticed_ms(at)
            # Not before it has read the wrong settings.
            until(lambda: self._state(AGENT)[2] == "failed", "the agent is given up")
        finally:
            settings.write_text(right)
            self.box.systemctl("reset-failed", AGENT, ZONE)
            self.box.systemctl("start", AGENT, ZONE)
        muted = max(when for when, _ in replies[0].answers) - at
        return Fault(noticed_ms=noticed, muted_ms=muted * 1000, swept_ms=swept)

    def renew(self, own_dnsmasq: bool = False) -> None:
        """A router, unless there is one; `own_dnsmasq` as of `build`."""
        if self.instances():
            return
        if self.box.run("ip", "netns", "list"):
            for name in ("gw", "client"):
                self.box.run("ip", "netns", "del", name)
            for bridge in inside.BRIDGES:
                self.box.run("ip", "link", "del", bridge)
        self.build(own_dnsmasq)
        self.serves()

    def instances(self) -> list[str]:
        """Whatever there still is of instances: links of the node, names, files."""
        links = self.box.run("ip", "-o", "link").splitlines()
        found = [line.split(": ")[1] for line in links if "vrh" in line.split(": ")[1]]
        found += self.box.run("ip", "netns", "list").split("\n")
        found += [path.name for path in (self.box.lib / "vrha-agent/instances").glob("*-*")]
        return [name for name in found if "vrh" in name or "edge" in name]

    def _is_back(self, unit: str, before: tuple[int, float, str]) -> bool:
        restarts, since, state = self._state(unit)
        return state == "active" and restarts > before[0] and since > before[1]

    def _answers(self) -> bool:
        ping = f"ip netns exec client ping -q -c 1 -W 0.2 {inside.TARGET}"
        done = subprocess.run(self.box.inside(*ping.split()), capture_output=True, timeout=30)
        return done.returncode == 0

    def serves(self, seconds: float = 30.0) -> None:
        until(self._answers, "the router serves", seconds)

    def _noticed_ms(self, at: float) -> float:
        """When the watcher said so, by its own clock: to the millisecond."""

        def said() -> list[float]:
            times = [
                datetime.strptime(t, "%Y-%m-%d %H:%M:%S,%f")
                for t in _ENDED.findall(self.box.journal(WATCHER))
            ]
            return [when.timestamp() for when in times if when.timestamp() >= at - 0.001]

        until(said, "the watcher tells that the agent has ended")
        return (min(said()) - at) * 1000


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _child(pid: int) -> int | None:
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    return None


KILL, STOP = signal.SIGKILL, signal.SIGSTOP
FAULTS: Mapping[str, Mapping[str, signal.Signals]] = {
    "agent killed": {AGENT: KILL},
    "agent hung": {AGENT: STOP},
    "watcher killed": {WATCHER: KILL},
    "watcher hung": {WATCHER: STOP},
    "both killed": {AGENT: KILL, WATCHER: KILL},
}


@contextlib.contextmanager
def node() -> Iterator[Node]:
    """A node whose router serves."""
    with boxed() as box:
        made = Node(box)
        made.start()
        made.build()
        made.serves()
        yield made
