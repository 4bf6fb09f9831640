"""The units: accepted by systemd, and nothing in the agent's that hides its namespaces."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vrha.watcher.settings import AgentTable

UNITS = Path(__file__).parents[2] / "systemd"
MOUNT_NAMESPACE = frozenset(
    {
        "BindPaths",
        "BindReadOnlyPaths",
        "DynamicUser",
        "ExecPaths",
        "ExtensionDirectories",
        "ExtensionImages",
        "InaccessiblePaths",
        "LoadCredential",
        "LoadCredentialEncrypted",
        "LogNamespace",
        "MountAPIVFS",
        "MountFlags",
        "MountImages",
        "NetworkNamespacePath",
        "NoExecPaths",
        "PrivateDevices",
        "PrivateIPC",
        "PrivateMounts",
        "PrivateNetwork",
        "PrivateTmp",
        "PrivateUsers",
        "ProcSubset",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectProc",
        "ProtectSystem",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "RootDirectory",
        "RootImage",
        "SetCredential",
        "SetCredentialEncrypted",
        "TemporaryFileSystem",
    }
)
"""Options that give a unit a mount namespace, or another network namespace (systemd.exec(5))."""


def options(name: str) -> dict[str, str]:
    text = (UNITS / name).read_text()
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["vrha-agent.service", "vrha-stand-in.service"])
def test_the_agent_has_no_mount_namespace(name: str) -> None:
    found = options(name)
    assert sorted(MOUNT_NAMESPACE & set(found)) == []
    assert "mnt" in found["RestrictNamespaces"]


@pytest.mark.parametrize("name", ["vrha-agent.service", "vrha-stand-in.service"])
def test_dnsmasq_outlives_the_agent(name: str) -> None:
    assert options(name)["KillMode"] == "process"


def test_a_stand_in_may_what_the_agent_may_and_is_started_by_the_watcher_only() -> None:
    agent, found = options("vrha-agent.service"), options("vrha-stand-in.service")
    own = {"Description", "ExecStart", "Restart", "TimeoutStopSec"}
    only_agents = {"RestartSec", "RestartPreventExitStatus", "StartLimitIntervalSec", "WantedBy"}
    assert {key for key in agent.keys() | found if agent.get(key) != found.get(key)} == (
        own | only_agents
    )
    assert AgentTable().stand_in[-1] == "vrha-stand-in.service"


def test_nothing_of_the_orchestrator_outlives_it() -> None:
    assert options("vrha-orchestrator.service")["KillMode"] == "mixed"


@pytest.mark.parametrize("name", ["vrha-agent.service", "vrha-orchestrator.service"])
def test_a_daemon_is_started_again_for_ever(name: str) -> None:
    found = options(name)
    assert found["Restart"] == "always"
    assert found["StartLimitIntervalSec"] == "0"
    assert found["RuntimeDirectoryPreserve"] == "yes"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize(
    ("name", "exposure"),
    [
        ("vrha-agent.service", 61),
        ("vrha-stand-in.service", 61),
        ("vrha-orchestrator.service", 25),
        ("vrha-watcher.service", 50),
    ],
)
def test_systemd_accepts_the_unit(tmp_path: Path, name: str, exposure: int) -> None:
    # The command need not be installed for this test: only the rest of the unit is judged.
    unit = tmp_path / name
    unit.write_text(re.sub("ExecStart=vrha.*", "ExecStart=/bin/true", (UNITS / name).read_text()))
    verify = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    # It also complains of units that others have installed on this machine.
    ours = [line for line in verify.stderr.splitlines() if name in line]
    assert (verify.returncode, ours) == (0, [])
    security = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--threshold={exposure}", str(unit)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert security.returncode == 0, security.stdout.splitlines()[-1]
