"""One stop of the renewer: what was forwarded until when, and whether anything revived it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.benchmarks import gapproc
from tools.benchmarks.deadmanprobe import Ear
from tools.benchmarks.ownnode import inside, machine, sh
from vrha.errors import StepError
from vrha.linux import netns
from vrha.linux.mute import Switch

BRIDGE, PORT = "br-a", "vrhbench-r0"
PROBE_US = 500
_ANSWER_LIMIT_S = 20.0
_AFTER_S = 0.06
"""How long after the end of a slice, and after the renewer goes on, frames are waited for."""


class Child:
    """A process of the measurement that obeys lines, and surely ends."""

    def __init__(self, module: str, *words: str, core: int, where: str = "") -> None:
        enter = ["nsenter", f"--net={netns.path_of(where)}"] if where else []
        with gapproc.pinned(core):
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *enter, sys.executable, "-m", module, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        self._said = b""

    def close(self) -> None:
        self._process.kill()
        self._process.wait(_ANSWER_LIMIT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        os.write(self._process.stdin.fileno(), line.encode() + b"\n")

    def line(self, limit_s: float = _ANSWER_LIMIT_S) -> str:
        """The next line; empty when none has come in time. Raises StepError when it has died."""
        assert self._process.stdout is not None
        end = time.monotonic() + limit_s
        out = self._process.stdout.fileno()
        while b"\n" not in self._said:
            if not select.select([out], [], [], max(0.0, end - time.monotonic()))[0]:
                return ""
            got = os.read(out, 1 << 20)
            if not got:
                raise StepError("bench-dead-man", "a process of the measurement has died")
            self._said += got
        first, _, self._said = self._said.partition(b"\n")
        return first.decode()

    def expect(self, word: str, limit_s: float = _ANSWER_LIMIT_S) -> str:
        """What follows this word. Raises StepError when it does not come."""
        said = self.line(limit_s)
        if said.split(" ")[0] != word:
            raise StepError("bench-dead-man", f"`{word}` was expected, not `{said[:80]}`")
        return said[len(word) :]

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        self.wait_stopped()

    def wait_stopped(self) -> None:
        """Raises StepError when it does not stop."""
        end = time.monotonic() + _ANSWER_LIMIT_S
        state = Path(f"/proc/{self._process.pid}/stat")
        while state.read_text().rpartition(")")[2].split()[0] != "T":
            if time.monotonic() > end:
                raise StepError("bench-dead-man", "the renewer does not stop")
            time.sleep(0.0002)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)


@dataclass(frozen=True)
class Zone:
    """Client and router on a bridge, with a witness beside them that hears what the client says."""

    state: Path
    slice_ms: int
    switch: Switch
    router: Ear
    client: Ear
    witness: Ear

    def renewer(self) -> Child:
        return Child(
            "tools.benchmarks.deadmanrenewer",
            *(str(self.state), PORT, str(self.slice_ms)),
            core=gapproc.cores()[0],
        )

    def prober(self, where: str, interval_us: int = PROBE_US, count: int = 0) -> Child:
        return Child(
            "tools.benchmarks.deadmanprobe",
            *("e0", str(interval_us), str(count)),
            core=gapproc.cores()[1],
            where=where,
        )

    def last_renewal(self) -> tuple[int, int]:
        """When the last one began and ended."""
        begin, end = struct.unpack("=qq", self.state.read_bytes())
        return begin, end


@contextlib.contextmanager
def zone(folder: Path, slice_ms: int) -> Iterator[Zone]:
    """In a fresh node; the router is active, but has neither grant nor lease."""
    state = folder / "renewals"
    state.write_bytes(bytes(16))
    with contextlib.ExitStack() as stack:
        ears = []
        for name in ("router", "client", "witness"):
            machine(name, BRIDGE)
            with inside(name):
                ears.append(stack.enter_context(contextlib.closing(Ear("e0"))))
        sh("ip link set p-router down")
        sh(f"ip link set p-router name {PORT}")
        sh(f"ip link set {PORT} up")
        switch = stack.enter_context(contextlib.closing(Switch("nft", governed=True)))
        switch.change(unmute=[PORT])
        yield Zone(state, slice_ms, switch, *ears)


def stopped(of: Zone, renewer: Child, dice: random.Random) -> dict[str, Any] | None:
    """Stop a pacing renewer at any moment; None when it had lost its lease before, by itself.

    `after_end_ms` is the arrival of the last forwarded frame after the end of the last renewal
    (`after_begin_ms`: after its begin), `resolution_ms` the time from there to the next frame,
    `before_ms` that from the frame before it: long when the machine stood still.
    """
    renewer.tell("paced")
    renewer.expect("live")
    time.sleep(dice.uniform(2, 5) * of.slice_ms / 1000)
    _hear_nothing(of)
    time.sleep(dice.uniform(0.3, 1.3) * of.slice_ms / 3000 + 0.01)
    renewer.stop()
    early = renewer.line(0)
    begin, end = of.last_renewal()
    time.sleep(of.slice_ms / 1000 + _AFTER_S)
    forwarded, sent = of.router.heard(), of.witness.heard()
    renewer.go_on()
    told = json.loads(early.removeprefix("done") or renewer.expect("done"))
    if early or not forwarded:
        return None
    time.sleep(_AFTER_S)
    last = max(forwarded)
    later = min((at for number, at in sent.items() if number > last), default=0)
    earlier = max((at for number, at in sent.items() if number < last), default=0)
    # Stopped in the middle of a renewal: it may have been made, so the time counts from its begin.
    end = end if end > begin else begin
    return {
        "after_end_ms": round((forwarded[last] - end) / 1e6, 3),
        "after_begin_ms": round((forwarded[last] - begin) / 1e6, 3),
        "resolution_ms": round((later - forwarded[last]) / 1e6, 3),
        "before_ms": round((forwarded[last] - earlier) / 1e6, 3),
        "lost_before": len([n for n in sent if min(forwarded) < n < last and n not in forwarded]),
        "accepted_late": told["revived"],
        "forwarded_late": len(of.router.heard()),
        "costs_us": told["costs_us"],
    }


def paused(of: Zone, renewer: Child, how: str, dice: random.Random) -> dict[str, Any]:
    """Let it pause between clock and commit until its slice is over, and see what comes of it."""
    renewer.tell(how)
    renewer.expect("live")
    renewer.wait_stopped()
    pause_s = of.slice_ms / 1000 * dice.uniform(1, 3) + 0.01
    time.sleep(pause_s)
    _hear_nothing(of)
    time.sleep(0.005)
    before = len(of.router.heard())
    renewer.go_on()
    told = json.loads(renewer.expect("done"))
    time.sleep(of.slice_ms / 1000 + _AFTER_S)
    return {
        "pause_ms": round(pause_s * 1000, 1),
        "forwarded_before": before,
        "accepted_late": told["revived"],
        "forwarded_late": len(of.router.heard()),
    }


def storm(of: Zone, renewer: Child, packets: int, interval_us: int) -> dict[str, Any]:
    """Frames both ways at once, while the lease is renewed without a pause."""
    renewer.tell("storm 600")
    renewer.expect("live")
    _hear_nothing(of)
    with contextlib.ExitStack() as stack:
        probers = [
            stack.enter_context(contextlib.closing(of.prober(name, interval_us, packets)))
            for name in ("client", "router")
        ]
        heard: dict[str, set[int]] = {"in": set(), "out": set()}
        waiting = list(probers)
        while waiting:
            if waiting[0].line(0.5):
                waiting.pop(0)
            heard["in"].update(of.router.heard())
            heard["out"].update(of.client.heard())
        time.sleep(_AFTER_S)
        heard["in"].update(of.router.heard())
        heard["out"].update(of.client.heard())
    renewer.tell("end")
    told = json.loads(renewer.expect("done"))
    return {
        "sent": dict.fromkeys(heard, packets),
        "lost": {way: packets - len(numbers) for way, numbers in heard.items()},
        "count": told["count"],
        "refused": told["refused"],
        "costs_us": told["costs_us"],
    }


def _hear_nothing(of: Zone) -> None:
    """Forget what has come so far."""
    for ear in (of.router, of.client, of.witness):
        ear.heard()
