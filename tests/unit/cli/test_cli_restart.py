"""`vrha network restart`: what is asked of the orchestrator, what is shown, how it exits."""

from __future__ import annotations

import json

import pytest

from tests.unit.cli.conftest import Vrha
from tests.unit.fake_service import FakeService
from vrha.cli import progress
from vrha.errors import RefusedError, UnreachableError
from vrha.model.runs import RestartOptions, RunStatus, Strategy


def test_waits_and_tells_the_end_in_one_line(vrha: Vrha, service: FakeService) -> None:
    result = vrha("network", "restart", "web-net", "--cleanup")
    assert result.code == 0
    assert result.out == (
        "run r1 done after 1.25 s: restart of router web, web#1 gave way to web#2\n"
    )
    assert service.started == [("web-net", None)]
    lines = result.err.splitlines()
    assert lines[0] == "run r1: restart of router web by strategy parallel: web#1 -> web#2"
    assert lines[1:] == [
        "step 1/4 done: build web#2 on node-1 (build 9.5 ms)",
        "step 2/4 done: wait for the check-in of web#2",
        "step 3/4 done: swap web#1 for web#2 on node-1",
        "step 4/4 done: destroy web#1 on node-1",
    ]


def test_the_end_as_json(vrha: Vrha) -> None:
    result = vrha("network", "restart", "web-net", "--cleanup", "--json", "--strategy", "serial")
    end = json.loads(result.out)
    assert (end["status"], end["strategy"]) == ("done", "serial")


def test_without_cleanup_nothing_is_asked(vrha: Vrha, service: FakeService) -> None:
    result = vrha("network", "restart", "web-net")
    assert result.code == 2
    assert "a restart needs --cleanup" in result.err
    assert "old instance is destroyed" in result.err
    assert not service.started
    assert not service.threads


def test_dry_run_shows_steps_undo_and_the_point_of_no_return(
    vrha: Vrha, service: FakeService
) -> None:
    result = vrha("network", "restart", "web-net", "--cleanup", "--dry-run")
    assert result.code == 0
    assert result.out.splitlines() == [
        "restart of router web by strategy parallel: web#1 -> web#2",
        "   1  build web#2 on node-1",
        "        undo: destroy web#2",
        "   2  wait for the check-in of web#2",
        "   3  swap web#1 for web#2 on node-1",
        "        undo: swap web#2 for web#1",
        "      --- from the start of the next step there is no way back ---",
        "   4  destroy web#1 on node-1",
        "",
        "Dry run: nothing was started.",
    ]
    assert not service.started


def test_a_second_run_is_refused_and_names_the_first(vrha: Vrha, service: FakeService) -> None:
    service.moves = False
    assert vrha("network", "restart", "web-net", "--cleanup", "--no-wait").code == 0
    result = vrha("network", "restart", "web-net", "--cleanup")
    assert result.code == RefusedError.exit_code == 4
    assert result.out == ""
    assert result.err == (
        "error: router web has an open run: r1 [run-in-progress]\n`vrha run watch r1` shows it.\n"
    )


def test_a_roll_back_fails_and_says_why(vrha: Vrha, service: FakeService) -> None:
    service.ends_well = False
    result = vrha("network", "restart", "web-net", "--cleanup")
    assert result.code == 1
    assert "rolled back after 11.00 s: check-in-deadline: no check-in of web#2" in result.out
    assert "undo step 1/1 done: destroy web#2 on node-1" in result.err
    assert "error: run r1 of router web rolled back: check-in-deadline" in result.err
    assert "[rolled-back]" in result.err
    assert "Left behind by run r1: bridge port v0123." in result.err
    assert "`vrha run show r1`" in result.err


def test_time_runs_out_and_the_run_goes_on(vrha: Vrha, service: FakeService) -> None:
    service.moves = False
    result = vrha("network", "restart", "web-net", "--cleanup", "--timeout", "300ms")
    assert result.code == 3
    assert "error: run r1 has not ended within 0.3 s and goes on [still-running]" in result.err
    assert "vrha run watch r1" in result.err


def test_an_unknown_network(vrha: Vrha) -> None:
    result = vrha("network", "restart", "nope", "--cleanup")
    assert (result.code, result.out) == (2, "")
    assert "[no-such-network]" in result.err


@pytest.mark.parametrize("name", ["a?b#c", "a%2fb", "\u00e4"])
def test_names_stay_in_their_place_in_the_path(vrha: Vrha, service: FakeService, name: str) -> None:
    result = vrha("network", "restart", name, "--cleanup")
    assert result.code == 2
    assert f"no network {name} [no-such-network]" in result.err
    assert not service.started


def test_watch_shows_a_run_to_its_end(vrha: Vrha, service: FakeService) -> None:
    service.restart_network("web-net")
    result = vrha("run", "watch", "r1")
    assert result.code == 0
    assert result.out.startswith("run r1 done")


class Blinking:
    """A client whose orchestrator is away for the first looks."""

    def __init__(self, service: FakeService, away: int) -> None:
        self.service = service
        self.away = away

    def run(self, run_id: str) -> object:
        if self.away:
            self.away -= 1
            raise UnreachableError("orchestrator-unreachable", "away")
        return self.service.run(run_id)


def test_an_orchestrator_that_restarts_is_waited_for() -> None:
    service = FakeService()
    service.restart_network("web-net", RestartOptions(Strategy.SERIAL))
    client = Blinking(service, away=3)
    ended = progress.follow(client, "r1", 30.0, progress.PlainProgress())  # type: ignore[arg-type]
    assert ended.status is RunStatus.DONE


def test_an_orchestrator_that_stays_away_is_an_error() -> None:
    client = Blinking(FakeService(), away=1000)
    with pytest.raises(UnreachableError):
        progress.follow(client, "r1", 0.0, progress.PlainProgress())  # type: ignore[arg-type]


def test_the_live_picture_shows_every_step(service: FakeService) -> None:
    from rich.console import Console

    run = service.restart_network("web-net")
    live = progress.LiveProgress()
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(live._draw(run))
    text = capture.get()
    assert text.count("·") == 4
    assert text.index("no way back") < text.index("destroy web#1")
