"""The protocol page says every reason."""

from __future__ import annotations

from pathlib import Path

from vrha.peer import Refusal

PROTOCOL = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()


def test_every_refusal_is_documented() -> None:
    assert [why for why in Refusal if f"| `{why}` |" not in PROTOCOL] == []
