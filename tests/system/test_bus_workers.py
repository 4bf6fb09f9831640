"""A consumer that works on several messages at a time, against a real RabbitMQ."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from kombu import Connection

from tests.system.conftest import Broker, Eventually
from tests.system.test_bus import NODE, QUEUES, consuming, depth, down
from vrha.bus import topology
from vrha.bus.consumer import Consumer, Headers
from vrha.bus.publisher import Publisher
from vrha.errors import InputError

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.unhurried]

SECONDS = 20.0


@pytest.fixture
def url(broker: Broker) -> str:
    return broker.vhost()


@pytest.fixture
def publisher(url: str) -> Iterator[Publisher]:
    one = Publisher([url])
    one.declare(QUEUES, timeout_s=20)
    yield one
    one.close()


class Site:
    """Handlers whose second half ends when the test says so."""

    def __init__(self) -> None:
        self.came: list[bytes] = []
        self._working: list[bytes] = []
        self.done: list[bytes] = []
        self._gates: dict[bytes, threading.Event] = {}
        self._lock = threading.Lock()

    @property
    def working(self) -> set[bytes]:
        """What is worked on, be it twice."""
        with self._lock:
            return set(self._working)

    def __call__(self, body: bytes, _headers: Headers) -> Callable[[], None]:
        self.came.append(body)
        return partial(self._work, body)

    def _work(self, body: bytes) -> None:
        with self._lock:
            self._working.append(body)
        try:
            assert self._gate(body).wait(SECONDS)
            if body == b"bad":
                raise InputError("bad", "not to be had")
            if body == b"bug":
                raise RuntimeError("a bug")
        finally:
            with self._lock:
                self._working.remove(body)
                self.done.append(body)

    def _gate(self, body: bytes) -> threading.Event:
        with self._lock:
            return self._gates.setdefault(body, threading.Event())

    def finish(self, *bodies: bytes) -> None:
        for body in bodies:
            self._gate(body).set()


def drop_connections(broker: Broker, url: str) -> None:
    vhost = url.rsplit("/", 1)[1]
    broker.ctl("close_all_connections", "--vhost", vhost, "a test")


def test_so_many_at_a_time_and_each_is_acknowledged_when_it_is_done(
    url: str, publisher: Publisher, eventually: Eventually
) -> None:
    site = Site()
    consumer = Consumer([url], NODE, site, workers=3)
    with consuming(consumer) as stop:
        for body in (b"a", b"b", b"c", b"d"):
            down(publisher, body)
        eventually(lambda: site.working == {b"a", b"b", b"c"})
        assert site.came == [b"a", b"b", b"c"]
        site.finish(b"c")
        eventually(lambda: consumer.counts.handled == 1)
        eventually(lambda: site.working == {b"a", b"b", b"d"})
        site.finish(b"a", b"d")
        eventually(lambda: consumer.counts.handled == 3)
        stop.set()
        # What is not done when the time to stop is over is delivered again.
        eventually(lambda: not consumer.connected)
    site.finish(b"b")
    eventually(lambda: depth(url, "vrha.node.n1") == 1)


def test_handlers_begin_in_the_order_of_the_messages(
    url: str, publisher: Publisher, eventually: Eventually
) -> None:
    begun: list[int] = []
    inside = threading.Lock()
    done: list[int] = []

    def take(body: bytes, _headers: Headers) -> Callable[[], None]:
        assert inside.acquire(blocking=False), "two handlers at a time"
        begun.append(int(body))
        inside.release()
        return lambda: done.append(int(body))

    consumer = Consumer([url], NODE, take, workers=8)
    with consuming(consumer):
        for number in range(300):
            down(publisher, str(number).encode())
        eventually(lambda: consumer.counts.handled == 300)
    assert begun == list(range(300))
    assert sorted(done) == begun


def test_what_one_handler_does_wrong_is_its_own_business(
    url: str, publisher: Publisher, eventually: Eventually
) -> None:
    site = Site()
    consumer = Consumer([url], NODE, site, workers=4)
    site.finish(b"bad", b"bug", b"good")
    with consuming(consumer):
        down(publisher, b"slow")
        for body in (b"bad", b"bug", b"good"):
            down(publisher, body)
        eventually(lambda: consumer.counts.handled == 1)
        eventually(lambda: depth(url, "vrha.dead") == 2, 30)
        assert site.working == {b"slow"}
        site.finish(b"slow")
        eventually(lambda: consumer.counts.handled == 2)
    assert site.done.count(b"bug") == topology.DELIVERY_LIMIT + 1
    assert (site.done.count(b"bad"), site.done.count(b"good")) == (1, 1)
    assert consumer.counts.connects == 1


def test_what_an_earlier_connection_delivered_is_acknowledged_by_nobody(
    url: str, publisher: Publisher, eventually: Eventually, broker: Broker
) -> None:
    site = Site()
    consumer = Consumer([url], NODE, site, workers=2)
    with consuming(consumer):
        down(publisher, b"a")
        down(publisher, b"b")
        eventually(lambda: site.working == {b"a", b"b"})
        drop_connections(broker, url)
        eventually(lambda: consumer.counts.connects == 2)
        # Both are on their way again, while both threads are still busy with the first delivery.
        site.finish(b"a", b"b")
        eventually(lambda: consumer.counts.handled == 2)
    assert sorted(site.done) == [b"a", b"a", b"b", b"b"]
    eventually(lambda: depth(url, "vrha.node.n1") == 0)


def test_stop_waits_for_all_handlers_and_leaves_no_thread(
    url: str, publisher: Publisher, eventually: Eventually
) -> None:
    def threads() -> int:
        return sum(thread.name == "vrha-handler" for thread in threading.enumerate())

    before = threads()
    site = Site()
    consumer = Consumer([url], NODE, site, workers=3)
    with consuming(consumer) as stop:
        for body in (b"a", b"b", b"c", b"d"):
            down(publisher, body)
        eventually(lambda: site.working == {b"a", b"b", b"c"})
        stop.set()
        threading.Timer(0.3, lambda: site.finish(b"a", b"b", b"c", b"d")).start()
    assert sorted(site.done) == [b"a", b"b", b"c"]
    assert consumer.counts.handled == 3
    eventually(lambda: depth(url, "vrha.node.n1") == 1)
    eventually(lambda: threads() == before)


def test_a_handler_that_returns_nothing_is_done_before_the_next(
    url: str, publisher: Publisher, eventually: Eventually
) -> None:
    came: list[bytes] = []
    go = threading.Event()

    def take(body: bytes, _headers: Headers) -> None:
        came.append(body)
        go.wait(SECONDS)

    consumer = Consumer([url], NODE, take, workers=4)
    with consuming(consumer):
        down(publisher, b"a")
        down(publisher, b"b")
        eventually(lambda: came == [b"a"])
        go.set()
        eventually(lambda: consumer.counts.handled == 2)
    assert came == [b"a", b"b"]
    with Connection(url, connect_timeout=2) as connection:
        assert (
            connection.default_channel.queue_declare("vrha.dead", passive=True).message_count == 0
        )
