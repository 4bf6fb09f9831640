"""What the L3 agent and the DHCP agent of OpenStack Neutron leave on a node.

An owner is the id of a router, of a network (DHCP) or of an external network (`fip-`); what belongs
to no single one has the name of its agent. Sources, all below neutron/agent of openstack/neutron:
l3/router_info.py, l3/ha_router.py, l3/dvr_*.py, l3/namespaces.py, linux/dhcp.py,
linux/external_process.py, linux/iptables_manager.py, linux/interface.py, metadata/driver_base.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from vrha.core.cleanup.items import Item, Kind
from vrha.core.cleanup.profile import Profile

L3_AGENT: Final = "neutron-l3-agent"
DHCP_AGENT: Final = "neutron-dhcp-agent"

_ID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_NAMESPACE = re.compile(rf"(qrouter|qdhcp|snat|fip)-({_ID})")
_PORT = re.compile(r"(qr-|qg-|ha-|sg-|fg-|rfp-|fpr-|tap)([0-9a-f]{8}-[0-9a-f]{2})")
"""A name of a link has room for 11 characters of the id of the port, or with rfp- and fpr- of the
router."""
_FILE = re.compile(
    rf"(?:ha_confs|external/pids|ns-metadata-proxy|ra|dhcp)/({_ID})(?:\.[^/]*)?"
    rf"|lock/neutron-iptables-(?:qrouter|qdhcp|snat|fip)-({_ID})"
)
_IN_COMMAND = re.compile(rf"/(?:ha_confs|external/pids|ns-metadata-proxy|ra|dhcp)/({_ID})(?![^/.])")
_CHAIN_OWNERS = {"neutron-l3-agent-": L3_AGENT, "neutron-dhcp-age-": DHCP_AGENT}
"""Of the name of the program there are 16 characters in the name of a chain."""
_AGENT_OF_NAMESPACE = {
    "qrouter": L3_AGENT,
    "snat": L3_AGENT,
    "fip": L3_AGENT,
    "qdhcp": DHCP_AGENT,
}
_AGENT_OF_FOLDER = {"ha_confs": L3_AGENT, "ra": L3_AGENT, "dhcp": DHCP_AGENT}
"""In the other folders both have files, with names alike."""
_SURE_OF_FOLDER = re.compile(rf"(ha_confs|ra|dhcp)/{_ID}")
_SURE_OF_NAME = re.compile(r"(?:qrouter|qdhcp|snat|fip)(?=-)")
_INTERFACE_ID, _MACHINE_IDS = "iface-id", frozenset(("vm-id", "vm-uuid"))


def _of_namespace(name: str) -> str | None:
    match = _NAMESPACE.fullmatch(name)
    return match[2] if match else None


def _of_port(name: str, alias: str) -> str | None:
    """A link that never came into its namespace; a tap in the node's own may be a machine's."""
    match = _PORT.fullmatch(name)
    return L3_AGENT if match and match[1] != "tap" else None


def _of_process(arguments: Sequence[str], state_dir: str) -> str | None:
    for argument in arguments:
        _, found, place = argument.partition(state_dir)
        match = _IN_COMMAND.match(place) if found else None
        if match:
            return match[1]
    return None


def _of_file(path: str) -> str | None:
    match = _FILE.fullmatch(path)
    return match[1] or match[2] if match else None


def _of_chain(name: str) -> str | None:
    return next((o for start, o in _CHAIN_OWNERS.items() if name.startswith(start)), None)


def _of_ovs(name: str, ids: Mapping[str, str], seen_at: str | None) -> str | None:
    """The name must be made of the port's id, and no machine's port is ever ours."""
    match = _PORT.fullmatch(name)
    if match is None or ids.get(_INTERFACE_ID, "")[:11] != match[2] or ids.keys() & _MACHINE_IDS:
        return None
    # A tap may be anybody's, unless it is known where it was.
    return seen_at or (L3_AGENT if match[1] != "tap" else None)


def _agents_of(item: Item) -> tuple[str, ...]:
    if item.owner in (L3_AGENT, DHCP_AGENT):
        return (item.owner,)
    if item.kind is Kind.FILE:
        folder = _SURE_OF_FOLDER.search(item.name)
        if folder:
            return (_AGENT_OF_FOLDER[folder[1]],)
    match = _SURE_OF_NAME.search(item.name)
    if match:
        return (_AGENT_OF_NAMESPACE[match[0]],)
    return (L3_AGENT, DHCP_AGENT)


NEUTRON = Profile(
    name="neutron",
    summary="routers and DHCP networks of OpenStack Neutron's L3 and DHCP agents",
    state_dir="/var/lib/neutron",
    namespace_owner=_of_namespace,
    port_owner=_of_port,
    process_owner=_of_process,
    file_places=(
        "ha_confs/*",
        "external/pids/*",
        "ns-metadata-proxy/*",
        "ra/*",
        "dhcp/*",
        "lock/neutron-iptables-*",
    ),
    file_owner=_of_file,
    inner_links=("qr-", "qg-", "ha-", "sg-", "fg-", "rfp-", "fpr-", "tap"),
    chain_owner=_of_chain,
    shared_chains=frozenset(("neutron-filter-top", "neutron-postrouting-bottom")),
    ovs_owner=_of_ovs,
    link_notes=("dhcp/*/interface", "ha_confs/*/keepalived.conf", "ra/*.radvd.conf"),
    agents=(L3_AGENT, DHCP_AGENT),
    agents_of=_agents_of,
    conntrack=True,
    records="/var/lib/vrha-cleanup/neutron",
)
