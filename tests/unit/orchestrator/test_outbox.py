"""The outbox: what is sent, what is not any more, and that nobody holds up the others."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vrha.config.settings import OrchestratorSettings
from vrha.errors import InputError, UnreachableError
from vrha.orchestrator.app import Orchestrator


class FakePublisher:
    """Takes what it is given, but raises for bodies that it was told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, float | None]] = []
        self.raises: dict[bytes, Exception] = {}

    def declare(self, queues: Any) -> None:
        pass

    def keep_alive(self) -> None:
        pass

    def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        *,
        message_id: str,
        timeout_s: float,
        expires: float | None,
    ) -> None:
        if body in self.raises:
            raise self.raises[body]
        self.sent.append((key, body, expires))


@pytest.fixture
def publisher() -> FakePublisher:
    return FakePublisher()


@pytest.fixture
def orchestrator(tmp_path: Path, publisher: FakePublisher) -> Orchestrator:
    settings = OrchestratorSettings(state_dir=tmp_path)
    made = Orchestrator(settings, ("amqp://nobody:nothing@127.0.0.1:1/none",))
    made._publisher = publisher  # type: ignore[assignment]
    assert made._leadership.await_lead(threading.Event())
    return made


def fill(orchestrator: Orchestrator, *rows: tuple[str, bytes, float | None]) -> None:
    with orchestrator._store.transaction() as tx:
        for node, body, expires in rows:
            tx.outbox.enqueue(node, body, expires)


def left(orchestrator: Orchestrator) -> list[bytes]:
    with orchestrator._store.transaction() as tx:
        return [row.body for row in tx.outbox.unsent()]


def test_a_command_that_is_over_is_not_sent(
    orchestrator: Orchestrator, publisher: FakePublisher
) -> None:
    now = time.monotonic()
    fill(orchestrator, ("n1", b"over", now - 1), ("n1", b"fresh", now + 60), ("n1", b"any", None))
    assert orchestrator._send_all()
    assert publisher.sent == [("n1", b"fresh", now + 60), ("n1", b"any", None)]
    assert left(orchestrator) == []


def test_a_full_queue_of_one_node_holds_up_no_other(
    orchestrator: Orchestrator, publisher: FakePublisher
) -> None:
    publisher.raises[b"full"] = UnreachableError("not-confirmed", "queue full")
    fill(orchestrator, ("n1", b"full", None), ("n1", b"next", None), ("n2", b"other", None))
    assert not orchestrator._send_all()
    assert [body for _, body, _ in publisher.sent] == [b"other"]
    assert left(orchestrator) == [b"full", b"next"]


def test_a_command_that_can_never_be_sent_is_dropped(
    orchestrator: Orchestrator, publisher: FakePublisher
) -> None:
    publisher.raises[b"huge"] = InputError("too-large", "too large")
    fill(orchestrator, ("n1", b"huge", None), ("n1", b"next", None))
    assert orchestrator._send_all()
    assert [body for _, body, _ in publisher.sent] == [b"next"]


def test_without_a_broker_everything_waits(
    orchestrator: Orchestrator, publisher: FakePublisher
) -> None:
    publisher.raises[b"one"] = UnreachableError("broker-unreachable", "no broker")
    fill(orchestrator, ("n1", b"one", None), ("n2", b"two", None))
    with pytest.raises(UnreachableError):
        orchestrator._send_all()
    assert left(orchestrator) == [b"one", b"two"]


def test_an_orchestrator_that_starts_again_forgets_what_expires(orchestrator: Orchestrator) -> None:
    fill(orchestrator, ("n1", b"forward", 1e12), ("n1", b"back", None))
    orchestrator._engine.resume()
    assert left(orchestrator) == [b"back"]
