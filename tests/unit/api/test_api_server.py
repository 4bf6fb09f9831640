"""The API's Unix socket: who owns it, who may open it, and how it ends."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.unit.fake_service import FakeService
from tests.unit.serving import serving
from vrha.api.app import create_app
from vrha.api.server import listen, serve
from vrha.errors import PreconditionError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def health(path: Path) -> int:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        return client.get("http://vrha/v1/health").status_code


def test_socket_is_for_owner_and_group_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with serving(FakeService(), path):
        assert health(path) == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not path.exists()


@pytest.fixture
def handlers() -> Iterator[list[Callable[..., None]]]:
    """Handlers of SIGINT and SIGTERM as a daemon sets them."""
    mine = [lambda *_: None, lambda *_: None]
    before = [signal.signal(s, handler) for s, handler in zip(SIGNALS, mine, strict=True)]
    yield mine
    for s, handler in zip(SIGNALS, before, strict=True):
        signal.signal(s, handler)


def test_signal_handlers_stay_with_the_daemon(
    tmp_path: Path, handlers: list[Callable[..., None]]
) -> None:
    path, stop, inside = tmp_path / "api.sock", threading.Event(), []
    app = create_app(FakeService())

    def ask() -> None:
        inside.append(health(path))
        inside.extend(signal.getsignal(s) for s in SIGNALS)
        stop.set()

    listener = listen(path)
    asker = threading.Thread(target=ask)
    asker.start()
    serve(app, path, stop, listener)
    asker.join()
    assert inside == [200, *handlers]


def test_socket_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    leave = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()"
    subprocess.run([sys.executable, "-c", leave, str(path)], check=True, timeout=30)
    assert path.is_socket()
    with serving(FakeService(), path):
        assert health(path) == 200


def test_a_living_server_keeps_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with serving(FakeService(), path):
        with pytest.raises(PreconditionError) as caught:
            listen(path)
        assert caught.value.code == "socket-in-use"
        assert health(path) == 200


def test_a_living_server_with_a_full_backlog_keeps_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    busy = socket.socket(socket.AF_UNIX)
    waiting = []
    try:
        busy.bind(str(path))
        busy.listen(0)
        for _ in range(2):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            client.connect_ex(str(path))
            waiting.append(client)
        with pytest.raises(PreconditionError, match="another process"):
            listen(path)
        assert path.is_socket()
    finally:
        for each in (busy, *waiting):
            each.close()


def test_something_else_of_that_name_stays(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("precious")
    with pytest.raises(PreconditionError) as caught:
        listen(path)
    assert caught.value.code == "socket-path-taken"
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["no/such/folder/api.sock", "x" * 108])
def test_unusable_paths_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PreconditionError) as caught:
        listen(tmp_path / name)
    assert caught.value.code == "socket-unusable"


def test_the_socket_of_a_successor_stays(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with serving(FakeService(), path):
        path.unlink()
        successor = listen(path)
    assert path.is_socket()
    successor.close()
