"""Turns, stalls and life of long connections, on sockets of the machine itself."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from vrha.errors import InputError
from vrha.model.probing import Stream
from vrha.probe.channels import Arrivals, Inbox
from vrha.probe.established import Connection, EstablishedChannel, Pacer
from vrha.probe.kernel import Batch, Namespace
from vrha.probe.responder import Services
from vrha.probe.wire import MESSAGE

MS = 1_000_000


class Far:
    """A listener on the loopback, and the channel whose connections end there."""

    def __init__(self, stack: ExitStack, count: int) -> None:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        stream = Stream("s", "tcp-echo", "127.0.0.1", port, interval_ms=10.0, count=count)
        self.inbox = Inbox()
        stack.callback(self.inbox.close)
        self.channel = EstablishedChannel(stream, Namespace(None), self.inbox)
        stack.callback(self.channel.close)
        self.ends = [stack.enter_context(listener.accept()[0]) for _ in range(count)]
        for end in self.ends:
            end.setblocking(False)

    def messages(self) -> list[int]:
        """How many messages have come to each end since the last call."""
        found = []
        for end in self.ends:
            try:
                found.append(len(end.recv(65536)) // len(MESSAGE))
            except BlockingIOError:
                found.append(0)
        return found

    def drain(self) -> None:
        self.inbox.drain(
            Arrivals(Batch(), time.time_ns() - (now := time.monotonic_ns()), None, now, now)
        )


@pytest.fixture
def far() -> Iterator[Far]:
    with ExitStack() as stack:
        yield Far(stack, 4)


def test_each_connection_has_its_turn_once_per_interval(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    pacer = Pacer(8.0, 1.0, [far.channel])
    now = 1_000 * MS
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    pacer.begin(now)
    seen = []
    for _ in range(8):
        pacer.probe()
        seen.append(far.messages())
        now += MS
    # Four connections in 8 ms: one every 2 ms.
    assert seen == [
        *([1, 0, 0, 0], [0] * 4, [0, 1, 0, 0], [0] * 4),
        *([0, 0, 1, 0], [0] * 4, [0, 0, 0, 1], [0] * 4),
    ]


def test_a_tick_that_comes_a_little_late_moves_no_turn(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns at 0, 2.5, 5 and 7.5 ms: at 2.9 ms the second one waits for the tick of 3 ms."""
    pacer = Pacer(10.0, 1.0, [far.channel])
    now = 1_000 * MS
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    pacer.begin(now)
    pacer.probe()
    assert far.messages() == [1, 0, 0, 0]
    now += 2_900_000
    pacer.probe()
    assert far.messages() == [0, 0, 0, 0]
    now += 100_000
    pacer.probe()
    assert far.messages() == [0, 1, 0, 0]


def test_after_a_pause_each_connection_has_one_turn_and_no_more(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    pacer = Pacer(8.0, 1.0, [far.channel])
    now = 1_000 * MS
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    pacer.begin(now)
    pacer.probe()
    far.messages()
    now += 1_000 * MS
    pacer.probe()
    assert far.messages() == [1, 1, 1, 1]
    pacer.probe()
    assert far.messages() == [0, 0, 0, 0]


@pytest.fixture
def one() -> Iterator[Connection]:
    with socket.socket() as sock:
        made = Connection(sock)
        made.last = 1_000 * MS
        yield made


def test_what_came_before_the_run_is_no_part_of_its_stalls(one: Connection) -> None:
    one.heard(16, 400 * MS)
    one.heard(16, 1_010 * MS)
    assert one.stall_until(1_015 * MS) == 10 * MS


@pytest.mark.parametrize(
    ("heard", "end", "alive", "stall"),
    [
        ([1_010, 1_020, 1_320, 1_330], 1_335, True, 300),
        ([1_010, 1_020], 1_900, True, 880),
        ([1_010], 2_011, False, 1_001),
        ([], 1_500, False, 500),
        ([1_010, 1_700], 1_200, True, 690),
    ],
    ids=["a stall", "silent at the end", "silent for a second", "never heard", "after the end"],
)
def test_stall_and_life(
    one: Connection, heard: list[int], end: int, alive: bool, stall: int
) -> None:
    for at in heard:
        one.heard(16, at * MS)
    assert (one.is_alive(end * MS), one.stall_until(end * MS) / MS) == (alive, stall)


def test_an_ended_connection_is_dead_however_late_it_spoke(far: Far) -> None:
    far.channel.begin(time.monotonic_ns())
    for end in far.ends:
        end.send(MESSAGE)
    far.drain()
    assert far.channel.has_answered
    far.ends[1].close()
    far.drain()
    result = far.channel.result(time.monotonic_ns())
    assert (result.total, result.alive, result.messages) == (4, 3, 4)
    assert result.errors == (("closed by the far end", 1),)
    far.channel.connections[1].send()


def test_times_of_messages_are_the_kernel_s(far: Far) -> None:
    begin = time.monotonic_ns()
    far.channel.begin(begin)
    far.ends[0].send(MESSAGE)
    sent = time.monotonic_ns()
    time.sleep(0.05)
    far.drain()
    assert begin <= far.channel.connections[0].last <= sent + 20 * MS


def test_a_connection_that_takes_nothing_any_more_is_not_waited_for(far: Far) -> None:
    connection = far.channel.connections[0]
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for _ in range(1_000_000):
        try:
            connection.sock.send(bytes(65536))
        except BlockingIOError:
            break
    connection.send()
    assert not connection.error


@pytest.mark.parametrize(
    ("services", "code"),
    [
        (Services(0), "bad-port"),
        (Services(65534), "bad-port"),
        (Services(7, push_port=7), "bad-port"),
        (Services(7, echo_port=9), "bad-port"),
        (Services(7, delay_ms=-1.0), "bad-interval"),
        (Services(7, push_ms=0.0), "bad-interval"),
        (Services(7, push_ms=1e9), "bad-interval"),
    ],
)
def test_services_that_cannot_be_are_refused(services: Services, code: str) -> None:
    with pytest.raises(InputError) as caught:
        services.check()
    assert caught.value.code == code


def test_ports_follow_the_first_unless_they_are_named() -> None:
    assert Services(7).ports == (7, 8, 9)
    assert Services(65535, 65534, 65533).ports == (65535, 65534, 65533)
