"""Which pause holds an automatic move."""

from __future__ import annotations

from collections.abc import Iterable

from vrha.model.pauses import Pause, PauseScope, PauseTarget


def paused_by(
    pauses: Iterable[Pause], *, zone: str = "", node: str = "", router: str = ""
) -> Pause | None:
    """The pause that keeps vrha from moving `router`, on `node` of `zone`, by itself; the widest
    one. What is left empty is not asked for. None: it may be moved."""
    found = {pause.target: pause for pause in pauses}
    asked = (
        PauseTarget(),
        PauseTarget(PauseScope.ZONE, zone),
        PauseTarget(PauseScope.NODE, node),
        PauseTarget(PauseScope.ROUTER, router),
    )
    return next((found[target] for target in asked if target in found), None)
