"""Many firewall rules: how long they take to load, and what they cost each packet.

Loading: `vrha` renders and loads as an agent does, its peer is the same tool fed with the same text
that was rendered before the clock started. `fresh` fills an empty namespace, `replace` swaps
the rules of a live one in one transaction. Rows with `CPU` are the CPU time of the same loads,
which a busy machine changes less than the clock.

Packets: routers that differ only in their rules stand side by side, and one sender gives each of
them a slice of packets in turn, so whatever else the machine does, it does to all of them. What
counts is the sender's CPU time (see `packets`), of the slices of one run the lower quartile, and of
each run the ratio to its peer. The peer has no rules, or, where packets come in, the one rule that
lets them. Three kinds of packets each way:

`established`: of a flow that was answered; `unanswered`: of a known flow that is still new, so all
rules judge every packet; `new`: each opens a flow of its own.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import resource
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from tools.benchmarks import options, report
from tools.benchmarks.ownnode import inside, machine, node_kernel, own_node, sh
from tools.benchmarks.packets import Frames, Udp
from tools.benchmarks.rulespecs import (
    INGRESS_PORT,
    Shape,
    admitted,
    client,
    far,
    gateway,
    public,
    spec_of,
)
from vrha.core.names import namespace_name
from vrha.errors import PreconditionError
from vrha.linux import netns, rules
from vrha.linux.node import NodeKernel
from vrha.model.spec import Backend, InstanceSpec
from vrha.render.iptables import iptables_texts
from vrha.render.nft import nft_text

_SLICE = 128
"""Packets timed together: few enough that most slices see no other process on the core."""
_ROUNDS = 40
"""Slices of each router in one run."""
_MAC = {"client": bytes.fromhex("020000000011"), "outside": bytes.fromhex("020000000022")}
_ESTABLISHED, _UNANSWERED, _NEW = "established", "unanswered", "new"
_OUT, _IN = "out", "in"
_DROP_ALL = "{ type filter hook prerouting priority -400; policy drop; }"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rules", type=int, default=10_000)
    parser.add_argument("--runs", type=options.count, default=7)


def run(arguments: argparse.Namespace) -> report.Result:
    """Raises PreconditionError when the node cannot be made or packets go astray."""
    rows: dict[str, list[dict[str, Any]]] = {}
    with own_node(("br-a", "br-up")) as state:
        for number in range(1, arguments.runs + 1):
            for name, row in _loads(arguments.rules):
                rows.setdefault(name, []).append(row)
            report.progress(f"run {number} of {arguments.runs}: loaded")
        for version in (4, 6):
            with node_kernel(state) as kernel:
                for name, row in _packets(kernel, version, arguments.rules, arguments.runs):
                    rows.setdefault(name, []).append(row)
    params = {
        "rules": arguments.rules,
        "runs": arguments.runs,
        "slices_per_run": _ROUNDS,
        "packets_per_slice": _SLICE,
    }
    return report.result(
        "rules", params, [{"row": name, "runs": runs} for name, runs in rows.items()]
    )


def table(result: report.Result) -> str:
    """One line per row: median and quartiles of time and of the ratio to the row's peer."""
    lines = []
    for row in result["rows"]:
        unit = "us" if "us_per_packet" in row["runs"][0] else "ms"
        per = [r.get("us_per_packet", r["ms"]) for r in row["runs"]]
        ratios = [r["ratio"] for r in row["runs"] if "ratio" in r]
        lines.append([row["row"], unit, report.quartiles(per, 2), report.quartiles(ratios, 2)])
    header = ["row", "unit", "median (quartiles)", "ratio to peer (quartiles)"]
    return report.columns(header, lines)


# --- loading ---------------------------------------------------------------------------------


