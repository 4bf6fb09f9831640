"""Counters of one orchestrator, in Prometheus form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, generate_latest

from vrha.model.runs import RunKind, RunStatus


class Metrics:
    """The counters; a registry of their own, so that several orchestrators fit one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._check_ins = Counter(
            "vrha_check_ins_refused", "Check-ins refused", ["reason"], registry=self._registry
        )
        self._messages = Counter(
            "vrha_messages_refused", "Messages refused", ["kind"], registry=self._registry
        )
        self._runs = Counter(
            "vrha_runs_ended", "Runs ended", ["kind", "status"], registry=self._registry
        )

    def check_in_refused(self, reason: str) -> None:
        self._check_ins.labels(reason).inc()

    def check_ins_refused(self) -> int:
        """All refused check-ins since this orchestrator started."""
        samples = (s for m in self._check_ins.collect() for s in m.samples)
        return int(sum(s.value for s in samples if s.name.endswith("_total")))

    def refused(self, kind: str) -> None:
        self._messages.labels(kind).inc()

    def run_ended(self, kind: RunKind, status: RunStatus) -> None:
        self._runs.labels(kind, status).inc()

    def text(self) -> bytes:
        """Prometheus text exposition."""
        return generate_latest(self._registry)
