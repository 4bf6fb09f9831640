"""A node for measurements: this process moves into namespaces of its own, which vanish with it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from vrha.errors import PreconditionError
from vrha.linux import netns
from vrha.linux.node import NodeKernel

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000


def sh(line: str) -> None:
    """Run one command. Raises PreconditionError when it fails."""
    done = subprocess.run(line.split(), capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise PreconditionError("bench-setup", f"{line}: {done.stderr.strip()}")


@contextlib.contextmanager
def own_node(bridges: Iterable[str]) -> Iterator[Path]:
    """The calling thread's network and mounts are its own from now on; yields a state directory.

    There is no way back: use it in a process that ends afterwards. Raises PreconditionError
    `not-root`.
    """
    if os.geteuid() != 0:
        raise PreconditionError("not-root", "namespaces need root", "Run it by sudo.")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET) != 0:
        raise PreconditionError("bench-setup", os.strerror(ctypes.get_errno()))
    sh("mount --make-rprivate /")
    Path("/run/netns").mkdir(exist_ok=True)
    sh("mount -t tmpfs tmpfs /run/netns")
    sh("ip link set lo up")
    for bridge in bridges:
        sh(f"ip link add {bridge} type bridge")
        sh(f"ip link set {bridge} up")
    state = Path(tempfile.mkdtemp(prefix="vrha-bench-", dir="/run"))
    state.chmod(0o711)
    try:
        yield state
    finally:
        shutil.rmtree(state, ignore_errors=True)


@contextlib.contextmanager
def node_kernel(state: Path) -> Iterator[NodeKernel]:
    """The kernel half of the node; whatever instance is left is destroyed."""
    kernel = NodeKernel(state)
    try:
        yield kernel
    finally:
        for instance in kernel.observe():
            kernel.destroy(instance.ref)
        kernel.close()


def machine(name: str, bridge: str, *addresses: str) -> None:
    """A namespace of this name on a bridge, with addresses on its port e0."""
    sh(f"ip netns add {name}")
    sh(f"ip link add p-{name} type veth peer name e0 netns {name}")
    sh(f"ip link set p-{name} master {bridge} up")
    sh(f"ip -n {name} link set lo up")
    sh(f"ip -n {name} link set e0 up")
    for address in addresses:
        sh(f"ip -n {name} addr add {address} dev e0" + (" nodad" if ":" in address else ""))


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """The calling thread is in the named namespace."""
    home = netns.current()
    try:
        with netns.entered_named(name, home):
            yield
    finally:
        os.close(home)
