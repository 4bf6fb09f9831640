"""`pip install .` somewhere else: command, templates, units and scenarios come along."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2]
NOT_SOURCE = (".*", "__pycache__", "build", "dist", "*.egg-info", "reports")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
LIMIT = 120
# With PYTHONPATH the source itself would count as the installed package.
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


@dataclass(frozen=True)
class Installed:
    """A virtual environment that holds vrha as pip installs it, and a folder to stand in."""

    prefix: Path
    folder: Path

    def run(self, *command: str) -> str:
        return subprocess.run(
            [self.prefix / "bin" / command[0], *command[1:]],
            cwd=self.folder,
            env=ENVIRONMENT,
            check=True,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        ).stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("packaging")
    source, wheels, prefix = folder / "source", folder / "wheels", folder / "venv"
    # A build writes into its source: not into ours.
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    _call(*PIP, "wheel", *offline, "--wheel-dir", str(wheels), str(source))
    shutil.rmtree(source)
    _call(sys.executable, "-m", "venv", "--without-pip", str(prefix))
    python = str(prefix / "bin" / "python")
    _call(*PIP, "--python", python, "install", *offline, *map(str, wheels.iterdir()))
    # The libraries are those of this environment; a path file in a path file is not read, so
    # an editable vrha of this environment stays out of sight.
    site = next(prefix.glob("lib/python*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return Installed(prefix, folder)


def _call(*command: str) -> None:
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_runs_from_the_installed_package(installed: Installed) -> None:
    where = installed.run("python", "-c", "import vrha; print(vrha.__file__)").strip()
    assert Path(where).is_relative_to(installed.prefix)
    assert "Usage: vrha" in installed.run("vrha", "--help")
    assert "--cleanup" in installed.run("vrha", "network", "restart", "--help")
    assert "sage: ping-gap" in installed.run("ping-gap", "--help")


def test_every_template_is_found(installed: Installed) -> None:
    ask = "from vrha.render.templates import template_folder; print(template_folder())"
    folder = Path(installed.run("python", "-c", ask).strip())
    assert folder.is_relative_to(installed.prefix)
    assert names(folder) == names(SOURCE / "templates")


def test_every_unit_is_installed(installed: Installed) -> None:
    assert names(installed.prefix / "lib/systemd/system") == names(SOURCE / "systemd")


def test_every_scenario_is_installed(installed: Installed) -> None:
    site = next(installed.prefix.glob("lib/python*/site-packages"))
    assert names(site / "vrha/lab/scenarios") == names(SOURCE / "vrha/lab/scenarios")


def test_every_module_is_installed(installed: Installed) -> None:
    site = next(installed.prefix.glob("lib/python*/site-packages"))
    ours = {path.relative_to(SOURCE) for path in (SOURCE / "vrha").rglob("*.py")}
    assert ours == {path.relative_to(site) for path in (site / "vrha").rglob("*.py")}
    assert (site / "vrha" / "py.typed").is_file()


def test_the_licence_comes_along(installed: Installed) -> None:
    licences = list(installed.prefix.glob("lib/python*/site-packages/vrha-*.dist-info/**/LICENSE"))
    assert [licence.read_bytes() for licence in licences] == [(SOURCE / "LICENSE").read_bytes()]


def names(folder: Path) -> list[str]:
    """The data files of a folder."""
    return sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix != ".py")
