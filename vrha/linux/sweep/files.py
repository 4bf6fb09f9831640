"""Files and folders of ours below the agent's state folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from vrha.core.cleanup.items import Item, Kind, Outcome, Result
from vrha.linux.sweep.site import Site

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
    """Links are removed, never followed, and what is mounted is left alone. What lies deepest goes
    first."""
    ordered = sorted(items, key=lambda item: item.name.count("/"), reverse=True)
    return [_remove(at.state_dir / item.name, item) for item in ordered]


def _remove(path: Path, item: Item) -> Outcome:
    try:
        parent = os.open(path.parent, _FOLDER)
        try:
            _remove_in(parent, path.name, path)
        finally:
            os.close(parent)
    except FileNotFoundError:
        return Outcome(item, Result.GONE)
    except OSError as error:
        return Outcome(item, Result.FAILED, f"{error.filename}: {error.strerror}")
    return Outcome(item, Result.REMOVED)


def _remove_in(parent: int, name: str, path: Path) -> None:
    """`path` is what to call it. Raises OSError for the first that would not go, after the rest."""
    try:
        os.unlink(name, dir_fd=parent)
    except IsADirectoryError:
        _remove_folder(parent, name, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _remove_folder(parent: int, name: str, path: Path) -> None:
    failed: OSError | None = None
    folder = os.open(name, _FOLDER, dir_fd=parent)
    try:
        if _mount(folder) != _mount(parent):
            raise OSError(errno.EBUSY, "something is mounted there", str(path))
        for entry in os.listdir(folder):
            try:
                _remove_in(folder, entry, path / entry)
            except FileNotFoundError:
                continue
            except OSError as error:
                failed = failed or error
    finally:
        os.close(folder)
    if failed is not None:
        raise failed
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _mount(fd: int) -> str:
    """Number of the mount on which an open file lies (proc(5), fdinfo)."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(line for line in lines if line.startswith("mnt_id:"))
