"""A served API, and the service behind it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.unit.fake_service import FakeService
from tests.unit.serving import serving


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeService, httpx.Client]]:
    """One server for all tests here: to start and stop one takes longer than a test."""
    service = FakeService()
    with serving(service, tmp_path_factory.mktemp("api") / "api.sock") as path:
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://vrha") as client:
            yield service, client


@pytest.fixture
def service(served: tuple[FakeService, httpx.Client]) -> FakeService:
    served[0].reset()
    return served[0]


@pytest.fixture
def api(service: FakeService, served: tuple[FakeService, httpx.Client]) -> httpx.Client:
    return served[1]
