"""The dnsmasq of an instance: started, proved ready by an answered query, reloaded, stopped.

Functions that take `netns` act on the instance in that namespace; `start` and `answers` must be
called inside it.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from vrha.errors import StepError
from vrha.linux import processes, tools

CONF, PID = "dnsmasq.conf", "pid"
READY_S = 2.0
"""Seconds after its start within which dnsmasq must answer."""
STOP_S = 1.0

_QUERY = (
    struct.pack("!HHHHHH", 0x7672, 0x0100, 1, 0, 0, 0)
    + b"\x05check\x04vrha\x07invalid\x00"
    + struct.pack("!HH", 1, 1)
)
"""Question for check.vrha.invalid A; any answer will do (RFC 6761: `invalid` never exists)."""


def start(program: str, folder: Path) -> None:
    """Start dnsmasq with the configuration of the folder, and wait until it answers.

    It returns from its start before it has read its host files, so only an answer proves it
    ready. Raises StepError `dnsmasq-failed`.
    """
    done = tools.run([program, f"--conf-file={folder / CONF}"], timeout=10)
    if done.returncode != 0:
        raise StepError("dnsmasq-failed", f"dnsmasq does not start: {done.complaint}")
    if not answers(READY_S):
        raise StepError("dnsmasq-failed", f"dnsmasq does not answer within {READY_S:g} s")


def answers(seconds: float) -> bool:
    """Whether the DNS server on 127.0.0.1 of this namespace answers within `seconds`."""
    until = time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 53))
        while (left := until - time.monotonic()) > 0:
            sock.settimeout(min(left, 0.2))
            try:
                sock.send(_QUERY)
                if sock.recv(512)[:2] == _QUERY[:2]:
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
        hint = int((folder / PID).read_text())
    except (OSError, ValueError):
        hint = 0
    if hint and is_dnsmasq(hint) and processes.is_inside(hint, netns):
        return hint
    return next((pid for pid in processes.inside(netns) if is_dnsmasq(pid)), None)


def is_dnsmasq(pid: int) -> bool:
    """Whether the process is a dnsmasq that lives (zombies are in no namespace)."""
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "dnsmasq\n"
    except OSError:
        return False


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


def changed(folder: Path, files: Mapping[str, str], name: str) -> bool:
    """Whether the file of the folder differs from what `files` wants it to be."""
    try:
        return (folder / name).read_text() != files[name]
    except OSError:
        return True
