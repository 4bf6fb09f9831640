"""Renderings compared with the kept files, and read by the tools that they are written for.

`VRHA_WRITE_GOLDEN=1 pytest tests/golden` writes the files anew; then read the difference.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.golden.golden_specs import SPECS, with_backend
from vrha.model.spec import Backend
from vrha.render.digest import digest_of_iptables, digest_of_nft, expected_digest
from vrha.render.dnsmasq import dnsmasq_files
from vrha.render.iptables import iptables_texts
from vrha.render.nft import nft_text

EXPECTED = Path(__file__).parent / "expected"
FOLDER = "/var/lib/vrha/instances/x"

each_spec = pytest.mark.parametrize("name", SPECS)
needs_root = pytest.mark.root


def texts(name: str) -> dict[str, str]:
    """File name and text of everything that is rendered for a spec."""
    spec = SPECS[name]
    first, second = iptables_texts(spec)
    files = dnsmasq_files(spec, FOLDER)
    return {
        f"{name}.nft": nft_text(spec),
        f"{name}.iptables": first,
        f"{name}.ip6tables": second,
        f"{name}.dnsmasq.conf": files.conf,
        f"{name}.dhcp-hosts": files.hosts,
        f"{name}.addn-hosts": files.addn_hosts,
    }


@each_spec
def test_text_is_as_kept(name: str) -> None:
    for file, text in texts(name).items():
        if os.environ.get("VRHA_WRITE_GOLDEN"):
            EXPECTED.mkdir(exist_ok=True)
            (EXPECTED / file).write_text(text)
        assert text == (EXPECTED / file).read_text(), file


def test_no_file_is_left_over() -> None:
    wanted = {file for name in SPECS for file in texts(name)}
    assert {path.name for path in EXPECTED.iterdir()} == wanted


@each_spec
def test_fresh_differs_only_in_the_deletion(name: str) -> None:
    spec = SPECS[name]
    assert nft_text(spec) == "table inet vr {}\ndelete table inet vr\n" + nft_text(spec, fresh=True)


def in_namespace(*argv: str, text: str = "") -> str:
    """Output of a command in a network namespace of its own."""
    done = subprocess.run(
        ["unshare", "--net", *argv], input=text, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_root
@each_spec
def test_nft_takes_it(name: str) -> None:
    in_namespace("nft", "-c", "-f", "-", text=nft_text(SPECS[name]))
    in_namespace("nft", "-c", "-f", "-", text=nft_text(SPECS[name], fresh=True))


@needs_root
@each_spec
def test_iptables_restore_takes_it(name: str) -> None:
    first, second = iptables_texts(SPECS[name])
    in_namespace("iptables-legacy-restore", "-w", "--test", text=first)
    in_namespace("ip6tables-legacy-restore", "-w", "--test", text=second)


@needs_root
@each_spec
def test_dnsmasq_takes_it(name: str, tmp_path: Path) -> None:
    files = dnsmasq_files(SPECS[name], str(tmp_path))
    for file, text in (
        (files.conf_name, files.conf),
        (files.hosts_name, files.hosts),
        (files.addn_hosts_name, files.addn_hosts),
        (files.offers_name, "no-ping\n"),
    ):
        (tmp_path / file).write_text(text)
    in_namespace("dnsmasq", "--test", f"--conf-file={tmp_path / files.conf_name}")


@needs_root
@pytest.mark.parametrize("numeric", ["", "-n"])
@each_spec
def test_digest_of_nft_reads_back(name: str, numeric: str) -> None:
    spec = with_backend(SPECS[name], Backend.NFTABLES)
    script = f"nft -f - && nft -j {numeric} list table inet vr"
    listing = in_namespace("sh", "-c", script, text=nft_text(spec))
    assert digest_of_nft(listing) == expected_digest(spec)


@needs_root
@each_spec
def test_digest_of_iptables_reads_back(name: str) -> None:
    spec = with_backend(SPECS[name], Backend.IPTABLES)
    first, second = iptables_texts(spec)
    saved = [
        in_namespace("sh", "-c", f"{tool}-legacy-restore -w && {tool}-legacy-save", text=text)
        for tool, text in (("iptables", first), ("ip6tables", second))
    ]
    assert digest_of_iptables(saved[0], saved[1]) == expected_digest(spec)
