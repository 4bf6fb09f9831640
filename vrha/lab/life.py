"""Birth and death of process 1 of a lab (`vrha.lab.anchor`), seen from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vrha.bus.processes import ProcessId
from vrha.errors import DeadlineError, PreconditionError, UnreachableError
from vrha.lab import anchor, state, wiring
from vrha.lab.daemons import environment, identify
from vrha.lab.scenario import Scenario

BUILD_TIMEOUT = 180.0
"""A namespace can only be made when the kernel lets go of its one lock for links, and while it
takes down those of a lab of hundreds of routers it keeps that for tens of seconds."""
_DOWN_TIMEOUT = 15.0
_ENDINGS = (signal.SIGINT, signal.SIGTERM)
_STRAYS_AFTER = 0.2
_LOG = "anchor.log"
_CONFIRM = b"."


def remove(name: str) -> None:
    """Remove the lab of that name, alive or dead, and all that is left of it.

    Raises NotFoundError (`no-lab`), DeadlineError (`lab-not-gone`).
    """
    remove_lab(state.load(name))


def remove_lab(record: state.LabState, children: Sequence[subprocess.Popen[Any]] = ()) -> None:
    """Kill the lab's processes and delete its folder; `children` are ours in it, to be reaped.

    Raises DeadlineError (`lab-not-gone`).
    """
    with _undisturbed():
        if record.anchor is not None:
            _end(record.name, record.anchor, children)
        state.remove(record.name)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM during the block: once process 1 is dead, nobody else cleans up.

    A second, impatient Ctrl-C would leave the folder. The block takes `_DOWN_TIMEOUT` at most.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(name: str, process_1: ProcessId, children: Sequence[subprocess.Popen[Any]]) -> None:
    """Kill process 1; the kernel keeps it until all below are reaped, our own children by us."""
    space = _pid_namespace(process_1.pid) if process_1.alive else None
    process_1.kill()
    began = time.monotonic()
    while not process_1.wait_gone(0.02):
        for child in children:
            child.poll()
        waited = time.monotonic() - began
        if waited > _STRAYS_AFTER:
            _reap_strays(space)
        if waited > _DOWN_TIMEOUT:
            raise DeadlineError(
                "lab-not-gone",
                f"lab {name} does not end: a process in it hangs in the kernel,"
                " or a program outside does not collect its child",
                "Run `vrha lab down` again.",
            )


def _pid_namespace(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return None


def _reap_strays(space: int | None) -> None:
    """Collect children of ours in that pid namespace that nobody knows of.

    An exception (Ctrl-C) between fork and the caller's assignment makes such an orphan.
    """
    for thread in Path("/proc/self/task").iterdir():
        for pid in map(int, (thread / "children").read_text().split()):
            if space is not None and _pid_namespace(pid) == space:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


def check_root() -> None:
    """Raises PreconditionError (`not-root`)."""
    if os.geteuid() != 0:
        raise PreconditionError("not-root", "a lab needs root", "Run it with sudo.")


def check_machine() -> None:
    """Raises PreconditionError (`not-root`, `missing-tool`)."""
    check_root()
    if shutil.which("ip") is None:
        raise PreconditionError("missing-tool", "ip is missing", "apt-get install iproute2")


def start_anchor(record: state.LabState, plan: Scenario, folder: Path) -> state.LabState:
    """Start process 1 and let it build; the record, completed with the processes and saved.

    Interrupted at any point, no process stays.
    Raises PreconditionError (`kernel-lacks-namespaces`), UnreachableError (`lab-anchor-died`).
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    owner = os.pidfd_open(os.getpid())
    with ours, theirs:
        launcher = _launch(theirs, owner, folder / _LOG)
        os.close(owner)
        theirs.close()
        try:
            answer, pidfds = _exchange(ours, record, plan, folder)
        except OSError as error:
            raise UnreachableError(
                "lab-anchor-died",
                f"the lab's first process: {error}",
                (folder / _LOG).read_text()[-500:],
            ) from error
        finally:
            launcher.wait(timeout=BUILD_TIMEOUT)
        complete = state.save(_completed(record, plan, answer, pidfds))
        ours.send(_CONFIRM)
    return complete


def _launch(control: socket.socket, owner: int, log: Path) -> subprocess.Popen[bytes]:
    fds = (control.fileno(), owner)
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-S", "-m", "vrha.lab.anchor", *map(str, fds)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=environment(),
            pass_fds=fds,
            start_new_session=True,
        )


def _completed(
    record: state.LabState, plan: Scenario, answer: Mapping[str, Any], pidfds: Sequence[int]
) -> state.LabState:
    found = [identify(fd) for fd in pidfds]
    if "error" in answer:
        raise PreconditionError(
            "kernel-lacks-namespaces",
            f"the kernel refused: {answer['error']}",
            "A lab needs full root with pid, mount, net, uts and ipc namespaces, veth and bridge"
            " (in a container: --privileged).",
        )
    processes = [process for process in found if process is not None]
    if len(processes) != len(plan.nodes) + 1:
        raise UnreachableError("lab-anchor-died", "the lab's first process ended at once")
    return replace(
        record,
        anchor=processes[0],
        nodes=dict(zip(answer["nodes"], processes[1:], strict=True)),
        machines={machine.name: machine.segment for machine in plan.machines},
    )


def _exchange(
    control: socket.socket, record: state.LabState, plan: Scenario, folder: Path
) -> tuple[Mapping[str, Any], list[int]]:
    request = {
        "name": record.name,
        "state": str(folder),
        "machines": {m.name: wiring.machine_settings(m) for m in plan.machines},
        "nodes": plan.nodes,
    }
    control.settimeout(BUILD_TIMEOUT)
    control.send(json.dumps(request).encode())
    body, fds, _flags, _address = socket.recv_fds(control, anchor.MAX_REQUEST, 250)
    if not body:
        raise OSError("ended without an answer")
    answer: Mapping[str, Any] = json.loads(body)
    return answer, fds
