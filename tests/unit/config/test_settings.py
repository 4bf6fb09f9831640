from __future__ import annotations

from pathlib import Path

import pytest

from vrha.config import settings
from vrha.config.settings import AgentSettings, load_agent, load_orchestrator
from vrha.core.brake import Rules
from vrha.core.damping import Damping
from vrha.errors import InputError
from vrha.model.runs import Strategy

CANARY = "s3cret-canary"
URL = f"amqp://vrha:{CANARY}@10.0.0.1:5672/vrha"


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    return file


def problems(load: object, path: Path, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(InputError) as caught:
        load(path, environment or {})  # type: ignore[operator]
    assert caught.value.code == "settings-invalid"
    assert CANARY not in str(caught.value) + repr(caught.value.__cause__)
    return caught.value.message.splitlines()


def test_an_orchestrator_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "ORCHESTRATOR_FILE", tmp_path / "none.toml")
    found = load_orchestrator(environment={})
    assert found.bus.private
    assert (found.run.check_in_s, found.run.step_s) == (10, 10)
    assert (found.run.sync_s, found.run.strategy) == (60, Strategy.HANDOVER)
    assert found.preferred is Strategy.HANDOVER
    assert found.store_url == "sqlite:////var/lib/vrha/orchestrator.db"


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    (problem,) = problems(load_orchestrator, tmp_path / "none.toml")
    assert problem == f"{tmp_path}/none.toml: No such file or directory"


def test_a_whole_file(tmp_path: Path) -> None:
    found = load_orchestrator(
        written(
            tmp_path,
            f"""
            state_dir = "/srv/vrha"
            api.socket = "/run/x.sock"
            bus.urls = ["{URL}"]
            [run]
            check_in_s = 2.5
            strategy = "serial"
            """,
        ),
        {},
    )
    assert (found.state_dir, found.api.socket) == (Path("/srv/vrha"), Path("/run/x.sock"))
    assert found.bus.broker_urls() == (URL,)
    assert not found.bus.private
    assert (found.run.check_in_s, found.run.strategy) == (2.5, Strategy.SERIAL)


@pytest.mark.parametrize("strategy", list(Strategy))
def test_without_rolling_restarts_they_are_serial(tmp_path: Path, strategy: Strategy) -> None:
    text = f'run.strategy = "{strategy}"\nnetwork.rolling_restart = '
    assert load_orchestrator(written(tmp_path, text + "true"), {}).preferred is strategy
    assert load_orchestrator(written(tmp_path, text + "false"), {}).preferred is Strategy.SERIAL


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    found = load_orchestrator(written(tmp_path, f'bus.urls = ["{URL}"]'), {})
    for text in (repr(found), str(found), found.model_dump_json(), repr(found.bus)):
        assert CANARY not in text


def test_every_problem_at_once_by_file_and_key(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        f"""
        node = "Not a name"
        colour = "red"
        state_dir = "relative"
        [bus]
        urls = ["{URL}", 5]
        """,
    )
    found = problems(load_agent, file)
    assert found == [
        f"{file}: node: must be 1 to 15 of a-z 0-9 -, and neither begin nor end with -",
        f"{file}: state_dir: must be an absolute path",
        f"{file}: bus.urls.1: Input should be a valid string",
        f"{file}: colour: unknown key",
    ]


@pytest.mark.parametrize("name", ["n1\n", "-n1", "n1-", "N1", "a" * 16, "", "n_1", "n1 "])
def test_bad_node_names(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, f'bus.urls = ["{URL}"]')
    (problem,) = problems(load_agent, file, {"VRHA_NODE": name})
    assert problem.startswith("environment VRHA_NODE: node: must be")


def test_an_agent_needs_a_node_and_a_broker(tmp_path: Path) -> None:
    file = written(tmp_path, "")
    assert problems(load_agent, file) == [f"{file}: node: is missing", f"{file}: bus: is missing"]
    file = written(tmp_path, 'node = "n1"\n[bus]\n')
    assert problems(load_agent, file) == [f"{file}: an agent needs bus.urls or bus.url_file"]


def test_the_environment_overrides(tmp_path: Path) -> None:
    file = written(tmp_path, 'node = "n1"\ninventory_s = 2\nbus.urls = ["amqp://x"]')
    found = load_agent(
        file,
        {
            "VRHA_NODE": "n2",
            "VRHA_BUS__URLS": f"{URL} amqp://second",
            "VRHA_SOMETHING_ELSE": "x",
            "PATH": "/bin",
        },
    )
    assert isinstance(found, AgentSettings)
    assert (found.node, found.inventory_s) == ("n2", 2)
    assert found.bus.broker_urls() == (URL, "amqp://second")


def test_a_wrong_value_of_the_environment_is_named(tmp_path: Path) -> None:
    found = problems(load_orchestrator, written(tmp_path, ""), {"VRHA_RUN__STEP_S": "nan"})
    assert len(found) == 1
    assert found[0].startswith("environment VRHA_RUN__STEP_S: run.step_s: ")


@pytest.mark.parametrize("value", ["0", "-1", "inf", "3601", '"x"'])
def test_deadlines_are_bounded(tmp_path: Path, value: str) -> None:
    problems(load_orchestrator, written(tmp_path, f"run.step_s = {value}"))


