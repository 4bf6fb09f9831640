"""Files and folders of ours below the agent's state folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from vrha.core.cleanup.items import Item, Kind, Outcome, Result
from vrha.linux.sweep.site import Site


def find(at: Site) -> list[Item]:
    paths = {path for pattern in at.profile.file_places for path in at.state_dir.glob(pattern)}
    found = []
    for path in sorted(paths):
        name = str(path.relative_to(at.state_dir))
        owner = at.profile.file_owner(name)
        if owner is not None:
            found.append(Item(Kind.FILE, name, owner, f"lies in {path.parent}"))
    return found


def remove(at: Site, items: Sequence[Item]) -> list[Outcome]:
    """Links are removed, never followed. What lies deepest goes first."""
    ordered = sorted(items, key=lambda item: item.name.count("/"), reverse=True)
    return [_remove(at.state_dir / item.name, item) for item in ordered]


def _remove(path: Path, item: Item) -> Outcome:
    try:
        if path.is_dir() and not path.is_symlink():
            # It works by directory descriptors and does not follow links.
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        return Outcome(item, Result.GONE)
    except OSError as error:
        return Outcome(item, Result.FAILED, f"{error.filename or path}: {error.strerror}")
    return Outcome(item, Result.REMOVED)
