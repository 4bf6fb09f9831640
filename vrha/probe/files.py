"""Files that ping-gap reads and writes: whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from vrha.errors import InputError, VrhaError
from vrha.model.probing import Stream

STDOUT = "-"
_NO_FILES = ("/proc/", "/dev/")


def read(path: str) -> bytes:
    """What is in the file. Raises InputError (`unreadable`)."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError("unreadable", f"cannot read {path}: {error.strerror}") from error


def write(path: str, body: bytes) -> None:
    """Write to a file whole or not at all, or to stdout (`-`), or straight into what is no file.

    Raises VrhaError (`unwritable`).
    """
    if path == STDOUT:
        sys.stdout.buffer.write(body + b"\n")
        sys.stdout.buffer.flush()
        return
    _write_parts(path, [body, b"\n"])


def write_probes(path: str, probes: Iterable[tuple[Stream, Sequence[int], Sequence[int]]]) -> None:
    """Write `stream,seq,sent_ms,rtt_ms` of each probe; no rtt_ms without an answer.

    Raises VrhaError (`unwritable`).
    """
    _write_parts(path, _csv_of(probes))


def _csv_of(probes: Iterable[tuple[Stream, Sequence[int], Sequence[int]]]) -> Iterator[bytes]:
    yield b"stream,seq,sent_ms,rtt_ms\n"
    for stream, sent, received in probes:
        name = '"' + stream.name.replace('"', '""') + '"'
        for seq, (at, reply) in enumerate(zip(sent, received, strict=True)):
            rtt = "" if reply < at else f"{(reply - at) / 1e6:.6f}"
            yield f"{name},{seq},{at / 1e6:.6f},{rtt}\n".encode()


def _write_parts(path: str, parts: Iterable[bytes]) -> None:
    try:
        if path.startswith(_NO_FILES):
            with open(path, "wb") as file:
                file.writelines(parts)
            return
        part = _part_of(path)
        try:
            with part.open("wb") as file:
                file.writelines(parts)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def check_writable(paths: Sequence[str]) -> None:
    """Whether all that is to be written later can be, as far as that can be known.

    Raises VrhaError (`unwritable`), InputError (`output-twice`).
    """
    for path in paths:
        if paths.count(path) > 1:
            raise InputError("output-twice", f"two outputs would go to {path}")
        if path == STDOUT or path.startswith(_NO_FILES):
            continue
        part = _part_of(path)
        try:
            if Path(path).is_dir():
                raise IsADirectoryError(0, "it is a directory")
            part.touch()
        except OSError as error:
            raise _unwritable(path, error) from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _part_of(path: str) -> Path:
    return Path(f"{path}.{os.getpid()}.part")


def _unwritable(path: str, error: OSError) -> VrhaError:
    return VrhaError("unwritable", f"cannot write {path}: {error.strerror}")
