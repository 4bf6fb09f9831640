"""What holds for all tests."""

import signal
from collections.abc import Iterator

import pytest

from tests import postgres

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background so, and the programs under test would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[postgres.Server]:
    """A PostgreSQL server for the whole session."""
    yield from postgres.running()
