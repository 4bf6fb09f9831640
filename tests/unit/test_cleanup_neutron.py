"""Whose things on a node of Neutron's are, told by their names."""

from __future__ import annotations

import pytest

from vrha.core.cleanup.items import Item, Kind
from vrha.core.cleanup.keepers import keepers
from vrha.core.cleanup.profiles import load
from vrha.core.cleanup.profiles.neutron import DHCP_AGENT, L3_AGENT, NEUTRON
from vrha.linux.sweep import legacyrules
from vrha.linux.sweep.agents import program
from vrha.linux.sweep.chains import Chain, Content, Rule, chosen_by, owners

ID = "1f0c7a52-0b1d-4c2e-9a3f-5b6c7d8e9f01"
PORT = "2e1d8b63-1c2e-4d3f-8b40-6c7d8e9fa012"
STATE = "/var/lib/neutron"


def test_it_is_found_by_name() -> None:
    assert load("neutron") is NEUTRON


@pytest.mark.parametrize("kind", ["qrouter", "qdhcp", "snat", "fip"])
def test_namespaces_have_the_whole_id_in_their_name(kind: str) -> None:
    assert NEUTRON.namespace_owner(f"{kind}-{ID}") == ID
    for other in (f"{kind}-{ID}-old", f"{kind}-blue", f"x{kind}-{ID}", f"{kind}-{ID.upper()}"):
        assert NEUTRON.namespace_owner(other) is None


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        (f"ha_confs/{ID}", ID),
        (f"ha_confs/{ID}.pid.keepalived-vrrp", ID),
        (f"external/pids/{ID}.monitor.pid.neutron-keepalived-state-change-monitor", ID),
        (f"ns-metadata-proxy/{ID}.conf", ID),
        (f"ra/{ID}.radvd.conf", ID),
        (f"dhcp/{ID}", ID),
        (f"lock/neutron-iptables-snat-{ID}", ID),
        (f"ha_confs/{ID}x", None),
        (f"instances/{ID}", None),
        ("lock/neutron-iptables-br-int", None),
        ("dhcp/README", None),
        (f"dhcp/{ID}/leases", None),
    ],
)
def test_files(path: str, owner: str | None) -> None:
    assert NEUTRON.file_owner(path) == owner


@pytest.mark.parametrize(
    ("command", "owner"),
    [
        (["haproxy", "-f", f"{STATE}/ns-metadata-proxy/{ID}.conf"], ID),
        (["dnsmasq", "--no-hosts", f"--pid-file={STATE}/dhcp/{ID}/pid"], ID),
        (["keepalived", "-P", "-f", f"{STATE}/ha_confs/{ID}/keepalived.conf"], ID),
        (["haproxy", "-f", f"/srv/neutron/ns-metadata-proxy/{ID}.conf"], None),
        (["less", f"{STATE}/dhcp/{ID}x"], None),
        (["sh", "-c", f"echo {ID}"], None),
        ([], None),
    ],
)
def test_processes_are_told_by_the_files_that_they_use(
    command: list[str], owner: str | None
) -> None:
    assert NEUTRON.process_owner(command, STATE) == owner


def test_ports_of_the_switch() -> None:
    ids, name = {"iface-id": PORT}, f"qr-{PORT[:11]}"
    assert NEUTRON.ovs_owner(name, ids, ID) == ID
    assert NEUTRON.ovs_owner(name, ids, None) == L3_AGENT
    assert NEUTRON.ovs_owner(name, {"iface-id": ID}, ID) is None
    assert NEUTRON.ovs_owner(name, {}, ID) is None
    tap = f"tap{PORT[:11]}"
    assert NEUTRON.ovs_owner(tap, ids, ID) == ID
    assert NEUTRON.ovs_owner(tap, ids, None) is None
    assert NEUTRON.ovs_owner(tap, ids | {"vm-id": ID}, ID) is None
    assert NEUTRON.ovs_owner("br-int", ids, None) is None


def test_a_link_in_the_nodes_own_namespace_is_told_by_its_whole_name() -> None:
    assert NEUTRON.port_owner(f"qg-{PORT[:11]}", "") == L3_AGENT
    for other in (f"tap{PORT[:11]}", "qr-somebody", f"qr-{PORT[:12]}", "eth0"):
        assert NEUTRON.port_owner(other, "") is None


