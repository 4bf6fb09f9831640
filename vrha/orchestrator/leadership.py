"""Leading and standing by: one orchestrator of several decides, proven by the store's epoch.

The store refuses the writes of whoever does not lead (`vrha.store`). What leaves this process by
other ways asks `Leadership.sure_for` first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from vrha.config.settings import LeaderSettings
from vrha.core import leadership
from vrha.core.leadership import Watch
from vrha.errors import NotLeaderError, UnreachableError
from vrha.store import Store

log = logging.getLogger(__name__)


class Leadership:
    """One orchestrator's part in it. `await_lead` and `keep` are for one thread each."""

    def __init__(
        self,
        store: Store,
        name: str,
        settings: LeaderSettings,
        sole: bool,
        on_turn: Callable[[], object] = int,
    ) -> None:
        """`sole`: nobody else can be working on this store. From now on the store stands by.

        `on_turn` is called again and again while it stands by, but not while the store is silent.
        """
        self.name = name
        self._store = store
        self._settings = settings
        self._sole = sole
        self._on_turn = on_turn
        self._confirmed = 0.0
        store.stand_by()

    def sure_for(self) -> float:
        """Seconds from now during which nobody else can take over; not above 0: it may have."""
        if self._store.leader_epoch is None:
            return 0.0
        until = leadership.sure_until(self._confirmed, self._settings.ttl_s)
        return until - time.monotonic()

    def await_lead(self, stop: threading.Event) -> bool:
        """Stand by until we lead (True) or `stop` is set (False)."""
        watch: Watch | None = None
        while not stop.is_set():
            self._on_turn()
            try:
                watch = self._look(watch)
                if leadership.may_take(watch, self._settings.ttl_s, self._sole):
                    self._take(watch)
                    return True
            except NotLeaderError as error:
                log.info("%s", error.message)
                watch = None
            except UnreachableError as error:
                log.error("store: %s", error)
            stop.wait(self._settings.beat_s / 2)
        return False

    def keep(self, stop: threading.Event) -> None:
        """Show every beat that we live, until `stop` is set or the lead is lost."""
        while not stop.wait(self._settings.beat_s):
            try:
                self._confirmed = self._store.beat()
            except UnreachableError as error:
                log.error("store: %s", error)

    def give_up(self) -> None:
        """Let the next one lead at once. Nothing must be under way any more."""
        if self._store.leader_epoch is None:
            log.error("lost the lead; %s stands by", self.name)
            return
        try:
            self._store.give_up_lead()
            log.info("gave the lead up")
        except (NotLeaderError, UnreachableError) as error:
            log.warning("could not give the lead up: %s", error)

    def _look(self, watch: Watch | None) -> Watch:
        lead = self._store.lead()
        if lead.holder and (watch is None or watch.lead.epoch != lead.epoch):
            log.info("orchestrator %s leads, leader epoch %d", lead.holder, lead.epoch)
        # After the answer: what is seen now was true at some time before.
        return leadership.look(watch, lead, time.monotonic(), self._settings.ttl_s)

    def _take(self, watch: Watch) -> None:
        began = time.monotonic()
        epoch = self._store.take_lead(self.name, watch.lead)
        self._confirmed = began
        before = watch.lead.holder or "nobody"
        log.warning("%s leads now, leader epoch %d, after %s", self.name, epoch, before)
