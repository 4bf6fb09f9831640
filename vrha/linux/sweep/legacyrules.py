"""Chains and rules of `iptables-legacy` in the calling thread's network namespace.

The kernel takes such a table only as a whole (net/ipv4/netfilter/ip_tables.c, do_replace).
python-iptables lets libiptc do that in this process, with the bytes and counters of all other rules
as they were; where it is missing, `iptables-legacy-restore` does.
"""

from __future__ import annotations

import fcntl
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from vrha.errors import PreconditionError, StepError
from vrha.linux import tools
from vrha.linux.sweep.chains import Chain, Choose, Content, Doomed, Rule

_LOCK_S: Final = 5.0
_POLL_S: Final = 0.01
_LOCK = Path("/run/xtables.lock")
"""What iptables-legacy itself takes (iptables/xshared.c, XT_LOCK_NAME)."""
_NAMES = {
    4: Path("/proc/thread-self/net/ip_tables_names"),
    6: Path("/proc/thread-self/net/ip6_tables_names"),
}


class Legacy(Protocol):
    """A way to read and change tables."""

    def content(self, version: int, table: str) -> Content:
        """Raises StepError `rules-unreadable`."""

    def delete(self, version: int, table: str, choose: Choose) -> Doomed:
        """Delete what `choose` says of the table, all of it or nothing; what it was.

        Raises StepError `rules-unreadable`, `rules-rejected`, `rules-locked`.
        """


def tables(version: int) -> list[str]:
    """Names of the tables that are there. To open another one would make it."""
    try:
        return sorted(_NAMES[version].read_text().split())
    except OSError:
        return []


def best() -> Legacy:
    """The library where it works, else the programs.

    Raises PreconditionError `missing-tool:iptables-legacy-save`.
    """
    try:
        # Importing it takes 0.2 s and more, so only who has legacy tables pays for it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import iptc
    except Exception:
        return Programs()
    return Library(iptc)


class Library:
    """python-iptables, of which only what asks for no extension is used: rules stay unparsed."""

    def __init__(self, iptc: Any) -> None:
        self._kinds = {4: iptc.Table, 6: iptc.Table6}
        self._error = iptc.IPTCError

    def content(self, version: int, table: str) -> Content:
        with self._opened(version, table) as opened:
            return _content(opened)

    def delete(self, version: int, table: str, choose: Choose) -> Doomed:
        with _locked(), self._opened(version, table) as opened:
            chosen = choose(_content(opened))
            if chosen:
                try:
                    self._carry_out(opened, chosen)
                except self._error as error:
                    raise _rejected(table, str(error)) from error
            return chosen

    def _carry_out(self, opened: Any, chosen: Doomed) -> None:
        for rule in sorted(chosen.rules, key=lambda rule: rule.place, reverse=True):
            # By its number: its own way to delete would parse the rule with all its matches.
            deleted = opened._iptc.iptc_delete_num_entry(
                rule.chain.encode(), rule.place, opened._handle
            )
            if deleted != 1:
                raise self._error(f"rule {rule.place} of {rule.chain}: {opened.strerror()}")
        for chain in chosen.chains:
            opened.flush_entries(chain)
        for chain in chosen.chains:
            opened.delete_chain(chain)
        opened.commit()

    @contextmanager
    def _opened(self, version: int, table: str) -> Iterator[Any]:
        try:
            opened = self._kinds[version](table, autocommit=False)
            # One object serves all: it may still hold the table of another namespace.
            opened.refresh()
        except self._error as error:
            raise _unreadable(table, str(error)) from error
        try:
            yield opened
        finally:
            opened.close()


class Programs:
    """`iptables-legacy-save` and `iptables-legacy-restore --noflush`, and those of IPv6."""

    def __init__(self) -> None:
        """Raises PreconditionError `missing-tool:iptables-legacy-save`."""
        found = {
            (version, verb): tools.find(f"{family}tables-legacy-{verb}")
            for version, family in ((4, "ip"), (6, "ip6"))
            for verb in ("save", "restore")
        }
        self._paths = {key: path for key, path in found.items() if path is not None}
        if len(self._paths) != len(found):
            raise PreconditionError(
                "missing-tool:iptables-legacy-save",
                "the node has tables of iptables-legacy, and iptables-legacy is not installed",
                "apt-get install iptables",
            )

    def content(self, version: int, table: str) -> Content:
        return _parsed(self._lines(version, table))

    def delete(self, version: int, table: str, choose: Choose) -> Doomed:
        lines = self._lines(version, table)
        chosen = choose(_parsed(lines))
        if chosen:
            orders = [f"-D{lines[rule.place][2:]}" for rule in chosen.rules]
            orders += [f"-F {chain}" for chain in chosen.chains]
            orders += [f"-X {chain}" for chain in chosen.chains]
            text = "\n".join((f"*{table}", *orders, "COMMIT", ""))
            argv = [self._paths[version, "restore"], "--noflush", "-w", str(int(_LOCK_S))]
            done = tools.run(argv, text, timeout=_LOCK_S + 5)
            if done.returncode != 0:
                raise _rejected(table, done.complaint)
        return chosen

    def _lines(self, version: int, table: str) -> list[str]:
        done = tools.run([self._paths[version, "save"], "-t", table])
        if done.returncode != 0:
            raise _unreadable(table, done.complaint)
        return done.stdout.splitlines()


def _content(opened: Any) -> Content:
    content = Content([], [])
    for name in [chain.name for chain in opened.chains]:
        content.chains.append(Chain(name, opened.builtin_chain(name)))
        place, entry = 0, opened.first_rule(name)
        while entry:
            target = (opened.get_target(entry) or b"").decode(errors="surrogateescape")
            content.rules.append(Rule(name, place, target))
            place, entry = place + 1, opened.next_rule(entry)
    return content


def _parsed(lines: list[str]) -> Content:
    """What `iptables-save` wrote of one table; the place of a rule is its line."""
    content = Content([], [])
    for place, line in enumerate(lines):
        words = line.split()
        if line.startswith(":"):
            content.chains.append(Chain(words[0][1:], words[1] != "-"))
        elif line.startswith("-A "):
            # A comment is quoted and comes before the target, which ends the rule.
            chain_follows = len(words) > 3 and words[-2] in ("-j", "-g")
            content.rules.append(Rule(words[1], place, words[-1] if chain_follows else ""))
    return content


@contextmanager
def _locked() -> Iterator[None]:
    """Keep other users of iptables-legacy out. Raises StepError `rules-locked`."""
    try:
        lock = os.open(_LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StepError("rules-locked", f"cannot open {_LOCK}: {error.strerror}") from error
    try:
        until = time.monotonic() + _LOCK_S
        while not _taken(lock):
            if time.monotonic() > until:
                raise StepError(
                    "rules-locked",
                    f"another program has held {_LOCK} for {_LOCK_S:g} s",
                    "`lslocks` shows which one.",
                )
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(lock)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unreadable(table: str, complaint: str) -> StepError:
    return StepError("rules-unreadable", f"cannot read table {table}: {complaint}")


def _rejected(table: str, complaint: str) -> StepError:
    return StepError(
        "rules-rejected",
        f"the kernel does not delete the chains of table {table}: {complaint}",
        "`iptables-legacy-save` shows what still leads to them.",
    )
