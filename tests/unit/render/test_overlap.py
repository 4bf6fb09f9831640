"""The rules that keep the source ports of two instances apart."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from tests.unit.render.render_specs import small
from vrha.model.spec import InstanceSpec, StaticNat, Subnet
from vrha.render.overlap import FIRST, LAST, TABLE, overlap_text


def translating(*sources: str, static: bool = False) -> InstanceSpec:
    """A router of both families with these source NAT addresses."""
    spec = small()
    (network,) = spec.networks
    six = Subnet(ip_network("fd00:a::/64"), ip_address("fd00:a::1"))
    nat = StaticNat(ip_address("198.51.100.9"), ip_address("10.1.0.5"))
    router = replace(
        spec.router,
        source_nat=tuple(map(ip_address, sources)),
        static_nat=(nat,) if static else (),
    )
    networks = (replace(network, subnets=(*network.subnets, six)),)
    return replace(spec, router=router, networks=networks)


def test_nothing_where_no_sources_are_translated() -> None:
    assert overlap_text(small(), is_new=True) == ""
    inner = replace(translating("198.51.100.2"), ports=small().ports[:1])
    assert overlap_text(inner, is_new=False) == ""


def test_the_text_as_it_is() -> None:
    spec = translating("198.51.100.2", static=True)
    match = 'oifname "u0" ip saddr { 10.1.0.0/24 } ip saddr != { 10.1.0.5 }'
    syn = "tcp flags & (fin | syn | rst | ack) == syn"
    head = [f"table inet {TABLE} {{}}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    head += ["chain apart {", "type nat hook postrouting priority srcnat - 1; policy accept;"]
    new = f"{match} {syn} snat ip to 198.51.100.2:16384-32767"
    old = f"{match} {syn} tcp sport 16384-32767 snat ip to 198.51.100.2:32768-65535"
    for is_new, rule in ((True, new), (False, old)):
        assert overlap_text(spec, is_new) == "\n".join([*head, rule, "}", "}", ""])


def test_each_family_has_its_own() -> None:
    text = overlap_text(translating("198.51.100.2", "2001:db8::2"), is_new=True)
    assert "ip saddr { 10.1.0.0/24 }" in text
    assert f"snat ip6 to [2001:db8::2]:{FIRST}-{LAST}" in text
    assert "ip6 saddr { fd00:a::/64 }" in text


@pytest.mark.root
@pytest.mark.parametrize("is_new", [True, False])
def test_nft_takes_it_again_and_again(is_new: bool) -> None:
    text = overlap_text(translating("198.51.100.2", "2001:db8::2", static=True), is_new)
    script = f"nft -f - && nft list table inet {TABLE}"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script],
        input=text + text,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("snat") >= 2
