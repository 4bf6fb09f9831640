"""The real command line against the real API over a real Unix socket, and a service in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.fake_service import FakeService
from tests.unit.serving import serving
from vrha.cli.main import run


@dataclass(frozen=True)
class Result:
    """What a command printed and returned."""

    code: int
    out: str
    err: str


Vrha = Callable[..., Result]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeService, Path]]:
    service = FakeService()
    with serving(service, tmp_path_factory.mktemp("api") / "api.sock") as path:
        yield service, path


@pytest.fixture
def service(served: tuple[FakeService, Path]) -> FakeService:
    served[0].reset()
    return served[0]


@pytest.fixture
def socket_path(service: FakeService, served: tuple[FakeService, Path]) -> Path:
    return served[1]


@pytest.fixture
def vrha(
    socket_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Vrha:
    """Runs a command in this process."""
    monkeypatch.setenv("VRHA_SOCKET", str(socket_path))

    def call(*arguments: str) -> Result:
        capsys.readouterr()
        code = run(list(arguments))
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call
