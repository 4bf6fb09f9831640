"""A machine in a box: the real systemd as process 1 of namespaces of its own, for the real units.

Mount, pid, network, UTS, IPC and cgroup namespaces; /run and /tmp are the box's own, and its root
is the machine's with all that is written kept in memory. /var/lib is a folder that outlives the
box, so that the same machine can boot again. Nothing outside is changed.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2]
UNITS = SOURCE / "systemd"
SYSTEMD = Path("/lib/systemd/systemd")
BOOT_S = 60.0
PROGRAMS = {
    "vrha": "vrha.cli.main",
    "vrha-watcher": "vrha.watcher.main",
    "vrha-cleanup": "vrha.watcher.cleanup",
}
_NEEDED = ["unshare", "nsenter", "setpriv", "pivot_root", "bash", "nft", "dnsmasq", "ip", "ping"]
_HIDDEN = ("/home", "/root", "/run", "/tmp")
"""Folders of which units (ProtectHome=, PrivateTmp=) or boxes have their own."""
_TARGET = """\
[Unit]
Requires=basic.target dbus.socket
After=basic.target dbus.socket
AllowIsolate=yes
"""
_READY = """\
[Unit]
After=basic.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c "echo ready >/run/host/ready"
"""


def missing() -> str:
    """What this machine lacks for a box; empty when it can have one."""
    if os.geteuid() != 0:
        return "needs root"
    if not SYSTEMD.exists():
        return f"no {SYSTEMD}"
    for program in _NEEDED:
        if shutil.which(program) is None:
            return f"no {program}"
    if _cgroup2() is None:
        return "no cgroup2 mounted"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "no overlay file system"
    return ""


def _cgroup2() -> Path | None:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind = line.split()[:3]
        if kind == "cgroup2":
            return Path(where)
    return None


def _shown(path: Path) -> Path:
    """Where the units in a box see a folder of this machine: development happens in homes."""
    hidden = any(path.is_relative_to(folder) for folder in _HIDDEN)
    return Path("/opt/vrha-box", *path.parts[1:]) if hidden else path


def until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Wait for it. Raises AssertionError that names `what`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.002)


class Box:
    """One machine. `boot` it, `crash` it, boot it again; `close` leaves nothing."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vrha-box-", dir="/run"))
        self._name = self.folder.name
        mount = _cgroup2()
        assert mount is not None
        self.cgroup = mount / self._name
        for part in ("host", "root", "units", "etc", "lib", "bin"):
            (self.folder / part).mkdir()
        base, libraries = Path(sys.base_prefix), Path(sysconfig.get_path("purelib"))
        python = Path(sys.executable).resolve()
        self.python = str(_shown(base) / python.relative_to(base.resolve()))
        """The interpreter that runs now, as it is called inside."""
        self.libraries = str(_shown(base) / "lib")
        """Where the interpreter has its own."""
        self.path = f"{_shown(SOURCE)}:{_shown(libraries)}"
        """Its PYTHONPATH there."""
        self._binds = {path: _shown(path) for path in (SOURCE, base, libraries)}
        self.etc = self.folder / "etc"
        """Its /etc/vrha."""
        self.lib = self.folder / "lib"
        """Its /var/lib."""
        self._write_units()
        self._write_programs()
        self._launcher: subprocess.Popen[bytes] | None = None
        self.pid = 0

    def _write_units(self) -> None:
        units = self.folder / "units"
        for unit in UNITS.iterdir():
            shutil.copy(unit, units)
        (units / "box.target").write_text(_TARGET)
        (units / "box-ready.service").write_text(_READY)
        (units / "box.target.wants").mkdir()
        (units / "box.target.wants" / "box-ready.service").symlink_to("../box-ready.service")

    def _write_programs(self) -> None:
        """What pip would install, for the interpreter that runs now."""
        for name, module in PROGRAMS.items():
            program = self.folder / "bin" / name
            code = (
                f"import sys; sys.path[:0] = {self.path.split(':')};"
                f" sys.argv[0] = '{name}'; from {module} import main; sys.exit(main())"
            )
            # One that was built in a home looks there for its own library, and finds another's.
            program.write_text(
                f'#!/bin/sh\nLD_LIBRARY_PATH={self.libraries} exec {self.python} -c "{code}" "$@"\n'
            )
            program.chmod(0o755)

    def add_unit(self, name: str, text: str) -> None:
        """A unit of the test; known from the next boot on."""
        (self.folder / "units" / name).write_text(text)

    def boot(self) -> float:
        """Start it; how long that took, in s."""
        began = time.monotonic()
        self.cgroup.mkdir()
        ready = self.folder / "host" / "ready"
        os.mkfifo(ready)
        heard = os.open(ready, os.O_RDONLY | os.O_NONBLOCK)
        binds = {self.etc: "/etc/vrha", self.lib: "/var/lib", self.folder / "bin": "/usr/local/bin"}
        binds |= {source: to for source, to in self._binds.items() if source != Path("/usr")}
        names = ("mount", "uts", "ipc", "cgroup", "pid", "net")
        # Whatever becomes of us, no box is left running.
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *(f"--{name}" for name in names)]
        command += [
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
            "bash",
            str(SOURCE / "tests/systemd/boot.sh"),
        ]
        command += [str(self.folder), *(f"{source}:{target}" for source, target in binds.items())]
        # Its cgroup first: that is where the root of its cgroup namespace will be.
        join = 'echo 0 >"$0/cgroup.procs"; exec "$@"'
        with (self.folder / "log").open("wb") as log:
            self._launcher = subprocess.Popen(
                ["bash", "-c", join, str(self.cgroup), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._await(heard)
        except BaseException:
            self._end()
            raise
        finally:
            os.close(heard)
        children = Path(f"/proc/{self._launcher.pid}/task/{self._launcher.pid}/children")
        self.pid = int(children.read_text())
        return time.monotonic() - began

    def _await(self, heard: int) -> None:
        assert self._launcher is not None
        end = time.monotonic() + BOOT_S
        poll = select.poll()
        poll.register(heard, select.POLLIN)
        while not poll.poll(50):
            log = (self.folder / "log").read_text()
            assert self._launcher.poll() is None, f"the box ended: {log}"
            assert time.monotonic() < end, f"the box is not up: {log}"

    def run(self, *argv: str, ok: bool = True, seconds: float = 60.0) -> str:
        """Output of a command inside."""
        done = subprocess.run(
            self.inside(*argv), capture_output=True, text=True, timeout=seconds, cwd="/"
        )
        assert done.returncode == 0 or not ok, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def inside(self, *argv: str) -> list[str]:
        """The command line that runs a command inside."""
        enter = [
            "nsenter",
            "-t",
            str(self.pid),
            "-m",
            "-u",
            "-i",
            "-n",
            "-p",
            "-C",
            "-r",
            "-w",
            "--",
        ]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return [*enter, "env", "-i", path, f"PYTHONPATH={self.path}", *argv]

    def module(self, *argv: str) -> str:
        """Output of a module inside: `python -m ...`."""
        return self.run(self.python, "-m", *argv)

    def systemctl(self, *argv: str, ok: bool = True) -> str:
        return self.run("systemctl", *argv, ok=ok)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def journal(self, *units: str) -> str:
        return self.run(
            "journalctl", "-o", "short-monotonic", "--no-pager", *(f"--unit={u}" for u in units)
        )

    def main_pid(self, unit: str) -> int:
        """Of this machine's pids, not of the box's; the unit's only process of Python.

        Raises AssertionError when there is none.
        """
        for pid in self.pids(unit):
            with contextlib.suppress(OSError):
                if "python" in Path(os.readlink(f"/proc/{pid}/exe")).name:
                    return pid
        raise AssertionError(f"{unit} has no process of Python")

    def pids(self, unit: str) -> list[int]:
        """All processes of the unit, as `main_pid`."""
        found = []
        for procs in self.cgroup.glob(f"*/{unit}/cgroup.procs"):
            with contextlib.suppress(OSError):
                found += [int(word) for word in procs.read_text().split()]
        for procs in self.cgroup.glob(f"*/*/{unit}/cgroup.procs"):
            with contextlib.suppress(OSError):
                found += [int(word) for word in procs.read_text().split()]
        return found

    def host_pid(self, pid: int) -> int:
        """A process of the box, as this machine counts it."""
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                numbers = status.read_text().split("NSpid:")[1].split("\n")[0]
                if numbers.split()[1:] == [str(pid)] and self._is_mine(status.parent):
                    return int(status.parent.name)
        raise AssertionError(f"no process {pid} in the box")

    def _is_mine(self, process: Path) -> bool:
        return os.readlink(process / "ns/pid") == os.readlink(f"/proc/{self.pid}/ns/pid")

    def crash(self) -> None:
        """A power cut: the kernel ends all that is in the box, and nothing of it runs any more."""
        os.kill(self.pid, signal.SIGKILL)
        self._end()

    def _end(self) -> None:
        if self._launcher is None:
            return
        with contextlib.suppress(ProcessLookupError):
            # Its child dies with it (--kill-child), and all that is in the box with that.
            os.kill(self._launcher.pid, signal.SIGKILL)
        self._launcher.wait(30)
        self._launcher = None
        self.pid = 0
        with contextlib.suppress(OSError):
            (self.folder / "host" / "ready").unlink()
        until(self._is_swept, f"{self.cgroup} is empty")

    def _is_swept(self) -> bool:
        for path, _, _ in os.walk(self.cgroup, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        return not self.cgroup.exists()

    def close(self) -> None:
        self._end()
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def boxed() -> Iterator[Box]:
    """A box that is not booted yet."""
    box = Box()
    try:
        yield box
    finally:
        box.close()
