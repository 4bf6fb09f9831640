"""Process 1 of a lab: everything of the lab lives below it, so killing it removes everything.

Run by `vrha.lab.zone` as `python -S -m vrha.lab.anchor CONTROL OWNER`, where CONTROL is one end
of a socket pair and OWNER a pidfd of the process that brings the lab up. It makes the namespaces,
reaps zombies, starts daemons on request, and ends the lab when its owner dies too early.
Standard library only, to start quickly and to stay small.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from vrha.lab import kernel

MAX_REQUEST = 256 * 1024
NETNS = Path("/run/netns")
SOCKET = "anchor.sock"

_BRIDGE_NF = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables")


def _sysctl(settings: Mapping[str, str]) -> None:
    for name, value in settings.items():
        Path("/proc/sys", name).write_text(value)


def _quiet_network() -> None:
    """Defaults of a namespace, whatever the machine's own are (they are inherited)."""
    _sysctl({"net/ipv4/ip_forward": "0", "net/ipv4/conf/all/rp_filter": "0"})
    _sysctl({"net/ipv4/conf/default/rp_filter": "0", "net/ipv6/conf/default/accept_dad": "0"})
    for name in _BRIDGE_NF:
        if Path("/proc/sys/net/bridge", name).exists():
            _sysctl({f"net/bridge/{name}": "0"})


def _private_run(state: Path) -> None:
    """An empty /run with nothing of the machine's but the lab's own folder."""
    folder = os.open(state, os.O_PATH | os.O_DIRECTORY)
    kernel.mount("lab-run", "/run", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755")
    for path in (state, NETNS, Path("/run/lock")):
        path.mkdir(parents=True)
    kernel.bind(f"/proc/self/fd/{folder}", state)
    os.close(folder)
    hidden = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("lab-sys", "/sys", "sysfs", hidden)


def _name_network(name: str, source: str) -> None:
    target = NETNS / name
    target.touch(mode=0o444)
    kernel.bind(source, target)


def _make_machine(name: str, settings: Mapping[str, str], home: int) -> None:
    kernel.unshare(kernel.CLONE_NEWNET)
    try:
        _quiet_network()
        _sysctl(settings)
        _name_network(name, "/proc/self/ns/net")
    finally:
        kernel.setns(home, kernel.CLONE_NEWNET)


def _hold_node(name: str, state: Path, ready: int) -> NoReturn:
    try:
        kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWUTS)
        kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
        socket.sethostname(name)
        _quiet_network()
        _private_run(state)
        os.write(ready, b".")
        os.close(ready)
        while True:
            signal.pause()
    except BaseException as error:
        os.write(ready, str(error).encode() or b"?")
    os._exit(1)


def _make_node(name: str, state: Path) -> int:
    """The pid of a process that holds the node's network, mount and host name."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _hold_node(name, state, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    if answer != b".":
        raise OSError(f"node {name}: {answer.decode() or 'died'}")
    _name_network(name, f"/proc/{pid}/ns/net")
    return pid


def _become(request: Mapping[str, Any], nodes: Mapping[str, int]) -> NoReturn:
    """Turn a fresh child into the program of a `spawn` request."""
    os.setsid()
    where = request["where"]
    if where in nodes:
        holder = os.pidfd_open(nodes[where])
        kernel.setns(holder, kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWUTS)
    elif where:
        network = os.open(NETNS / where, os.O_RDONLY)
        kernel.setns(network, kernel.CLONE_NEWNET)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(request["cwd"])
    os.execvpe(request["argv"][0], request["argv"], request["env"])


def _spawn(request: Mapping[str, Any], nodes: Mapping[str, int]) -> int:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _become(request, nodes)
        except BaseException as error:
            os.write(writer, str(error).encode() or b"?")
        os._exit(127)
    os.close(writer)
    with open(reader, "rb") as pipe:
        problem = pipe.read().decode()
    if problem:
        os.waitpid(pid, 0)
        raise OSError(problem)
    return pid


class Anchor:
    """The event loop of process 1."""

    def __init__(self, state: Path, owner: int) -> None:
        self.state = state
        self.owner = owner
        self.nodes: dict[str, int] = {}
        self.outer_run = os.open("/run", os.O_PATH | os.O_DIRECTORY)
        """The machine's /run, which the lab's own will hide."""

    def build(self, plan: Mapping[str, Any]) -> None:
        """Mounts, namespaces and node holders; OSError when the kernel refuses one."""
        kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
        hidden = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        kernel.mount("lab-proc", "/proc", "proc", hidden)
        _private_run(self.state)
        socket.sethostname(plan["name"])
        _quiet_network()
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        for name, settings in plan["machines"].items():
            _make_machine(name, settings, home)
        os.close(home)
        for name in plan["nodes"]:
            self.nodes[name] = _make_node(name, self.state)

    def serve(self, listener: socket.socket) -> NoReturn:
        """Reap, answer requests, watch the owner; never returns."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        poller = select.poll()
        for fd in (reader, listener.fileno(), self.owner):
            poller.register(fd, select.POLLIN)
        while True:
            self._reap()
            ready = [fd for fd, _events in poller.poll()]
            if reader in ready:
                os.read(reader, 4096)
            if self.owner in ready:
                self._end()
            if listener.fileno() in ready and self._answer(listener):
                poller.unregister(self.owner)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def _answer(self, listener: socket.socket) -> bool:
        """Serve one request; True when it asked the lab to outlive its owner."""
        connection, _address = listener.accept()
        connection.settimeout(5)
        with connection, suppress(OSError, ValueError):
            request = json.loads(connection.recv(MAX_REQUEST))
            if request["op"] == "keep":
                connection.send(b"{}")
                return True
            try:
                pidfd = os.pidfd_open(_spawn(request, self.nodes))
            except OSError as error:
                connection.send(json.dumps({"error": str(error)}).encode())
            else:
                socket.send_fds(connection, [b"{}"], [pidfd])
                os.close(pidfd)
        return False

    def _end(self) -> NoReturn:
        """The owner died: kill everything, remove the lab's folder, go."""
        import shutil

        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        for path in self.state.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        with suppress(OSError):
            for folder in (self.state, self.state.parent):
                os.rmdir(folder.relative_to("/run"), dir_fd=self.outer_run)
        os._exit(0)


def main(arguments: Sequence[str]) -> NoReturn:
    """Become a lab as told by one message on the control socket."""
    control = socket.socket(fileno=int(arguments[0]))
    owner = int(arguments[1])
    for fd in (control.fileno(), owner):
        os.set_inheritable(fd, False)
    plan = json.loads(control.recv(MAX_REQUEST))
    state = Path(plan["state"])
    try:
        spaces = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWUTS
        kernel.unshare(spaces | kernel.CLONE_NEWIPC)
        if kernel.fork_as_pid_1():
            os._exit(0)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(os.fspath(state / SOCKET))
        os.chmod(state / SOCKET, 0o600)
        listener.listen(16)
        anchor = Anchor(state, owner)
        anchor.build(plan)
        pids = list(anchor.nodes.values())
        fds = [os.pidfd_open(pid) for pid in (1, *pids)]
        socket.send_fds(control, [json.dumps({"nodes": list(anchor.nodes)}).encode()], fds)
        for fd in fds:
            os.close(fd)
    except OSError as error:
        control.send(json.dumps({"error": str(error)}).encode())
        os._exit(1)
    # Whoever starts us was interrupted if it does not confirm; nobody else knows of us then.
    if not control.recv(1):
        os._exit(1)
    control.close()
    anchor.serve(listener)


if __name__ == "__main__":
    main(sys.argv[1:])
