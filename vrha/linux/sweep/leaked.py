"""Marks of what would not die: it is reported by every sweep, and its name is not used again.

A mark counts in the boot in which it was made; after that the kernel has forgotten the thing.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from vrha.core.cleanup.profile import Profile
from vrha.errors import StepError

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Leak:
    """A namespace of `owner`, by its inode and its number on the node (see `vrha.linux.nsid`)."""

    owner: str
    inode: int
    nsid: int


class Leaks:
    """The marks in one folder, a file of each owner."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self) -> list[Leak]:
        """Those of this boot."""
        try:
            names = os.listdir(self._folder)
        except OSError:
            return []
        return [leak for name in sorted(names) for leak in self._of(name)]

    def mark(self, leak: Leak) -> None:
        """Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = json.dumps({"boot": _boot(), **asdict(leak)})
        with (self._folder / _file_name(leak.owner)).open("a") as file:
            file.write(f"{text}\n")

    def clear(self, owner: str) -> None:
        """The owner has left nothing."""
        with contextlib.suppress(OSError):
            (self._folder / _file_name(owner)).unlink()

    def refuse(self, owner: str) -> None:
        """Raises StepError `instance-leaked` when something of `owner` would not die."""
        if next(self._of(_file_name(owner)), None) is not None:
            raise StepError(
                "instance-leaked",
                f"a sweep could not remove the namespace of {owner}: its name is not used again",
                "`vrha cleanup plan` says what holds it; `vrha cleanup run` tries again.",
            )

    def _of(self, name: str) -> Iterator[Leak]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            for line in (self._folder / name).read_text().splitlines():
                loaded = json.loads(line)
                if loaded.pop("boot") == _boot():
                    yield Leak(str(loaded["owner"]), int(loaded["inode"]), int(loaded["nsid"]))


def records_of(profile: Profile, state_dir: Path) -> Path:
    """Where sweeps of the profile keep their journal and marks."""
    return Path(profile.records) if profile.records else state_dir / "cleanup"


def leaks_of(profile: Profile, state_dir: Path) -> Leaks:
    """The marks of what sweeps of the profile could not remove."""
    return Leaks(records_of(profile, state_dir) / "leaked")


def _file_name(owner: str) -> str:
    return owner.replace("/", "%") or "%"


def _boot() -> str:
    return _BOOT.read_text().strip()
