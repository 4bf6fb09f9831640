"""The units: accepted by systemd, and nothing in them that hides namespaces."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vrha.agent.pulse import BEAT_S, TURN_S
from vrha.watcher.daemon import SHOW_MS
from vrha.watcher.settings import AgentTable, CleanupTable

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


IN_NAMESPACES = (
    "vrha-agent.service",
    "vrha-stand-in.service",
    "vrha-cleanup@.service",
    "vrha-cleanup-later@.service",
    "vrha-cleanup-boot.service",
)
"""Units that make, enter or remove named network namespaces."""
DAEMONS = ("vrha-agent.service", "vrha-watcher.service", "vrha-orchestrator.service")
EXPOSURE = {
    "vrha-orchestrator.service": 20,
    "vrha-watcher.service": 28,
    # docs/units.md says what each of these rests on.
    "vrha-agent.service": 49,
    "vrha-stand-in.service": 49,
    "vrha-cleanup@.service": 50,
    "vrha-cleanup-later@.service": 50,
    "vrha-cleanup-boot.service": 50,
}
"""Ten times what `systemd-analyze security` may say at most."""


def hardening(name: str) -> dict[str, str]:
    text = (UNITS / name).read_text()
    return dict(re.findall(r"^(\w+)=(.*)$", text[text.index("NoNewPrivileges") :], re.MULTILINE))


@pytest.mark.parametrize("name", IN_NAMESPACES)
def test_nothing_hides_namespaces_from_the_rest_of_the_machine(name: str) -> None:
    found = options(name)
    assert sorted(MOUNT_NAMESPACE & set(found)) == []
    assert "net" in found["RestrictNamespaces"]


@pytest.mark.parametrize("name", ["vrha-agent.service", "vrha-stand-in.service"])
def test_dnsmasq_outlives_the_agent(name: str) -> None:
    assert options(name)["KillMode"] == "process"


def test_a_stand_in_may_what_the_agent_may_and_is_started_by_the_watcher_only() -> None:
    agent, found = hardening("vrha-agent.service"), hardening("vrha-stand-in.service")
    assert found == {k: v for k, v in agent.items() if k not in ("WantedBy", "Also")}
    assert options("vrha-stand-in.service")["Restart"] == "no"
    assert AgentTable().stand_in[-1] == "vrha-stand-in.service"


def test_sweeps_of_watcher_timer_and_boot_may_the_same() -> None:
    found = [hardening(name) for name in IN_NAMESPACES[2:]]
    found[-1].pop("WantedBy")
    assert found[0] == found[1] == found[2]
    assert CleanupTable().command[-1] == "vrha-cleanup@vrha.service"
    assert "vrha-cleanup-later@vrha.timer" in options("vrha-agent.service")["ExecStopPost"]
    # The watcher asks by the result whether to try again; nobody else should see a failure.
    assert "SuccessExitStatus" not in options("vrha-cleanup@.service")
    assert options("vrha-cleanup-later@.service")["SuccessExitStatus"] == "4"


def test_the_second_line_waits_as_long_as_the_first() -> None:
    timer = options("vrha-cleanup-later@.timer")
    assert timer["OnActiveSec"] == f"{CleanupTable().grace_s:g}s"
    assert timer["RemainAfterElapse"] == "no"


def test_boot_is_cleaned_before_anything_serves_and_only_then() -> None:
    found = options("vrha-cleanup-boot.service")
    assert set(found["Before"].split()) == set(DAEMONS)
    assert found["ConditionPathExists"] == "!/run/vrha"
    assert found["RemainAfterExit"] == "yes"
    for name in ("vrha-agent.service", "vrha-watcher.service"):
        assert "vrha-cleanup-boot.service" in options(name)["Wants"].split()
        assert "vrha-cleanup-boot.service" in options(name)["After"].split()


def test_nothing_of_the_orchestrator_outlives_it() -> None:
    assert options("vrha-orchestrator.service")["KillMode"] == "mixed"


@pytest.mark.parametrize("name", DAEMONS)
def test_a_daemon_is_started_again_for_ever(name: str) -> None:
    found = options(name)
    assert found["Type"] == "notify"
    assert found["Restart"] == "always"
    assert found["StartLimitIntervalSec"] == "0"
    assert found["RuntimeDirectoryPreserve"] == "yes"
    assert found["WatchdogSignal"] == "SIGKILL"
    assert found["PartOf"] == "vrha.target"


@pytest.mark.parametrize(
    ("name", "longest_s"),
    [
        ("vrha-watcher.service", SHOW_MS / 1000),
        ("vrha-agent.service", BEAT_S),
        # The main loop's longest turn, and room for the end of a leadership.
        ("vrha-orchestrator.service", TURN_S / 2.5),
    ],
)
def test_a_watchdog_bears_that_some_signs_of_life_are_late(name: str, longest_s: float) -> None:
    seconds = float(options(name)["WatchdogSec"].removesuffix("s"))
    assert seconds >= 2.5 * longest_s


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_every_unit(tmp_path: Path) -> None:
    # The commands need not be installed for this test: only the rest of the units is judged.
    for unit in UNITS.iterdir():
        text = re.sub("ExecStart=vrha.*", "ExecStart=/bin/true", unit.read_text())
        (tmp_path / unit.name).write_text(text)
    names = [unit.name.replace("@.", "@vrha.") for unit in sorted(UNITS.iterdir())]
    verify = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in names)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    # It also complains of units that others have installed on this machine.
    ours = [line for line in verify.stderr.splitlines() if "vrha" in line]
    assert (verify.returncode, ours) == (0, [])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize(("name", "exposure"), EXPOSURE.items())
def test_a_unit_exposes_no_more_than_it_must(tmp_path: Path, name: str, exposure: int) -> None:
    unit = tmp_path / name
    unit.write_text(re.sub("ExecStart=vrha.*", "ExecStart=/bin/true", (UNITS / name).read_text()))
    security = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--threshold={exposure}", str(unit)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert security.returncode == 0, security.stdout.splitlines()[-1]


def test_every_unit_has_its_figure() -> None:
    assert EXPOSURE.keys() == {unit.name for unit in UNITS.glob("*.service")}
