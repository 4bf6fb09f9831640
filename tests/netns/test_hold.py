"""Holding packets: nothing is lost, order is kept, and no death of the agent leaves a port deaf."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.conftest import sh
from tests.netns.nodekit import Machine, machine, until
from vrha.errors import StepError
from vrha.linux import processes, rtnetlink
from vrha.linux.hold import Hold
from vrha.linux.netlink import Netlink

pytestmark = pytest.mark.root

LONG_S = 60.0
"""A limit that no test reaches."""
AGENT = """
import sys
from vrha.linux import rtnetlink
from vrha.linux.hold import Hold
hold = Hold(rtnetlink.open_route(), sys.argv[2:])
hold.engage(float(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def quiet_machine(name: str, address: str) -> Machine:
    """Without IPv6 here and there, whose own frames would push out what a queue still holds."""
    quiet = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"
    sh(quiet)
    made = machine(name, "br-a", address)
    made.run(*quiet.split())
    return made


@pytest.fixture
def receiver(node: None) -> Machine:
    return quiet_machine("in", "10.1.1.1/24")


@pytest.fixture
def port(receiver: Machine) -> str:
    """The host-side end of the receiver's port."""
    with rtnetlink.open_route() as netlink:
        (found,) = [link.name for link in rtnetlink.links(netlink) if link.kind == "veth"]
    return found


@pytest.fixture
def route(node: None) -> Iterator[Netlink]:
    with rtnetlink.open_route() as opened:
        yield opened


@pytest.fixture
def sender(receiver: Machine) -> Machine:
    made = quiet_machine("out", "10.1.1.2/24")
    assert made.pings("10.1.1.1")
    return made


def numbers(sock: socket.socket, count: int, timeout: float = 3) -> list[int]:
    """The numbers in the next datagrams, at most `count`."""
    sock.settimeout(timeout)
    found: list[int] = []
    while len(found) < count:
        try:
            found.append(int(sock.recv(2048)[:8]))
        except TimeoutError:
            break
    return found


def send(sock: socket.socket, begin: int, end: int) -> None:
    for number in range(begin, end):
        sock.sendto(b"%08d" % number + bytes(number % 1400), ("10.1.1.1", 5000))


@pytest.fixture
def stream(receiver: Machine, sender: Machine) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A UDP sender and its receiver."""
    with (
        receiver.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        sender.socket(socket.AF_INET, socket.SOCK_DGRAM) as there,
    ):
        here.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        there.setsockopt(socket.SOL_SOCKET, 32, 32 << 20)  # SO_SNDBUFFORCE
        here.bind(("10.1.1.1", 5000))
        yield there, here


Stream = tuple[socket.socket, socket.socket]


def test_what_is_held_arrives_complete_and_in_order(
    route: Netlink, port: str, stream: Stream
) -> None:
    there, here = stream
    hold = Hold(route, [port])
    assert Hold.available() == ""
    for _ in range(2):
        hold.engage(LONG_S)
        send(there, 0, 1000)
        assert numbers(here, 1, timeout=0.3) == []
        # Nothing follows the held packets that could push them out.
        hold.release()
        assert numbers(here, 1000) == list(range(1000))
        send(there, 1000, 1100)
        assert numbers(here, 100) == list(range(1000, 1100))
        hold.release()
    hold.close()
    hold.close()
    hold.release()


def test_a_large_segment_is_held_too(
    route: Netlink, port: str, receiver: Machine, sender: Machine
) -> None:
    """TCP hands a veth packets far beyond its MTU."""
    with receiver.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.bind(("10.1.1.1", 5001))
        listening.listen()
        client = sender.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.connect(("10.1.1.1", 5001))
        served, _ = listening.accept()
        with client, served:
            hold = Hold(route, [port])
            hold.engage(LONG_S)
            client.setblocking(False)
            sent = client.send(bytes(1 << 20))
            served.settimeout(0.3)
            with pytest.raises(TimeoutError):
                served.recv(1)
            hold.release()
            served.settimeout(3)
            got = 0
            while got < sent:
                got += len(served.recv(1 << 20))
            hold.close()


def test_the_limit_releases_by_itself(route: Netlink, port: str, stream: Stream) -> None:
    there, here = stream
    hold = Hold(route, [port])
    begin = time.monotonic()
    hold.engage(0.2)
    armed = time.monotonic()
    send(there, 0, 100)
    assert numbers(here, 1, timeout=5) == [0]
    assert time.monotonic() - begin > 0.1
    assert time.monotonic() - armed < 2
    assert numbers(here, 99) == list(range(1, 100))
    hold.release()
    hold.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("whom", ["process", "group"])
def test_an_agent_that_dies_or_stops_leaves_nothing_held(
    route: Netlink, port: str, stream: Stream, how: signal.Signals, whom: str
) -> None:
    there, here = stream
    limit_s = 0.5 if how is signal.SIGSTOP else LONG_S
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(limit_s), port],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert agent.stdin is not None
    assert agent.stdout is not None
    try:
        assert agent.stdout.readline() == b"held\n"
        (os.killpg if whom == "group" else os.kill)(agent.pid, how)
        begin = time.monotonic()
        send(there, 0, 50)
        assert numbers(here, 50, timeout=5) == list(range(50))
        assert time.monotonic() - begin < 3
        assert until(lambda: not guards_of(port)), "the guard hangs around"
    finally:
        agent.kill()
        agent.wait()
        agent.stdin.close()
        agent.stdout.close()


def guards_of(port: str) -> list[int]:
    """Processes that guard a hold of this port."""
    begin = f"{socket.if_nametoindex(port)}:"
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        return [
            pid
            for pid in processes.inside(home)
            if begin in Path(f"/proc/{pid}/cmdline").read_text() and pid != os.getpid()
        ]
    finally:
        os.close(home)


def test_a_port_that_is_missing_or_goes_away(route: Netlink, port: str, receiver: Machine) -> None:
    with pytest.raises(StepError, match="no port vrh-none") as refused:
        Hold(route, ["vrh-none"])
    assert refused.value.code == "hold-failed"
    hold = Hold(route, [port])
    hold.engage(LONG_S)
    sh(f"ip link del {port}")
    hold.release()
    hold.close()
    with pytest.raises(StepError) as refused:
        hold.engage(LONG_S)
    assert refused.value.code == "hold-failed"


def test_a_release_is_quick(route: Netlink, port: str, stream: Stream) -> None:
    """No process is started or waited for in the critical millisecond."""
    hold = Hold(route, [port])
    taken = []
    for _ in range(10):
        hold.engage(LONG_S)
        begin = time.monotonic()
        hold.release()
        taken.append(time.monotonic() - begin)
    hold.close()
    assert sorted(taken)[5] < 0.005
