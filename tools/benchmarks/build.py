"""Building one instance, against the floor: the same content by raw netlink, nft and dnsmasq.

The floor makes the same namespace, parameters, ports, addresses, routes, rules and dnsmasq from
messages and texts that were prepared before the clock starts, with no check, no journal and no
clean-up of its own; it ends when dnsmasq answers and all ports forward. `vrha-build` is what
an agent does from the bytes of the command to the bytes of its check-in: decode, build, self-test,
encode. `vrha-build-first` is the first one in the life of an agent.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import statistics
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools.benchmarks import options, report
from tools.benchmarks.ownnode import machine, node_kernel, own_node
from vrha import codec
from vrha.agent.epochs import Epochs
from vrha.agent.executor import Executor, Hands
from vrha.agent.warm import warm_up
from vrha.config import desired
from vrha.core.instance import instance_spec
from vrha.errors import PreconditionError
from vrha.lab.scenario import load_scenario
from vrha.linux import netns, processes, rtnetlink, sysctls, tools
from vrha.linux.addresses import mac_bytes, port_addresses, routes
from vrha.linux.netlink import NLM_F_REQUEST, Message
from vrha.linux.rtnetlink import Link, VethEnd
from vrha.model.messages import CheckIn, Command, StepReport
from vrha.model.spec import InstanceRef, InstanceSpec
from vrha.model.state import SelfTest, Upstream
from vrha.model.steps import Build
from vrha.render.digest import expected_digest
from vrha.render.dnsmasq import dnsmasq_files
from vrha.render.nft import nft_text

NODE = "bench"
FLOOR, BARE, VRHA, FIRST = "floor", "floor-without-dnsmasq", "vrha-build", "vrha-build-first"
_WARM_UP = 2
_HEADER = struct.Struct("=IHHII")
_QUERY = b"fl\x01\0\0\x01\0\0\0\0\0\0\x05check\x04vrha\x07invalid\0\0\x01\0\x01"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scenario", default="seed-10x10")
    parser.add_argument("--runs", type=options.count, default=20)


def run(arguments: argparse.Namespace) -> report.Result:
    """Raises PreconditionError when the node cannot be made or an instance is not complete."""
    zone = desired.parse(
        yaml.safe_dump(dict(load_scenario(arguments.scenario).zone)), arguments.scenario
    )
    router = zone.routers[0]
    numbers = iter(range(1, 1_000_000))

    def next_spec() -> InstanceSpec:
        return instance_spec(zone, router, InstanceRef(router.name, next(numbers)), 1)

    bridges = sorted({port.bridge for port in next_spec().ports})
    rows: dict[str, list[dict[str, Any]]] = {FIRST: [], FLOOR: [], BARE: [], VRHA: []}
    with own_node(bridges) as state, node_kernel(state) as kernel:
        if router.uplink is not None:
            lengths = {4: 24, 6: 64}
            gateways = [f"{g}/{lengths[g.version]}" for g in router.uplink.gateways]
            machine("upstream", router.uplink.bridge, *gateways)
        agent = Executor(NODE, Hands(kernel), Epochs(state / "epochs.json"))
        warm_up()
        rows[FIRST].append(_vrha(agent, next_spec()))
        for number in range(-_WARM_UP, arguments.runs):
            floor = _floor(state, next_spec(), with_dnsmasq=True)
            bare = _floor(state, next_spec(), with_dnsmasq=False)
            vrha = _vrha(agent, next_spec())
            if number < 0:
                continue
            vrha["ratio"] = round(vrha["ms"] / floor["ms"], 3)
            for name, row in ((FLOOR, floor), (BARE, bare), (VRHA, vrha)):
                rows[name].append(row)
            report.progress(
                f"run {number + 1} of {arguments.runs}: floor {floor['ms']:.1f} ms,"
                f" without dnsmasq {bare['ms']:.1f} ms, vrha {vrha['ms']:.1f} ms"
            )
    params = {"scenario": arguments.scenario, "runs": arguments.runs, "warm_up": _WARM_UP}
    return report.result(
        "build", params, [{"row": name, "runs": runs} for name, runs in rows.items()]
    )


def table(result: report.Result) -> str:
    """One line per row: median and worst milliseconds, and the median ratio to the floor."""
    medians = {
        row["row"]: statistics.median(r["ms"] for r in row["runs"]) for row in result["rows"]
    }
    lines = [
        [
            row["row"],
            str(len(row["runs"])),
            report.spread(r["ms"] for r in row["runs"]),
            f"{medians[row['row']] / medians[FLOOR]:.2f}",
        ]
        for row in result["rows"]
    ]
    return report.columns(["row", "runs", "ms median / worst", "ratio to floor"], lines)


def _vrha(agent: Executor, spec: InstanceSpec) -> dict[str, Any]:
    """From the bytes of a command to those of its check-in, as the agent's bus hands them over."""
    ref = spec.ref
    step = Build(NODE, spec)
    command = Command("bench", ref.router, spec.epoch, NODE, 1, 0, False, (step,), "token")
    body = codec.encode(command)
    begin = time.monotonic()
    received = codec.decode_message(body, len(body))
    assert isinstance(received, Command)
    messages = agent.execute(received, time.monotonic())
    said = [(message, codec.encode(message)) for message in messages]
    end = time.monotonic()
    proofs = [message for message, _ in said if isinstance(message, CheckIn)]
    reports = [message for message, _ in said if isinstance(message, StepReport)]
    if not proofs:
        raise PreconditionError("bench-incomplete", f"no check-in: {reports[0].detail}")
    _check(spec, proofs[0].self_test)
    agent.hands.kernel.destroy(ref)
    return {"ms": round((end - begin) * 1000, 3), "phases_ms": dict(reports[0].timings_ms)}


