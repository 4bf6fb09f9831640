"""Settings of the daemons: TOML, overridden by the environment; every problem at once.

`VRHA_STATE_DIR=/x` overrides the key `state_dir`, `VRHA_RUN__STEP_S=20` the key `step_s` of the
table `run`, `VRHA_BUS__URLS` takes several URLs separated by blanks. URLs of broker and store
hold passwords: they are shown nowhere, and may be kept in a file of mode 0600 (`url_file`).
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from vrha.config.values import NAME
from vrha.core.brake import Rules
from vrha.core.damping import LONGEST_S, Damping
from vrha.core.ownership.timing import PROFILES
from vrha.errors import InputError
from vrha.model.ownership import VOTER_COUNTS
from vrha.model.runs import Strategy

ORCHESTRATOR_FILE = Path("/etc/vrha/orchestrator.toml")
AGENT_FILE = Path("/etc/vrha/agent.toml")
ENVIRONMENT_PREFIX = "VRHA_"
_SETTINGS_HINT = "docs/operating.md shows settings that work; --config names another file."


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("must be 1 to 15 of a-z 0-9 -, and neither begin nor end with -")
    return value


def _absolute(value: Path) -> Path:
    if not value.is_absolute():
        raise ValueError("must be an absolute path")
    return value


Name = Annotated[str, AfterValidator(_name)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class _Table(BaseModel):
    # Input values stay out of errors: they may be secrets.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class BusSettings(_Table):
    """Where RabbitMQ is; neither key: the orchestrator runs a private broker."""

    urls: tuple[SecretStr, ...] = ()
    url_file: AbsolutePath | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.urls and self.url_file:
            raise ValueError("give urls or url_file, not both")
        return self

    @property
    def private(self) -> bool:
        return not self.urls and self.url_file is None

    def broker_urls(self) -> tuple[str, ...]:
        """The URLs, passwords included. Raises InputError (`settings-invalid`)."""
        if self.url_file is None:
            return tuple(url.get_secret_value() for url in self.urls)
        return _secrets(self.url_file, "bus.url_file")


class StoreSettings(_Table):
    """Where the store is; neither key: SQLite in the state folder."""

    url: SecretStr | None = None
    """`sqlite:////path` or `postgresql://user:password@host/database`."""
    url_file: AbsolutePath | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.url and self.url_file:
            raise ValueError("give url or url_file, not both")
        return self

    @property
    def private(self) -> bool:
        """Whether only one orchestrator at a time can work on it: who holds the state folder."""
        return self.url is None and self.url_file is None

    def location(self, state_dir: Path) -> str:
        """The URL, password included. Raises InputError (`settings-invalid`)."""
        if self.url is not None:
            return self.url.get_secret_value()
        if self.url_file is not None:
            return _secrets(self.url_file, "store.url_file")[0]
        return f"sqlite:///{state_dir}/orchestrator.db"


class LeaderSettings(_Table):
    """Who of several orchestrators decides; seconds."""

    beat_s: Seconds = 1.0
    """How often the leader shows that it lives."""
    ttl_s: Seconds = 5.0
    """How long the others must have seen nothing of it before one of them takes over."""

    @model_validator(mode="after")
    def _some_beats_may_be_late(self) -> Self:
        if self.ttl_s < 3 * self.beat_s:
            raise ValueError("ttl_s must be at least three times beat_s")
        return self


class RunSettings(_Table):
    """How runs go: deadlines in seconds, and the strategy where none is asked for."""

    check_in_s: Seconds = 10.0
    step_s: Seconds = 10.0
    sync_s: Seconds = 60.0
    """For carrying connections over: about a second for ten thousand."""
    strategy: Strategy = Strategy.HANDOVER
    """Preferred; where it is impossible, `parallel` takes its place."""


class NetworkSettings(_Table):
    """What holds for all networks."""

    rolling_restart: bool = True
    """False: restarts are serial, as before there was anything better."""


class ApiSettings(_Table):
    """Where the API listens."""

    socket: AbsolutePath = Path("/run/vrha/orchestrator.sock")


class OwnershipSettings(_Table):
    """Who may have routers active. Without `listen` there is no lease, and no watcher is needed."""

    listen: str = ""
    """`HOST:PORT` for the datagrams of watchers; no host can be left out."""
    voters: tuple[str, ...] = ()
    """1, 3 or 5 nodes, or orchestrators by their names. A change takes effect one by one."""
    peers: dict[str, str] = {}
    """Addresses (`HOST:PORT`) of all watchers and of the other orchestrators, by name."""
    keys: AbsolutePath = Path("/etc/vrha/keys")
    profile: str = "default"

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.profile not in PROFILES:
            raise ValueError(f"profile must be one of {', '.join(PROFILES)}")
        if self.listen and len(self.voters) not in VOTER_COUNTS:
            raise ValueError("voters must be 1, 3 or 5 names")
        return self


Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
"""Of all nodes; at least one is always meant."""
Penalty = Annotated[float, Field(ge=1, le=1e6, allow_inf_nan=False)]


class FailoverSettings(_Table):
    """What is done about silent nodes when nobody is asked, and what brakes it."""

    enabled: bool = True
    budget: Share = 0.2
    """So many nodes may be under recovery at the same time."""
    mass_silence: Share = 0.3
    """When more than so many are silent at once, nothing is moved."""
    window_s: Seconds = 10.0
    """What falls silent within so long fell silent at once; the brake stays on for so long."""
    fail_back_s: Annotated[float, Field(ge=0, le=LONGEST_S, allow_inf_nan=False)] = 900.0
    """For so long a node that was failed over and came back takes no routers by itself."""
    flap_half_life_s: Annotated[float, Field(ge=1, le=LONGEST_S, allow_inf_nan=False)] = 600.0
    """Each silence is a penalty of 1000, which halves every so often."""
    flap_suppress: Penalty = 2000.0
    """From this penalty on a node takes no routers ..."""
    flap_reuse: Penalty = 750.0
    """... until it has come down to this one,"""
    flap_longest_s: Annotated[float, Field(gt=0, le=LONGEST_S, allow_inf_nan=False)] = 3600.0
    """or so long after its last silence."""
    agent_grace_s: Seconds = 10.0
    """How long an agent may be dead or stuck before its routers move to other nodes."""
    agent_failures: Annotated[int, Field(ge=1, le=1000)] = 5
    """So many failures within `agent_window_s` count as one that lasts."""
    agent_window_s: Seconds = 60.0
    agent_back_s: Seconds = 60.0
    """How long an agent must have lived before its node takes instances again."""

    @model_validator(mode="after")
    def _limits_fit(self) -> Self:
        if self.budget > self.mass_silence:
            raise ValueError(
                f"budget ({self.budget}) must not be above mass_silence ({self.mass_silence}):"
                " so many silent nodes stop every recovery"
            )
        if self.flap_reuse >= self.flap_suppress:
            raise ValueError(
                f"flap_reuse ({self.flap_reuse:g}) must be below flap_suppress"
                f" ({self.flap_suppress:g})"
            )
        return self

    def rules(self, look_s: float) -> Rules:
        """What brakes; `look_s` as there: the interval of renewals."""
        return Rules(self.enabled, self.budget, self.mass_silence, self.window_s, look_s)

    @property
    def damping(self) -> Damping:
        """What makes a node one that flaps."""
        return Damping(
            self.flap_half_life_s,
            self.flap_suppress,
            self.flap_reuse,
            self.flap_longest_s,
            self.fail_back_s,
        )


class OrchestratorSettings(_Table):
    """/etc/vrha/orchestrator.toml"""

    name: Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9._-]*$")] = ""
    """What others call it; empty: the name of the machine."""
    state_dir: AbsolutePath = Path("/var/lib/vrha")
    api: ApiSettings = ApiSettings()
    bus: BusSettings = BusSettings()
    store: StoreSettings = StoreSettings()
    leader: LeaderSettings = LeaderSettings()
    run: RunSettings = RunSettings()
    network: NetworkSettings = NetworkSettings()
    ownership: OwnershipSettings = OwnershipSettings()
    failover: FailoverSettings = FailoverSettings()

    @property
    def preferred(self) -> Strategy:
        """The strategy of a restart for which none was asked."""
        return self.run.strategy if self.network.rolling_restart else Strategy.SERIAL

    @property
    def store_url(self) -> str:
        """Password included. Raises InputError (`settings-invalid`)."""
        return self.store.location(self.state_dir)


class AgentSettings(_Table):
    """/etc/vrha/agent.toml"""

    node: Name
    state_dir: AbsolutePath = Path("/var/lib/vrha-agent")
    inventory_s: Seconds = 5.0
    """How often the agent tells what is on its node."""
    governed: bool = False
    """Whether a watcher holds the lease of this node: nothing is active without its permission."""
    build_workers: Annotated[int, Field(ge=1, le=256)] = max(4, 4 * (os.cpu_count() or 1))
    """How many instances are built or destroyed at a time: most of that is waiting."""
    sync_listen: str = ""
    """`address:port` where other agents bring routers to this node; empty: no moves."""
    bus: BusSettings

    @model_validator(mode="after")
    def _needs_a_broker(self) -> Self:
        if self.bus.private:
            raise ValueError("an agent needs bus.urls or bus.url_file")
        return self


def _secrets(path: Path, key: str) -> tuple[str, ...]:
    """The lines of a file of mode 0600. Raises InputError (`settings-invalid`)."""
    try:
        with path.open() as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = tuple(line for line in file.read(65536).split() if line)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InputError("settings-invalid", f"{key} {path}: {reason}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise InputError(
            "settings-invalid",
            f"{key} {path} is open to others (mode {stat.S_IMODE(mode):04o})",
            f"chmod 600 {path}",
        )
    if not lines:
        raise InputError("settings-invalid", f"{key} {path} is empty")
    return lines


S = TypeVar("S", bound=_Table)


def load_orchestrator(
    path: Path | None = None, environment: Mapping[str, str] = os.environ
) -> OrchestratorSettings:
    """Raises InputError (`settings-invalid`) with every problem, by file and key."""
    return _load(OrchestratorSettings, path, ORCHESTRATOR_FILE, environment)


def load_agent(
    path: Path | None = None, environment: Mapping[str, str] = os.environ
) -> AgentSettings:
    """Raises InputError (`settings-invalid`) with every problem, by file and key."""
    return _load(AgentSettings, path, AGENT_FILE, environment)


def _load(kind: type[S], path: Path | None, default: Path, environment: Mapping[str, str]) -> S:
    file = path or default
    # Only a file that was asked for must exist.
    given = _read(file) if path is not None or file.exists() else {}
    overridden = _override(kind, given, environment)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            key = ".".join(str(part) for part in problem["loc"])
            source = f"environment {overridden[key]}" if key in overridden else str(file)
            lines.append(f"{source}: {key + ': ' if key else ''}{_words(problem)}")
        raise InputError("settings-invalid", "\n".join(lines), _SETTINGS_HINT) from None


def _words(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown key"
    if problem["type"] == "missing":
        return "is missing"
    if problem["type"] == "tuple_type":
        return 'must be a list: ["..."]'
    return str(problem["msg"]).removeprefix("Value error, ")


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        hint = "Run it by sudo." if isinstance(error, PermissionError) else _SETTINGS_HINT
        raise InputError("settings-invalid", f"{file}: {error.strerror}", hint) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        # The text of the error names line and column; it does not quote the file.
        raise InputError("settings-invalid", f"{file}: not TOML: {error}", _SETTINGS_HINT) from None


def _override(
    kind: type[_Table], given: dict[str, Any], environment: Mapping[str, str]
) -> dict[str, str]:
    """Write the environment's values into `given`; returns which variable set which key."""
    overridden: dict[str, str] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        parts = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if _take(kind, given, parts, text):
            overridden[".".join(parts)] = variable
    return overridden


def _take(kind: type[_Table], given: dict[str, Any], parts: list[str], text: str) -> bool:
    field = kind.model_fields.get(parts[0])
    if field is None:
        # Variables of other programs and of the tools of vrha share the prefix.
        return False
    inner = field.annotation
    if isinstance(inner, type) and issubclass(inner, _Table):
        table = given.setdefault(parts[0], {})
        return isinstance(table, dict) and len(parts) == 2 and _take(inner, table, parts[1:], text)
    if len(parts) != 1:
        return False
    given[parts[0]] = text.split() if parts[0] == "urls" else text
    return True
