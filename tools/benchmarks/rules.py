"""Many firewall rules: how long they take to load, and what they cost each packet.

Loading: `vrha` renders and loads as an agent does, its peer is the same tool fed with the same text
that was rendered before the clock started. `fresh` fills an empty namespace, `replace` swaps
the rules of a live one in one transaction.

Packets: one sender on one core pushes UDP packets from a tenant's machine through the router to
the outside; what is timed is the sender's loop, in which the kernel forwards each packet before it
takes the next. Of each measurement the lower quartile of its slices counts: those that no other
process disturbed. In `same-flow` conntrack knows the flow and it is still new (nobody answers), so
every packet is judged by all rules; in `new-flow` each packet opens a flow of its own as well.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import socket
import statistics
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from typing import Any

from tools.benchmarks import report
from tools.benchmarks.ownnode import inside, machine, node_kernel, own_node, sh
from vrha.core.instance import instance_spec
from vrha.errors import PreconditionError
from vrha.linux import netns, rules
from vrha.linux.names import namespace_name
from vrha.linux.node import NodeKernel
from vrha.model.spec import (
    Backend,
    Desired,
    Egress,
    Ingress,
    InstanceRef,
    InstanceSpec,
    Network,
    PortRange,
    Protocol,
    Router,
    Rule,
    StaticNat,
    Subnet,
    Uplink,
    Verdict,
)
from vrha.render.iptables import iptables_texts
from vrha.render.nft import nft_text

SAME, NEW = "same-flow", "new-flow"
_PUBLIC = 10
_GATEWAY, _CLIENT, _OUTSIDE = "10.1.1.1", "10.1.1.11", "203.0.113.1"
_BATCH = 64
_SLICE = 8 * _BATCH
"""Packets timed together: few enough that most slices see no other process on the core."""
_PACKETS = {SAME: 40 * _SLICE, NEW: 20 * _SLICE}
_SLOW_PACKETS = {SAME: 8 * _SLICE, NEW: 4 * _SLICE}
"""For linear rules, which take a hundred times as long."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rules", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)


def run(arguments: argparse.Namespace) -> report.Result:
    """Raises PreconditionError when the node cannot be made or packets go astray."""
    rows: dict[str, list[dict[str, Any]]] = {}
    with own_node(("br-a", "br-up")) as state:
        for number in range(1, arguments.runs + 1):
            for name, row in _loads(arguments.rules):
                rows.setdefault(name, []).append(row)
            report.progress(f"run {number} of {arguments.runs}: loaded")
        with node_kernel(state) as kernel:
            for name, row in _packets(kernel, arguments.rules, arguments.runs):
                rows.setdefault(name, []).append(row)
    params = {"rules": arguments.rules, "runs": arguments.runs, "packets": _PACKETS}
    return report.result(
        "rules", params, [{"row": name, "runs": runs} for name, runs in rows.items()]
    )


def table(result: report.Result) -> str:
    """One line per row: medians of time and of the ratio to the row's peer."""
    lines = []
    for row in result["rows"]:
        per = [r.get("us_per_packet", r["ms"]) for r in row["runs"]]
        unit = "us/packet" if "us_per_packet" in row["runs"][0] else "ms"
        ratios = [r["ratio"] for r in row["runs"] if "ratio" in r]
        ratio = f"{statistics.median(ratios):.2f}" if ratios else "-"
        lines.append([row["row"], unit, report.spread(per, 2), ratio])
    return report.columns(["row", "unit", "median / worst", "ratio to peer"], lines)


