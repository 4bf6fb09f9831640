"""The work that only the first command would pay for, done when the agent starts.

Schemas and templates are compiled at first use, some 50 ms; a first restart after an upgrade of
the agent should not take longer than the next. And the garbage collector need not go through the
libraries again and again, which is a tenth of the work of a build.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from vrha import codec
from vrha.core.instance import instance_spec
from vrha.linux.urgency import settle, take_turns
from vrha.model.messages import Command
from vrha.model.spec import Backend, Desired, InstanceRef, Network, Router, Subnet
from vrha.model.steps import Build
from vrha.render.digest import expected_digest
from vrha.render.dnsmasq import dnsmasq_files
from vrha.render.iptables import iptables_texts
from vrha.render.nft import nft_text


def warm_up() -> None:
    """Compile what commands and builds need; touches nothing outside this process.

    What is in memory now will never be collected, see gc.freeze.
    """
    take_turns()
    subnet = Subnet(IPv4Network("192.0.2.0/24"), IPv4Address("192.0.2.1"))
    network = Network("warm", "br-warm", (subnet,))
    router = Router("warm", ("warm",), backend=Backend.IPTABLES)
    spec = instance_spec(Desired((network,), (router,)), router, InstanceRef("warm", 1), 1)
    command = Command("warm", "warm", 1, "warm", 1, 0, False, (Build("warm", spec),))
    codec.decode_message(codec.encode(command))
    codec.encode(spec)
    nft_text(spec, fresh=True)
    iptables_texts(spec)
    expected_digest(spec)
    dnsmasq_files(spec, "/nowhere")
    settle()
