"""Runs in motion: events in, `vrha.core.run` decides, journal and outbox out, in one transaction.

A step is in the journal as `started`, and its command in the outbox, before anything leaves this
process. So a killed orchestrator loses nothing: it resumes every open run at its last row.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from vrha import codec, failpoints
from vrha.core import check_in as judging
from vrha.core.happenings import (
    CheckedIn,
    CheckInFailed,
    Dispatch,
    Effect,
    Event,
    Finished,
    Limits,
    NodeLost,
    Resume,
    StepDone,
    StepFailed,
    TakenOver,
    Tick,
    Withdrawn,
)
from vrha.core.outcome import is_unsettled, outcome_of
from vrha.core.ownership.commands import Commit
from vrha.core.ownership.wanted import Claimant, claimant_of
from vrha.core.run import advance
from vrha.core.steps import node_of, outline
from vrha.errors import InputError, RefusedError
from vrha.model.messages import (
    CheckIn,
    Command,
    Inventory,
    Leases,
    Outcome,
    PutLeases,
    StepReport,
)
from vrha.model.runs import Run, RunKind, RunStatus, StepRecord, StepStatus
from vrha.model.spec import InstanceRef
from vrha.model.state import NodeState, RouterState, RulesDigest
from vrha.model.steps import Build
from vrha.orchestrator import leases, reconcile, rollouts
from vrha.orchestrator.dhcp import Exchange, Spread
from vrha.orchestrator.metrics import Metrics
from vrha.orchestrator.standbys import Standbys
from vrha.render.digest import expected_digest
from vrha.store import Store, Tx

log = logging.getLogger(__name__)

_LONGEST_DETAIL = 2000
"""Characters of a node's complaint that are kept."""

Said = StepReport | CheckIn | Inventory | Leases
"""What an agent may say."""

LOOK_AGAIN_S = 1.0
"""How often rollouts are looked at when no run has ended: routers may have vanished."""


