"""What the dead-man switch does when the kernel's answers are lost, late or unusual."""

from __future__ import annotations

import errno
import struct
import subprocess
import sys
from collections.abc import Callable

import pytest

from vrha.errors import StepError
from vrha.linux import deadman, nftwire
from vrha.linux.deadman import DeadMan


class FakeSocket:
    """Answers as `of` says: it takes the number of a batch and gives what arrives after it."""

    def __init__(self, of: Callable[[int], list[bytes | OSError]]) -> None:
        self.of = of
        self.closed = False
        self.numbers: list[int] = []
        self.arriving: list[bytes | OSError] = []

    def send(self, data: bytes) -> None:
        self.numbers.append(struct.unpack_from("=I", data, 8)[0])
        self.arriving += self.of(self.numbers[-1])

    def recv(self, size: int) -> bytes:
        if not self.arriving:
            raise TimeoutError("timed out")
        first = self.arriving.pop(0)
        if isinstance(first, OSError):
            raise first
        return first

    def close(self) -> None:
        self.closed = True


class FakeNetlink:
    """Every set is empty."""

    def __init__(self, protocol: int) -> None:
        assert protocol == nftwire.NETLINK_NETFILTER

    def ask(self, kind: int, body: bytes, flags: int = 0) -> list[bytes]:
        return []

    def close(self) -> None:
        pass


def answer(seq: int, code: int = 0) -> bytes:
    """An acknowledgement, or a refusal."""
    return struct.pack("=IHHII", 36, 2, 0, seq, 0) + struct.pack("=i", -code) + bytes(16)


def dead_man(
    monkeypatch: pytest.MonkeyPatch, *kernels: Callable[[int], list[bytes | OSError]]
) -> tuple[DeadMan, list[FakeSocket]]:
    """One whose first, second, ... socket is answered by these."""
    sockets = [FakeSocket(of) for of in kernels]
    left = iter(sockets)
    monkeypatch.setattr(deadman, "_open", lambda: next(left))
    monkeypatch.setattr(deadman, "Netlink", FakeNetlink)
    return DeadMan(), sockets


@pytest.mark.parametrize("lost", [TimeoutError("timed out"), OSError(errno.ENOBUFS, "lost")])
def test_a_lost_answer_is_told_and_the_socket_replaced(
    monkeypatch: pytest.MonkeyPatch, lost: OSError
) -> None:
    switch, (first, second) = dead_man(monkeypatch, lambda seq: [lost], lambda seq: [answer(seq)])
    with pytest.raises(StepError) as told:
        switch.renew(100)
    assert told.value.code == "kernel-timeout"
    assert first.closed
    assert switch.renew(100)
    assert not second.closed


def test_an_answer_to_an_earlier_batch_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused batch is answered twice: its first message is refused, its last acknowledged."""

    def kernel(seq: int) -> list[bytes | OSError]:
        return [answer(seq, errno.ENOENT), answer(seq)]

    switch, (only,) = dead_man(monkeypatch, kernel)
    assert [switch.renew(100) for _ in range(3)] == [False] * 3
    assert only.numbers == sorted(set(only.numbers))


def test_it_does_not_read_other_answers_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    switch, (first, _) = dead_man(
        monkeypatch, lambda seq: [answer(seq - 1)] * 1_000_000, lambda seq: []
    )
    with pytest.raises(StepError, match="kernel-timeout"):
        switch.renew(100)
    assert first.closed


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda switch: switch.renew(100), "dead-man-failed"),
        (lambda switch: switch.arm(100), "dead-man-failed"),
        (lambda switch: switch.fire(100), "dead-man-failed"),
        (lambda switch: switch.mute(), "mute-failed"),
        (lambda switch: switch.grant(frozenset({"vrh0"})), "mute-failed"),
    ],
)
def test_any_other_refusal_is_an_error(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[DeadMan], object], code: str
) -> None:
    switch, _ = dead_man(monkeypatch, lambda seq: [answer(seq, errno.ENOMEM)])
    with pytest.raises(StepError) as told:
        call(switch)
    assert told.value.code == code


def test_importing_it_brings_little_along() -> None:
    """The process that holds the lease is to start quickly and to stay small."""
    program = "import sys, vrha.linux.deadman; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    loaded = done.stdout.split()
    assert {name for name in loaded if name.startswith("vrha.")} == {
        "vrha.errors",
        "vrha.linux",
        "vrha.linux.deadman",
        "vrha.linux.netlink",
        "vrha.linux.nftwire",
    }
    assert not {"subprocess", "asyncio", "pydantic", "pyroute2", "kombu"}.intersection(loaded)
