"""Runs to report on."""

from __future__ import annotations

from vrha.model.evidence import Carried, Connections, Evidence, Measured, Measurement
from vrha.model.runs import RunKind, RunStatus, StepStatus, Strategy
from vrha.model.views import RunView, StepView

T0 = 1_767_225_600.0
"""2026-01-01T00:00:00Z"""
NOW = T0 + 3600

DONE, PENDING = StepStatus.DONE, StepStatus.PENDING


def stream(name: str, *gaps: tuple[float, float], began: float = T0 - 0.5) -> Measured:
    lost = round(sum(length for _, length in gaps))
    return Measured(name, began, 1.0, 2500, lost, gaps_ms=gaps)


def step(
    seq: int,
    kind: str,
    at_ms: float | None,
    took_ms: float | None,
    status: StepStatus = DONE,
    node: str = "n1",
    evidence: Evidence | None = None,
    phases: tuple[tuple[str, float], ...] = (),
) -> StepView:
    """A step that began `at_ms` after the run; None: nobody said when, or how long it took."""
    return StepView(
        seq=seq,
        what=f"{kind} r1#2",
        node=node,
        status=status,
        attempt=0 if status is PENDING else 1,
        error="",
        undo="",
        timings_ms=(*phases, *(() if took_ms is None else (("total", took_ms),))),
        kind=kind,
        evidence=evidence or Evidence(),
        began=None if at_ms is None else T0 + at_ms / 1000,
    )


FLIP_PHASES = (("drain", 1.0), ("flip", 0.3), ("linger", 50.0))

HANDOVER = (
    step(0, "build", 20, 40),
    step(1, "await-check-in", None, None, node=""),
    step(
        2,
        "sync",
        90,
        100,
        evidence=Evidence((Carried("conntrack", 5, 4, (("exists", 1),)),)),
    ),
    step(3, "flip", 200, 53, phases=FLIP_PHASES),
    step(
        4,
        "verify",
        260,
        100,
        evidence=Evidence(
            (Carried("conntrack", 9, 9), Carried("neighbours", 3, 3)),
            (stream("canary:blue", (6.0, 2.0), began=T0 + 0.195),),
        ),
    ),
    step(5, "destroy", 400, 50),
)

MEASUREMENT = Measurement(
    (
        stream("egress_icmp", (701.0, 3.0), (900.0, 1.0)),
        stream("ingress_icmp"),
        stream("other_udp", (702.0, 2.0)),
    ),
    (Connections("tcp_in_1", 10, 10, 12.5),),
)


def run(
    steps: tuple[StepView, ...] = HANDOVER,
    undo: tuple[StepView, ...] = (),
    status: RunStatus = RunStatus.DONE,
    measurement: Measurement | None = MEASUREMENT,
    reason: str = "",
    detail: str = "",
    router: str = "r1",
) -> RunView:
    """A handover that took half a second, measured from outside; or a variation of it."""
    return RunView(
        id="abc123",
        kind=RunKind.RESTART,
        router=router,
        epoch=2,
        strategy=Strategy.HANDOVER,
        status=status,
        steps=steps,
        undo=undo,
        point_of_no_return=5,
        old=f"{router}#1",
        new=f"{router}#2",
        reason=reason,
        detail=detail,
        leftovers=(),
        started_at="2026-01-01T00:00:00.000+00:00",
        ended_at="2026-01-01T00:00:00.500+00:00" if status.terminal else "",
        measurement=measurement,
    )