def spec_with(count: int, backend: Backend, generation: int) -> InstanceSpec:
    """A router whose ingress and egress rules are `count` together, half each.

    A quarter of them each: ingress ports from anywhere, ingress ports from a prefix, refused
    egress ports to a prefix, refused egress to single addresses.
    """
    public = [ip_address(f"203.0.113.{10 + n}") for n in range(_PUBLIC)]
    quarter = count // 4
    ingress: dict[Any, list[Rule]] = {address: [] for address in public}
    for n in range(quarter):
        port = PortRange(1000 + n // _PUBLIC, 1000 + n // _PUBLIC)
        remote = ip_network((int(IPv4Address("100.64.0.0")) + n * 16, 28))
        ingress[public[n % _PUBLIC]] += [
            Rule(Protocol.TCP, port),
            Rule(Protocol.UDP, PortRange(20_000 + n, 20_000 + n), remote),
        ]
    refused = []
    for n in range((count - 2 * quarter + 1) // 2):
        one = ip_network((int(IPv4Address("198.18.0.0")) + n, 32))
        prefix = ip_network((int(IPv4Address("100.128.0.0")) + n * 16, 28))
        refused += [Rule(remote=one), Rule(Protocol.TCP, PortRange(25, 25), prefix)]
    network = Network(
        "red",
        "br-a",
        (Subnet(ip_network("10.1.1.0/24"), ip_address(_GATEWAY)),),
        egress=Egress(Verdict.ALLOW, tuple(refused[: count - 2 * quarter])),
    )
    router = Router(
        "edge",
        ("red",),
        Uplink(
            "br-up",
            tuple(ip_interface(f"{address}/24") for address in public),
            (ip_address(_OUTSIDE),),
        ),
        source_nat=(public[0],),
        static_nat=tuple(
            StaticNat(address, ip_address(f"10.1.1.{100 + n}"))
            for n, address in enumerate(public[1:])
        ),
        ingress=tuple(Ingress(a, tuple(r)) for a, r in ingress.items() if r),
        backend=backend,
    )
    zone = Desired((network,), (router,))
    return instance_spec(zone, router, InstanceRef("edge", generation), 1)


# --- loading ---------------------------------------------------------------------------------


def _loads(count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    found = rules.find_tools()
    for backend in Backend:
        spec = spec_with(count, backend, 1)
        for fresh in (True, False):
            kind = f"load {backend} {'fresh' if fresh else 'replace'}"
            plain = _plain_load(found, spec, fresh)
            with _empty_namespace(found, None if fresh else spec):
                begin = time.monotonic()
                rules.load(found, spec, fresh)
                took = _ms(begin)
            yield f"{kind}: plain tool", {"ms": plain, "count": count}
            yield f"{kind}: vrha", {"ms": took, "count": count, "ratio": round(took / plain, 3)}


def _plain_load(found: rules.RuleTools, spec: InstanceSpec, fresh: bool) -> float:
    if spec.router.backend is Backend.NFTABLES:
        feeds = [([found.nft, "-f", "-"], nft_text(spec, fresh))]
    else:
        text4, text6 = iptables_texts(spec)
        feeds = [([found.restore4], text4), ([found.restore6], text6)]
    given = [(argv, text.encode()) for argv, text in feeds]
    with _empty_namespace(found, None if fresh else spec):
        begin = time.monotonic()
        for argv, text in given:
            subprocess.run(argv, input=text, check=True, timeout=120, capture_output=True)
        return _ms(begin)


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


def _ms(begin: float) -> float:
    return round((time.monotonic() - begin) * 1000, 3)


# --- packets ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Variant:
    name: str
    spec: InstanceSpec
    peer: str
    packets: dict[str, int]
    bare: bool = False


def _packets(kernel: NodeKernel, count: int, runs: int) -> Iterator[tuple[str, dict[str, Any]]]:
    machine("client", "br-a", f"{_CLIENT}/24")
    machine("outside", "br-up", f"{_OUTSIDE}/24")
    many, nft, ipt = f"{count} rules", Backend.NFTABLES, Backend.IPTABLES
    variants = [
        _Variant("no ruleset at all", spec_with(0, nft, 1), "", _PACKETS, bare=True),
        _Variant("nftables, no rules", spec_with(0, nft, 2), "", _PACKETS),
        _Variant(f"nftables, {many}", spec_with(count, nft, 3), "nftables, no rules", _PACKETS),
        _Variant("iptables, no rules", spec_with(0, ipt, 4), "", _PACKETS),
        _Variant(
            f"iptables, {many}", spec_with(count, ipt, 5), "iptables, no rules", _SLOW_PACKETS
        ),
    ]
    for variant in variants:
        kernel.build(variant.spec)
        if variant.bare:
            with inside(namespace_name(variant.spec.ref)):
                sh("nft flush ruleset")
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cpus)})
    try:
        for number in range(runs):
            for case in (SAME, NEW):
                yield from _round(kernel, variants, case, number)
            report.progress(f"run {number + 1} of {runs}: packets")
    finally:
        os.sched_setaffinity(0, cpus)


