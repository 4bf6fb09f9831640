"""The report of a run as data: what `vrha run report --json` prints and the page draws.

Times are milliseconds after the start of the run, `t0`. They come from the clocks of several
machines, which are taken to agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vrha.model.evidence import Carried, Connections

Direction = Literal["egress", "ingress", "canary", "other"]


@dataclass(frozen=True, slots=True)
class ReportStep:
    """One step. Without `start_ms` or `length_ms`: when it began or how long it took is not known.

    `inferred`: nobody reported its times; it was taken after the end of the last step before and
    before the start of the first one after it of which they are known. `open`: it goes on.
    """

    what: str
    kind: str
    node: str
    status: str
    attempt: int
    error: str
    start_ms: float | None
    length_ms: float | None
    inferred: bool
    open: bool
    flip: bool
    timings_ms: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ReportGap:
    """Lost probes one after the other. `start_ms` may lie before the run (negative).

    `during`: the kinds of the steps in which it falls, in order of time.
    """

    start_ms: float
    length_ms: float
    during: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReportLane:
    """One stream of probes.

    `source` is the node that measured it, empty for the one who started the run. `start_ms` None:
    its clock cannot be that of the run, so it is not drawn. `gaps` are in order of time.
    """

    name: str
    direction: Direction
    source: str
    interval_ms: float
    sent: int
    lost: int
    duplicates: int
    late_ticks: int
    longest_gap_ms: float
    start_ms: float | None
    length_ms: float
    gaps: tuple[ReportGap, ...]
    unavailable: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything of one run. `version` changes when a field changes its meaning or goes.

    `lost` and `longest_gap_ms` sum up the streams of whoever started the run, or, without such,
    those of the nodes; None when nothing was measured at all. `measured_by` says which: `client`,
    `nodes` or empty. `start_ms` and `end_ms` are what a plot should show, `flip_ms` between
    which times the owner changed and `flip_length_ms` how long that took, `point_of_no_return_ms`
    when the first step began that has no way back.
    """

    version: int
    run: str
    kind: str
    router: str
    epoch: int
    strategy: str
    status: str
    reason: str
    detail: str
    old: str
    new: str
    nodes: tuple[str, ...]
    started_at: str
    ended_at: str
    t0: float | None
    start_ms: float
    end_ms: float
    duration_ms: float | None
    measured_by: str
    lost: int | None
    longest_gap_ms: float | None
    flip_ms: tuple[float, float] | None
    flip_length_ms: float | None
    point_of_no_return: int | None
    point_of_no_return_ms: float | None
    steps: tuple[ReportStep, ...]
    undo: tuple[ReportStep, ...]
    lanes: tuple[ReportLane, ...]
    connections: tuple[Connections, ...]
    carried: tuple[Carried, ...]
    leftovers: tuple[str, ...]
    notes: tuple[str, ...]
