"""What init hears of a daemon, over real sockets."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vrha.linux.notify import Init


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket like init's, and what NOTIFY_SOCKET says then."""
    name = str(tmp_path / "notify")
    if request.param == "abstract":
        name = f"@vrha-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as heard:
        heard.bind(name.replace("@", "\0"))
        yield heard, name


def heard(ear: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(ear.recv(4096).decode())
        except BlockingIOError:
            return found


def test_init_hears_what_is_said(ear: tuple[socket.socket, str]) -> None:
    sock, name = ear
    init = Init({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "0"})
    init.ready("serves")
    init.ready("serves again")
    init.status("busy")
    init.stopping()
    assert heard(sock) == [
        "READY=1\nSTATUS=serves",
        "STATUS=busy",
        "STOPPING=1",
    ]


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "often"}, None),
        ({}, None),
    ],
)
def test_it_shows_that_it_lives_if_it_is_the_one_who_is_asked(
    ear: tuple[socket.socket, str], asked: dict[str, str], seconds: float | None
) -> None:
    sock, name = ear
    init = Init({"NOTIFY_SOCKET": name, **asked})
    init.alive()
    assert init.watchdog_s == seconds
    assert heard(sock) == (["WATCHDOG=1"] if seconds else [])


def test_no_child_inherits_the_way_to_init() -> None:
    environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    Init(environment)
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize("address", ["", "/nowhere/at/all"])
def test_without_init_nothing_fails(address: str) -> None:
    init = Init({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    init.ready()
    init.alive()
    init.status("alone")
    init.stopping()


def test_an_init_that_takes_nothing_holds_up_no_loop(ear: tuple[socket.socket, str]) -> None:
    _, name = ear
    init = Init({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000"})
    began = time.monotonic()
    for _ in range(5000):
        init.alive()
    assert time.monotonic() - began < 2
