"""Names and tags of kernel objects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrha.core import names
from vrha.core.names import PortTag
from vrha.model.spec import InstanceRef

REFS = st.builds(
    InstanceRef,
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?", fullmatch=True),
    st.integers(0, 10**12),
)
PORTS = st.one_of(st.just("u0"), st.integers(0, 99).map(lambda n: f"n{n}"))


@given(REFS, PORTS, st.integers(0, 10**15))
def test_names_fit_the_kernel_and_read_back(ref: InstanceRef, port: str, epoch: int) -> None:
    assert len(names.host_port(ref, port)) <= 15
    assert names.host_port(ref, port).startswith(names.PORT_PREFIX)
    assert names.ref_of_namespace(names.namespace_name(ref)) == ref
    assert names.ref_of_folder(names.folder_name(ref)) == ref
    tag = PortTag(ref, epoch, port)
    assert names.parse_tag(str(tag)) == tag
    assert 0x4000_0000 <= names.link_group(ref) < 0x8000_0000


@pytest.mark.parametrize(
    "alias",
    ["", "vrha:r:1:1", "vrha:r:1:1:n0\n", "vrha:R:1:1:n0", "other:r:1:1:n0", "vrha:r:-1:1:n0"],
)
def test_foreign_aliases_are_not_ours(alias: str) -> None:
    assert names.parse_tag(alias) is None


@pytest.mark.parametrize("name", ["", "vrha-", "vrha-r", "vrha-r-x", "qrouter-1", "vrha-r-1\n"])
def test_foreign_namespaces_are_not_ours(name: str) -> None:
    assert names.ref_of_namespace(name) is None


def test_a_bridge_never_takes_the_mac_of_a_port() -> None:
    mac = names.host_mac(InstanceRef("r", 1), 3)
    assert len(mac) == 6
    assert mac[0] == 0xFE
