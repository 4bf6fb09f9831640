"""Restarts of all, drains and rollouts: what is asked, what is shown, how it exits."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.unit.cli.conftest import Vrha
from tests.unit.fake_service import FakeService, rollout_of
from vrha import codec
from vrha.cli import rolling
from vrha.errors import UnreachableError
from vrha.model.rollouts import Member, MemberStatus, RolloutKind, RolloutRequest, RolloutStatus
from vrha.model.runs import RestartOptions, Strategy

RESTART_ALL = ("network", "restart", "--all", "--cleanup")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling, "POLL_SECONDS", 0.001)


def asked(service: FakeService) -> RolloutRequest:
    (rollout,) = service.asked.values()
    return rollout.request


def test_all_are_restarted_and_reported(vrha: Vrha) -> None:
    result = vrha(*RESTART_ALL)
    assert result.code == 0
    assert result.out.splitlines() == [
        "ROUTER  RUN  STRATEGY  FROM    TO      ENDED  LOST  DURATION  REASON",
        "r1      a1   handover  node-1  node-2  done   0     0.50 s    -",
        "r2      a2   handover  node-1  node-2  done   0     0.50 s    -",
        "r3      a3   handover  node-1  node-2  done   0     0.50 s    -",
        "",
        "rollout x1 done after 6.00 s, 3/3 done, 0 lost",
    ]
    lines = result.err.splitlines()
    assert lines[0] == (
        "rollout x1: restart of all routers, 3 routers, one first, then up to 4 at a time"
    )
    assert lines[1:3] == [
        "[0/3] r1 run a1 node-1 -> node-2 by strategy handover: running",
        "[1/3] r1 run a1 node-1 -> node-2 by strategy handover: done, 0 lost, 0.50 s",
    ]
    assert len(lines) == 7


def test_the_report_as_json(vrha: Vrha, service: FakeService) -> None:
    end = json.loads(vrha(*RESTART_ALL, "--json").out)
    assert end == codec.plain(service.asked["x1"])
    assert (end["status"], end["members"][0]["run"]) == ("done", "a1")


def test_all_options_are_passed_on(vrha: Vrha, service: FakeService) -> None:
    options = "--zone east --max-parallel 8 --stop-on-lost 3 --keep-going --strategy parallel"
    result = vrha(*RESTART_ALL, *options.split(), "--hold", "--max-lost", "2", "--no-wait")
    assert result.code == 0
    assert result.out == (
        "rollout x1: restart of all routers of zone east, 3 routers,"
        " one first, then up to 8 at a time\n"
    )
    wanted = RestartOptions(Strategy.PARALLEL, "", True, 2)
    assert asked(service) == RolloutRequest(RolloutKind.RESTART, "east", "", 8, 3, True, wanted)


def test_a_drain_is_asked_for(vrha: Vrha, service: FakeService) -> None:
    result = vrha("node", "drain", "node-1", "--max-parallel", "2")
    assert result.code == 0
    assert asked(service) == RolloutRequest(RolloutKind.DRAIN, "", "node-1", 2)
    assert "rollout x1: drain of node node-1" in result.err
    assert vrha("node", "list").out.splitlines()[1].split()[-1] == "draining"
    result = vrha("node", "undrain", "node-1")
    assert (result.code, result.out) == (0, "node node-1 takes instances again\n")
    assert vrha("node", "list").out.splitlines()[1].split()[-1] == "-"


@pytest.mark.parametrize(
    ("command", "about"),
    [(RESTART_ALL, "restart of all routers"), (("node", "drain", "n1"), "drain of node n1")],
)
def test_dry_run_shows_every_plan(
    vrha: Vrha, service: FakeService, command: tuple[str, ...], about: str
) -> None:
    result = vrha(*command, "--dry-run")
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
        "router r2: no run: no-node: node-2: full",
        "",
        f"{about}: 1 runs, 1 without a run; one first, then up to 4 at a time",
        "Dry run: nothing was started.",
    ]
    assert not service.asked
    plan = json.loads(vrha(*command, "--dry-run", "--json").out)
    assert [m["reason"] for m in plan["members"]] == ["", "no-node"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("network", "restart", "web-net", "--all", "--cleanup"), "either the NAME"),
        (("network", "restart", "--cleanup"), "either the NAME"),
        (("network", "restart", "--all"), "a restart needs --cleanup"),
        (("network", "restart", "web-net", "--cleanup", "--zone", "east"), "need --all"),
        (("network", "restart", "web-net", "--cleanup", "--max-parallel", "2"), "need --all"),
        (("network", "restart", "web-net", "--cleanup", "--stop-on-lost", "0"), "need --all"),
        (("network", "restart", "web-net", "--cleanup", "--keep-going"), "need --all"),
        ((*RESTART_ALL, "--max-parallel", "0"), "0 is not in the range"),
        ((*RESTART_ALL, "--stop-on-lost", "-1"), "-1 is not in the range"),
        ((*RESTART_ALL, "--zone", ""), "--zone needs a name"),
        (("node", "drain", "node-1", "--max-parallel", "0"), "0 is not in the range"),
        (("node", "drain"), "Missing argument"),
        (("router", "move", "web"), "Missing option '--to'"),
    ],
)
def test_wrong_usage_asks_for_nothing(
    vrha: Vrha, service: FakeService, arguments: tuple[str, ...], says: str
) -> None:
    result = vrha(*arguments)
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert not service.threads


def test_a_stop_fails_and_says_how_to_go_on(vrha: Vrha, service: FakeService) -> None:
    service.ends_well = False
    result = vrha(*RESTART_ALL)
    assert result.code == 1
    assert "r2      a2   handover  node-1  node-2  rolled back  0 " in result.out
    assert "r3      -    -         -       -       pending      - " in result.out
    assert "rollout x1 stopped, 1/3 done, 1 pending, 1 rolled back, 0 lost: rolled-back" in (
        result.out
    )
    assert "[rollout-stopped]" in result.err
    assert "`vrha rollout resume x1`" in result.err
    service.ends_well = True
    result = vrha("rollout", "resume", "x1")
    assert result.code == 0
    assert "3/3 done" in result.out


def test_a_second_one_is_refused(vrha: Vrha, service: FakeService) -> None:
    service.moves = False
    assert vrha(*RESTART_ALL, "--no-wait").code == 0
    result = vrha("node", "drain", "node-1")
    assert (result.code, result.out) == (4, "")
    assert "rollout x1 has not ended [rollout-in-progress]" in result.err


def test_time_runs_out_and_it_goes_on(vrha: Vrha, service: FakeService) -> None:
    service.moves = False
    result = vrha(*RESTART_ALL, "--timeout", "10ms")
    assert result.code == 3
    assert "vrha rollout watch x1" in result.err


def test_ctrl_c_leaves_it_running_and_says_so(
    vrha: Vrha, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rolling, "follow", interrupted)
    result = vrha(*RESTART_ALL)
    assert result.code == 130
    assert "rollout x1 goes on; `vrha rollout watch x1` shows it" in result.err
    assert service.asked["x1"].status is RolloutStatus.RUNNING


def test_list_show_report_watch_stop(vrha: Vrha, service: FakeService) -> None:
    service.moves = False
    vrha("node", "drain", "node-1", "--no-wait", "--stop-on-lost", "5")
    (row,) = vrha("rollout", "list").out.splitlines()[1:]
    assert row.split()[:7] == ["x1", "drain", "node-1", "running", "3", "3", "pending"]
    shown = vrha("rollout", "show", "x1").out
    assert "node:         node-1" in shown
    assert "stop on lost: 5" in shown
    assert "rollout x1 running, 0/3 done, 3 pending, 0 lost" in shown
    assert vrha("rollout", "report", "x1").out.startswith("ROUTER  RUN")
    for verb in ("show", "report"):
        seen = json.loads(vrha("rollout", verb, "x1", "--json").out)
        assert seen == codec.plain(service.asked["x1"])
    listed = json.loads(vrha("rollout", "list", "--json").out)
    assert listed == codec.plain(service.rollouts())
    service.moves = True
    assert vrha("rollout", "watch", "x1").code == 0
    stopped = vrha("rollout", "stop", "x1")
    assert (stopped.code, stopped.out.startswith("rollout x1 stopping")) == (0, True)


@pytest.mark.parametrize("verb", ["show", "report", "watch", "stop", "resume"])
def test_unknown_rollouts(vrha: Vrha, verb: str) -> None:
    result = vrha("rollout", verb, "nope")
    assert (result.code, result.out) == (2, "")
    assert "no rollout nope [no-such-rollout]" in result.err


def test_unknown_nodes(vrha: Vrha) -> None:
    result = vrha("node", "undrain", "nope")
    assert (result.code, result.out) == (2, "")
    assert "[no-such-node]" in result.err


def test_a_router_is_moved(vrha: Vrha, service: FakeService) -> None:
    words = "router move web --to node-2 --hold --max-lost 3 --strategy handover"
    result = vrha(*words.split())
    assert result.code == 0
    assert result.out.startswith("run m1 done after 1.25 s")
    wanted = RestartOptions(Strategy.HANDOVER, "node-2", True, 3)
    assert service.moved == [("web", wanted)]


def test_a_move_can_be_planned_and_left_alone(vrha: Vrha, service: FakeService) -> None:
    result = vrha("router", "move", "web", "--to", "node-2", "--dry-run")
    assert "Dry run: nothing was started." in result.out
    assert not service.moved
    result = vrha("router", "move", "web", "--to", "node-2", "--no-wait")
    assert (result.code, result.out.splitlines()[0][:6]) == (0, "run m1")


def test_an_orchestrator_that_restarts_is_waited_for(service: FakeService) -> None:
    service.start_rollout(RolloutRequest(RolloutKind.RESTART))

    class Blinking:
        away = 3

        def rollout(self, rollout_id: str) -> object:
            if self.away:
                self.away -= 1
                raise UnreachableError("orchestrator-unreachable", "away")
            return service.rollout(rollout_id)

    ended = rolling.follow(Blinking(), "x1", 30.0, rolling.PlainRollout())  # type: ignore[arg-type]
    assert ended.status is RolloutStatus.DONE


def test_the_live_picture_counts_and_names_what_failed() -> None:
    from rich.console import Console

    refused = Member("r2", MemberStatus.REFUSED, 1, reason="no-node", detail="a\x1b[2J")
    members = (
        Member("r1", MemberStatus.DONE, 1, "a1", lost=2),
        refused,
        Member("r3", MemberStatus.RUNNING, 1, "a3"),
        Member("r4"),
    )
    rollout = replace(rollout_of(RolloutRequest(RolloutKind.RESTART)), members=members)
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(rolling.LiveRollout()._draw(rollout))
    text = capture.get()
    assert "1/4 done, 1 pending, 1 running, 1 refused, 2 lost" in text
    assert text.count("█") == text.count("░") == 20
    assert "▶ r3 run a3: running" in text
    assert "✗ r2: refused: no-node: a\\x1b[2J" in text
