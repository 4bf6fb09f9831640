"""The store: desired state, the journal of runs, the outbox and events."""

from vrha.store.repo import OutboxRow, RunTimes, Store, Tx

__all__ = ["OutboxRow", "RunTimes", "Store", "Tx"]
