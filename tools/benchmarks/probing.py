"""One operation under probes: what was lost, which connections lived, whether two ever answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from vrha.lab.owners import OwnerWatch
from vrha.lab.zone import Lab
from vrha.model.probing import Stream
from vrha.probe.process import ProbeProcess

T = TypeVar("T")

WARM_S = 0.5
SETTLE_S = 1.5
"""Probing before and after the operation; a longer outage shows as unrestored."""
OUTSIDE = "outside"


def under_probes(
    lab: Lab,
    streams: Sequence[Stream],
    address: str,
    operate: Callable[[], T],
    asking: str = OUTSIDE,
) -> tuple[dict[str, Any], T]:
    """Fields of a run in the bench's JSON, and what `operate` returned.

    Meanwhile the machine `asking` asks every millisecond who has `address`. Raises what `operate`
    and ProbeProcess raise.
    """
    watch = lab.call(asking, lambda: OwnerWatch([address]))
    with ProbeProcess(streams) as probes:
        time.sleep(WARM_S)
        with watch:
            began = time.time_ns()
            value = operate()
            ended = time.time_ns()
            time.sleep(SETTLE_S)
        result = probes.stop()
    row = result.to_bench()
    row["operation_at_ms"] = [
        round((moment - result.t0_realtime_ns) / 1e6, 1) for moment in (began, ended)
    ]
    answers = watch.results()[address]
    row["owners_overlap_ms"] = round(answers.overlap_ms, 3)
    row["owners_asked"], row["owners_answered"] = answers.asked, answers.answered
    return row, value
