"""Prober and responder as child processes, for callers that must not share their GIL with them.

Both children end by themselves when the process that started them has gone: their sockets would
keep removed namespaces alive.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import vrha
from vrha.codec import decode, encode
from vrha.errors import DeadlineError, PreconditionError
from vrha.model.probing import Result, Stream

OWN_COMMAND = (sys.executable, "-m", "vrha.probe")
"""`ping-gap` in the version that runs."""

STOP_LIMIT_S = 60.0
"""The prober waits for late replies for up to 1 s, then computes: a second per million probes."""


def own_environment() -> dict[str, str]:
    """Ours, in which OWN_COMMAND finds this very package."""
    root = str(Path(vrha.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


class ProbeProcess:
    """Probes `streams` from the moment the constructor returns until `stop`.

    With `require_reply_s` the constructor returns once every stream has had a reply. Raises
    PreconditionError (`probe-failed`, with the child's own words) when probing cannot begin,
    DeadlineError (`probe-late`) when it has not begun after `ready_limit_s`.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        *,
        require_reply_s: float | None = None,
        ready_limit_s: float = 15.0,
    ) -> None:
        self._result = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        arguments = ["run", "--streams", "-", "--json", f"/proc/self/fd/{self._result.fileno()}"]
        if require_reply_s is not None:
            arguments += ["--require-reply", str(require_reply_s)]
        self._child = _Child(arguments, encode(list(streams), list[Stream]), (self._result,))
        try:
            self._child.await_ready(ready_limit_s)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._child.process.pid

    def stop(self) -> Result:
        """End probing, wait for late replies, return the result.

        Raises PreconditionError (`probe-failed`), DeadlineError (`probe-late`).
        """
        try:
            self._child.end(STOP_LIMIT_S)
            self._result.seek(0)
            return decode(Result, self._result.read())
        finally:
            self.close()

    def close(self) -> None:
        """Kill the child if it still runs; its result is lost. Idempotent."""
        self._child.kill()
        self._result.close()

    def __enter__(self) -> ProbeProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextlib.contextmanager
def serving(
    port: int = 7,
    namespaces: Sequence[str] = (),
    ready_limit_s: float = 15.0,
    *,
    loopback: bool = False,
) -> Iterator[int]:
    """A responder in its own process while the context lasts; gives its pid.

    Without `namespaces` it serves in the caller's own; with `loopback` only to the machine itself.
    Raises PreconditionError (`probe-failed`), DeadlineError (`probe-late`).
    """
    arguments = ["serve", "--port", str(port), *(["--loopback"] if loopback else [])]
    for path in namespaces:
        arguments += ["--netns", path]
    child = _Child(arguments, b"", ())
    try:
        child.await_ready(ready_limit_s)
        yield child.process.pid
    finally:
        child.kill()


class _Child:
    """A `python -m vrha.probe` with what it says."""

    def __init__(self, arguments: Sequence[str], stdin: bytes, keep: Sequence[IO[bytes]]) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by kill)
        self.process = subprocess.Popen(
            [*OWN_COMMAND, *arguments, "--parent", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=own_environment(),
            pass_fds=[file.fileno() for file in keep],
            # Ctrl-C is for those who started it: they stop it when they have its result.
            start_new_session=True,
        )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as pipe:
            pipe.write(stdin)

    def await_ready(self, limit_s: float) -> None:
        assert self.process.stdout is not None
        out = self.process.stdout.fileno()
        deadline = time.monotonic() + limit_s
        said = b""
        while b"ready\n" not in said:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                raise DeadlineError("probe-late", f"probing did not begin in {limit_s:g} s")
            chunk = os.read(out, 4096)
            if not chunk:
                self.process.wait(STOP_LIMIT_S)
                raise self._failed()
            said += chunk

    def end(self, limit_s: float) -> None:
        self.process.terminate()
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            raise DeadlineError("probe-late", f"no result after {limit_s:g} s") from error
        if code:
            raise self._failed()

    def _failed(self) -> PreconditionError:
        self._stderr.seek(0)
        words = self._stderr.read().decode(errors="replace").strip()
        return PreconditionError(
            "probe-failed", f"the prober ended with {self.process.returncode}: {words[-2000:]}"
        )

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_LIMIT_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._stderr.close()