class Engine:
    """Carries runs through. All methods are safe from any thread."""

    def __init__(
        self,
        store: Store,
        limits: Limits,
        metrics: Metrics,
        outbox_filled: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        uplinks_changed: Callable[[], None] = lambda: None,
        watch: Callable[[], bool] = bool,
        heals: bool = True,
    ) -> None:
        """`clock` counts seconds; its base may change when the orchestrator starts again.

        `watch` is called with every tick: whether it gave rollouts something to do.
        """
        self._watch = watch
        self._heals = heals
        self._clock = clock
        self._store = store
        self._limits = limits
        self._metrics = metrics
        self._outbox_filled = outbox_filled
        self._uplinks_changed = uplinks_changed
        self.standbys = Standbys(clock)
        self._look = threading.Event()
        self._look_at_standbys = threading.Event()
        self.copies = leases.Copies(clock)
        self._exchange = Exchange(clock)
        self._spread = Spread(clock)
        self._looked_at: float | None = None
        self._resumed_at: float | None = None

    # --- what starts and moves runs ---------------------------------------------------------

    def start(self, tx: Tx, run: Run) -> Run:
        """Journal `run` and send its first steps. Raises RefusedError `run-in-progress`."""
        if run.kind is not RunKind.STANDBY:
            self._make_way(tx, run)
        tx.add_run(run)
        tx.add_event("run-started", run.kind, run=run.id, router=run.router, detail=_what(run))
        log.info("run %s: %s of %s starts, epoch %d", run.id, run.kind, run.router, run.epoch)
        return self._feed(tx, run, Resume())

    def _make_way(self, tx: Tx, run: Run) -> None:
        """An open run of the router's standby ends where it is: it touches nothing that serves,
        and what it leaves is found at the next look."""
        other = tx.open_run_of(run.router)
        if other is None or other.kind is not RunKind.STANDBY:
            return
        detail = f"it gives way to run {run.id} ({run.kind})"
        over = replace(other, status=RunStatus.ROLLED_BACK, reason="superseded", detail=detail)
        tx.save_run(_outlined(over))
        tx.add_event("run-rolled-back", over.reason, run=over.id, router=run.router, detail=detail)
        log.info("run %s: %s", over.id, detail)

    def resume(self) -> None:
        """Take up every open run after a start, or after another orchestrator: what was started is
        sent again. Times of the one before, on its clocks, count for nothing any more.

        Rollouts start no further run before the nodes were heard: after a long absence all of
        them look silent.
        """
        self._resumed_at = time.time()
        self.standbys.idle = False
        with self._store.transaction() as tx:
            tx.outbox.forget_expiring()
            tx.not_seen_after(self._resumed_at)
            for run in tx.open_runs():
                log.info("run %s: resumed", run.id)
                tx.add_event("run-resumed", run.status, run=run.id, router=run.router)
                self._feed(tx, run, Resume())
        self._outbox_filled()

    def tick(self, cut_off: bool = False) -> None:
        """Let deadlines pass and rollouts go on; call it several times a second.

        `cut_off`: there is no connection to the broker now.
        """
        with self._store.transaction() as tx:
            overdue = tx.overdue_runs(self._clock())
            for run in overdue:
                self._feed(tx, run, Tick(cut_off))
        if overdue:
            self._outbox_filled()
        if self._watch():
            self._look.set()
        now = self._clock()
        if self._looked_at is None or now - self._looked_at >= LOOK_AGAIN_S:
            self._looked_at = now
            self._look.set()
            self._look_at_standbys.set()
            if self._heals and self._spread.look(self._store, self.start):
                self._outbox_filled()
        self.advance_rollouts()
        self._advance_standbys()
        copied = self.copies.turn(self._store, _standby_place)
        if self._exchange.turn(self._store) or copied:
            self._outbox_filled()

    def look_at_standbys(self, tx: Tx) -> tuple[Run, ...]:
        """Start what standbys need now."""
        return self.standbys.look(tx, self.start)

    def _advance_standbys(self) -> None:
        if self._look_at_standbys.is_set() and not self.standbys.idle:
            self._look_at_standbys.clear()
            with self._store.transaction() as tx:
                self.standbys.idle = True
                started = self.look_at_standbys(tx)
            if started:
                self._outbox_filled()

    def advance_rollouts(self) -> None:
        """Give the next routers of open rollouts their turn, where there is reason to."""
        while self._look.is_set():
            # First: a run that ends meanwhile must not be missed.
            self._look.clear()
            with self._store.transaction() as tx:
                if rollouts.advance(tx, self.start, self._resumed_at):
                    self._look.set()
            self._outbox_filled()

    def rollouts_changed(self) -> None:
        """Rollouts were started, stopped or resumed: they go on at once."""
        self._look.set()
        self.advance_rollouts()

    # --- what becomes of rights and nodes ---------------------------------------------------

    def take_over(self, commit: Commit, claimants: Sequence[Claimant]) -> None:
        """Write rights, and that these instances have taken over, in one transaction.

        Raises RefusedError (`claim-withdrawn`) when a run does not claim that any more, for then
        the router may be served by another; as `Store.transaction`.
        """
        with self._store.transaction() as tx:
            tx.read_runs(each.run for each in claimants)
            for each in claimants:
                run = tx.run(each.run)
                if run is None or claimant_of(run) != each:
                    raise RefusedError("claim-withdrawn", f"run {each.run} claims nothing any more")
            tx.commit_rights(commit)
            for each in claimants:
                run = tx.run(each.run)
                assert run is not None
                tx.add_event("taken-over", run.kind, run=run.id, router=run.router, node=each.node)
                self._feed(tx, run, TakenOver(each.instance))
        self._outbox_filled()

    def withdraw(self, tx: Tx, run_id: str, code: str, detail: str) -> None:
        """There is no reason for the run any more: back, if that is still possible."""
        run = tx.run(run_id)
        if run is not None and not run.status.terminal:
            self._feed(tx, run, Withdrawn(code, detail))

    def node_lost(self, tx: Tx, run_id: str, node: str) -> None:
        """What the run has asked of that node will not be done, nor what it asks next."""
        run = tx.run(run_id)
        while run is not None and not run.status.terminal:
            after = self._feed(tx, run, NodeLost(node))
            run = after if after != run else None

    # --- what agents say --------------------------------------------------------------------

    def receive(self, body: bytes, sender: str) -> None:
        """One message from the agent of node `sender`. Raises InputError for what is none."""
        self.receive_all([self.admit(body, sender)])

    def admit(self, body: bytes, sender: str) -> Said:
        """What is said in a message from the agent of node `sender`.

        Raises InputError for what is none.
        """
        message = codec.decode_message(body)
        if message.node != sender:
            self._metrics.refused("wrong-sender")
            raise InputError("wrong-sender", f"node {sender} speaks for node {message.node}")
        if isinstance(message, Command | PutLeases):
            raise InputError("unexpected", f"the orchestrator takes no {message.type}")
        return message

    def receive_all(self, messages: Sequence[Said]) -> None:
        """What agents say, in this order: all of it in one transaction.

        Raises as `Store.transaction`; then nothing has been heard.
        """
        expected = self._expected(messages)
        places = []
        with self._store.transaction() as tx:
            tx.read_runs(each.run for each in messages if isinstance(each, StepReport | CheckIn))
            for message in messages:
                match message:
                    case StepReport():
                        place = self._report(tx, message)
                    case CheckIn():
                        place = self._check_in(tx, message, expected.get(message.run))
                    case Inventory():
                        place = self._inventory(tx, message)
                    case Leases():
                        place = self._leases(tx, message)
                places += [place] if place else []
        for place in places:
            failpoints.reach(place)
        self._outbox_filled()
        self.advance_rollouts()

    def _report(self, tx: Tx, report: StepReport) -> str:
        report = replace(report, code=report.code[:100], detail=report.detail[:_LONGEST_DETAIL])
        place = self._take_report(tx, report)
        failpoints.reach(f"{place}.reported")
        return f"{place}.settled"

    def _take_report(self, tx: Tx, report: StepReport) -> str:
        """Feed it to its run; the name of the place for failpoints."""
        run = tx.run(report.run)
        if run is None or report.epoch != run.epoch or not _is_from_its_node(run, report):
            self._metrics.refused("step-report")
            tx.add_event("report-refused", "not-ours", run=report.run, node=report.node)
            return "orchestrator.refused"
        tx.reports.keep(report)
        place = _place(run, report)
        if report.outcome is Outcome.DONE:
            self._tell_of_announcement(tx, run, report)
            self._feed(tx, run, StepDone(report.seq, report.undo, report.attempt))
            return place
        log.warning("run %s step %d on %s: %s", run.id, report.seq, report.node, report.detail)
        tx.add_event(
            "step-failed",
            report.code,
            run=run.id,
            router=run.router,
            node=report.node,
            detail=report.detail,
        )
        failed = StepFailed(report.seq, report.undo, report.attempt, report.code, report.detail)
        self._feed(tx, run, failed)
        return place

    def _tell_of_announcement(self, tx: Tx, run: Run, report: StepReport) -> None:
        at = report.evidence.announced_at
        if at is not None:
            when = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
            tx.add_event(
                "announced",
                run.kind,
                run=run.id,
                router=run.router,
                node=report.node,
                detail=when,
            )

    def _expected(self, messages: Sequence[Said]) -> dict[str, RulesDigest]:
        """By run, what the instances must have that check in.

        Outside of the transaction: with ten thousand rules it takes a quarter of a second.
        """
        check_ins = [message for message in messages if isinstance(message, CheckIn)]
        if not check_ins:
            return {}
        with self._store.reading() as tx:
            tx.read_runs(message.run for message in check_ins)
            awaited = [(tx.run(message.run), message) for message in check_ins]
        found = {}
        for run, message in awaited:
            if run is not None and judging.judge_sender(run, message).refusal is None:
                build = judging.build_of(run)
                if build is not None:
                    found[run.id] = expected_digest(build.spec)
        return found

    def _check_in(self, tx: Tx, message: CheckIn, expected: RulesDigest | None) -> str:
        """The name of the place for failpoints, once it is accepted."""
        run = tx.run(message.run)
        judgement = judging.judge_sender(run, message)
        if judgement.refusal is None and not tx.consume_check_in(message.run, _hash(message.token)):
            judgement = judging.Judgement(judging.Refusal.WRONG_TOKEN)
        if run is None or expected is None or judgement.refusal is not None:
            self._refuse(tx, message, judgement)
            return ""
        judgement = judging.judge_self_test(run, message, expected)
        if judgement.refusal is not None:
            self._refuse(tx, message, judgement)
            unfit = CheckInFailed(message.instance, judgement.refusal, judgement.detail)
            self._feed(tx, run, unfit)
            return ""
        self._believe(tx, run, message)
        failpoints.reach("orchestrator.check-in.received")
        return "orchestrator.check-in.accepted"

    def _believe(self, tx: Tx, run: Run, message: CheckIn) -> None:
        log.info("run %s: %s checked in from %s", run.id, message.instance, message.node)
        tx.add_event(
            "checked-in",
            "accepted",
            run=run.id,
            router=run.router,
            node=message.node,
            detail=f"{message.self_test.rules.count} rules, built in {message.build_ms:.1f} ms",
        )
        self._feed(tx, run, CheckedIn(message.instance))

    def _refuse(self, tx: Tx, message: CheckIn, judgement: judging.Judgement) -> None:
        reason = str(judgement.refusal)
        self._metrics.check_in_refused(reason)
        log.warning(
            "check-in of %s from %s refused: %s %s",
            message.instance,
            message.node,
            reason,
            judgement.detail,
        )
        tx.add_event(
            "check-in-refused",
            reason,
            run=message.run,
            router=message.router,
            node=message.node,
            detail=judgement.detail,
        )

    def _inventory(self, tx: Tx, inventory: Inventory) -> str:
        previous = {state.name: state for state in tx.node_states()}.get(inventory.node)
        if previous is None or previous.agent != inventory.agent:
            tx.add_event("agent-started", "hello", node=inventory.node, detail=inventory.agent)
        tx.node_seen(inventory, time.time())
        for run in reconcile.after_inventory(tx, inventory, previous, self._heals):
            self.start(tx, run)
        if previous is None or previous.seen_at < (self._resumed_at or 0.0):
            self._look.set()
        if previous is None or previous.uplinks != inventory.uplinks:
            self._uplinks_changed()
        if previous is not None and _follow(inventory) != _follow(previous):
            self._look_at_standbys.set()
        return ""

    def _leases(self, tx: Tx, message: Leases) -> str:
        if leases.take(tx, message):
            self.copies.changed(message.instance.router)
            self._exchange.changed(message.instance.router)
        else:
            self._metrics.refused("leases")
        return ""

    # --- carrying out -----------------------------------------------------------------------

    def _feed(self, tx: Tx, run: Run, event: Event) -> Run:
        after, effects = advance(run, event, self._clock(), self._limits)
        if after == run:
            return run
        if after.status is RunStatus.ROLLING_BACK and run.status is RunStatus.RUNNING:
            log.warning("run %s rolls back: %s: %s", run.id, after.reason, after.detail)
            tx.add_event(
                "rolling-back", after.reason, run=run.id, router=run.router, detail=after.detail
            )
        tx.save_run(_outlined(after) if after.status.terminal else after)
        for effect in effects:
            self._carry_out(tx, after, effect)
        return after

    def _carry_out(self, tx: Tx, run: Run, effect: Effect) -> None:
        match effect:
            case Dispatch():
                self._dispatch(tx, run, effect)
            case Finished():
                self._finish(tx, run)

    def _dispatch(self, tx: Tx, run: Run, batch: Dispatch) -> None:
        records: tuple[StepRecord, ...] = batch.records
        token = ""
        if not batch.undo and any(isinstance(r.step, Build) for r in records):
            token = secrets.token_urlsafe(32)
            tx.expect_check_in(run.id, _hash(token))
        command = Command(
            run=run.id,
            router=run.router,
            epoch=run.epoch,
            node=batch.node,
            attempt=batch.attempt,
            first_seq=records[0].seq,
            undo=batch.undo,
            steps=tuple(leases.with_leases(tx, record.step) for record in records),
            token=token,
            order=batch.order,
            valid_s=batch.valid_s,
        )
        tx.outbox.enqueue(batch.node, codec.encode(command), batch.expires)
        failpoints.reach(f"{command_place(command)}.journaled")

    def _finish(self, tx: Tx, run: Run) -> None:
        state = tx.router_state(run.router) or RouterState(run.router)
        state = outcome_of(run, state)
        tx.put_router_state(state)
        if state.standby is not None:
            self.copies.changed(run.router)
        self._exchange.changed(run.router)
        if is_unsettled(state) and run.kind is not RunKind.STANDBY:
            log.error("router %s: %s", run.router, state.failed)
            tx.add_event("unsettled", state.failed.partition(":")[0], run=run.id, router=run.router)
            for node in {node_of(r.step) for r in run.undo if r.status is StepStatus.ABANDONED}:
                tx.node_silent(node)
        self._metrics.run_ended(run.kind, run.status)
        self.standbys.ended(run)
        self._look.set()
        self._look_at_standbys.set()
        log.info("run %s: %s", run.id, run.status)
        tx.add_event(
            f"run-{run.status.replace('_', '-')}",
            run.reason or run.kind,
            run=run.id,
            router=run.router,
            detail="; ".join(run.leftovers) or run.detail,
        )


