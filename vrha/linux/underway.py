"""Which instances are being built or destroyed at the moment, for those who look meanwhile."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from vrha.model.spec import InstanceRef


class UnderWay:
    """Instances that threads are working on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: Counter[InstanceRef] = Counter()
        self._watching: list[set[InstanceRef]] = []

    @contextmanager
    def working_on(self, ref: InstanceRef) -> Iterator[None]:
        """During the block `ref` may be incomplete."""
        with self._lock:
            self._now[ref] += 1
            for seen in self._watching:
                seen.add(ref)
        try:
            yield
        finally:
            with self._lock:
                self._now[ref] -= 1
                if not self._now[ref]:
                    del self._now[ref]

    @contextmanager
    def watched(self) -> Iterator[set[InstanceRef]]:
        """All instances that were worked on at any moment of the block."""
        with self._lock:
            seen = set(self._now)
            self._watching.append(seen)
        try:
            yield seen
        finally:
            with self._lock:
                # By identity: two who look at the same time may have seen the same.
                self._watching = [each for each in self._watching if each is not seen]
