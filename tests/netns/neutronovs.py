"""A database of Open vSwitch of the tests' own, without a switch."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.netns.nodekit import until

_RUN = Path("/run/openvswitch")
_SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")


@dataclass(frozen=True)
class Row:
    """A port with one interface; `port_id` is what the switch's user calls it."""

    name: str
    port_id: str
    ids: Mapping[str, str] = field(default_factory=dict)


def missing() -> str:
    """Why there can be no database here, or empty."""
    absent = [p for p in ("ovsdb-server", "ovsdb-tool", "ovs-vsctl") if shutil.which(p) is None]
    return f"{', '.join(absent)} not installed (openvswitch-switch)" if absent else ""


@contextmanager
def mounted(path: Path) -> Iterator[None]:
    """An empty folder there, in this mount namespace only."""
    made = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(path)], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True, timeout=10)
        for each in made:
            each.rmdir()


@contextmanager
def database() -> Iterator[None]:
    """ovsdb-server at its usual socket."""
    with mounted(_RUN):
        yield from _serving()


def _serving() -> Iterator[None]:
    folder = Path(tempfile.mkdtemp(prefix="vrha-ovs-", dir="/tmp"))
    subprocess.run(
        ["ovsdb-tool", "create", f"{folder}/conf.db", str(_SCHEMA)], check=True, timeout=30
    )
    server = subprocess.Popen(
        ["ovsdb-server", f"{folder}/conf.db", f"--remote=punix:{_RUN}/db.sock", "--no-chdir",
         f"--unixctl={folder}/ctl", "--verbose=off"],
    )  # fmt: skip
    try:
        assert until((_RUN / "db.sock").exists), "ovsdb-server does not start"
        vsctl("init", "--", "add-br", "br-int")
        yield
    finally:
        server.terminate()
        server.wait(timeout=10)
        shutil.rmtree(folder)


def vsctl(*words: str) -> str:
    """Output of ovs-vsctl."""
    argv = ["ovs-vsctl", "--no-wait", "--timeout=10", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


def add_rows(*rows: Row) -> None:
    """Ports of br-int, with the keys that Neutron sets."""
    words: list[str] = []
    for row in rows:
        words += ["--", "add-port", "br-int", row.name, "--", "set", "Interface", row.name]
        words += ["type=internal"]
        if row.port_id:
            ids = {"iface-id": row.port_id, "iface-status": "active", **row.ids}
            words += [f"external_ids:{key}={value}" for key, value in ids.items()]
    vsctl(*words)


def dump() -> str:
    """All rows, without what changes by itself."""
    tables = ("Bridge", "Port", "Interface")
    shown = {}
    for table in tables:
        found = json.loads(vsctl("--format=json", "list", table))
        shown[table] = [found["headings"], sorted(map(str, found["data"]))]
    return json.dumps(shown, indent=1)
