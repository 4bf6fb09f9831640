"""What systemd says of a service whose main process has ended: was it stopped, or did it die?

A stop is asked of systemd, which first leaves the state `active` and then ends the process; of a
death it hears afterwards (systemd's src/core/service.c, service_stop and service_sigchld_event).
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

LIMIT_S = 2.0
"""For an answer."""
_LEFT, _BEGAN, _ENDED = (
    "ActiveExitTimestampMonotonic",
    "ExecMainStartTimestampMonotonic",
    "ExecMainExitTimestampMonotonic",
)
_NAMES = ("MainPID", "ControlGroup", "LoadState", "ActiveState", "Result", _LEFT, _BEGAN, _ENDED)
_OWN_DOING = frozenset({"watchdog", "oom-kill", "protocol", "resources", "start-limit-hit"})
"""Results of systemd's own decision to end the process (systemd.exec(5), $SERVICE_RESULT)."""


class NoAnswerError(Exception):
    """Systemd is there, and does not answer in time."""


def asked(unit: str) -> dict[str, str] | None:
    """What systemd says; None where there is none. Raises NoAnswerError."""
    command = ("systemctl", "show", f"--property={','.join(_NAMES)}", unit)
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, check=True
        ).stdout
    except subprocess.TimeoutExpired as error:
        raise NoAnswerError from error
    except (OSError, subprocess.SubprocessError):
        return None
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    return found if found.keys() >= {"MainPID", "ControlGroup"} else None


def is_stopped(said: Mapping[str, str]) -> bool:
    """Whether the service was stopped on purpose, of one whose process is gone."""
    if said.get("LoadState") == "not-found":
        return False
    state, result = said.get("ActiveState"), said.get("Result", "")
    if state == "inactive" and result != "success":
        # It waited to be started again when it was stopped; otherwise it would be `failed`.
        return True
    left, began, ended = (int(said.get(name) or 0) for name in (_LEFT, _BEGAN, _ENDED))
    if state == "inactive" and not began:
        # Never started, or in order and forgotten: systemd keeps what has failed.
        return True
    if state not in ("inactive", "failed", "deactivating") or result in _OWN_DOING:
        return False
    is_reaped = ended >= began
    return began <= left and (left < ended or not is_reaped)
