"""A real RabbitMQ for the whole session, beside whatever else runs on the machine."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.labkit import PATIENCE
from vrha.bus.broker import SERVER, PrivateBroker, cleanup

CTL = SERVER.with_name("rabbitmqctl")
START_TIMEOUT_S = 90.0
AT_A_TIME = 20
"""Virtual hosts that are made together."""
_NEW_VHOSTS = """
lists:foreach(fun(Name) ->
    rabbit_vhost:add(Name, <<"vrha">>),
    rabbit_auth_backend_internal:set_permissions(
        <<"vrha">>, Name, <<".*">>, <<".*">>, <<".*">>, <<"vrha">>)
end, [%s]).
"""

Eventually = Callable[..., None]


class Broker:
    """A private broker that tests may stop, kill and administer."""

    def __init__(self, folder: Path) -> None:
        self._private = PrivateBroker(folder)
        self._unused: list[str] = []
        self._made = 0
        self.stop = self._private.stop
        self.kill = self._private.kill

    @property
    def pid(self) -> int:
        """Pid of the Erlang machine, which is the broker itself."""
        return self._private.pid

    @property
    def url(self) -> str:
        return self._private.url

    def start(self) -> None:
        self._private.start(START_TIMEOUT_S)

    def ctl(self, *arguments: str) -> str:
        # The node's own environment says where it is, and its home holds the cookie.
        pairs = Path(f"/proc/{self.pid}/environ").read_text().split("\0")
        environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        done = subprocess.run(
            [str(CTL), "-q", "-n", environment["RABBITMQ_NODENAME"], *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def vhost(self) -> str:
        """URL of a virtual host that nobody has used yet."""
        if not self._unused:
            # A control program takes seconds to start: it makes many at a time.
            self._unused = [f"test{self._made + number}" for number in range(AT_A_TIME)]
            self._made += AT_A_TIME
            self.ctl("eval", _NEW_VHOSTS % ", ".join(f'<<"{name}">>' for name in self._unused))
        return self.url.removesuffix("//") + f"/{self._unused.pop(0)}"


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0, what: str = "") -> None:
    """Wait for `condition()` to be true. Fails the test after `PATIENCE` times `timeout_s`."""
    deadline = time.monotonic() + PATIENCE * timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {PATIENCE} times {timeout_s} s: {what or condition}")
        time.sleep(0.001)


@pytest.fixture
def eventually() -> Eventually:
    """`eventually(condition, timeout_s)` waits for a condition instead of sleeping."""
    return wait_until


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    if not SERVER.exists():
        pytest.skip("RabbitMQ is not installed")
    folder = Path(tempfile.mkdtemp(prefix="vrha-broker-"))
    one = Broker(folder)
    try:
        one.start()
        yield one
    finally:
        one.kill()
        cleanup(folder)