def _round(
    kernel: NodeKernel, variants: list[_Variant], case: str, number: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """One measurement of each variant; the peers of the same round make the ratios."""
    taken: dict[str, float] = {}
    for variant in variants:
        total = variant.packets[case]
        with _speaking(kernel, variant.spec.ref):
            slices = _send(kernel, variant.spec, case, total, number)
        us = statistics.quantiles(slices, n=4)[0] * 1e6 / _SLICE
        taken[variant.name] = us
        row = {"ms": round(sum(slices) * 1000, 3), "count": total, "us_per_packet": round(us, 3)}
        if variant.peer:
            row["ratio"] = round(us / taken[variant.peer], 3)
        yield f"packet {case}: {variant.name}", row


@contextmanager
def _speaking(kernel: NodeKernel, ref: InstanceRef) -> Iterator[None]:
    kernel.unmute(ref)
    kernel.announce(ref, delays_ms=(0,))
    try:
        yield
    finally:
        kernel.mute(ref)


def _send(
    kernel: NodeKernel, spec: InstanceSpec, case: str, total: int, number: int
) -> list[float]:
    """Seconds of each slice of `total` packets; raises when some did not come out."""
    port = next(p for p in spec.ports if not p.is_uplink)
    mac = bytes.fromhex(port.mac.replace(":", ""))
    target = IPv4Address(f"192.0.2.{number % 250 + 1}")
    count = total if case == NEW else 1
    frames = [_frame(mac, target, 1024 + n) for n in range(count)]
    with inside("client"):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.bind(("e0", 0))
    with sock:
        _warm_up(kernel, spec, sock, _frame(mac, target, 1023))
        batches = _Batches(sock, frames, total)
        before = _sent(kernel, spec)
        slices = [batches.send_slice() for _ in range(total // _SLICE)]
    passed = _sent(kernel, spec) - before
    if passed < total:
        raise PreconditionError("bench-lost", f"{passed} of {total} packets came out of {spec.ref}")
    return slices


def _sent(kernel: NodeKernel, spec: InstanceSpec) -> int:
    return kernel.counters(spec.ref)["u0"]["tx_packets"]


def _warm_up(kernel: NodeKernel, spec: InstanceSpec, sock: socket.socket, frame: bytes) -> None:
    """Send until the router has found its gateway's MAC and packets come out."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        before = _sent(kernel, spec)
        for _ in range(50):
            sock.send(frame)
        if _sent(kernel, spec) - before >= 50:
            return
        time.sleep(0.01)
    raise PreconditionError("bench-lost", f"{spec.ref} forwards nothing")


def _frame(mac: bytes, target: IPv4Address, source_port: int) -> bytes:
    """An Ethernet frame with a UDP packet of 18 bytes of payload, without UDP checksum."""
    payload = bytes(18)
    udp = struct.pack("!HHHH", source_port, 9, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
    head += IPv4Address(_CLIENT).packed + target.packed
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)
    head = head[:10] + checksum + head[12:]
    return mac + b"\x02\0\0\0\0\x77" + b"\x08\0" + head + udp


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _MsgHdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_IoVec)),
        ("iov_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _MMsgHdr(ctypes.Structure):
    _fields_ = (("header", _MsgHdr), ("length", ctypes.c_uint))


class _Batches:
    """Frames in the form of sendmmsg(2), so that Python's own time per packet is negligible."""

    def __init__(self, sock: socket.socket, frames: list[bytes], total: int) -> None:
        self._fd = sock.fileno()
        self._vectors = (_IoVec * len(frames))(*[_IoVec(f, len(f)) for f in frames])
        self._messages = (_MMsgHdr * total)()
        for message, index in zip(
            self._messages, itertools.cycle(range(len(frames))), strict=False
        ):
            message.header.iov = ctypes.pointer(self._vectors[index])
            message.header.iov_length = 1
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._next = ctypes.addressof(self._messages)

    def send_slice(self) -> float:
        """Send the next slice; the seconds that it took. Raises OSError."""
        end = self._next + _SLICE * ctypes.sizeof(_MMsgHdr)
        begin = time.monotonic()
        while self._next < end:
            sent = self._libc.sendmmsg(self._fd, ctypes.c_void_p(self._next), _BATCH, 0)
            if sent <= 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            self._next += sent * ctypes.sizeof(_MMsgHdr)
        return time.monotonic() - begin
