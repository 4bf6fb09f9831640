"""Run something inside namespaces of a lab from an ordinary process outside.

setns(2) works on a thread: a short-lived thread enters, does its work there (starts a program,
opens a socket) and ends, so the caller's own namespaces never change.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from vrha.errors import NotFoundError
from vrha.lab import kernel

T = TypeVar("T")

_ALL = (
    kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWIPC
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a lab: the namespaces of process `pid`, with the network of `network` if given."""

    pid: int
    network: str = ""
    """Path of a network namespace as seen from outside."""

    @property
    def network_path(self) -> str:
        return self.network or f"/proc/{self.pid}/ns/net"


def _enter(place: Place, flags: int) -> None:
    try:
        network = os.open(place.network_path, os.O_RDONLY | os.O_CLOEXEC)
        holder = os.pidfd_open(place.pid)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NotFoundError("lab-gone", "that part of the lab no longer exists") from error
    try:
        if flags & kernel.CLONE_NEWNS:
            kernel.unshare(kernel.CLONE_FS)
        if flags & ~kernel.CLONE_NEWNET:
            kernel.setns(holder, flags)
        kernel.setns(network, kernel.CLONE_NEWNET)
    finally:
        os.close(network)
        os.close(holder)


def _in_thread(place: Place, flags: int, function: Callable[[], T]) -> T:
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            _enter(place, flags)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="lab-enter", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        # Interrupted: what the thread is about to start must be known to the caller.
        thread.join(1.0)
        raise
    if errors:
        raise errors[0]
    return results[0]


def in_network(place: Place, function: Callable[[], T]) -> T:
    """Call `function` in a thread whose new sockets belong to the place's network.

    Files and processes stay those of the caller. Raises NotFoundError (`lab-gone`).
    """
    return _in_thread(place, kernel.CLONE_NEWNET, function)


def start(place: Place, argv: Sequence[str], **popen: Any) -> subprocess.Popen[Any]:
    """Start a program inside the place: all its namespaces, so it ends with the lab.

    The caller must wait() for it like for any child: the kernel keeps the lab's process 1 until
    each process below it has been reaped. Raises NotFoundError (`lab-gone`), and OSError as
    subprocess.Popen does. The working folder is `/` unless `cwd` is given.
    """
    popen.setdefault("cwd", "/")
    started: list[subprocess.Popen[Any]] = []
    try:
        _in_thread(place, _ALL, lambda: started.append(subprocess.Popen(list(argv), **popen)))
    except BaseException:
        for child in started:
            child.kill()
            child.wait()
        raise
    return started[0]
