"""`vrha run report`, and `--measure` of the commands that start a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Vrha
from tests.unit.fake_service import FakeService
from tests.unit.render.reportkit import run as example
from vrha.cli.client import Client
from vrha.cli.measuring import MAX_GAPS, measurement_of, read_streams
from vrha.errors import InputError
from vrha.model.probing import ConnectionsResult, Gap, Loss, Result, Stream, StreamResult


@pytest.fixture
def measured(service: FakeService) -> str:
    run = example()
    service.open[run.id] = run
    return run.id


@pytest.fixture
def streams(tmp_path: Path) -> Path:
    file = tmp_path / "streams.json"
    local = {"kind": "icmp", "target": "127.0.0.1", "interval_ms": 10}
    file.write_text(json.dumps([{"name": "egress_icmp", **local}, {"name": "x", **local}]))
    return file


def test_the_report_as_text(vrha: Vrha, measured: str) -> None:
    result = vrha("run", "report", measured)
    assert result.code == 0
    assert "egress_icmp   client  2500  4     3.00 ms, during flip" in result.out
    row = "tcp_in_1      client  10    0     -                     connections; longest stall"
    assert row in result.out
    assert "conntrack   9     9      -" in result.out


def test_the_report_as_json(vrha: Vrha, measured: str) -> None:
    result = vrha("run", "report", measured, "--json")
    found = json.loads(result.out)
    assert (found["version"], found["run"], found["lost"]) == (1, measured, 6)


def test_the_page_goes_to_a_file_and_the_data_to_standard_output(
    vrha: Vrha, measured: str, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    result = vrha("run", "report", measured, "--html", str(file), "--json")
    assert json.loads(result.out)["run"] == measured
    assert file.read_text().startswith("<!DOCTYPE html>")


def test_the_page_alone_on_standard_output(vrha: Vrha, measured: str) -> None:
    result = vrha("run", "report", measured, "--html", "-", "--json")
    assert result.code == 0
    assert result.out.startswith("<!DOCTYPE html>")
    assert result.out.endswith("</html>\n")


def test_a_file_that_cannot_be_written(vrha: Vrha, measured: str, tmp_path: Path) -> None:
    result = vrha("run", "report", measured, "--html", str(tmp_path / "no" / "report.html"))
    assert (result.code, result.out) == (2, "")
    assert "No such file or directory [cannot-write]" in result.err


def test_a_run_that_is_not_there(vrha: Vrha) -> None:
    result = vrha("run", "report", "nothing")
    assert result.code == 2
    assert "[no-such-run]" in result.err


def test_an_open_run_has_a_report(vrha: Vrha, service: FakeService) -> None:
    service.moves = False
    vrha("network", "restart", "web-net", "--cleanup", "--no-wait")
    assert vrha("run", "report", "r1", "--html", "-").code == 0


def test_probes_go_on_during_a_restart_and_are_kept_with_the_run(
    vrha: Vrha, service: FakeService, streams: Path
) -> None:
    result = vrha(
        *("network", "restart", "web-net", "--cleanup"),
        *("--measure", str(streams), "--settle", "100ms"),
    )
    assert result.code == 0, result.err
    kept = service.open["r1"].measurement
    assert kept is not None
    assert [stream.stream for stream in kept.streams] == ["egress_icmp", "x"]
    # 300 ms before the run and 100 ms after it, at 10 ms.
    assert all(stream.sent > 25 and stream.lost == 0 for stream in kept.streams)
    lines = result.out.splitlines()
    assert lines[0].startswith("run r1 done")
    assert lines[1].split() == ["STREAM", "BY", "SENT", "LOST", "LONGEST", "GAP", "NOTE"]
    assert lines[2].startswith("egress_icmp  client")
    assert lines[-1] == "`vrha run report r1 --html FILE` draws it."


def test_a_roll_back_is_measured_too(vrha: Vrha, service: FakeService, streams: Path) -> None:
    service.ends_well = False
    result = vrha(
        *("router", "move", "web", "--to", "node-2"),
        *("--measure", str(streams), "--settle", "0", "--json"),
    )
    assert result.code == 1
    assert json.loads(result.out)["measurement"]["streams"][0]["stream"] == "egress_icmp"


@pytest.mark.parametrize("option", ["--no-wait", "--dry-run", "--all"])
def test_measure_needs_one_run_that_is_waited_for(
    vrha: Vrha, service: FakeService, streams: Path, option: str
) -> None:
    names = [] if option == "--all" else ["web-net"]
    result = vrha("network", "restart", *names, "--cleanup", "--measure", str(streams), option)
    assert result.code == 2
    assert not service.started


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "no-file"),
        ("[{", "malformed"),
        ('[{"name": "a", "kind": "icmp", "target": "127.0.0.1", "nets": "x"}]', "malformed"),
        ("[]", "bad-stream"),
        ('[{"name": "a", "kind": "icmp", "target": "127.0.0.1", "interval_ms": 0}]', "bad-stream"),
    ],
)
def test_a_bad_file_of_streams_starts_nothing(
    vrha: Vrha, service: FakeService, tmp_path: Path, text: str | None, code: str
) -> None:
    file = tmp_path / "streams.json"
    if text is not None:
        file.write_text(text)
    result = vrha("network", "restart", "web-net", "--cleanup", "--measure", str(file))
    assert result.code == 2
    assert f"[{code}]" in result.err
    assert not service.started


def test_two_streams_of_one_name_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "streams.json"
    file.write_text(json.dumps([{"name": "a", "kind": "icmp", "target": "127.0.0.1"}] * 2))
    with pytest.raises(InputError, match="two of one name"):
        read_streams(file)


def result_of(gaps: tuple[Gap, ...]) -> Result:
    lost = sum(gap.lost for gap in gaps)
    loss = Loss(90_000, lost, 3, gaps, 9.0, 9.0, None, None, None, None, False)
    one = StreamResult(Stream("egress_icmp", "icmp", "192.0.2.1"), "192.0.2.1", loss, 7, (), 0)
    connections = ConnectionsResult(
        Stream("t", "tcp-echo", "192.0.2.1", count=5), "192.0.2.1", 5, 4, 1.5, 99
    )
    return Result((one,), 1_500_000_000, 0, 9e4, 7, True, True, 0, 1.0, (connections,))


def test_a_result_becomes_a_measurement() -> None:
    kept = measurement_of(result_of((Gap(1.0, 2.0, 2), Gap(9.0, 1.0, 1))))
    (stream,) = kept.streams
    assert (stream.began, stream.sent, stream.lost) == (1.5, 90_000, 3)
    assert (stream.duplicates, stream.late_ticks) == (3, 7)
    assert stream.gaps_ms == ((1.0, 2.0), (9.0, 1.0))
    assert [(c.stream, c.total, c.alive, c.longest_stall_ms) for c in kept.connections] == [
        ("t", 5, 4, 1.5)
    ]


def test_of_very_many_gaps_the_longest_are_kept_and_the_api_takes_them(
    service: FakeService, socket_path: Path, measured: str
) -> None:
    gaps = tuple(Gap(i * 2.123456, 1.0 + i % 7 / 1000, 1) for i in range(MAX_GAPS + 500))
    longest = Gap(1e6, 77.0, 77)
    kept = measurement_of(result_of((*gaps, longest)))
    assert kept.gaps_left_out == 501
    (stream,) = kept.streams
    assert len(stream.gaps_ms) == MAX_GAPS
    assert stream.gaps_ms[-1] == (1e6, 77.0)
    assert list(stream.gaps_ms) == sorted(stream.gaps_ms)
    assert stream.lost == MAX_GAPS + 500 + 77
    answer = Client(str(socket_path)).keep_measurement(measured, kept)
    assert answer.measurement == kept
