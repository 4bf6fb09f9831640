"""Tests of the units run where a box can be had; on CI one must be."""

from __future__ import annotations

import os

import pytest

from tests.systemd.box import missing


@pytest.fixture(scope="package", autouse=True)
def boxes() -> None:
    lacks = missing()
    if lacks and os.environ.get("CI"):
        pytest.fail(f"no systemd in a box here: {lacks}")
    if lacks:
        pytest.skip(f"no systemd in a box here: {lacks}")
