"""The life of a run: `advance(run, event, now, limits) -> (run, effects)`, pure and total.

Steps are taken in order, in batches of one node, each journaled as `started` before its effect.
Before the point of no return every failure rolls back; after it the run only goes forward, and
what cannot be done is given up after a bounded number of attempts and named in `leftovers`. So
every run ends (I3), once somebody can be told and heard: without that no attempt of the way back
counts. The table `TRANSITIONS` is the whole machine; `diagram()` draws it.

Messages come 0..n times in any order (I5): a report counts only for the current attempt of a
step that is started, anything else leaves the run as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from vrha.core.happenings import (
    CheckedIn,
    CheckInFailed,
    Dispatch,
    Event,
    Finished,
    Limits,
    NodeLost,
    Result,
    Resume,
    StepDone,
    StepFailed,
    TakenOver,
    Tick,
    Withdrawn,
)
from vrha.core.outcome import OWNER_UNKNOWN, is_gone
from vrha.core.steps import describe, node_of, undo_of
from vrha.model.runs import Run, RunStatus, StepRecord, StepStatus
from vrha.model.spec import InstanceRef
from vrha.model.steps import (
    Announce,
    AwaitCheckIn,
    Build,
    Destroy,
    Flip,
    Mute,
    Relay,
    Swap,
    Sync,
    TakeOver,
    Unmute,
)


def advance(run: Run, event: Event, now: float, limits: Limits) -> Result:
    """The run after `event` at `now` (seconds, any monotonic base), and what to do about it."""
    handler = _HANDLERS.get((run.status, type(event)))
    return handler(run, event, now, limits) if handler else (run, ())


# --- running -------------------------------------------------------------------------------


def _resume(run: Run, event: Event, now: float, limits: Limits) -> Result:
    undo = run.status is RunStatus.ROLLING_BACK
    records = tuple(
        replace(r, status=StepStatus.PENDING, deadline=None)
        if r.status is StepStatus.STARTED or _waits_for_retry(r)
        else r
        for r in _records(run, undo)
    )
    return _proceed(_with_records(run, undo, records), now, limits)


def _step_done(run: Run, event: Event, now: float, limits: Limits) -> Result:
    assert isinstance(event, StepDone)
    record = _current(run, event)
    if record is None:
        return run, ()
    done = replace(record, status=StepStatus.DONE, error="", deadline=None)
    return _proceed(_with_record(run, event.undo, done), now, limits)


def _checked_in(run: Run, event: Event, now: float, limits: Limits) -> Result:
    assert isinstance(event, CheckedIn)
    if not _awaits(run, event.instance):
        return run, ()
    # A check-in may overtake the report of the build that it proves.
    records = tuple(
        replace(r, status=StepStatus.DONE, error="", deadline=None)
        if _concerns(r, event.instance)
        else r
        for r in run.steps
    )
    return _proceed(replace(run, steps=records), now, limits)


def _check_in_failed(run: Run, event: Event, now: float, limits: Limits) -> Result:
    assert isinstance(event, CheckInFailed)
    if not _awaits(run, event.instance):
        return run, ()
    record = next(r for r in run.steps if _concerns(r, event.instance) and _unfinished(r))
    return _failed(run, False, record, event.code, event.detail, now, limits)


def _taken_over(run: Run, event: Event, now: float, limits: Limits) -> Result:
    assert isinstance(event, TakenOver)
    record = next((r for r in run.steps if _takes(r, event.instance)), None)
    if record is None or record.status is not StepStatus.STARTED:
        return run, ()
    done = replace(record, status=StepStatus.DONE, error="", deadline=None)
    return _proceed(_with_record(run, False, done), now, limits)


def _takes(record: StepRecord, instance: InstanceRef) -> bool:
    return isinstance(record.step, TakeOver) and record.step.instance == instance


def _withdrawn(run: Run, event: Event, now: float, limits: Limits) -> Result:
    """Back, while that is possible: what has been taken over stays so."""
    assert isinstance(event, Withdrawn)
    taken = any(isinstance(r.step, TakeOver) and r.status is StepStatus.DONE for r in run.steps)
    record = next((r for r in run.steps if _unfinished(r)), None)
    if record is None or taken or _no_way_back(run):
        return run, ()
    return _failed(run, False, record, event.code, event.detail, now, limits)


def _node_lost(run: Run, event: Event, now: float, limits: Limits) -> Result:
    """What the node has been told counts as failed, and is not tried again."""
    assert isinstance(event, NodeLost)
    undo = run.status is RunStatus.ROLLING_BACK
    record = next((r for r in _records(run, undo) if _waits_for(r, event.node)), None)
    if record is None:
        return run, ()
    last = limits.undo_attempts if undo else limits.forward_attempts
    record = replace(record, attempt=max(record.attempt, last))
    return _failed(run, undo, record, "node-lost", f"{event.node} is silent", now, limits)


def _waits_for(record: StepRecord, node: str) -> bool:
    waits = record.status is StepStatus.STARTED or _waits_for_retry(record)
    return waits and node_of(record.step) == node


def _step_failed(run: Run, event: Event, now: float, limits: Limits) -> Result:
    assert isinstance(event, StepFailed)
    record = _current(run, event)
    if record is None:
        return run, ()
    return _failed(run, event.undo, record, event.code, event.detail, now, limits)


def _tick(run: Run, event: Event, now: float, limits: Limits) -> Result:
    assert isinstance(event, Tick)
    undo = run.status is RunStatus.ROLLING_BACK
    for record in _records(run, undo):
        overdue = record.deadline is not None and now >= record.deadline
        if overdue and _waits_for_retry(record):
            again = replace(record, status=StepStatus.PENDING, deadline=None)
            return _proceed(_with_record(run, undo, again), now, limits)
        if record.status is StepStatus.STARTED and overdue:
            if undo and event.cut_off:
                return _put_off(run, now, limits), ()
            waited = "no check-in" if isinstance(record.step, AwaitCheckIn) else "no answer"
            code = "no-check-in" if isinstance(record.step, AwaitCheckIn) else "no-answer"
            detail = f"{waited} within the deadline: {describe(record.step)}"
            return _failed(run, undo, record, code, detail, now, limits)
    return run, ()


def _put_off(run: Run, now: float, limits: Limits) -> Run:
    """The way back waits: given up now, it would leave behind what nobody was asked to remove."""
    asked = {r.seq for r in run.undo if r.status is StepStatus.STARTED}
    deadline = now + max(limits.of(r.step) for r in run.undo if r.seq in asked)
    later = tuple(replace(r, deadline=deadline) if r.seq in asked else r for r in run.undo)
    return replace(run, undo=later)


def _failed(
    run: Run, undo: bool, record: StepRecord, code: str, detail: str, now: float, limits: Limits
) -> Result:
    """A step failed: roll back while that is possible, else try again, else give it up."""
    # Whatever the node was told after the failed step it has not done: it stops at a failure.
    records = tuple(
        replace(r, status=StepStatus.PENDING, deadline=None)
        if r.status is StepStatus.STARTED and r.seq > record.seq and code != "no-answer"
        else r
        for r in _records(run, undo)
    )
    failed = replace(record, status=StepStatus.FAILED, error=f"{code}: {detail}", deadline=None)
    run = _with_record(_with_records(run, undo, records), undo, failed)
    if not undo and not _no_way_back(run):
        return _roll_back(replace(run, reason=code, detail=detail), now, limits)
    if record.attempt < (limits.undo_attempts if undo else limits.forward_attempts):
        if code != "no-answer":
            pause = limits.retry_s * 2 ** (record.attempt - 1)
            return _with_record(run, undo, replace(failed, deadline=now + pause)), ()
        retry = tuple(
            replace(r, status=StepStatus.PENDING, deadline=None)
            if r.status in (StepStatus.FAILED, StepStatus.STARTED)
            else r
            for r in _records(run, undo)
        )
        return _proceed(_with_records(run, undo, retry), now, limits)
    return _proceed(_give_up(run, undo, failed), now, limits)


def _waits_for_retry(record: StepRecord) -> bool:
    return record.status is StepStatus.FAILED and record.deadline is not None


def _give_up(run: Run, undo: bool, record: StepRecord) -> Run:
    """The step is not done, and the run says so."""
    leftover = f"{describe(record.step)} on {node_of(record.step)}: {record.error}"
    run = replace(run, leftovers=(*run.leftovers, leftover))
    return _with_record(run, undo, replace(record, status=StepStatus.ABANDONED))


def _barred(records: tuple[StepRecord, ...]) -> frozenset[int]:
    """Steps that must not be taken after others had to be given up.

    As long as a mute is not confirmed nobody else may become owner (I1). As long as it is not
    confirmed that the old instance serves again, by a swap, a flip or an unmute, the other one may
    be the only one to serve or to forward, so it is not destroyed (I2).
    """
    barred: set[int] = set()
    for given_up in (r.step for r in records if r.status is StepStatus.ABANDONED):
        for record in (r for r in records if r.status is StepStatus.PENDING):
            match given_up, record.step:
                case Mute() | Relay(), Unmute(instance=other) | Announce(instance=other):
                    if other != given_up.instance and not is_gone(records, given_up):
                        barred.add(record.seq)
                case Swap() | Flip(), Destroy(instance=other) if other == given_up.old:
                    barred.add(record.seq)
                case Unmute(), Destroy(instance=other) if other != given_up.instance:
                    barred.add(record.seq)
    return frozenset(barred)


def _roll_back(run: Run, now: float, limits: Limits) -> Result:
    steps = [s for r in reversed(run.steps) if r.attempt > 0 for s in undo_of(r.step)]
    undo = tuple(StepRecord(seq, step) for seq, step in enumerate(steps))
    return _proceed(replace(run, status=RunStatus.ROLLING_BACK, undo=undo), now, limits)


def _proceed(run: Run, now: float, limits: Limits) -> Result:
    """Start the next batch of steps, or end the run when there is none."""
    undo = run.status is RunStatus.ROLLING_BACK
    records = _records(run, undo)
    if any(r.status is StepStatus.STARTED for r in records):
        return run, ()
    barred = _barred(records)
    pending = [r for r in records if r.status is StepStatus.PENDING and r.seq not in barred]
    if not pending:
        unsafe = f"{OWNER_UNKNOWN}: an earlier step was not confirmed"
        for record in (r for r in records if r.seq in barred):
            run = _give_up(run, undo, replace(record, error=unsafe))
        return _finish(run)
    if isinstance(pending[0].step, AwaitCheckIn | TakeOver):
        is_check_in = isinstance(pending[0].step, AwaitCheckIn)
        waiting = replace(
            pending[0],
            status=StepStatus.STARTED,
            attempt=pending[0].attempt + 1,
            deadline=now + (limits.check_in_s if is_check_in else limits.take_over_s),
        )
        return _with_record(run, undo, waiting), ()
    batch = _batch(run, pending)
    attempt = max(r.attempt for r in batch) + 1
    limit = max(limits.of(r.step) for r in batch)
    started = tuple(
        replace(r, status=StepStatus.STARTED, attempt=attempt, deadline=now + limit) for r in batch
    )
    for record in started:
        run = _with_record(run, undo, record)
    valid = limit if _may_not_come_late(run, undo, batch) else None
    expires = None if valid is None else now + valid
    order = sum(r.attempt for r in (*run.steps, *run.undo))
    node = node_of(started[0].step)
    return run, (Dispatch(node, undo, attempt, started, order, expires, valid),)


def _may_not_come_late(run: Run, undo: bool, batch: list[StepRecord]) -> bool:
    """Whether the steps must not happen once the run has gone on without them.

    So it is with what can be taken back, once that has begun. And with a destroy after something
    was given up: by then it may have been found that only that instance serves.
    """
    if not undo:
        return not _no_way_back(run)
    in_doubt = any(r.status is StepStatus.ABANDONED for r in run.undo)
    return in_doubt and any(isinstance(r.step, Destroy) for r in batch)


def _finish(run: Run) -> Result:
    if run.status is RunStatus.RUNNING:
        ended = replace(run, status=RunStatus.DONE)
    else:
        steps = tuple(
            replace(r, status=StepStatus.UNDONE) if r.attempt > 0 else r for r in run.steps
        )
        ended = replace(run, status=RunStatus.ROLLED_BACK, steps=steps)
    return ended, (Finished(ended.status),)


def _batch(run: Run, pending: list[StepRecord]) -> list[StepRecord]:
    """The next steps that one node can take without asking back.

    The point of no return always begins a batch: what stands before it can be undone for as
    long as nothing after it was sent. A sync always ends one: when it fails, nothing was sent
    that touches the old instance, so there is nothing to take back but the new one.
    """
    first = pending[0]
    batch = [first]
    for record in pending[1:]:
        follows = record.seq == batch[-1].seq + 1
        same_node = node_of(record.step) == node_of(first.step)
        is_boundary = record.seq == run.point_of_no_return
        if not follows or not same_node or isinstance(batch[-1].step, Sync):
            break
        if is_boundary and run.status is RunStatus.RUNNING:
            break
        batch.append(record)
    return batch


def _no_way_back(run: Run) -> bool:
    point = run.point_of_no_return
    return point is not None and any(r.attempt > 0 for r in run.steps if r.seq >= point)


def _records(run: Run, undo: bool) -> tuple[StepRecord, ...]:
    return run.undo if undo else run.steps


def _with_records(run: Run, undo: bool, records: tuple[StepRecord, ...]) -> Run:
    return replace(run, undo=records) if undo else replace(run, steps=records)


def _with_record(run: Run, undo: bool, record: StepRecord) -> Run:
    records = tuple(record if r.seq == record.seq else r for r in _records(run, undo))
    return _with_records(run, undo, records)


def _current(run: Run, event: StepDone | StepFailed) -> StepRecord | None:
    """The started step that a report is about; None for stale, early and foreign reports."""
    if event.undo is not (run.status is RunStatus.ROLLING_BACK):
        return None
    return next(
        (
            r
            for r in _records(run, event.undo)
            if r.seq == event.seq
            and r.attempt == event.attempt
            and r.status is StepStatus.STARTED
            and not isinstance(r.step, AwaitCheckIn | TakeOver)
        ),
        None,
    )


def _concerns(record: StepRecord, instance: InstanceRef) -> bool:
    """Whether `record` builds or awaits `instance`."""
    match record.step:
        case Build(spec=spec):
            return spec.ref == instance
        case AwaitCheckIn(instance=awaited):
            return awaited == instance
    return False


def _unfinished(record: StepRecord) -> bool:
    return record.status in (StepStatus.PENDING, StepStatus.STARTED)


def _awaits(run: Run, instance: InstanceRef) -> bool:
    """Whether the build of `instance` was sent and its check-in has not been settled."""
    mine = [r for r in run.steps if _concerns(r, instance)]
    sent = any(isinstance(r.step, Build) and r.attempt > 0 for r in mine)
    return sent and any(isinstance(r.step, AwaitCheckIn) and _unfinished(r) for r in mine)


# --- the machine ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the machine: in `status`, on `event`, `handler` leads to one of `to`."""

    status: RunStatus
    event: type[Event]
    handler: Callable[[Run, Event, float, Limits], Result]
    to: tuple[RunStatus, ...]
    meaning: str


