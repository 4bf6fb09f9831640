"""What a node says of its leases, before anybody believes it."""

from __future__ import annotations

import pytest

from vrha.core.leases import LARGEST, cleaned, fitting, holders

V4 = "1795343968 02:00:00:00:09:01 10.1.1.154 * *"
NAMED = "1795343968 02:00:00:00:09:02 10.1.1.155 vm-2 01:02:00:00:00:09:02"
V6 = "1795344077 1 fd00:1::1abb * 00:03:00:01:02:00:00:00:09:01"
DUID = "duid 00:01:00:01:32:94:31:cc:02:76:00:00:01:00"


def text(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


def test_what_dnsmasq_writes_passes() -> None:
    whole = text(V4, NAMED, DUID, V6)
    assert cleaned(whole) == whole


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "conf-file=/etc/passwd",
        V4 + " more",
        V4.replace("10.1.1.154", "$(id)"),
        NAMED.replace("vm-2", "vm\t2"),
        NAMED.replace("vm-2", "vm\r2"),
        NAMED.replace("vm-2", "x" * 256),
        "duid zz",
        V4[: len(V4) // 2],
    ],
)
def test_nothing_else_does(bad: str) -> None:
    assert cleaned(text(V4, bad, NAMED)) == text(V4, NAMED)


def test_of_too_many_those_that_end_first_are_left_out() -> None:
    lines = [f"{end} 02:00:00:00:09:01 10.1.1.1 * *" for end in range(1000, 1999)]
    kept = fitting(text(DUID, *lines), 10_000).splitlines()
    assert kept[0] == DUID
    assert sorted(kept[1:]) == lines[-len(kept) + 1 :]
    assert 200 < len(kept) < len(lines)
    assert len(cleaned(text(*lines * 10))) <= LARGEST


def test_a_renewal_changes_no_holder() -> None:
    assert holders(text(DUID, V4)) == holders(text(V4.replace("1795343968", "1795349999"), DUID))
    assert holders(text(V4)) != holders(text(V4.replace(".154", ".156")))
    assert holders(text(V4)) != holders(text(V4, NAMED))
