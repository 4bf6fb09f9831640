"""The doctor on this machine, and on one that lacks something."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns.conftest import sh
from vrha.linux import doctor, netns, tools

pytestmark = [pytest.mark.root, pytest.mark.unhurried]


def test_this_machine_is_fit_and_nothing_is_left(node: None) -> None:
    before = sh("ip -o link"), sh("nft list ruleset"), netns.names()
    found = doctor.checks()
    assert [check for check in found if not check.ok] == []
    assert {"root", "nft", "dnsmasq", "nf_tables", "nf_tables_bridge", "bridge"} <= {
        check.name for check in found
    }
    assert (sh("ip -o link"), sh("nft list ruleset"), netns.names()) == before


def test_a_kernel_without_bridge_rules_is_told(
    node: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "nft"
    script.write_text(
        '#!/bin/sh\ntext=$(cat)\ncase "$text" in *"table bridge"*)'
        ' echo "Error: Operation not supported" >&2; exit 1;; esac\n'
        'echo "$text" | exec /usr/sbin/nft "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/bin")
    (failed,) = [check for check in doctor.checks() if not check.ok]
    assert failed.name == "nf_tables_bridge"
    assert "not supported" in failed.detail
    assert "CONFIG_NF_TABLES_BRIDGE" in failed.hint


def test_a_missing_program_is_named_with_its_package(
    node: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = tools.find
    gone = ("dnsmasq", "rabbitmq-server")
    monkeypatch.setattr(tools, "find", lambda name: None if name in gone else find(name))
    failed = [check for check in doctor.checks() if not check.ok]
    assert [(check.name, check.hint) for check in failed] == [
        ("dnsmasq", "apt-get install dnsmasq-base")
    ]
