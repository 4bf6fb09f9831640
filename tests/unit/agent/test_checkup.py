"""When an instance counts as sick."""

from __future__ import annotations

import pytest

from vrha.agent.checkup import judge
from vrha.model.evidence import Measured


def stream(unavailable: str = "") -> Measured:
    return Measured("canary:blue", 0.0, 1.0, 40, 0, unavailable=unavailable)


@pytest.mark.parametrize(
    ("streams", "comes_through"),
    [
        ([stream()], True),
        ([stream("no-reply")], False),
        ([stream("no-reply"), stream()], True),
        ([stream("no-uplink")], None),
        ([stream("egress-denied"), stream("no-reply")], False),
        ([], None),
    ],
)
def test_nothing_comes_through_only_where_something_could(
    streams: list[Measured], comes_through: bool | None
) -> None:
    assert judge(streams) is comes_through
