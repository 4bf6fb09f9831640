"""The clock of leases."""

from __future__ import annotations

import time


def clock_ms() -> float:
    """It goes on while the machine is suspended, and nobody sets it (CLOCK_BOOTTIME)."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) / 1e6
