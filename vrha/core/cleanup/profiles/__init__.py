"""The profiles that come with vrha, found by name."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from vrha.core.cleanup.profile import GROUP, Profile
from vrha.errors import NotFoundError

BUILT_IN = {"vrha": "vrha.core.cleanup.profiles.vrha:VRHA"}


def load(name: str) -> Profile:
    """The profile of that name. Raises NotFoundError `no-profile`."""
    place = BUILT_IN.get(name) or _place_of_others(name)
    module, _, attribute = place.partition(":")
    found = getattr(import_module(module), attribute)
    return cast(Profile, found)


def _place_of_others(name: str) -> str:
    # Imported only here: it takes longer than a whole sweep of one router.
    from importlib.metadata import entry_points

    others = {point.name: point.value for point in entry_points(group=GROUP)}
    if name not in others:
        known = ", ".join(sorted({*BUILT_IN, *others}))
        raise NotFoundError("no-profile", f"there is no profile {name}", f"There are: {known}.")
    return others[name]
