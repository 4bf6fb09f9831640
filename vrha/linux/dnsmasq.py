"""The dnsmasq of an instance: started, proved ready by an answered query, reloaded, stopped.

`start` and `answers` act on the network namespace of the calling thread.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from pathlib import Path

from vrha.core.dhcp import shared_cidrs
from vrha.errors import StepError
from vrha.linux import processes, tools
from vrha.linux.files import InstanceFolders
from vrha.model.spec import InstanceRef, InstanceSpec
from vrha.render.dnsmasq import CHECK_NAME, DnsmasqFiles, dnsmasq_files

READY_S = 2.0
"""Seconds after its start within which dnsmasq must answer."""
STOP_S = 1.0
"""Seconds that it gets to end by itself."""

_NAMES = DnsmasqFiles("", "", "")
LEASES = _NAMES.leases_name
"""Name of the lease file in the instance's folder."""
_AT_ONCE = b"no-ping\n"
_QUERY_ID = b"vr"


def _query() -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in CHECK_NAME.split("."))
    header = _QUERY_ID + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0)
    return header + labels + b"\0" + struct.pack("!HH", 1, 1)


def write_files(folders: InstanceFolders, spec: InstanceSpec) -> bool:
    """Write what dnsmasq reads; True when its configuration itself has changed.

    Host files are readable by all: dnsmasq reads them again as a user of its own.
    Raises StepError `no-space`, `state-dir`.
    """
    files = dnsmasq_files(spec, str(folders.path(spec.ref)))
    conf = files.conf.encode()
    changed = folders.read(spec.ref, files.conf_name) != conf
    folders.write(spec.ref, files.hosts_name, files.hosts.encode(), 0o644)
    folders.write(spec.ref, files.addn_hosts_name, files.addn_hosts.encode(), 0o644)
    if shared_cidrs(spec.networks) and folders.read(spec.ref, files.shared_name) is None:
        folders.write(spec.ref, files.shared_name, b"", 0o644)
    if folders.read(spec.ref, files.offers_name) is None:
        offer_at_once(folders, spec.ref)
    if changed:
        folders.write(spec.ref, files.conf_name, conf)
    return changed


def leases(folders: InstanceFolders, ref: InstanceRef) -> bytes:
    """The instance's lease file; empty when it has none."""
    return folders.read(ref, _NAMES.leases_name) or b""


def put_leases(folders: InstanceFolders, ref: InstanceRef, leases: bytes) -> None:
    """Write the instance's lease file, which dnsmasq reads at its start only."""
    folders.write(ref, _NAMES.leases_name, leases, 0o644)


def put_reservations(folders: InstanceFolders, ref: InstanceRef, lines: bytes) -> bool:
    """Write what the other DHCP server has granted; whether dnsmasq has to read that again."""
    if folders.read(ref, _NAMES.shared_name) == lines:
        return False
    folders.write(ref, _NAMES.shared_name, lines, 0o644)
    return True


def offer_at_once(folders: InstanceFolders, ref: InstanceRef) -> None:
    """dnsmasq may offer what it has no lease for; it reads that at its start only."""
    folders.write(ref, _NAMES.offers_name, _AT_ONCE)


def ask_before_offers(folders: InstanceFolders, spec: InstanceSpec) -> None:
    """dnsmasq must ask by ICMP whether somebody has an address of a range before it offers it.

    That takes 3 s for each new client, one after the other, and meanwhile it answers no other
    DHCP client (dnsmasq 2.90, src/dhcp.c, do_icmp_ping): only where leases may be unknown.
    """
    subnets = [subnet for network in spec.networks for subnet in network.subnets]
    if any(subnet.dhcp and subnet.cidr.version == 4 for subnet in subnets):
        folders.write(spec.ref, _NAMES.offers_name, b"")


def asks_before_offers(folders: InstanceFolders, ref: InstanceRef) -> bool:
    return folders.read(ref, _NAMES.offers_name) == b""


def check(program: str, folder: Path) -> None:
    """Have dnsmasq read its configuration without serving: one that works is not stopped for one
    that will not start. Raises StepError `dnsmasq-failed`.
    """
    done = tools.run([program, "--test", f"--conf-file={folder / _NAMES.conf_name}"], timeout=10)
    if done.returncode != 0:
        raise StepError("dnsmasq-failed", f"dnsmasq refuses its settings: {done.complaint}")


def start(program: str, folder: Path) -> None:
    """Start dnsmasq with the configuration of the folder, and wait until it answers.

    It returns from its start before it has read its host files, so only an answer proves it
    ready. Raises StepError `dnsmasq-failed`.
    """
    done = tools.run([program, f"--conf-file={folder / _NAMES.conf_name}"], timeout=10)
    if done.returncode != 0:
        raise StepError("dnsmasq-failed", f"dnsmasq does not start: {done.complaint}")
    if not answers(READY_S):
        raise StepError("dnsmasq-failed", f"dnsmasq does not answer within {READY_S:g} s")


def answers(seconds: float) -> bool:
    """Whether the DNS server on 127.0.0.1 of this namespace answers within `seconds`."""
    until = time.monotonic() + seconds
    query = _query()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 53))
        while (left := until - time.monotonic()) > 0:
            sock.settimeout(min(left, 0.2))
            try:
                sock.send(query)
                if sock.recv(512)[:2] == _QUERY_ID:
                    return True
            except TimeoutError:
                continue
            except ConnectionRefusedError:
                time.sleep(min(left, 0.001))
    return False


def pid_of(folder: Path, netns: int) -> int | None:
    """Pid of the living dnsmasq in the namespace; None when there is none.

    The pid file is a hint only, it may be missing or stale.
    """
    try:
        hint = int((folder / _NAMES.pid_name).read_text())
    except (OSError, ValueError):
        hint = 0
    if hint and _is_dnsmasq(hint) and processes.is_inside(hint, netns):
        return hint
    return next((pid for pid in processes.inside(netns) if _is_dnsmasq(pid)), None)


def strays_of(folder: Path) -> list[int]:
    """Pids of what was started with the configuration of the folder, wherever it lives."""
    pids = processes.with_argument(f"--conf-file={folder / _NAMES.conf_name}")
    return [pid for pid in pids if _is_dnsmasq(pid)]


def reload(pid: int) -> None:
    """Let dnsmasq read its host files again; its command line and configuration it does not."""
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGHUP)
    finally:
        os.close(fd)


def stop(pid: int, netns: int) -> None:
    """End dnsmasq and wait until it is gone. Raises StepError `process-stuck`."""
    processes.end([pid], netns, STOP_S)


def _is_dnsmasq(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "dnsmasq\n"
    except OSError:
        return False