def _standby_place(tx: Tx, router: str) -> tuple[str, InstanceRef] | None:
    """Where the router's standby is, and which instance it is."""
    state = tx.router_state(router)
    return (state.standby_node, state.standby) if state and state.standby else None


def _outlined(run: Run) -> Run:
    """An ended run as it is kept: a thousand of them with all their rules would fill the disk."""

    def outlined(records: tuple[StepRecord, ...]) -> tuple[StepRecord, ...]:
        return tuple(replace(record, step=outline(record.step)) for record in records)

    return replace(run, steps=outlined(run.steps), undo=outlined(run.undo))


def _follow(seen: Inventory | NodeState) -> set[tuple[InstanceRef, InstanceRef]]:
    """Who follows whom on a node."""
    return {(i.ref, i.follows.old) for i in seen.instances if i.follows}


def _is_from_its_node(run: Run, report: StepReport) -> bool:
    records = run.undo if report.undo else run.steps
    return any(r.seq == report.seq and node_of(r.step) == report.node for r in records)


def _place(run: Run, report: StepReport) -> str:
    records = run.undo if report.undo else run.steps
    step = next(record.step for record in records if record.seq == report.seq)
    return f"orchestrator.{'undo-' if report.undo else ''}{step.kind}"


def command_place(command: Command) -> str:
    """The name of the place of a command for failpoints: that of its first step."""
    return f"orchestrator.{'undo-' if command.undo else ''}{command.steps[0].kind}"


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _what(run: Run) -> str:
    return f"{run.kind} {run.strategy or ''}".strip()
