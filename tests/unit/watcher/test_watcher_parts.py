"""Settings, state and lease file of a watcher."""

from __future__ import annotations

import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from vrha.core.names import PortTag
from vrha.core.ownership.holder import Life
from vrha.errors import InputError, NotFoundError, PreconditionError, StepError
from vrha.model.ownership import Electorate
from vrha.model.spec import InstanceRef
from vrha.watcher.pen import Job
from vrha.watcher.ports import is_permitted
from vrha.watcher.settings import load, settings_of
from vrha.watcher.state import LeaseFile, State
from vrha.watcher.status import StatusSocket, ask

GOOD: dict[str, Any] = {
    "node": "n1",
    "listen": "10.0.0.1:7450",
    "voters": ["n1", "n2", "n3"],
    "leaders": ["o1"],
    "peers": {"n2": "10.0.0.2", "n3": "10.0.0.3", "o1": "10.0.0.9"},
}
VOTERS = Electorate(1, ("n1", "n2", "n3"))


def test_settings_with_times_of_their_own() -> None:
    found = settings_of({**GOOD, "profile": "fast", "timing": {"pause_ms": 40}}, "x")
    assert (found.timing.lease_ms, found.timing.pause_ms) == (225, 40)
    assert found.voters == ("n1", "n2", "n3")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"node": 5}, "node: must be text"),
        ({"voters": ["n1", "n2"]}, "2 are not 1, 3 or 5"),
        ({"voters": "n1"}, "voters: must be a list"),
        ({"voters": ["n1", "n1", "n2"]}, "list of different names"),
        ({"leaders": ["o2"]}, "the address of o2 is missing"),
        ({"profile": "slow"}, "slow is none of"),
        ({"timing": {"lease": 5}}, "timing.lease"),
        ({"timing": {"lease_ms": True}}, "timing.lease_ms"),
        ({"timing": {"lease_ms": 300}}, "is shorter than 3 renewals"),
        ({"timing": {"slice_ms": 400}}, "longer than a third"),
        ({"timing": {"suspect_ms": 700}}, "suspicion"),
        ({"color": "red"}, "color: unknown key"),
        ({"peers": 5}, "peers: must be a table"),
    ],
)
def test_bad_settings(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match="x: ") as caught:
        settings_of({**GOOD, **change}, "x")
    assert said in str(caught.value)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        settings_of({"color": 1}, "x")
    assert len(caught.value.message.splitlines()) == 5
    with pytest.raises(InputError, match="No such file"):
        load(tmp_path / "none")
    (tmp_path / "bad").write_text("node = ")
    with pytest.raises(InputError, match="not TOML"):
        load(tmp_path / "bad")


def at_once(job: Job) -> None:
    job()


def test_state_is_kept_and_damage_is_told(tmp_path: Path) -> None:
    state = State(tmp_path, VOTERS, at_once)
    state.begins(7)
    state.learns((("r1/1", 3),), Electorate(2, ("n1",)))
    again = State(tmp_path, VOTERS, at_once).kept
    assert (again.incarnation, again.epochs) == (7, (("r1/1", 3),))
    assert again.electorate == Electorate(2, ("n1",))
    (tmp_path / "watcher.json").write_text("{")
    with pytest.raises(PreconditionError, match="damaged"):
        State(tmp_path, VOTERS, at_once)


def test_a_disk_that_takes_nothing_does_not_hold_up_the_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = State(tmp_path / "gone", VOTERS, at_once)
    (tmp_path / "gone").rmdir()
    state.begins(7)
    assert state.kept.incarnation == 7
    assert "No such file" in caplog.text
    file = LeaseFile(tmp_path / "gone" / "x.lease")
    file.write(Life(5, 6, 7.5, 2, 3, ()))
    assert file.read() is None


def test_a_lease_is_for_the_next_process_of_this_boot(tmp_path: Path) -> None:
    file = LeaseFile(tmp_path / "x.lease")
    assert file.read() is None
    life = Life(5, 6, 7.5, 2, 3, (("r1/1", 4),))
    file.write(life)
    assert file.read() == life
    text = (tmp_path / "x.lease").read_text()
    (tmp_path / "x.lease").write_text(text.replace('"boot": "', '"boot": "0'))
    assert file.read() is None
    (tmp_path / "x.lease").write_text("[]")
    assert file.read() is None
    file.forget()
    file.forget()


def test_ports_are_of_exactly_one_instance() -> None:
    tag = PortTag(InstanceRef("r1", 3), 9, "u0")
    assert is_permitted(tag, {"r1/3": 1})
    assert not is_permitted(tag, {"r1/2": 1, "r1": 99, "r1/33": 1})


def test_status_is_told_to_whoever_asks(tmp_path: Path) -> None:
    path = tmp_path / "w.sock"
    with pytest.raises(NotFoundError, match="no watcher answers"):
        ask(path)
    path.touch()
    with StatusSocketOf(path) as answers:
        assert answers == {"node": "n1"}
    assert not path.exists()


def test_a_watcher_that_cannot_tell_says_why(tmp_path: Path) -> None:
    path = tmp_path / "w.sock"

    def tell() -> dict[str, Any]:
        raise StepError("switch-unreadable", "the table is gone")

    socket = StatusSocket(path, tell)
    thread = threading.Thread(target=_answer, args=[socket])
    thread.start()
    with pytest.raises(PreconditionError, match="cannot tell: the table is gone") as caught:
        ask(path)
    thread.join()
    socket.close()
    assert caught.value.code == "watcher-troubled"


def _answer(socket: StatusSocket) -> None:
    select.select([socket], [], [], 20)
    socket.answer()


class StatusSocketOf:
    """Answers once, from another process's point of view."""

    def __init__(self, path: Path) -> None:
        self.socket = StatusSocket(path, lambda: {"node": "n1"})
        self.path = path

    def __enter__(self) -> dict[str, Any]:
        code = "import sys, pathlib; from vrha.watcher.status import ask; "
        code += "print(ask(pathlib.Path(sys.argv[1])))"
        with subprocess.Popen(
            [sys.executable, "-c", code, str(self.path)], stdout=subprocess.PIPE, text=True
        ) as child:
            self.socket._socket.settimeout(20)
            self.socket.answer()
            out, _ = child.communicate(timeout=20)
        found: dict[str, Any] = eval(out)
        return found

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def test_the_watcher_needs_no_library() -> None:
    code = (
        "import sys, vrha.watcher.main; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    loaded = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path[:0] = {[str(Path.cwd())]!r}; {code}",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    strangers = set(loaded) - set(sys.stdlib_module_names) - {"vrha", "__main__"}
    assert strangers == set()
