"""The state folders of a node's instances, made and written without following links.

`<state>/instances/<router>-<generation>/` holds what an instance needs on disk; `spec.json` is
written last and marks the instance as complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

from vrha.core.names import folder_name
from vrha.errors import PreconditionError, StepError
from vrha.model.spec import InstanceRef

SPEC = "spec.json"
_FOLDER_MODE = 0o711
"""dnsmasq opens its host files again as its own user, so it must be able to pass through."""
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class InstanceFolders:
    """All instance folders below one state directory."""

    def __init__(self, state_dir: Path) -> None:
        """Raises PreconditionError `state-dir` when the directory is not safe to use."""
        self.root = state_dir / "instances"
        try:
            for path in (state_dir, self.root):
                with contextlib.suppress(FileExistsError):
                    path.mkdir(mode=_FOLDER_MODE, parents=True)
            os.close(_open_own(state_dir))
            os.close(_open_own(self.root))
        except OSError as error:
            raise PreconditionError(
                "state-dir",
                f"cannot use the state directory {state_dir}: {error.strerror}",
                "It must be a directory of root that nobody else can write, not a link.",
            ) from error
        closed = next((p for p in self.root.resolve().parents if not _passable(p)), None)
        if closed is not None:
            raise PreconditionError(
                "state-dir",
                f"dnsmasq, which runs as a user of its own, cannot pass through {closed}",
                f"chmod o+x {closed}, or choose another state directory.",
            )

    def path(self, ref: InstanceRef) -> Path:
        return self.root / folder_name(ref)

    def folders(self) -> list[str]:
        """Names of all folders."""
        return sorted(os.listdir(self.root))

    def make(self, ref: InstanceRef) -> Path:
        """A new empty folder. Raises StepError `no-space`, `state-dir`."""
        path = self.path(ref)
        try:
            path.mkdir(mode=_FOLDER_MODE)
        except OSError as error:
            raise _trouble(path, error) from error
        return path

    def write(self, ref: InstanceRef, name: str, data: bytes, mode: int = 0o600) -> None:
        """Put `data` in a file of the folder, whole or not at all.

        Raises StepError `no-space`, `state-dir`.
        """
        temporary = f".{name}.new"
        try:
            folder = _open_own(self.path(ref))
        except OSError as error:
            raise _trouble(self.path(ref), error) from error
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(temporary, flags, mode, dir_fd=folder)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                os.fchmod(fd, mode)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            raise _trouble(self.path(ref) / name, error) from error
        finally:
            os.close(folder)

    def read(self, ref: InstanceRef, name: str) -> bytes | None:
        """Contents of a file of the folder; None when there is none, or it is a link."""
        try:
            folder = _open_own(self.path(ref))
        except OSError:
            return None
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            with os.fdopen(fd, "rb") as file:
                return file.read()
        except OSError:
            return None
        finally:
            os.close(folder)

    def remove(self, ref: InstanceRef) -> None:
        """Remove the folder and all in it; nothing happens when there is none."""
        path = self.path(ref)
        if path.is_symlink():
            path.unlink()
            return
        # rmtree works by directory descriptors and does not follow links.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)


def _open_own(path: Path) -> int:
    """Open a directory that root owns and nobody else can write. Raises OSError."""
    fd = os.open(path, _FOLDER_FLAGS)
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        os.close(fd)
        raise PermissionError(errno.EPERM, "not owned by root, or writable by others", str(path))
    return fd


def _passable(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IXOTH)


def _trouble(path: Path, error: OSError) -> StepError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StepError("no-space", f"no space left to write {path}", "Free space and try again.")
    return StepError("state-dir", f"cannot write {path}: {error.strerror}")
