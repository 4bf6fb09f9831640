"""/etc/vrha/watcher.toml, read without any library; every problem at once."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vrha.core.ownership.timing import PROFILES, Timing, problems
from vrha.errors import InputError
from vrha.model.ownership import VOTER_COUNTS
from vrha.watcher.status import SOCKET

FILE = Path("/etc/vrha/watcher.toml")
_HINT = "docs/ownership.md shows settings that work."


@dataclass(frozen=True, slots=True)
class AgentTable:
    """When the agent counts as stuck, and the command that starts a stand-in of it (empty: none).

    It may start it in the background: what counts is whose beats are heard.
    """

    hung_after_s: float = 5.0
    stand_in: tuple[str, ...] = ("systemctl", "start", "--no-block", "vrha-stand-in.service")


@dataclass(frozen=True, slots=True)
class CleanupTable:
    """What is done about what a dead agent left, once agent and lease have been gone for the grace.

    `command` returns when the sweep has ended, 0 when nothing is left (empty: nothing is ever
    swept); otherwise it is tried again after the pause.
    """

    grace_s: float = 30.0
    pause_s: float = 60.0
    command: tuple[str, ...] = ("systemctl", "start", "vrha-cleanup@vrha.service")


@dataclass(frozen=True, slots=True)
class WatcherSettings:
    """`peers` are addresses (`HOST:PORT`) of the other voters and the leaders, by name.

    `timing` is that of the profile, unless single times of it are set in table `timing`.
    """

    node: str
    listen: str
    voters: tuple[str, ...]
    leaders: tuple[str, ...]
    peers: Mapping[str, str]
    keys: Path = Path("/etc/vrha/keys")
    state_dir: Path = Path("/var/lib/vrha-watcher")
    socket: Path = SOCKET
    profile: str = "default"
    timing: Timing = field(default_factory=Timing)
    agent: AgentTable = field(default_factory=AgentTable)
    cleanup: CleanupTable = field(default_factory=CleanupTable)


def load(path: Path | None = None) -> WatcherSettings:
    """Raises InputError `settings-invalid` with every problem."""
    file = path or FILE
    try:
        given = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InputError("settings-invalid", f"{file}: {reason}", _HINT) from error
    except tomllib.TOMLDecodeError as error:
        raise InputError("settings-invalid", f"{file}: not TOML: {error}", _HINT) from error
    return settings_of(given, str(file))


def settings_of(given: Mapping[str, Any], where: str) -> WatcherSettings:
    """Raises as `load`."""
    found = list(_wrong(given))
    timing = Timing()
    if not found:
        timing = timing_of(given.get("profile", "default"), given.get("timing", {}))
        found = [f"timing: {problem}" for problem in problems(timing)]
    if found:
        lines = "\n".join(f"{where}: {problem}" for problem in found)
        raise InputError("settings-invalid", lines, _HINT)
    return WatcherSettings(
        node=given["node"],
        listen=given["listen"],
        voters=tuple(given["voters"]),
        leaders=tuple(given["leaders"]),
        peers=dict(given.get("peers", {})),
        **{key: Path(given[key]) for key in ("keys", "state_dir", "socket") if key in given},
        profile=given.get("profile", "default"),
        timing=timing,
        agent=_agent_table(given.get("agent", {})),
        cleanup=_cleanup_table(given.get("cleanup", {})),
    )


def _agent_table(given: Mapping[str, Any]) -> AgentTable:
    default = AgentTable()
    return AgentTable(
        float(given.get("hung_after_s", default.hung_after_s)),
        tuple(given.get("stand_in", default.stand_in)),
    )


def _cleanup_table(given: Mapping[str, Any]) -> CleanupTable:
    default = CleanupTable()
    return CleanupTable(
        float(given.get("grace_s", default.grace_s)),
        float(given.get("pause_s", default.pause_s)),
        tuple(given.get("command", default.command)),
    )


def timing_of(profile: str, changes: Mapping[str, float]) -> Timing:
    """A profile with single times changed."""
    base = PROFILES[profile]
    return Timing(**{f.name: changes.get(f.name, getattr(base, f.name)) for f in fields(base)})


def _wrong(given: Mapping[str, Any]) -> Iterator[str]:
    texts = ("node", "listen", "keys", "state_dir", "socket", "profile")
    tables = ("peers", "timing", "agent", "cleanup")
    for key in given.keys() - {*texts, "voters", "leaders", *tables}:
        yield f"{key}: unknown key"
    for key in ("node", "listen", "voters", "leaders"):
        if key not in given:
            yield f"{key}: is missing"
    for key in texts:
        if not isinstance(given.get(key, ""), str):
            yield f"{key}: must be text"
    for key in ("voters", "leaders"):
        if not _names(given.get(key, [])):
            yield f'{key}: must be a list of different names: ["..."]'
    for key in tables:
        if not isinstance(given.get(key, {}), dict):
            yield f"{key}: must be a table"
            return
    if not isinstance(given.get("profile", "default"), str) or not isinstance(
        given.get("voters", []), list
    ):
        return
    yield from _wrong_table("agent", given, {"hung_after_s": (1, 3600)}, "stand_in")
    yield from _wrong_table(
        "cleanup", given, {"grace_s": (1, 86400), "pause_s": (1, 86400)}, "command"
    )
    yield from _inconsistent(given)


def _wrong_table(
    table: str, all_given: Mapping[str, Any], times: Mapping[str, tuple[int, int]], command: str
) -> Iterator[str]:
    given = all_given.get(table, {})
    for key in given.keys() - {*times, command}:
        yield f"{table}.{key}: unknown key"
    for key, (least, most) in times.items():
        value = given.get(key, least)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= value <= most:
            yield f"{table}.{key}: must be a number of {least} to {most}"
    words = given.get(command, [])
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        yield f'{table}.{command}: must be a list of words: ["..."]'


def _inconsistent(given: Mapping[str, Any]) -> Iterator[str]:
    profile, voters = given.get("profile", "default"), given.get("voters", [])
    if profile not in PROFILES:
        yield f"profile: {profile} is none of {', '.join(PROFILES)}"
    if voters and len(voters) not in VOTER_COUNTS:
        yield f"voters: {len(voters)} are not 1, 3 or 5"
    for name in {*voters, *given.get("leaders", [])} - {given.get("node")}:
        if name not in given.get("peers", {}):
            yield f"peers: the address of {name} is missing"
    known = {f.name for f in fields(Timing)}
    for key, value in given.get("timing", {}).items():
        if key not in known or not isinstance(value, int | float) or isinstance(value, bool):
            yield f"timing.{key}: must be one of {', '.join(sorted(known))}, a number"


def _names(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(each, str) and each for each in value)
        and len(set(value)) == len(value)
    )
