"""Which namespace a process is in, as one sees it who may not trace the process."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.conftest import sh
from vrha.linux import netns, processes

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("node")]
NOBODY = 65534
CODE = """
import json, os, sys
from vrha.errors import VrhaError
from vrha.linux import netns, processes
traced = 0
for pid in sys.argv[2:]:
    try:
        os.stat(f"/proc/{pid}/ns/net")
        traced += 1
    except OSError:
        pass
fd = netns.open_named(sys.argv[1])
try:
    print(json.dumps([traced, [p for p in map(int, sys.argv[2:]) if p in processes.inside(fd)],
        [p for p in map(int, sys.argv[2:]) if processes.is_inside(p, fd)]]))
except VrhaError as error:
    print(json.dumps(error.code))
"""
_libc = ctypes.CDLL(None, use_errno=True)


def untraced(name: str, *pids: int, extra: tuple[str, ...] = ()) -> object:
    """What one without CAP_SYS_PTRACE sees: how many it may trace, and who is in the namespace, by
    both questions."""
    drop = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", *extra]
    done = subprocess.run(
        [*drop, sys.executable, "-c", CODE, name, *map(str, pids)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(processes.__file__).parents[2])},
    )
    return json.loads(done.stdout)


@contextlib.contextmanager
def living(name: str | None, user: int = 0) -> Iterator[int]:
    """A process in the namespace (None: in the node's own) that waits, as this user."""
    enter = ["ip", "netns", "exec", name] if name else []
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    command = [*enter, *become, "sh", "-c", "echo; exec sleep 300"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


@pytest.fixture
def two() -> None:
    for name in ("here", "there"):
        sh(f"ip netns add {name}")


@pytest.mark.usefixtures("two")
def test_users_stopped_ones_and_zombies_are_told_apart_without_the_right_to_trace() -> None:
    with (
        living("here") as root,
        living("here", NOBODY) as other,
        living("here", NOBODY) as stopped,
        living("there", NOBODY) as elsewhere,
        living(None, NOBODY) as outside,
        living("here") as zombie,
    ):
        os.kill(stopped, signal.SIGSTOP)
        os.kill(zombie, signal.SIGKILL)
        # Without waiting for it: its exit code is still there.
        os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
        everybody = (root, other, stopped, elsewhere, outside, zombie)
        found = [root, other, stopped]
        assert untraced("here", *everybody) == [0, found, found]
        assert untraced("there", *everybody) == [0, [elsewhere], [elsewhere]]


@pytest.mark.usefixtures("two")
def test_one_that_moves_is_always_where_it_is_now() -> None:
    """Names below /proc are cached, but not these."""
    read, told = os.pipe()
    done, answered = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        fds = [netns.open_named(name) for name in ("here", "there")]
        while number := os.read(read, 1):
            _libc.setns(fds[number[0]], 0)
            os.write(answered, b"x")
        os._exit(0)
    try:
        os.close(read)
        fds = [netns.open_named(name) for name in ("here", "there")]
        marks = [processes.mark(fd) for fd in fds]
        assert marks[0] != marks[1]
        for turn in range(300):
            os.write(told, bytes([turn % 2]))
            os.read(done, 1)
            seen = [processes.is_inside(pid, mark) for mark in marks]
            assert seen == [turn % 2 == 0, turn % 2 == 1]
        for fd in fds:
            os.close(fd)
    finally:
        for fd in (told, done, answered):
            os.close(fd)
        os.waitpid(pid, 0)


def test_marks_agree_with_the_inodes_of_namespaces_that_come_and_go() -> None:
    """Both numbers are given again once a namespace has ended; never while it lives."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(living(None)) for _ in range(3)]
        for turn in range(12):
            sh(f"ip netns add n{turn}")
            held.append(stack.enter_context(living(f"n{turn}")))
            if turn % 2:
                os.kill(held[-2], signal.SIGKILL)
                os.waitid(os.P_PID, held[-2], os.WEXITED | os.WNOWAIT)
                netns.remove(f"n{turn - 1}")
                del held[-2]
            inodes = [os.stat(f"/proc/{pid}/ns/net").st_ino for pid in held]
            for name in netns.names():
                fd = netns.open_named(name)
                wanted = [p for p, inode in zip(held, inodes, strict=True) if _ino(fd) == inode]
                assert [pid for pid in held if processes.is_inside(pid, fd)] == wanted != []
                os.close(fd)


def _ino(fd: int) -> int:
    return os.fstat(fd).st_ino


@pytest.mark.usefixtures("two")
def test_the_home_of_a_process_lives_as_long_as_one_looks_at_it() -> None:
    fd = netns.open_named("here")
    mark = processes.mark(fd)
    os.close(fd)
    with living("here", NOBODY) as pid, processes.home_of(pid) as home:
        assert home == mark
        netns.remove("here")
        processes.end([pid], home, 5.0)
        # Had its number been given back, one of these would have it.
        for turn in range(20):
            sh(f"ip netns add n{turn}")
            other = netns.open_named(f"n{turn}")
            assert processes.mark(other) != home
            os.close(other)


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("hidden", "is_told"),
    [
        # Who is in group 0 is shown all.
        ("hidepid=2", True),
        ("hidepid=1,gid=65534", False),
        ("hidepid=2,gid=65534", False),
        ("hidepid=4", False),
    ],
)
def test_where_processes_are_hidden_nothing_is_said(hidden: str, is_told: bool) -> None:
    with living("here", NOBODY) as pid:
        script = f'mount -t proc -o {hidden} proc /proc; exec "$@"'
        mounted = ("unshare", "--mount", "sh", "-c", script, "sh")
        seen = untraced("here", pid, extra=mounted)
        assert seen == ([0, [pid], [pid]] if is_told else "processes-hidden")