def _loads(count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    found = rules.find_tools()
    for backend in Backend:
        spec = spec_of(Shape.MIXED, count, backend, 4, 1)
        for fresh in (True, False):
            kind = f"load {backend} {'fresh' if fresh else 'replace'}"
            before = None if fresh else spec
            feeds = _feeds(found, spec, fresh)
            with _empty_namespace(found, before):
                plain = _times(lambda feeds=feeds: [_feed(*feed) for feed in feeds])
            with _empty_namespace(found, before):
                vrha = _times(lambda spec=spec, fresh=fresh: rules.load(found, spec, fresh))
            for what, peer, took in zip(("", ", CPU"), plain, vrha, strict=True):
                yield f"{kind}{what}: plain tool", {"ms": peer, "count": count}
                ratio = round(took / peer, 3)
                yield f"{kind}{what}: vrha", {"ms": took, "count": count, "ratio": ratio}


def _feeds(
    found: rules.RuleTools, spec: InstanceSpec, fresh: bool
) -> list[tuple[list[str], bytes]]:
    """What the plain tools are called with, and what they read."""
    if spec.router.backend is Backend.NFTABLES:
        return [([found.nft, "-f", "-"], nft_text(spec, fresh).encode())]
    text4, text6 = iptables_texts(spec)
    return [([found.restore4], text4.encode()), ([found.restore6], text6.encode())]


def _feed(argv: list[str], text: bytes) -> None:
    subprocess.run(argv, input=text, check=True, timeout=120, capture_output=True)


def _times(action: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds on the clock, and of CPU in this process and the programs it started."""
    cpu, begin = _cpu_s(), time.monotonic()
    action()
    clock = time.monotonic() - begin
    return round(clock * 1000, 3), round((_cpu_s() - cpu) * 1000, 3)


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@contextmanager
def _empty_namespace(found: rules.RuleTools, loaded: InstanceSpec | None) -> Iterator[None]:
    """The calling thread is in a namespace of its own, with these rules loaded already."""
    home = netns.current()
    inner = netns.create("bench-rules", home)
    try:
        with netns.entered(inner, home):
            if loaded is not None:
                rules.load(found, loaded, fresh=True)
            yield
    finally:
        netns.remove("bench-rules")
        os.close(inner)
        os.close(home)


# --- packets ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Variant:
    """One router. `ways` are the directions of its packets, `base` whether it is a peer there."""

    name: str
    spec: InstanceSpec
    ways: tuple[str, ...] = (_OUT, _IN)
    peer: str = ""
    bare: bool = False


def _variants(version: int, count: int) -> list[_Variant]:
    nft, ipt = Backend.NFTABLES, Backend.IPTABLES
    found = [
        _Variant("no table", spec_of(Shape.NONE, 0, nft, version, 1), bare=True),
        _Variant("nftables, no rules", spec_of(Shape.NONE, 0, nft, version, 2), (_OUT,)),
        _Variant("nftables, one rule", spec_of(Shape.ONE, 0, nft, version, 3), (_IN,)),
    ]
    for number, shape in enumerate((Shape.EXACT, Shape.MIXED, Shape.SPREAD)):
        spec = spec_of(shape, count, nft, version, 4 + number)
        found.append(_Variant(f"nftables, {count} {shape}", spec, peer="nftables"))
    return [
        *found,
        _Variant("iptables, no rules", spec_of(Shape.NONE, 0, ipt, version, 7), (_OUT,)),
        _Variant("iptables, one rule", spec_of(Shape.ONE, 0, ipt, version, 8), (_IN,)),
        _Variant(
            f"iptables, {count} mixed",
            spec_of(Shape.MIXED, count, ipt, version, 9),
            peer="iptables",
        ),
    ]


def _packets(
    kernel: NodeKernel, version: int, count: int, runs: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    variants = _variants(version, count)
    cpus = os.sched_getaffinity(0)
    with ExitStack() as stack:
        sockets = {name: stack.enter_context(_machine(name)) for name in _MAC}
        for variant in variants:
            _set_up(kernel, variant, version)
        os.sched_setaffinity(0, {max(cpus)})
        stack.callback(os.sched_setaffinity, 0, cpus)
        lanes = {
            case: [
                _lane(sockets, variant, case) for variant in variants if case.way in variant.ways
            ]
            for case in itertools.starmap(
                _Case, itertools.product((version,), (_OUT, _IN), (_ESTABLISHED, _UNANSWERED, _NEW))
            )
        }
        for number in range(1, runs + 1):
            for case, side_by_side in lanes.items():
                yield from _round(kernel, sockets, side_by_side, case)
            report.progress(f"run {number} of {runs}: packets of IPv{version}")


@contextmanager
def _machine(name: str) -> Iterator[socket.socket]:
    """A machine that drops what it gets, and a socket for frames on its port."""
    machine(name, "br-a" if name == "client" else "br-up")
    try:
        sh(f"ip -n {name} link set e0 address {_MAC[name].hex(':')}")
        with inside(name):
            sh("nft add table inet deaf")
            sh(f"nft add chain inet deaf ears {_DROP_ALL}")
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        with sock:
            with inside(name):
                sock.bind(("e0", 0))
            yield sock
    finally:
        sh(f"ip link delete p-{name}")
        sh(f"ip netns delete {name}")


def _set_up(kernel: NodeKernel, variant: _Variant, version: int) -> None:
    """Build the router and let it speak; nobody will ever ask it for a MAC address."""
    kernel.build(variant.spec)
    with inside(namespace_name(variant.spec.ref)):
        if variant.bare:
            sh("nft flush ruleset")
        for port, address, name in (
            ("u0", gateway(version), "outside"),
            ("n0", client(version), "client"),
            ("n0", client(version, 1), "client"),
        ):
            mac = _MAC[name].hex(":")
            sh(f"ip neigh replace {address} lladdr {mac} dev {port} nud permanent")
    kernel.unmute(variant.spec.ref)
    kernel.announce(variant.spec.ref, delays_ms=(0,))


@dataclass(frozen=True)
class _Case:
    """Packets of one family, one way, of one kind of flow."""

    version: int
    way: str
    flow: str

    @property
    def sender(self) -> str:
        return "client" if self.way == _OUT else "outside"

    def packet(self, variant: _Variant, number: int) -> Udp:
        """The packet of flow `number`."""
        version, port = self.version, 1024 + number % 60_000
        mac = _port_mac(variant.spec, "n0" if self.way == _OUT else "u0")
        if self.way == _OUT:
            return Udp(mac, _MAC["client"], client(version), far(version), port, 9)
        target = client(version, 1) if variant.bare else admitted(version)
        return Udp(mac, _MAC["outside"], far(version), target, port, INGRESS_PORT)

    def answer(self, variant: _Variant, number: int) -> Udp:
        """What the other end answers to it."""
        asked = self.packet(variant, number)
        version = self.version
        if self.way == _OUT:
            translated = version == 4 and not variant.bare
            back = public(4) if translated else client(version)
            mac = _port_mac(variant.spec, "u0")
            return Udp(mac, _MAC["outside"], far(version), back, 9, asked.source_port)
        mac = _port_mac(variant.spec, "n0")
        source = client(version, 1)
        return Udp(mac, _MAC["client"], source, far(version), INGRESS_PORT, asked.source_port)


def _port_mac(spec: InstanceSpec, name: str) -> bytes:
    mac = next(port.mac for port in spec.ports if port.name == name)
    return bytes.fromhex(mac.replace(":", ""))


@dataclass(frozen=True)
class _Lane:
    """One router and the packets of one case that are meant for it, slice by slice."""

    variant: _Variant
    slices: list[Frames]


def _lane(sockets: dict[str, socket.socket], variant: _Variant, case: _Case) -> _Lane:
    sock = sockets[case.sender]
    if case.flow != _NEW:
        return _Lane(variant, [Frames(sock, [case.packet(variant, 0).frame()] * _SLICE)] * _ROUNDS)
    flows = [range(n * _SLICE, (n + 1) * _SLICE) for n in range(_ROUNDS)]
    return _Lane(
        variant,
        [Frames(sock, [case.packet(variant, 1 + flow).frame() for flow in part]) for part in flows],
    )


def _round(
    kernel: NodeKernel, sockets: dict[str, socket.socket], lanes: list[_Lane], case: _Case
) -> Iterator[tuple[str, dict[str, Any]]]:
    """One run: slices of each router in turn. The peers of the same run make the ratios."""
    for lane in lanes:
        _flush(lane.variant)
        if case.flow == _ESTABLISHED:
            _exchange(sockets, lane.variant, case)
    before = [_came_out(kernel, lane.variant, case) for lane in lanes]
    taken: list[list[float]] = [[] for _ in lanes]
    order = list(range(len(lanes)))
    for number in range(_ROUNDS):
        # What went before is in the caches: nobody shall always follow the same one.
        random.Random(number).shuffle(order)
        for place in order:
            taken[place].append(lanes[place].slices[number].send())
    peers: dict[str, float] = {}
    for lane, start, found in zip(lanes, before, taken, strict=True):
        variant = lane.variant
        passed = _came_out(kernel, variant, case) - start
        if passed < _ROUNDS * _SLICE:
            raise PreconditionError(
                "bench-lost", f"{case}: {variant.name} let only {passed} packets out"
            )
        us = statistics.quantiles(found, n=4)[0]
        ms = round(sum(found) * _SLICE / 1000, 3)
        row = {"ms": ms, "count": _ROUNDS * _SLICE, "us_per_packet": round(us, 4)}
        if variant.peer:
            row["ratio"] = round(us / peers[variant.peer], 4)
        else:
            peers[variant.name.partition(",")[0]] = us
        yield f"IPv{case.version} {case.way}, {case.flow}: {variant.name}", row


def _exchange(sockets: dict[str, socket.socket], variant: _Variant, case: _Case) -> None:
    there, back = ("client", "outside") if case.way == _OUT else ("outside", "client")
    sockets[there].send(case.packet(variant, 0).frame())
    sockets[back].send(case.answer(variant, 0).frame())


def _flush(variant: _Variant) -> None:
    with inside(namespace_name(variant.spec.ref)):
        sh("conntrack -F")


def _came_out(kernel: NodeKernel, variant: _Variant, case: _Case) -> int:
    port = "u0" if case.way == _OUT else "n0"
    return kernel.counters(variant.spec.ref)[port]["tx_packets"]