def test_broken_toml_is_told_with_its_line(tmp_path: Path) -> None:
    (problem,) = problems(load_orchestrator, written(tmp_path, f'bus.urls = "{URL}\nnode=5'))
    assert "not TOML" in problem
    assert "line 1" in problem


def test_a_bus_table_of_the_wrong_kind(tmp_path: Path) -> None:
    file = written(tmp_path, "bus = 5")
    assert len(problems(load_orchestrator, file, {"VRHA_BUS__URLS": URL})) == 1


def test_urls_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "urls"
    secret.write_text(f"{URL}\namqp://second\n")
    secret.chmod(0o600)
    bus = load_orchestrator(written(tmp_path, f'bus.url_file = "{secret}"'), {}).bus
    assert not bus.private
    assert bus.broker_urls() == (URL, "amqp://second")
    secret.chmod(0o640)
    with pytest.raises(InputError, match="open to others"):
        bus.broker_urls()
    secret.chmod(0o600)
    secret.write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        bus.broker_urls()
    secret.write_bytes(b"\xff\xfe" + CANARY.encode())
    with pytest.raises(InputError, match="not text") as caught:
        bus.broker_urls()
    assert CANARY not in str(caught.value)
    secret.unlink()
    with pytest.raises(InputError, match="No such file"):
        bus.broker_urls()


def test_urls_and_file_together_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path, f'bus.urls = ["{URL}"]\nbus.url_file = "/x"')
    assert problems(load_orchestrator, file) == [f"{file}: bus: give urls or url_file, not both"]


STORE = f"postgresql://vrha:{CANARY}@db.example/vrha"


def test_the_store_is_in_the_state_folder_unless_it_is_named(tmp_path: Path) -> None:
    found = load_orchestrator(written(tmp_path, 'state_dir = "/srv/vrha"'), {})
    assert found.store.private
    assert found.store_url == "sqlite:////srv/vrha/orchestrator.db"
    found = load_orchestrator(written(tmp_path, f'store.url = "{STORE}"'), {})
    assert not found.store.private
    assert found.store_url == STORE
    assert CANARY not in repr(found) + str(found)
    found = load_orchestrator(written(tmp_path, ""), {"VRHA_STORE__URL": STORE})
    assert found.store_url == STORE


def test_the_url_of_the_store_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "store-url"
    secret.write_text(f"{STORE}\n")
    secret.chmod(0o600)
    found = load_orchestrator(written(tmp_path, f'store.url_file = "{secret}"'), {})
    assert not found.store.private
    assert found.store_url == STORE
    secret.chmod(0o644)
    with pytest.raises(InputError, match=r"store\.url_file .* is open to others") as caught:
        _ = found.store_url
    assert CANARY not in str(caught.value)


def test_one_place_of_the_store(tmp_path: Path) -> None:
    file = written(tmp_path, f'store.url = "{STORE}"\nstore.url_file = "/x"')
    assert problems(load_orchestrator, file) == [f"{file}: store: give url or url_file, not both"]


def test_beats_may_be_late(tmp_path: Path) -> None:
    found = load_orchestrator(written(tmp_path, ""), {})
    assert (found.leader.beat_s, found.leader.ttl_s) == (1, 5)
    file = written(tmp_path, "leader.beat_s = 2.0")
    assert problems(load_orchestrator, file) == [
        f"{file}: leader: ttl_s must be at least three times beat_s"
    ]


def test_a_name_is_one_word(tmp_path: Path) -> None:
    problems(load_orchestrator, written(tmp_path, 'name = "o1 leads"'))
    assert load_orchestrator(written(tmp_path, 'name = "db-1.example"'), {}).name == "db-1.example"


def test_failover_brakes_by_default(tmp_path: Path) -> None:
    found = load_orchestrator(written(tmp_path, ""), {}).failover
    assert found.rules(0.15) == Rules()
    assert found.damping == Damping()


def test_the_brake_by_the_settings(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        [failover]
        enabled = false
        budget = 0.1
        mass_silence = 0.5
        fail_back_s = 0
        flap_half_life_s = 60
        """,
    )
    found = load_orchestrator(file, {"VRHA_FAILOVER__WINDOW_S": "4"}).failover
    assert found.rules(0.05) == Rules(False, 0.1, 0.5, 4.0, 0.05)
    assert found.damping == Damping(half_life_s=60, fail_back_s=0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("failover.budget = 0", "failover.budget: Input should be greater than 0"),
        ("failover.budget = 20", "failover.budget: Input should be less than or equal to 1"),
        ("failover.mass_silence = nan", "failover.mass_silence: "),
        ("failover.fail_back_s = -1", "failover.fail_back_s: "),
        ("failover.flap_half_life_s = 0.001", "failover.flap_half_life_s: "),
        ("failover.enable = true", "failover.enable: unknown key"),
        ("failover.budget = 0.5", "failover: budget (0.5) must not be above mass_silence (0.3)"),
        ("failover.flap_reuse = 2000", "failover: flap_reuse (2000) must be below flap_suppress"),
    ],
)
def test_a_brake_that_cannot_work(tmp_path: Path, text: str, words: str) -> None:
    file = written(tmp_path, text)
    (problem,) = problems(load_orchestrator, file)
    assert problem.startswith(f"{file}: {words}")
