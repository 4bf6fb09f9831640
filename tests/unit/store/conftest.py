from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vrha.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store.open(f"sqlite:///{tmp_path}/store.db")
    yield one
    one.close()
