"""What only the first failover would pay for, done when the orchestrator starts.

Schemas are compiled at first use, some 50 ms each, and just then nodes must be heard. And the
garbage collector need not go through the libraries again and again.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from vrha import codec
from vrha.core import plan
from vrha.core.instance import instance_spec
from vrha.linux.urgency import settle, take_turns
from vrha.model.messages import Command
from vrha.model.spec import Desired, InstanceRef, Network, Router, Subnet
from vrha.render.digest import expected_digest
from vrha.store import rows


def warm_up() -> None:
    """Compile what a failover needs; touches nothing outside this process.

    What is in memory now will never be collected, see gc.freeze.
    """
    take_turns()
    subnet = Subnet(IPv4Network("192.0.2.0/24"), IPv4Address("192.0.2.1"))
    network = Network("warm", "br-warm", (subnet,))
    router = Router("warm", ("warm",))
    spec = instance_spec(Desired((network,), (router,)), router, InstanceRef("warm", 2), 1)
    run = plan.failover("warm", InstanceRef("warm", 1), "warm", spec)
    for record in run.steps:
        # Another memory: one that has written a text knows it without reading it.
        text, progress = rows.Memory().step_text(record.step), rows.progress_text(record)
        rows.Memory().record(record.seq, text, progress)
    rows.Memory().run(rows.run_text(run))
    rows.Memory().applied(rows.Memory().spec_text(spec))
    expected_digest(spec)
    command = Command("warm", "warm", 1, "warm", 1, 0, False, (run.steps[0].step,))
    codec.decode_message(codec.encode(command))
    settle()
