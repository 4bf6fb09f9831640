"""Which instances' leases have changed: inotify(7) on the folders of all instances, one descriptor.

dnsmasq writes its lease file in place before it answers a client; it reaches the disk whole.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct

from vrha.core.names import folder_name, ref_of_folder
from vrha.errors import PreconditionError
from vrha.linux.dnsmasq import LEASES
from vrha.linux.files import InstanceFolders
from vrha.model.spec import InstanceRef

# include/uapi/linux/inotify.h
_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x2, 0x80, 0x100, 0x200
_IN_Q_OVERFLOW, _IN_IGNORED = 0x4000, 0x8000
_IN_ONLYDIR, _IN_DONT_FOLLOW = 0x01000000, 0x02000000
_EVENT = struct.Struct("iIII")
_READ = 64 * 1024


class LeaseWatch:
    """The instances below one state directory. For one thread."""

    def __init__(self, folders: InstanceFolders) -> None:
        """Raises PreconditionError `no-inotify`."""
        self._folders = folders
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise _no_inotify()
        self._refs: dict[int, InstanceRef] = {}
        self._root = self._add(str(folders.root), _IN_CREATE | _IN_DELETE)
        if self._root < 0:
            self.close()
            raise _no_inotify()

    def close(self) -> None:
        os.close(self._fd)

    def all(self) -> set[InstanceRef]:
        """All instances that are there; they are watched from now on."""
        refs = {ref for name in self._folders.folders() if (ref := ref_of_folder(name))}
        for ref in refs:
            self._watch(ref)
        return refs

    def changed(self, seconds: float) -> set[InstanceRef]:
        """Instances that came or went, or whose leases were written; after `seconds` at most."""
        if not select.select([self._fd], [], [], max(seconds, 0))[0]:
            return set()
        found: set[InstanceRef] = set()
        data = os.read(self._fd, _READ)
        while data:
            watch, mask, _, length = _EVENT.unpack_from(data)
            name = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode(errors="replace")
            data = data[_EVENT.size + length :]
            found |= self._meaning(watch, mask, name)
        return found

    def _meaning(self, watch: int, mask: int, name: str) -> set[InstanceRef]:
        if mask & _IN_Q_OVERFLOW:
            return self.all()
        if mask & _IN_IGNORED:
            self._refs.pop(watch, None)
            return set()
        if watch == self._root:
            ref = ref_of_folder(name)
            if ref is None:
                return set()
            if mask & _IN_CREATE:
                self._watch(ref)
            return {ref}
        ref = self._refs.get(watch)
        return {ref} if ref is not None and name == LEASES else set()

    def _watch(self, ref: InstanceRef) -> None:
        path = str(self._folders.root / folder_name(ref))
        watch = self._add(path, _IN_MODIFY | _IN_MOVED_TO | _IN_ONLYDIR | _IN_DONT_FOLLOW)
        # One that is gone again already is no loss.
        if watch >= 0:
            self._refs[watch] = ref

    def _add(self, path: str, mask: int) -> int:
        return int(self._libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask)))


def _no_inotify() -> PreconditionError:
    return PreconditionError(
        "no-inotify",
        f"changes of files cannot be watched: {os.strerror(ctypes.get_errno())}",
        "Raise fs.inotify.max_user_instances or fs.inotify.max_user_watches.",
    )
