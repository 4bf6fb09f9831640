"""Pausing automatic moves, and resuming them."""

from __future__ import annotations

from vrha.errors import InputError, NotFoundError
from vrha.model.pauses import Pause, PauseScope, PauseTarget
from vrha.store import Tx


def pause(tx: Tx, target: PauseTarget, by: str, reason: str) -> Pause:
    """No automatic moves of `target` from now on.

    Raises InputError (`pause-target`), NotFoundError (`no-such-zone`, `no-such-node`,
    `no-such-router`).
    """
    _refuse_unknown(tx, target)
    paused = tx.pauses.put(target, by, reason)
    _tell(tx, "paused", target, by, reason)
    return paused


def resume(tx: Tx, target: PauseTarget, by: str) -> Pause:
    """End the pause of `target`; the pause it was. Raises NotFoundError (`not-paused`)."""
    found = {pause.target: pause for pause in tx.pauses.all()}
    if target not in found:
        there = ", ".join(map(str, found)) or "nothing"
        raise NotFoundError("not-paused", f"{target} is not paused", f"Paused: {there}.")
    tx.pauses.remove(target)
    _tell(tx, "resumed", target, by, found[target].reason)
    return found[target]


def _refuse_unknown(tx: Tx, target: PauseTarget) -> None:
    if (target.scope is PauseScope.ALL) == bool(target.name):
        raise InputError("pause-target", "name what is to be paused, or pause all without a name")
    desired = tx.desired()[1]
    known = {
        PauseScope.ALL: {""},
        PauseScope.ZONE: {node.zone for node in desired.nodes},
        PauseScope.NODE: {node.name for node in desired.nodes},
        PauseScope.ROUTER: {router.name for router in desired.routers},
    }[target.scope]
    if target.name not in known:
        hint = f"There are: {', '.join(sorted(known)[:20]) or 'none'}."
        raise NotFoundError(f"no-such-{target.scope}", f"no {target}", hint)


def _tell(tx: Tx, kind: str, target: PauseTarget, by: str, why: str) -> None:
    tx.add_event(
        kind,
        target.scope.value,
        router=target.name if target.scope is PauseScope.ROUTER else "",
        node=target.name if target.scope is PauseScope.NODE else "",
        detail=f"{target} by {by or 'nobody who gave a name'}{': ' if why else ''}{why}",
    )
