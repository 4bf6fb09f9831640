"""Two namespaces joined by a veth pair, faults between them, and a plain UDP echo."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import vrha
from vrha.model.probing import Gap, Result, StreamResult
from vrha.probe.kernel import Namespace

MS = 1_000_000
ROOT = Path(vrha.__file__).resolve().parent.parent
A4, B4, B4_SECOND, NOBODY4 = "10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.99"
A6, B6, B6_SECOND = "fd09::1", "fd09::2", "fd09::3"


@dataclass(frozen=True)
class Pair:
    """Two namespaces, joined by the veth pair `va`, `vb`; the values are paths of netns files."""

    a: str
    b: str

    def call(self, path: str, *argv: str, stdin: str = "") -> None:
        subprocess.run(
            ["nsenter", f"--net={path}", *argv], check=True, input=stdin, text=True, timeout=20
        )


def wait_until(
    condition: Callable[[], bool], what: str, limit_s: float = 20.0, pause_s: float = 0.005
) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {limit_s} s: {what}"
        time.sleep(pause_s)


@contextmanager
def namespace() -> Iterator[str]:
    """A network namespace that lives as long as its sleeping process, and never longer than us."""
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "-n", "sleep", "infinity"]
    with subprocess.Popen(argv) as sleeper:
        path = f"/proc/{sleeper.pid}/ns/net"
        own = os.stat("/proc/self/ns/net").st_ino
        try:
            wait_until(lambda: os.stat(path).st_ino != own, "a new namespace")
            yield path
        finally:
            sleeper.kill()


@contextmanager
def wired() -> Iterator[Pair]:
    """A pair with addresses of both families, all ports up, IPv6 neighbours found."""
    with namespace() as a, namespace() as b:
        pair = Pair(a, b)
        far = b.split("/")[2]
        pair.call(a, "ip", "link", "add", "va", "type", "veth", "peer", "vb", "netns", far)
        for path, port, addresses in (
            (a, "va", (f"{A4}/24", f"{A6}/64")),
            (b, "vb", (f"{B4}/24", f"{B4_SECOND}/24", f"{B6}/64", f"{B6_SECOND}/64")),
        ):
            for address in addresses:
                nodad = ["nodad"] if ":" in address else []
                pair.call(path, "ip", "address", "add", address, "dev", port, *nodad)
            pair.call(path, "ip", "link", "set", "lo", "up")
            pair.call(path, "ip", "link", "set", port, "up")
        # Right after link up the first neighbour solicitation goes unheard; the next is 1 s later.
        wait_until(lambda: answers(a, B6) and answers(b, A6), "IPv6 neighbours to be found")
        yield pair


def answers(path: str, address: str) -> bool:
    argv = ["nsenter", f"--net={path}", "ping", "-q", "-c", "1", "-W", "2", address]
    return subprocess.run(argv, stdout=subprocess.DEVNULL, timeout=10).returncode == 0


def drop(pair: Pair, path: str, rule: str) -> None:
    pair.call(
        path,
        "nft",
        "-f",
        "-",
        stdin="table inet fault { chain in { type filter hook input priority -300; "
        f"{rule} drop; }}; }}",
    )


def undrop(pair: Pair, path: str) -> None:
    pair.call(path, "nft", "delete", "table", "inet", "fault")


def counted(pair: Pair) -> int:
    """Packets that a rule of `drop` with a counter has seen at the far end."""
    argv = ["nsenter", f"--net={pair.b}", "nft", "list", "table", "inet", "fault"]
    out = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10).stdout
    return int(out.split("counter packets ")[1].split()[0])


@dataclass
class Fault:
    """When a fault began and ended, each as the instants before and after the kernel took it."""

    began: tuple[int, int] = (0, 0)
    ended: tuple[int, int] = (0, 0)

    @property
    def length_ms(self) -> float:
        """For how long it lasted at least."""
        return (self.ended[0] - self.began[1]) / MS

    def explains(self, gap: Gap, one: StreamResult, result: Result) -> None:
        """The gap began with the fault and ended with it, within one interval and the ticks that
        the machine missed."""
        slack = (one.late_ticks + 2) * one.stream.interval_ms
        t0 = result.t0_monotonic_ns
        earliest, latest = ((at - t0) / MS for at in self.began)
        assert earliest - slack <= gap.start_ms <= latest + slack
        earliest, latest = ((at - t0) / MS for at in self.ended)
        assert earliest - slack <= gap.start_ms + gap.length_ms <= latest + slack


def now_and_after(call: Callable[[], None]) -> tuple[int, int]:
    before = time.monotonic_ns()
    call()
    return before, time.monotonic_ns()


def packets(path: str) -> int:
    """UDP datagrams delivered in a namespace."""
    return udp_counter(path, "InDatagrams")


def udp_counter(path: str, name: str) -> int:
    """One of the UDP counters of a namespace, see /proc/net/snmp."""
    out = subprocess.run(
        ["nsenter", f"--net={path}", "cat", "/proc/net/snmp"],
        check=True,
        capture_output=True,
        text=True,
        timeout=10,
    ).stdout
    udp = [line.split() for line in out.splitlines() if line.startswith("Udp:")]
    return int(udp[1][udp[0].index(name)])


@contextmanager
def plain_echo(
    path: str, copies: int, arrivals: list[int], junk: bytes = b"", ports: list[int] | None = None
) -> Iterator[None]:
    """A UDP echo as of RFC 862 that answers `copies` times and notes the kernel's arrival times,
    in `ports` also where each came from.

    With `junk` it answers each probe by that instead."""
    stop = threading.Event()
    with Namespace(path) as entered:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    entered.close()
    sock.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
    sock.bind(("0.0.0.0", 7))
    sock.settimeout(0.05)

    def serve() -> None:
        while not stop.is_set():
            try:
                body, control, _, peer = sock.recvmsg(256, 256)
            except TimeoutError:
                continue
            seconds, nanos = (int.from_bytes(control[0][2][i : i + 8], "little") for i in (0, 8))
            arrivals.append(seconds * 10**9 + nanos)
            if ports is not None:
                ports.append(peer[1])
            for _ in range(copies):
                sock.sendto(junk or body, peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sock.close()
