"""What runs inside a box beside the units: `python -m tests.systemd.inside build|remove|serve`.

`build` makes one router with a client and a gateway around it, `remove` takes the router away.
`serve` are the rest of the zone: two more voters, and a leader that grants the router to the node,
and asks for a stand-in of its agent while there is a file `WANTS_STAND_IN`.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import time
from pathlib import Path

from tests.netns.nodekit import machine, spec_of
from vrha.core.ownership.commands import Send
from vrha.core.ownership.timing import Timing
from vrha.core.ownership.voter import Voter
from vrha.fencing.clock import clock_ms
from vrha.fencing.endpoint import Endpoint
from vrha.fencing.keys import Keys
from vrha.linux.node import NodeKernel
from vrha.model.ownership import Electorate, Grant, Renew, StandIn, instance_key

NODE, LEADER, OTHERS = "n1", "o1", ("v2", "v3")
VOTERS = (NODE, *OTHERS)
ADDRESSES = {name: f"127.0.0.1:{7450 + i}" for i, name in enumerate((NODE, LEADER, *OTHERS))}
KEYS, STATE = Path("/etc/vrha/keys"), Path("/var/lib/vrha-agent")
WANTS_STAND_IN = Path("/var/lib/wants-stand-in")
BRIDGES = ("br-a", "br-b", "br-up")
TARGET = "203.0.113.1"
ROUTER = spec_of()


def build() -> None:
    """One router that serves `client`; it must be granted for that."""
    for bridge in BRIDGES:
        subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
        subprocess.run(["ip", "link", "set", bridge, "up"], check=True)
    machine("gw", "br-up", f"{TARGET}/24")
    machine("client", "br-a", "10.1.1.50/24", via="10.1.1.1")
    with contextlib.closing(NodeKernel(STATE, governed=True)) as kernel:
        kernel.build(ROUTER)
        kernel.unmute(ROUTER.ref)


def remove() -> None:
    """The router, with its processes."""
    with contextlib.closing(NodeKernel(STATE, governed=True)) as kernel:
        kernel.destroy(ROUTER.ref)


def serve() -> None:
    """Until it is killed."""
    ends = {
        name: Endpoint(name, ADDRESSES[name], {NODE: ADDRESSES[NODE]}, Keys(KEYS / name))
        for name in (LEADER, *OTHERS)
    }
    timing = Timing()
    # They never stopped since the machine began: it is the node that is rebooted, not its zone.
    voters = {name: Voter(name, timing, clock_ms() - timing.quiet_ms) for name in OTHERS}
    rights = ((instance_key(ROUTER.ref), ROUTER.epoch),)
    electorate = Electorate(1, tuple(sorted(VOTERS)))
    while True:
        ready, _, _ = select.select(list(ends.values()), [], [])
        for end in ready:
            for _, message in end.receive():
                if not isinstance(message, Renew):
                    continue
                if end.name != LEADER:
                    for command in voters[end.name].receive(message, clock_ms()):
                        assert isinstance(command, Send)
                        end.send(command.to, command.message)
                    continue
                number = time.monotonic_ns() // 1000
                grant = Grant(
                    LEADER, 1, number, NODE, message.incarnation, message.seq, electorate, rights
                )
                end.send(NODE, grant)
                if WANTS_STAND_IN.exists():
                    end.send(NODE, StandIn(LEADER, 1, NODE, message.incarnation, 1.0))


if __name__ == "__main__":
    {"build": build, "remove": remove, "serve": serve}[sys.argv[1]]()
