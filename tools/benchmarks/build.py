"""Building one instance, against the floor: the same content by raw netlink, nft and dnsmasq.

The floor makes the same namespace, parameters, ports, addresses, routes, rules and dnsmasq from
messages and texts that were prepared before the clock starts, with no check, no journal and no
clean-up of its own; it ends when dnsmasq answers and all ports forward. `vrha-build` is what
an agent does from the bytes of the command to the bytes of its check-in: decode, build, self-test,
encode. `vrha-build-first` is the first one in the life of an agent.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import yaml

from tools.benchmarks import floor as floor_of
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
from vrha.model.messages import CheckIn, Command, StepReport
from vrha.model.spec import InstanceRef, InstanceSpec
from vrha.model.state import SelfTest, Upstream
from vrha.model.steps import Build
from vrha.render.digest import expected_digest

NODE = "bench"
FLOOR, BARE, VRHA, FIRST = "floor", "floor-without-dnsmasq", "vrha-build", "vrha-build-first"
_WARM_UP = 2


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


def _floor(state: Path, spec: InstanceSpec, with_dnsmasq: bool) -> dict[str, Any]:
    prepared = floor_of.prepare(state, spec)
    try:
        begin = time.monotonic()
        floor_of.make(prepared, with_dnsmasq)
        end = time.monotonic()
    finally:
        floor_of.destroy(prepared)
    return {"ms": round((end - begin) * 1000, 3)}
