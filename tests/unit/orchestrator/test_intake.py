"""What agents say meanwhile shares a transaction; what cannot be taken harms nothing else."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from vrha import codec
from vrha.errors import InputError, UnreachableError
from vrha.model.messages import Inventory
from vrha.orchestrator.engine import Engine, Said
from vrha.orchestrator.intake import Intake

PATIENCE_S = 10.0


class Held:
    """An engine whose transactions wait until they are let go."""

    def __init__(self, bad: str = "", code: str = "store-failed") -> None:
        self.taken: list[list[str]] = []
        self.begun = threading.Event()
        self.go = threading.Event()
        self.tries = 0
        self._bad = bad
        self._code = code

    def admit(self, body: bytes, sender: str) -> Said:
        message = codec.decode_message(body)
        if message.node != sender:
            raise InputError("wrong-sender", sender)
        return cast(Said, message)

    def receive_all(self, messages: Sequence[Said]) -> None:
        self.tries += 1
        self.begun.set()
        assert self.go.wait(PATIENCE_S)
        names = [message.node for message in messages]
        if self._bad in names:
            raise UnreachableError(self._code, "it failed")
        self.taken.append(names)


def said(node: str) -> bytes:
    return codec.encode(Inventory(node, "life", "1", (), ()))


def test_what_comes_meanwhile_shares_the_next_transaction_in_its_order() -> None:
    engine = Held()
    intake = Intake(cast(Engine, engine))
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(intake.take(said("n1"), "n1"))
        assert engine.begun.wait(PATIENCE_S)
        others = [threads.submit(intake.take(said(name), name)) for name in ("n2", "n3", "n4")]
        engine.go.set()
        for each in (first, *others):
            each.result(PATIENCE_S)
    assert engine.taken == [["n1"], ["n2", "n3", "n4"]]


def test_only_the_one_that_cannot_be_taken_is_given_back() -> None:
    engine = Held(bad="n3")
    intake = Intake(cast(Engine, engine))
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(intake.take(said("n1"), "n1"))
        assert engine.begun.wait(PATIENCE_S)
        others = {n: threads.submit(intake.take(said(n), n)) for n in ("n2", "n3", "n4")}
        engine.go.set()
        first.result(PATIENCE_S)
        errors = {name: each.exception(PATIENCE_S) for name, each in others.items()}
    assert {name for name, error in errors.items() if error} == {"n3"}
    assert isinstance(errors["n3"], UnreachableError)
    assert engine.taken == [["n1"], ["n2"], ["n4"]]


def test_a_store_that_is_away_is_not_asked_for_each_of_them() -> None:
    engine = Held(bad="n3", code="store-locked")
    intake = Intake(cast(Engine, engine))
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(intake.take(said("n1"), "n1"))
        assert engine.begun.wait(PATIENCE_S)
        others = [threads.submit(intake.take(said(n), n)) for n in ("n2", "n3", "n4")]
        engine.go.set()
        first.result(PATIENCE_S)
        assert all(isinstance(each.exception(PATIENCE_S), UnreachableError) for each in others)
    assert engine.tries == 2


def test_what_is_no_message_never_waits() -> None:
    engine = Held()
    intake = Intake(cast(Engine, engine))
    with pytest.raises(InputError):
        intake.take(said("n1"), "n2")
    engine.go.set()
    intake.take(said("n3"), "n3")()
    assert engine.taken == [["n3"]]