_R, _B = RunStatus.RUNNING, RunStatus.ROLLING_BACK
_D, _U = RunStatus.DONE, RunStatus.ROLLED_BACK

TRANSITIONS: tuple[Row, ...] = (
    Row(_R, Resume, _resume, (_R, _D), "started steps are unknown: they are sent again"),
    Row(_R, StepDone, _step_done, (_R, _D), "the next batch is sent; after the last one: done"),
    Row(_R, CheckedIn, _checked_in, (_R, _D), "the replacement is complete and ready"),
    Row(_R, CheckInFailed, _check_in_failed, (_B, _R), "the replacement is not fit to serve"),
    Row(_R, StepFailed, _step_failed, (_B, _R, _D), "back while that is possible, else forward"),
    Row(_R, TakenOver, _taken_over, (_R,), "nobody else has a right to speak any more"),
    Row(_R, Withdrawn, _withdrawn, (_B, _U, _R), "back while that is possible"),
    Row(_R, NodeLost, _node_lost, (_B, _R, _D, _U), "as a step that failed for the last time"),
    Row(
        _R,
        Tick,
        _tick,
        (_R, _B, _D),
        "no answer in time counts as failed; what failed is tried again",
    ),
    Row(_B, Resume, _resume, (_B, _U), "as above, for the steps of the way back"),
    Row(_B, StepDone, _step_done, (_B, _U), "after the last step back: rolled back"),
    Row(_B, StepFailed, _step_failed, (_B, _U), "tried again, then given up and named"),
    Row(_B, NodeLost, _node_lost, (_B, _U), "given up and named"),
    Row(
        _B, Tick, _tick, (_B, _U), "no answer in time counts as failed; what failed is tried again"
    ),
)
"""In a terminal status nothing happens any more; a check-in during a roll-back is too late."""

_HANDLERS = {(row.status, row.event): row.handler for row in TRANSITIONS}


def diagram() -> str:
    """The machine as Mermaid text, drawn from its table."""
    lines = ["stateDiagram-v2", "    [*] --> running"]
    for row in TRANSITIONS:
        for to in row.to:
            if to is not row.status:
                lines.append(f"    {row.status} --> {to}: {row.event.__name__}")
    lines += ["    done --> [*]", "    rolled_back --> [*]", ""]
    lines += [f"%% {r.status}, {r.event.__name__}: {r.meaning}" for r in TRANSITIONS]
    return "\n".join(lines)
