"""Named places where a test can let a daemon die or wait.

Off unless VRHA_FAILPOINTS names a folder. A file in it with the name of a place acts once: it is
removed, then `kill` in it ends the process by SIGKILL, `wait` holds it until a file NAME.go
appears (at most WAIT_S), `error` raises StepError `failpoint`. NAME.reached says that it acted.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from vrha.errors import StepError

VARIABLE = "VRHA_FAILPOINTS"
WAIT_S = 60.0


def reach(place: str | Callable[[], str]) -> None:
    """The process is at `place`, or at what that says when anybody wants to know.

    Raises StepError `failpoint` where a test says so.
    """
    folder = os.environ.get(VARIABLE)
    if folder:
        _act(Path(folder) / (place if isinstance(place, str) else place()))


def _act(path: Path) -> None:
    try:
        action = path.read_text().strip()
        path.unlink()
    except FileNotFoundError:
        return
    path.with_name(f"{path.name}.reached").touch()
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "wait":
        until = time.monotonic() + WAIT_S
        while not path.with_name(f"{path.name}.go").exists() and time.monotonic() < until:
            time.sleep(0.001)
    else:
        raise StepError("failpoint", f"{path.name}: {action}")
