"""A PostgreSQL server of our own: an unprivileged user, a temporary folder, a Unix socket.

A keeper process owns server and folder and ends both when its standard input closes, so nothing
stays also when the tests are killed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest

START_S = 60.0
_KEEPER = textwrap.dedent(
    """
    import os, shutil, signal, subprocess, sys
    folder, user, *argv = sys.argv[1:]
    who = {"user": user, "group": int(os.stat(folder).st_gid), "extra_groups": ()} if user else {}
    log = open(folder + "/log", "ab")
    who |= {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "cwd": "/"}
    server = subprocess.Popen(argv, **who)
    print(server.pid, flush=True)
    sys.stdin.read()
    server.send_signal(signal.SIGCONT)
    server.send_signal(signal.SIGQUIT)
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    shutil.rmtree(folder, ignore_errors=True)
    """
)


def binaries() -> Path | None:
    """The folder of the newest installed server."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=_version)
    return found[-1].parent if found else None


def _version(path: Path) -> int:
    name = path.parts[-3]
    return int(name) if name.isdigit() else 0


class Server:
    """A server that runs; `url` names a database of it."""

    def __init__(self, programs: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vrha-pg-"))
        self._numbers = count()
        user = "nobody" if os.geteuid() == 0 else ""
        if user:
            account = pwd.getpwnam(user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        self._programs = programs
        self._user = user
        try:
            self._initialise()
            self._start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _initialise(self) -> None:
        data = self.folder / "data"
        self._run("initdb", "-D", str(data), "-U", "vrha", "-A", "trust", "-N", "-E", "UTF8")
        # Another program's crash is not what is tested, so the disk need not be waited for.
        settings = f"""
            listen_addresses = ''
            unix_socket_directories = '{self.folder}'
            fsync = off
            max_connections = 40
            shared_buffers = 16MB
        """
        with (data / "postgresql.conf").open("a") as file:
            file.write(textwrap.dedent(settings))

    def _start(self) -> None:
        argv = [str(self._programs / "postgres"), "-D", str(self.folder / "data")]
        self._keeper = subprocess.Popen(
            [sys.executable, "-c", _KEEPER, str(self.folder), self._user, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        self.pid = int(self._keeper.stdout.readline())
        deadline = time.monotonic() + START_S
        while not self._answers():
            if time.monotonic() > deadline:
                self.close()
                pytest.fail("PostgreSQL does not start")
            time.sleep(0.02)

    def _answers(self) -> bool:
        ready = [str(self._programs / "pg_isready"), "-q", "-h", str(self.folder)]
        return subprocess.run(ready, timeout=START_S, check=False).returncode == 0

    def _run(self, program: str, *arguments: str) -> str:
        account = {"user": self._user, "extra_groups": ()} if self._user else {}
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
            cwd="/",
            **account,  # type: ignore[call-overload]
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """What psql(1) prints for it, unaligned and without headings."""
        where = ("-h", str(self.folder), "-U", "vrha", "-d", database)
        return self._run("psql", "-qAtX", "-v", "ON_ERROR_STOP=1", *where, "-c", statement).strip()

    def database(self) -> str:
        """A new, empty database; returns its URL."""
        name = f"vrha{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE template0")
        return f"postgresql://vrha@/{name}?host={quote(str(self.folder))}"

    def signal(self, number: int) -> None:
        """To all processes of the server."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for pid in (self.pid, *map(int, children)):
            os.kill(pid, number)

    def close(self) -> None:
        """Stop the server and remove its folder."""
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.wait(START_S)
        self._keeper.stdout.close()


def running() -> Iterator[Server]:
    """For a fixture. Skips when PostgreSQL or its driver is not installed."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed (tools/setup installs it)")
    pytest.importorskip("psycopg", reason="psycopg 3 is not installed (tools/setup installs it)")
    server = Server(programs)
    try:
        yield server
    finally:
        server.close()
