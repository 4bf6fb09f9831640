"""Names that try to become lines, options or rules of their own."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

from tests.unit.render.render_specs import small
from vrha.errors import InputError
from vrha.model.spec import Egress, Host, Ingress, InstanceSpec, Rule, StaticNat, Subnet
from vrha.render.dnsmasq import DnsmasqFiles, dnsmasq_files
from vrha.render.iptables import iptables_texts
from vrha.render.nft import nft_text
from vrha.render.templates import dnsmasq_token, guard, render

HOSTILE = [
    "vm\ndhcp-script=/tmp/x",
    "vm\rdhcp-script=/tmp/x",
    "vm\x00",
    "vm\x85x",
    "vm\u2028x",
    "vm,10.0.0.1",
    "vm#x",
    'vm"',
    "vm'",
    "vm x",
    "vm\tx",
    "",
    "v" * 10_000 + ",",
    "\u202evm",
    "../../etc/passwd\n",
    "vm=x",
]


def with_host_name(name: str) -> InstanceSpec:
    return _with_network(hosts=(Host(name, "02:00:00:00:02:01"),))


def with_domain(domain: str) -> InstanceSpec:
    return _with_network(domain=domain)


def with_mac(mac: str) -> InstanceSpec:
    return _with_network(hosts=(Host("vm", mac),))


def with_router(name: str) -> InstanceSpec:
    spec = small()
    return replace(spec, ref=replace(spec.ref, router=name))


def _with_network(**changes: object) -> InstanceSpec:
    spec = small()
    return replace(spec, networks=(replace(spec.networks[0], **changes),))  # type: ignore[arg-type]


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("place", [with_host_name, with_mac, with_router])
def test_hostile_text_is_refused(place: object, hostile: str) -> None:
    assert callable(place)
    with pytest.raises(InputError):
        dnsmasq_files(place(hostile), "/folder")


@pytest.mark.parametrize("hostile", [text for text in HOSTILE if text])
def test_hostile_domain_is_refused(hostile: str) -> None:
    with pytest.raises(InputError):
        dnsmasq_files(with_domain(hostile), "/folder")


@pytest.mark.parametrize("hostile", ["/var\nx", "/var lib", "/var,x", "/var#x"])
def test_hostile_folder_is_refused(hostile: str) -> None:
    with pytest.raises(InputError):
        dnsmasq_files(small(), hostile)


def _lines(files: DnsmasqFiles) -> list[int]:
    return [text.count("\n") for text in (files.conf, files.hosts, files.addn_hosts)]


@settings(deadline=None)
@given(st.text())
def test_no_name_makes_a_line(name: str) -> None:
    """Whatever is accepted takes exactly the place of a harmless name."""
    spec = with_host_name(name)
    try:
        files = dnsmasq_files(spec, "/folder")
    except InputError:
        return
    assert files.hosts == f"02:00:00:00:02:01,{name}\n"
    assert _lines(files) == _lines(dnsmasq_files(with_host_name("vm"), "/folder"))


@settings(deadline=None)
@given(st.text())
def test_guard_lets_no_second_line_through(text: str) -> None:
    try:
        passed = guard(text)
    except InputError:
        assert not text.isprintable()
        return
    assert passed == text
    assert len(text.splitlines()) <= 1


@settings(deadline=None)
@given(st.text(alphabet=st.characters(categories=["Cc", "Zl", "Zp"]), min_size=1))
def test_guard_refuses_every_control_character(text: str) -> None:
    with pytest.raises(InputError):
        guard(f"vm{text}x")


def test_guard_stands_in_the_templates() -> None:
    """A port name reaches nft text without a filter of its own: the guard is the net."""
    spec = small()
    ports = (replace(spec.ports[0], name='n0" accept\n\t\taccept'), *spec.ports[1:])
    with pytest.raises(InputError):
        nft_text(replace(spec, ports=ports))


@pytest.mark.parametrize("value", [5, None, 1.5])
def test_guard_leaves_other_values_alone(value: object) -> None:
    assert guard(value) is value


@pytest.mark.parametrize(
    "token", ["vm1", "a.example", "fe80::1", "[fe80::1]", "10.0.0.0/8", "A-b_c"]
)
def test_tokens_that_pass(token: str) -> None:
    assert dnsmasq_token(token) == token


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render("dnsmasq.conf.j2")


@pytest.mark.parametrize("place", ["remote", "ingress", "source_nat", "static_nat", "gateway"])
def test_a_scope_is_no_way_into_a_ruleset(place: str) -> None:
    """A scope is free text, and `ipaddress` keeps it (RFC 4007 section 11)."""
    hostile = "fe80::1%x }; flush ruleset"
    address = IPv6Address(hostile)
    spec = small()
    router, network = spec.router, spec.networks[0]
    if place == "remote":
        rule = Rule(remote=IPv6Network(f"{hostile}/128"))
        network = replace(network, egress=Egress(rules=(rule,)))
    elif place == "ingress":
        router = replace(router, ingress=(Ingress(address, (Rule(),)),))
    elif place == "source_nat":
        router = replace(router, source_nat=(address,))
    elif place == "static_nat":
        router = replace(router, static_nat=(StaticNat(IPv6Address("fd00::1"), address),))
    else:
        subnet = Subnet(IPv6Network("fe80::/64"), address)
        network = replace(network, subnets=(subnet,))
    spec = replace(spec, router=router, networks=(network, *spec.networks[1:]))
    for render_rules in (nft_text, iptables_texts):
        with pytest.raises(InputError) as caught:
            render_rules(spec)
        assert caught.value.code == "scoped-address"
