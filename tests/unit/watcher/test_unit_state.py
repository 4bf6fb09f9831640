"""A stop and a death, as systemd tells them; the words were taken from systemd 252."""

from __future__ import annotations

import pytest

from vrha.watcher.unitstate import is_stopped


def said(state: str, result: str, left: int, began: int, ended: int) -> dict[str, str]:
    return {
        "MainPID": "0",
        "ControlGroup": "",
        "LoadState": "loaded",
        "ActiveState": state,
        "Result": result,
        "ActiveExitTimestampMonotonic": str(left),
        "ExecMainStartTimestampMonotonic": str(began),
        "ExecMainExitTimestampMonotonic": str(ended),
    }


@pytest.mark.parametrize(
    ("words", "is_on_purpose"),
    [
        pytest.param(said("inactive", "success", 20, 10, 30), True, id="stopped"),
        pytest.param(said("deactivating", "success", 20, 10, 0), True, id="is being stopped"),
        pytest.param(said("deactivating", "success", 20, 10, 30), True, id="after its end"),
        pytest.param(said("failed", "exit-code", 20, 10, 30), True, id="stopped, complains"),
        pytest.param(said("failed", "timeout", 20, 10, 30), True, id="stopped, would not end"),
        pytest.param(said("inactive", "exit-code", 31, 10, 30), True, id="between two starts"),
        pytest.param(said("inactive", "success", 0, 0, 0), True, id="stopped and forgotten"),
        pytest.param(said("inactive", "success", 31, 10, 30), False, id="ended by itself"),
        pytest.param(said("failed", "signal", 31, 10, 30), False, id="killed"),
        pytest.param(said("activating", "signal", 31, 10, 30), False, id="killed, comes back"),
        pytest.param(said("failed", "watchdog", 20, 10, 30), False, id="hung, ended by systemd"),
        pytest.param(said("failed", "oom-kill", 20, 10, 30), False, id="out of memory"),
        pytest.param(said("deactivating", "signal", 31, 10, 30), False, id="what follows a death"),
        pytest.param(said("failed", "exit-code", 5, 10, 30), False, id="stopped once, died now"),
        pytest.param(
            {**said("inactive", "success", 0, 0, 0), "LoadState": "not-found"}, False, id="no unit"
        ),
    ],
)
def test_a_stop_is_told_from_a_death(words: dict[str, str], is_on_purpose: bool) -> None:
    assert is_stopped(words) is is_on_purpose
