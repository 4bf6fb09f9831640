"""The client against peers that are no orchestrator, or one in trouble."""

from __future__ import annotations

import email
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vrha.cli.client import Client
from vrha.errors import DeadlineError, RefusedError, UnreachableError, VrhaError


def read_request(connection: socket.socket) -> None:
    """To its end: who closes before is a broken pipe to the client."""
    with connection.makefile("rb") as file:
        file.readline()
        headers = email.message_from_bytes(b"".join(iter(file.readline, b"\r\n")))
        file.read(int(headers["Content-Length"] or 0))


@contextmanager
def peer(path: Path, answer: bytes | None) -> Iterator[Path]:
    """Answers each request with `answer` and closes; None: reads and says nothing."""
    done = threading.Event()

    def talk(listener: socket.socket) -> None:
        while not done.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                read_request(connection)
                if answer is None:
                    done.wait(30)
                else:
                    connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(0.05)
        thread = threading.Thread(target=talk, args=(listener,))
        thread.start()
        try:
            yield path
        finally:
            done.set()
            thread.join(timeout=10)


def answered(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_silence_to_a_question_is_unreachable(tmp_path: Path) -> None:
    with peer(tmp_path / "s", None) as path, pytest.raises(UnreachableError) as caught:
        Client(str(path), answer_seconds=0.1).networks()
    assert caught.value.code == "orchestrator-silent"


def test_silence_to_a_request_may_mean_that_it_is_done(tmp_path: Path) -> None:
    with peer(tmp_path / "s", None) as path, pytest.raises(DeadlineError) as caught:
        Client(str(path), answer_seconds=0.1).restart_network("web-net")
    assert caught.value.code == "no-answer"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "orchestrator-unreachable"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "orchestrator-unreachable"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n[", "orchestrator-unreachable"),
        (answered("200 OK", b"<html>"), "not-an-orchestrator"),
        (answered("200 OK", b'[{"name": 1}]'), "not-an-orchestrator"),
        (answered("301 Moved", b""), "not-an-orchestrator"),
        (answered("502 Bad Gateway", b"<html>"), "not-an-orchestrator"),
        (answered("404 Not Found", b"[]"), "not-an-orchestrator"),
    ],
)
def test_strange_answers(tmp_path: Path, answer: bytes, code: str) -> None:
    with peer(tmp_path / "s", answer) as path, pytest.raises(UnreachableError) as caught:
        Client(str(path)).networks()
    assert caught.value.code == code


def test_an_unknown_status_keeps_its_reason(tmp_path: Path) -> None:
    body = b'{"code": "teapot", "message": "short and stout", "hint": ""}'
    with peer(tmp_path / "s", answered("500 No", body)) as path, pytest.raises(VrhaError) as caught:
        Client(str(path)).networks()
    assert (type(caught.value), caught.value.code) == (VrhaError, "teapot")


def test_who_does_not_lead_has_refused(tmp_path: Path) -> None:
    """Unlike other answers of status 503: nothing is broken, and nothing was changed."""
    body = b'{"code": "not-leader", "message": "orchestrator o2 leads", "hint": ""}'
    with peer(tmp_path / "s", answered("503 No", body)) as path, pytest.raises(RefusedError):
        Client(str(path)).restart_network("web-net")