def item(kind: Kind, name: str, owner: str = ID) -> Item:
    return Item(kind, name, owner, "")


def test_what_may_be_of_either_agent_is_kept_with_what_is_surely_of_one() -> None:
    unsure = item(Kind.FILE, f"ns-metadata-proxy/{ID}.conf")
    assert keepers(NEUTRON, [unsure]) == {ID: {L3_AGENT, DHCP_AGENT}}
    for sure, agent in (
        (item(Kind.NAMESPACE, f"qrouter-{ID}"), L3_AGENT),
        (item(Kind.NAMESPACE, f"qdhcp-{ID}"), DHCP_AGENT),
        (item(Kind.FILE, f"ra/{ID}.radvd.conf"), L3_AGENT),
        (item(Kind.FILE, f"lock/neutron-iptables-qdhcp-{ID}"), DHCP_AGENT),
    ):
        assert keepers(NEUTRON, [unsure, sure]) == {ID: {agent}}
    both = [item(Kind.NAMESPACE, f"fip-{ID}"), item(Kind.NAMESPACE, f"qdhcp-{ID}")]
    assert keepers(NEUTRON, both) == {ID: {L3_AGENT, DHCP_AGENT}}
    whole = item(Kind.RULES, "iptables-nft -t nat", L3_AGENT)
    assert keepers(NEUTRON, [whole]) == {L3_AGENT: {L3_AGENT}}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["/usr/bin/python3", "/usr/bin/neutron-l3-agent", "--config-file", "x"], L3_AGENT),
        (["python3", "-s", "/opt/bin/neutron-dhcp-agent"], DHCP_AGENT),
        (["neutron-l3-agent: master process [/usr/bin/neutron-l3-agent --x]"], L3_AGENT),
        (["neutron-l3-agent:", "worker"], L3_AGENT),
        (["/usr/bin/neutron-l3-agent"], L3_AGENT),
        (["vim", "/usr/bin/neutron-l3-agent"], "vim"),
        (["tail", "-f", "neutron-l3-agent.log"], "tail"),
        (["python3"], ""),
        ([], ""),
    ],
)
def test_an_agent_is_told_by_its_command(arguments: list[str], name: str) -> None:
    assert program(arguments) == name


def test_chains_and_the_rules_that_lead_to_them() -> None:
    content = Content(
        [
            Chain("INPUT", True),
            Chain("neutron-filter-top", False),
            Chain("neutron-l3-agent-INPUT", False),
            Chain("neutron-dhcp-age-local", False),
            Chain("neutron-l3-agents", False),
        ],
        [
            Rule("INPUT", 0, "ACCEPT"),
            Rule("INPUT", 1, "neutron-l3-agent-INPUT"),
            Rule("neutron-filter-top", 0, "neutron-l3-agent-local"),
            Rule("neutron-filter-top", 1, "neutron-dhcp-age-local"),
            Rule("neutron-l3-agent-INPUT", 0, "DROP"),
        ],
    )
    assert owners(content, NEUTRON.chain_owner) == [DHCP_AGENT, L3_AGENT]
    shared = NEUTRON.shared_chains
    chosen = chosen_by(content, NEUTRON.chain_owner, L3_AGENT, shared)
    assert chosen.chains == ("neutron-l3-agent-INPUT",)
    assert chosen.rules == (Rule("INPUT", 1, "neutron-l3-agent-INPUT"),)
    assert not chosen_by(content, NEUTRON.chain_owner, "nobody", shared)


def test_saved_rules_are_read_by_their_last_words() -> None:
    lines = [
        "*filter",
        ":INPUT ACCEPT [12:34]",
        ":neutron-l3-agent-INPUT - [0:0]",
        '-A INPUT -m comment --comment "x -j neutron-l3-agent-INPUT" -j DROP',
        "-A INPUT -i eth9 -g neutron-l3-agent-INPUT",
        "-A neutron-l3-agent-INPUT",
        "COMMIT",
    ]
    content = legacyrules._parsed(lines)
    assert content.chains == [Chain("INPUT", True), Chain("neutron-l3-agent-INPUT", False)]
    assert [(rule.place, rule.target) for rule in content.rules] == [
        (3, "DROP"),
        (4, "neutron-l3-agent-INPUT"),
        (5, ""),
    ]
