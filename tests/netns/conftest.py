"""A node of its own for each test: a network namespace with bridges and a private /run/netns."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.probekit import Pair, wired
from vrha.linux import netns
from vrha.linux.node import NodeKernel
from vrha.probe.process import serving

_CLONE_FS, _CLONE_NEWNS, _CLONE_NEWNET = 0x00000200, 0x00020000, 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def sh(command: str) -> str:
    """Output of a command of the test itself."""
    return subprocess.run(
        command.split(), check=True, capture_output=True, text=True, timeout=30
    ).stdout


@pytest.fixture(scope="package")
def private_mounts() -> Iterator[None]:
    """A mount namespace in which /run/netns is the tests' own."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    home = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    folder = os.getcwd()
    _check(_libc.unshare(_CLONE_NEWNS))
    try:
        sh("mount --make-rprivate /")
        Path("/run/netns").mkdir(exist_ok=True)
        sh("mount -t tmpfs tmpfs /run/netns")
        yield
    finally:
        # A thread of a test that is just ending may still share our root: setns(2) refuses then.
        _check(_libc.unshare(_CLONE_FS))
        _check(_libc.setns(home, _CLONE_NEWNS))
        os.close(home)
        os.chdir(folder)


@pytest.fixture
def node(private_mounts: None) -> Iterator[None]:
    """This thread is in a fresh node: loopback, bridges `br-a`, `br-b` and `br-up`, all up."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    _check(_libc.unshare(_CLONE_NEWNET))
    try:
        sh("ip link set lo up")
        for bridge in ("br-a", "br-b", "br-up"):
            sh(f"ip link add {bridge} type bridge")
            sh(f"ip link set {bridge} up")
        yield
    finally:
        for name in netns.names():
            netns.remove(name)
        _check(_libc.setns(home, _CLONE_NEWNET))
        os.close(home)


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A state directory that dnsmasq can pass through (pytest's own are closed to others)."""
    path = Path(tempfile.mkdtemp(prefix="vrha-test-", dir="/run"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def kernel(node: None, state_dir: Path) -> Iterator[NodeKernel]:
    """The kernel half of the node; instances that the test leaves are destroyed."""
    made = NodeKernel(state_dir)
    try:
        yield made
    finally:
        for instance in made.observe():
            made.destroy(instance.ref)
        made.close()


@pytest.fixture(scope="module")
def wire() -> Iterator[Pair]:
    """Two namespaces and a veth pair between them, for the probes."""
    with wired() as made:
        yield made


@pytest.fixture
def pair(wire: Pair) -> Pair:
    """The wire without faults, whatever the test before has left."""
    for path in (wire.a, wire.b):
        wire.call(path, "nft", "flush", "ruleset")
    return wire


@pytest.fixture
def served(pair: Pair) -> Iterator[Pair]:
    """The pair with a responder in both namespaces, all from one process."""
    with serving(7, [pair.a, pair.b]):
        yield pair
