"""What passes, what is dropped and what is translated: one table, both backends, both families."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from tests.netns.fwcases import (
    ADDRESSES,
    ECHO,
    PLACES,
    PLAIN_PROTOCOL,
    ROUTED,
    TRANSLATED,
    Case,
    both,
    routed_router,
    translated_router,
)
from tests.netns.fwkit import (
    DEADLINE,
    MARKER_PORT,
    Flow,
    Host,
    Namespace,
    Probe,
    cable,
    serve_once,
    server,
    udp_packet,
)
from vrha.model.spec import Backend, InstanceSpec
from vrha.model.state import RulesDigest
from vrha.render.digest import digest_of_iptables, digest_of_nft, expected_digest
from vrha.render.iptables import iptables_texts
from vrha.render.nft import nft_text

pytestmark = [pytest.mark.root, pytest.mark.unhurried]


class Lab:
    """Two tenant machines, one router, the outside."""

    def __init__(self, spec: InstanceSpec) -> None:
        self.spec = spec
        self.vr = Namespace("vr")
        self.hosts: dict[str, Host] = {}
        try:
            for name, port in (("a", "n0"), ("b", "n1"), ("out", "u0")):
                self.hosts[name] = Host(Namespace(name))
                cable(self.vr, port, self.hosts[name].space, "eth0")
            self._addresses()
            self.load(fresh=True)
        except BaseException:
            self.close()
            raise

    def _addresses(self) -> None:
        self.vr.sysctl(
            net__ipv4__ip_forward="1",
            net__ipv6__conf__all__forwarding="1",
            # The rules under test shall be what drops forged sources.
            net__ipv4__conf__all__rp_filter="0",
        )
        for port in self.spec.ports:
            self.vr.ip(*(f"addr add {a} dev {port.name} nodad" for a in port.addresses))
        self.vr.ip(*(f"route add default via {via}" for via in both("outside")))
        for version, length, single in ((4, 24, 32), (6, 64, 128)):
            at = ADDRESSES[version]
            for word, place in PLACES.items():
                if place in self.hosts:
                    size = single if word in ("friend", "stranger") else length
                    self.hosts[place].space.ip(f"addr add {at[word]}/{size} dev eth0 nodad")
            for name, gate in (("a", "gate-a"), ("b", "gate-b"), ("out", "router")):
                self.hosts[name].space.ip(f"route add default via {at[gate]}")

    def load(self, fresh: bool = False) -> None:
        if self.spec.router.backend is Backend.NFTABLES:
            self.vr.command("nft", "-f", "-", text=nft_text(self.spec, fresh))
            return
        first, second = iptables_texts(self.spec)
        self.vr.command("iptables-legacy-restore", "-w", text=first)
        self.vr.command("ip6tables-legacy-restore", "-w", text=second)

    def digest(self) -> RulesDigest:
        if self.spec.router.backend is Backend.NFTABLES:
            return digest_of_nft(self.vr.command("nft", "-j", "-n", "list", "table", "inet", "vr"))
        first = self.vr.command("iptables-legacy-save")
        return digest_of_iptables(first, self.vr.command("ip6tables-legacy-save"))

    def space(self, name: str) -> Namespace:
        return self.vr if name == "vr" else self.hosts[name].space

    def close(self) -> None:
        for host in self.hosts.values():
            host.close()
        self.vr.close()


@pytest.fixture(scope="module", params=list(Backend))
def backend(request: pytest.FixtureRequest) -> Backend:
    return Backend(request.param)


@pytest.fixture(scope="module")
def translated(backend: Backend) -> Iterator[Lab]:
    lab = Lab(translated_router(backend))
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def routed(backend: Backend) -> Iterator[Lab]:
    lab = Lab(routed_router(backend))
    yield lab
    lab.close()


@pytest.fixture
def bare(backend: Backend) -> Iterator[Lab]:
    """A lab that a test may spoil."""
    lab = Lab(translated_router(backend))
    yield lab
    lab.close()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("case", TRANSLATED, ids=str)
def test_translated(translated: Lab, case: Case, version: int) -> None:
    _check(translated, case, version)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("case", ROUTED, ids=str)
def test_routed(routed: Lab, case: Case, version: int) -> None:
    _check(routed, case, version)


def _check(lab: Lab, case: Case, version: int) -> None:
    at = ADDRESSES[version]
    machine, _, source = case.sender.partition("/")
    what, _, port = case.what.partition(":")
    number = ECHO[version] if port == "echo" else int(port or 0)
    flow = Flow(at[source], at[case.to], what, number)
    probe = Probe(lab.space(machine), flow)
    try:
        if case.arrives:
            _arrives(lab, case, probe, at)
        else:
            _is_dropped(lab, case, probe, at)
    finally:
        probe.close()


def _arrives(lab: Lab, case: Case, probe: Probe, at: dict[str, str]) -> None:
    machine, _, target = case.arrives.partition("/")
    word, _, port = target.partition(":")
    flow = probe.flow
    end = replace(flow, destination=at[word], port=int(port) if port else flow.port)
    deadline = time.monotonic() + DEADLINE
    with server(lab.space(machine), end) as listener:
        probe.send()
        if listener:
            assert serve_once(listener, deadline) == at[case.seen]
        if machine != "vr":
            packet = lab.hosts[machine].wait(probe.matches, deadline)
            assert packet is not None
            assert (packet.source, packet.destination) == (at[case.seen], end.destination)
            assert packet.port == end.port
        if flow.what != PLAIN_PROTOCOL:
            assert probe.answer(deadline) == flow.destination


def _is_dropped(lab: Lab, case: Case, probe: Probe, at: dict[str, str]) -> None:
    """A later packet on the same way has made its round trip, and this one was seen nowhere."""
    with ExitStack() as stack:
        at_router = PLACES[case.to] == "vr"
        listener = stack.enter_context(server(lab.vr, probe.flow)) if at_router else None
        probe.send()
        _round_trip(lab, case.sender.partition("/")[0], at_router, at)
        for name, host in lab.hosts.items():
            assert host.wait(probe.matches, 0.0) is None, f"arrived at {name}"
        assert listener is None or serve_once(listener, 0.0) == ""
    assert probe.answer(0.0) == ""


def _round_trip(lab: Lab, machine: str, to_router: bool, at: dict[str, str]) -> None:
    """Send a packet that must pass, and wait for its answer."""
    source = {"a": "free", "b": "other", "out": "stranger"}[machine]
    port = 53 if to_router and machine != "out" else MARKER_PORT
    if to_router:
        word = target = {"a": "gate-a", "b": "gate-b", "out": "router"}[machine]
    elif machine == "out":
        word, target = "public" if lab.spec.router.static_nat else "fixed", "fixed"
    else:
        word = target = "outside"
    marker = Probe(lab.space(machine), Flow(at[source], at[word], "udp", port))
    deadline = time.monotonic() + DEADLINE
    try:
        with server(lab.space(PLACES[target]), Flow("", at[target], "udp", port)) as listener:
            assert listener is not None
            marker.send()
            assert serve_once(listener, deadline), "the marker did not arrive"
        assert marker.answer(deadline) == at[word]
    finally:
        marker.close()


def test_icmp_errors_reach_the_sender(translated: Lab) -> None:
    """A closed port outside answers through source NAT: the client sees `connection refused`."""
    source, outside = ADDRESSES[4]["free"], ADDRESSES[4]["outside"]
    with translated.space("a").socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((source, 0))
        client.connect((outside, 4322))
        client.settimeout(DEADLINE)
        client.send(b"anyone?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)


def test_a_reload_keeps_connections(translated: Lab) -> None:
    """Loading the same rules again is one transaction; an open connection does not notice."""
    at = ADDRESSES[4]
    end = Flow(at["fixed"], at["outside"], "tcp", 4321)
    with server(translated.space("out"), end) as listener:
        assert listener is not None
        probe = Probe(translated.space("a"), end)
        probe.send()
        assert probe.answer(time.monotonic() + DEADLINE)
        connection, peer = listener.accept()
        assert peer[0] == at["public"]
        with connection:
            translated.load()
            connection.settimeout(DEADLINE)
            connection.sendall(b"still here")
            probe.socket.settimeout(DEADLINE)
            assert probe.socket.recv(100) == b"still here"
        probe.close()


def test_segment_size_follows_the_path(bare: Lab) -> None:
    """A SYN leaves with no larger segment size than the port to the outside can carry."""
    bare.vr.ip("link set u0 mtu 1400")
    for version, headers in ((4, 40), (6, 60)):
        at = ADDRESSES[version]
        flow = Flow(at["free"], at["outside"], "tcp", 4321)
        probe = Probe(bare.space("a"), flow)
        probe.send()
        packet = bare.hosts["out"].wait(probe.matches, time.monotonic() + DEADLINE)
        probe.close()
        assert packet is not None
        kind, length, size = struct.unpack("!BBH", packet.payload[20:24])
        assert (kind, length, size) == (2, 4, 1400 - headers)


@pytest.mark.parametrize("loopback", ["127.0.0.1", "::1"])
def test_router_reaches_itself(translated: Lab, loopback: str) -> None:
    flow = Flow(loopback, loopback, "udp", 53)
    probe = Probe(translated.vr, flow)
    with server(translated.vr, flow) as listener:
        assert listener is not None
        probe.send()
        assert serve_once(listener, time.monotonic() + DEADLINE) == loopback
    probe.close()


def test_dhcp_without_an_address_reaches_the_router(translated: Lab) -> None:
    """DHCPDISCOVER: from 0.0.0.0 to the broadcast address (RFC 2131 section 4.1)."""
    with translated.vr.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("", 67))
        with translated.space("a").socket(socket.AF_PACKET, socket.SOCK_DGRAM) as client:
            packet = udp_packet("0.0.0.0", "255.255.255.255", 68, 67, b"discover")
            client.sendto(packet, ("eth0", 0x0800, 0, 0, b"\xff" * 6))
        assert serve_once(listener, time.monotonic() + DEADLINE) == "0.0.0.0"


def test_link_local_reaches_the_router(translated: Lab) -> None:
    """IPv6 neighbours talk by link-local addresses: router solicitation, DHCPv6 (RFC 8415)."""
    line = translated.vr.command("ip", "-6", "-o", "addr", "show", "dev", "n0", "scope", "link")
    address = line.split()[3].partition("/")[0]
    translated.space("a").command("ping", "-6", "-c", "1", "-W", "5", f"{address}%eth0")


def test_duplicate_of_the_gateway_is_noticed(translated: Lab) -> None:
    """Duplicate address detection asks from `::` (RFC 4862 section 5.4.2)."""
    space = translated.space("a")
    gateway = ADDRESSES[6]["gate-a"]
    space.ip(f"addr add {gateway}/64 dev eth0")
    try:
        deadline = time.monotonic() + DEADLINE
        failed = ""
        while gateway not in failed and time.monotonic() < deadline:
            time.sleep(0.05)
            failed = space.command("ip", "-6", "addr", "show", "dev", "eth0", "dadfailed")
        assert gateway in failed
    finally:
        space.ip(f"addr del {gateway}/64 dev eth0")


NFT_TAMPERS = {
    "element-removed": "delete element inet vr static4 { 198.51.100.10 }",
    "element-added": "add element inet vr ports4 { 198.51.100.10 . tcp . 23 }",
    "rule-added": "add rule inet vr forward accept",
    "rule-inserted": "insert rule inet vr forward accept",
    "chain-added": "add chain inet vr extra { type filter hook forward priority -1; }",
    "policy-changed": "chain inet vr forward { policy accept; }",
    "set-added": "add set inet vr extra { type ipv4_addr; }",
}
IPTABLES_TAMPERS = {
    "rule-added": ("iptables-legacy", "-A", "FORWARD", "-j", "ACCEPT"),
    "rule-removed": ("iptables-legacy", "-D", "FORWARD", "1"),
    "rule-removed-v6": ("ip6tables-legacy", "-D", "INPUT", "1"),
    "rule-replaced": ("iptables-legacy", "-R", "FORWARD", "2", "-j", "ACCEPT"),
    "nat-flushed": ("iptables-legacy", "-t", "nat", "-F", "PREROUTING"),
    "policy-changed": ("iptables-legacy", "-P", "FORWARD", "ACCEPT"),
    "chain-added": ("iptables-legacy", "-N", "extra"),
}


def test_digest_reads_back(bare: Lab, backend: Backend) -> None:
    expected = expected_digest(bare.spec)
    assert bare.digest() == expected
    bare.load()
    assert bare.digest() == expected
    assert expected.count > 90
    assert expected_digest(routed_router(backend)).digest != expected.digest


def test_tampering_shows(bare: Lab, backend: Backend) -> None:
    expected = expected_digest(bare.spec)
    tampers = NFT_TAMPERS if backend is Backend.NFTABLES else IPTABLES_TAMPERS
    for name, command in tampers.items():
        bare.vr.command(*(command if isinstance(command, tuple) else ("nft", command)))
        assert bare.digest().digest != expected.digest, name
        bare.load()
        assert bare.digest() == expected, f"not restored after {name}"


def test_every_rule_of_nft_is_covered() -> None:
    """Each single rule, deleted, changes the digest."""
    lab = Lab(translated_router(Backend.NFTABLES))
    try:
        items = json.loads(lab.vr.command("nft", "-j", "-n", "list", "table", "inet", "vr"))[
            "nftables"
        ]
    finally:
        lab.close()
    expected = expected_digest(lab.spec)
    assert digest_of_nft(json.dumps({"nftables": items})) == expected
    for rule in (item for item in items if "rule" in item):
        without = [item for item in items if item is not rule]
        assert digest_of_nft(json.dumps({"nftables": without})) != expected, rule