def _check(spec: InstanceSpec, proof: SelfTest) -> None:
    good = (
        not proof.not_forwarding
        and proof.rules == expected_digest(spec)
        and proof.dns_answered
        and proof.upstream is not Upstream.UNREACHABLE
    )
    if not good:
        raise PreconditionError("bench-incomplete", f"the instance is not complete: {proof}")


@dataclass
class _Prepared:
    """Everything of the floor that can be made before the clock starts."""

    spec: InstanceSpec
    name: str
    folder: Path
    rules: bytes
    nft: str
    dnsmasq: list[str]
    bridges: dict[str, Link]
    parameters: tuple[tuple[str, str], ...]


def _prepare(state: Path, spec: InstanceSpec) -> _Prepared:
    folder = state / f"floor-{spec.ref.generation}"
    folder.mkdir(mode=0o711)
    files = dnsmasq_files(spec, str(folder))
    for name, text in (
        (files.conf_name, files.conf),
        (files.hosts_name, files.hosts),
        (files.addn_hosts_name, files.addn_hosts),
    ):
        (folder / name).write_text(text)
    with rtnetlink.open_route() as route:
        found = {p.bridge: rtnetlink.link(route, p.bridge) for p in spec.ports}
    return _Prepared(
        spec,
        f"floor-{spec.ref.generation}",
        folder,
        nft_text(spec, fresh=True).encode(),
        tools.need("nft"),
        [tools.need("dnsmasq"), f"--conf-file={folder / files.conf_name}"],
        {name: link for name, link in found.items() if link is not None},
        (*sysctls.INSTANCE, *sysctls.CONNTRACK),
    )


def _floor(state: Path, spec: InstanceSpec, with_dnsmasq: bool) -> dict[str, Any]:
    prepared = _prepare(state, spec)
    home = netns.current()
    outer = _socket()
    try:
        begin = time.monotonic()
        inner = netns.create(prepared.name, home)
        with netns.entered(inner, home):
            _fill(prepared)
        _send(outer, _pairs(prepared, inner))
        with netns.entered(inner, home):
            _address(spec)
            _send(outer, [rtnetlink.set_up(f"fl-{p.name}") for p in spec.ports])
            if with_dnsmasq:
                subprocess.run(prepared.dnsmasq, check=True, timeout=10)
                _await_dns()
        _await_forwarding(spec)
        end = time.monotonic()
    finally:
        _destroy(prepared, home, outer)
    return {"ms": round((end - begin) * 1000, 3)}


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, rtnetlink.NETLINK_ROUTE)
    sock.settimeout(10)
    return sock


def _send(sock: socket.socket, messages: list[Message]) -> None:
    """One send; only the last message asks for an acknowledgement."""
    parts = []
    for number, message in enumerate(messages, 1):
        flags = message.flags | NLM_F_REQUEST | (4 if number == len(messages) else 0)
        length = 16 + len(message.body)
        parts.append(_HEADER.pack(length, message.kind, flags, number, 0) + message.body)
    sock.send(b"".join(parts))
    answer = sock.recv(65536)
    code = struct.unpack_from("=i", answer, 16)[0]
    if code:
        raise PreconditionError("bench-setup", f"netlink: {os.strerror(-code)}")


def _fill(prepared: _Prepared) -> None:
    with contextlib.closing(_socket()) as sock:
        _send(sock, [rtnetlink.set_up("lo")])
    subprocess.run([prepared.nft, "-f", "-"], input=prepared.rules, check=True, timeout=30)
    for name, value in prepared.parameters:
        fd = os.open(f"/proc/sys/net/{name}", os.O_WRONLY)
        os.write(fd, value.encode())
        os.close(fd)


def _pairs(prepared: _Prepared, inner: int) -> list[Message]:
    return [
        rtnetlink.new_veth(
            VethEnd(f"fl-{port.name}", bytes([0xFE, 0, 0, 0, 0, index])),
            VethEnd(port.name, mac_bytes(port)),
            inner,
            prepared.bridges[port.bridge].index,
            prepared.bridges[port.bridge].mtu,
            0x7F,
        )
        for index, port in enumerate(prepared.spec.ports)
    ]


def _address(spec: InstanceSpec) -> None:
    index = {port.name: socket.if_nametoindex(port.name) for port in spec.ports}
    messages = [rtnetlink.set_up(port.name) for port in spec.ports]
    messages += [
        rtnetlink.add_address(index[port.name], address)
        for port in spec.ports
        for address in port_addresses(port)
    ]
    messages += [rtnetlink.add_route(r.cidr, r.via, index[r.port], r.onlink) for r in routes(spec)]
    with contextlib.closing(_socket()) as sock:
        _send(sock, messages)


def _await_dns() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 53))
        sock.settimeout(2)
        sock.send(_QUERY)
        sock.recv(512)


def _await_forwarding(spec: InstanceSpec) -> None:
    with rtnetlink.open_route() as route:
        for port in spec.ports:
            while (link := rtnetlink.link(route, f"fl-{port.name}")) is not None:
                if link.port_state == rtnetlink.FORWARDING:
                    break


def _destroy(prepared: _Prepared, home: int, outer: socket.socket) -> None:
    with contextlib.suppress(PreconditionError):
        _send(outer, [rtnetlink.delete_group(0x7F)])
    outer.close()
    pid_file = prepared.folder / "dnsmasq.pid"
    if pid_file.exists():
        with netns.entered_named(prepared.name, home) as inner:
            processes.end([int(pid_file.read_text())], inner, grace_s=1.0)
    netns.remove(prepared.name)
    os.close(home)
    shutil.rmtree(prepared.folder)
