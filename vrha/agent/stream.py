"""One router's state flowing between two agents, both ways, until one of them ends it."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from vrha.agent.wire import Say, changes_of, frames
from vrha.errors import DeadlineError, StepError, UnreachableError, VrhaError
from vrha.linux.conntrack import Source, Target
from vrha.linux.ctwire import Kind
from vrha.linux.urgency import urgent
from vrha.peer import PeerLink

log = logging.getLogger(__name__)

CAUGHT_UP_S, CATCH_UP_S = 0.02, 5.0
"""All changes have arrived when a flush takes no longer; the limit for that."""

Answer = Callable[[], tuple[Say, bytes]]
"""What is done on a question of the other side, and said about it."""


class Stream:
    """Tells the other agent what our instance learns, and our instance what the other one tells.

    `run` does it, in a thread of its own, until `close`. Connection tracking sockets are those of
    the namespace in which the calling thread is when it is made.
    """

    def __init__(self, link: PeerLink, answers: Mapping[Say, Answer]) -> None:
        """`answers` to the other side's questions are called in the stream's thread.

        Raises StepError with the codes of `vrha.linux.conntrack`.
        """
        with contextlib.ExitStack() as stack:
            self.source = stack.enter_context(contextlib.closing(Source()))
            self.target = stack.enter_context(contextlib.closing(Target()))
            self.source.ignore(self.target.port_id)
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            stack.callback(os.close, self._wake)
            self._resources = stack.pop_all()
        self.link = link
        self._answers = answers
        self._said: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self._to_send: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        self._told = 0
        self._ended = False
        self._lock = threading.Lock()

    @property
    def ended(self) -> bool:
        """Whether nothing flows any more."""
        return self._ended

    def copy(self) -> None:
        """Send all that there is, before `run`. Raises UnreachableError, StepError."""
        for frame in self._everything():
            self.link.send(*frame)
        self.link.send(Say.COPIED)

    def receive(self, timeout_s: float) -> tuple[int, bytes]:
        """The next frame, before `run`; changes are applied on the way.

        Raises DeadlineError (`peer-silent`), UnreachableError.
        """
        while True:
            frame = self.link.receive(timeout_s)
            if frame is None:
                raise _silent(timeout_s)
            if frame[0] != Say.CHANGES:
                return frame
            self.target.apply(changes_of(frame[1]))
            # Only the echo of these changes: an instance that is muted has no news.
            self.source.pending()

    def ask(self, question: Say, answer: Say, timeout_s: float) -> bytes:
        """Ask the other side something, while it runs; what it answers.

        Raises DeadlineError (`peer-silent`), UnreachableError (`peer-lost`), StepError
        (`peer-failed`, with the other side's words).
        """
        while not self._said.empty():
            # The late answer to a question that was given up.
            self._said.get()
        self.link.send(question)
        try:
            kind, body = self._said.get(timeout=timeout_s)
        except queue.Empty:
            raise _silent(timeout_s) from None
        if kind != answer:
            raise StepError(
                "peer-failed", f"the other agent: {body[:500].decode(errors='replace')}"
            )
        return body

    def flush(self, timeout_s: float) -> int:
        """Have all that has happened on the other side until now here; how many connections
        have seen packets there since the last time. Raises as `ask`.
        """
        said = self.ask(Say.FLUSH, Say.FLUSHED, timeout_s)
        try:
            return int(said)
        except ValueError as error:
            raise StepError("peer-failed", "the other agent answers no number") from error

    def catch_up(self) -> None:
        """Wait for the changes that have piled up during the copy.

        Raises StepError `cannot-follow`, and as `ask`.
        """
        begin = now = time.monotonic()
        while now - begin < CATCH_UP_S:
            self.flush(CATCH_UP_S)
            asked, now = now, time.monotonic()
            if now - asked < CAUGHT_UP_S:
                return
        raise StepError(
            "cannot-follow",
            "connections change faster than they can be carried over",
            "Try again when there is less load on the nodes.",
        )

    def await_last(self, limit_s: float) -> None:
        """What the old one learns from the neighbours' last frames to it; never raises.

        A moment after the announcements nobody sends to it any more. There is no way back for the
        want of these: ours speaks already, and new connections are its own.
        """
        until = time.monotonic() + limit_s
        try:
            while self.flush(CATCH_UP_S) and time.monotonic() < until:
                time.sleep(0.001)
        except VrhaError as error:
            log.warning("the last connections of the old instance are not known: %s", error)

    def close(self) -> None:
        """End the stream, soon; both instances keep what they have."""
        with self._lock:
            if not self._ended:
                self._ended = True
                os.eventfd_write(self._wake, 1)
        self.link.close()

    def abandon(self) -> None:
        """Close what was never run."""
        self.close()
        self._resources.close()

    def run(self) -> None:
        """Let it flow until one of the two ends it; then everything of it is closed."""
        sender = threading.Thread(target=self._deliver, name="sender", daemon=True)
        sender.start()
        try:
            with urgent():
                self._flow()
        except UnreachableError as error:
            if not self._ended:
                log.info("%s", error.message)
        except (VrhaError, OSError):
            log.exception("a router's state flows no longer")
        finally:
            with self._lock:
                self._ended = True
                self._resources.close()
            self.link.close()
            self._to_send.put(None)
            sender.join()
            self._said.put((Say.FAILED, b"the connection to the other agent has ended"))

    def _deliver(self) -> None:
        """A thread of its own sends: were both sides to wait until the other one takes what they
        send, neither would read.
        """
        with contextlib.suppress(UnreachableError), urgent():
            while (frame := self._to_send.get()) is not None:
                self.link.send(*frame)

    def _flow(self) -> None:
        poll = select.poll()
        for fd in (self.source.fileno(), self.link.fileno(), self._wake):
            poll.register(fd, select.POLLIN)
        while not self._ended:
            if not self.link.pending():
                poll.poll()
            self._tell()
            frame = self.link.receive(0)
            if frame is not None:
                self._hear(*frame)

    def _tell(self) -> None:
        changes = self.source.pending()
        self._told += sum(1 for change in changes if change.kind is not Kind.REMOVED)
        for body in frames(changes):
            self._to_send.put((Say.CHANGES, body))
        if self.source.overrun:
            for frame in self._everything():
                self._to_send.put(frame)

    def _everything(self) -> Iterator[tuple[Say, bytes]]:
        """All entries, and what happens meanwhile: left waiting, it would be too much."""
        for chunk in self.source.dump():
            for body in (*frames(chunk), *frames(self.source.pending())):
                yield Say.CHANGES, body

    def _hear(self, kind: int, body: bytes) -> None:
        if kind == Say.CHANGES:
            self.target.apply(changes_of(body))
        elif kind == Say.FLUSH:
            self._tell()
            self._to_send.put((Say.FLUSHED, str(self._told).encode()))
            self._told = 0
        elif kind in self._answers:
            try:
                said, words = self._answers[Say(kind)]()
            except (VrhaError, OSError) as error:
                said, words = Say.FAILED, str(error).encode()[:500]
            self._to_send.put((said, words))
        else:
            self._said.put((kind, body))


def _silent(timeout_s: float) -> DeadlineError:
    return DeadlineError("peer-silent", f"the other agent says nothing for {timeout_s:g} s")
