"""Many instances built, tested and destroyed by several threads of one agent."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from tests.netns.nodekit import inventory, machine, spec_of
from vrha.agent.epochs import Epochs
from vrha.agent.executor import Executor, Hands
from vrha.linux.node import NodeKernel
from vrha.model.messages import CheckIn, Command, Outcome, StepReport
from vrha.model.spec import InstanceRef, InstanceSpec
from vrha.model.state import Activity, ObservedInstance, Upstream
from vrha.model.steps import Build, Destroy, Step
from vrha.render.digest import expected_digest

pytestmark = pytest.mark.root

THREADS = 8
ROUTERS = 20


def routers(count: int = ROUTERS) -> list[InstanceSpec]:
    """Routers that have nothing in common but the bridges."""
    return [_router(number) for number in range(1, count + 1)]


def _router(number: int) -> InstanceSpec:
    spec = spec_of(number)
    ports = tuple(
        replace(port, addresses=(ip_interface(f"203.0.113.{number + 20}/24"),))
        if port.is_uplink
        else port
        for port in spec.ports
    )
    # Each has rules of its own: nobody's may be taken for another's.
    public = ip_address(f"203.0.113.{number + 20}")
    router = replace(
        spec.router,
        name=f"r{number}",
        source_nat=(public,),
        static_nat=(),
        ingress=(replace(spec.router.ingress[0], address=public),),
    )
    return replace(spec, ref=InstanceRef(f"r{number}", number), router=router, ports=ports)


def command(spec: InstanceSpec, step: Step) -> Command:
    return Command("run", spec.ref.router, spec.epoch, "n1", 1, 0, False, (step,), "token")


@contextmanager
def watched(kernel: NodeKernel) -> Iterator[list[tuple[ObservedInstance, ...]]]:
    """What a thread sees that looks again and again during the block."""
    seen: list[tuple[ObservedInstance, ...]] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.append(kernel.observe())

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield seen
        finally:
            stop.set()
            looking.result(30)


def test_twenty_routers_by_eight_threads_come_and_go_without_a_trace(
    kernel: NodeKernel, state_dir: Path
) -> None:
    machine("gw", "br-up", "203.0.113.1/24", "2001:db8::1/64")
    agent = Executor("n1", Hands(kernel), Epochs(state_dir / "epochs.json"))
    specs = routers()
    agent.epochs.raise_to("r0", (1, 1))
    before = inventory(state_dir)
    with watched(kernel) as seen, ThreadPoolExecutor(THREADS) as pool:
        builds = [command(spec, Build("n1", spec)) for spec in specs]
        said = list(pool.map(lambda each: agent.execute(each, time.monotonic()), builds))
    for spec, messages in zip(specs, said, strict=True):
        proof, report = messages
        assert isinstance(report, StepReport)
        assert report.outcome is Outcome.DONE, report.detail
        assert isinstance(proof, CheckIn)
        test = proof.self_test
        assert (test.forwarding, test.not_forwarding) == (("n0", "n1", "u0"), ())
        assert test.rules == expected_digest(spec)
        assert test.dns_answered
        assert test.upstream is Upstream.REACHABLE
    assert len({expected_digest(spec) for spec in specs}) == ROUTERS
    found = kernel.observe()
    assert sorted(i.ref for i in found) == sorted(spec.ref for spec in specs)
    assert {(i.activity, i.dnsmasq_alive) for i in found} == {(Activity.MUTED, True)}
    assert len(seen) > 1
    assert {i.activity for look in seen for i in look} <= {Activity.MUTED}, "half-built ones seen"

    with watched(kernel) as seen, ThreadPoolExecutor(THREADS) as pool:
        ends = [command(spec, Destroy("n1", spec.ref)) for spec in specs]
        said = list(pool.map(lambda each: agent.execute(each, time.monotonic()), ends))
    reports = [message for messages in said for message in messages]
    assert {r.outcome for r in reports if isinstance(r, StepReport)} == {Outcome.DONE}
    assert {i.activity for look in seen for i in look} <= {Activity.MUTED}, "half-gone ones seen"
    assert kernel.observe() == ()
    assert inventory(state_dir) == before


def test_a_build_that_fails_takes_nothing_from_the_others(
    kernel: NodeKernel, state_dir: Path
) -> None:
    agent = Executor("n1", Hands(kernel), Epochs(state_dir / "epochs.json"))
    specs = routers(8)
    ports = tuple(replace(port, bridge="br-none") for port in specs[3].ports)
    broken = replace(specs[3], ports=ports)
    wanted = [*specs[:3], broken, *specs[4:]]
    with ThreadPoolExecutor(THREADS) as pool:
        builds = [command(spec, Build("n1", spec)) for spec in wanted]
        said = list(pool.map(lambda each: agent.execute(each, time.monotonic()), builds))
    codes = [message.code for each in said for message in each if isinstance(message, StepReport)]
    assert codes == ["", "", "", "bridge-missing", "", "", "", ""]
    assert {i.ref for i in kernel.observe()} == {s.ref for s in wanted if s is not broken}


def test_what_is_active_lives_on_while_others_are_built(kernel: NodeKernel) -> None:
    first, *others = routers(9)
    kernel.build(first)
    kernel.unmute(first.ref)
    with watched(kernel) as seen, ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(kernel.build, others))
        list(pool.map(lambda spec: kernel.destroy(spec.ref), others))
    active = [i for look in seen for i in look if i.ref == first.ref]
    assert len(active) == len(seen)
    assert {(i.activity, i.dnsmasq_alive) for i in active} == {(Activity.ACTIVE, True)}
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, timeout=10)
    assert sum("vrha:r1:" in line or "vrh" in line for line in links.stdout.splitlines()) == 3
