"""Check-ins: who is believed, and what a replacement must prove."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.core.test_run import NEW, OLD, parallel
from vrha.core.check_in import Refusal, judge_self_test, judge_sender
from vrha.core.happenings import Limits, Resume
from vrha.core.run import advance
from vrha.model.messages import CheckIn
from vrha.model.runs import RunStatus
from vrha.model.state import RulesDigest, SelfTest, Upstream

EXPECTED = RulesDigest(7, "ab" * 32)
GOOD = SelfTest(("n0",), (), EXPECTED, True, Upstream.NONE)
MESSAGE = CheckIn("run", "r1", NEW, 2, "n1", "token", GOOD, 12.0)
RUN, _ = advance(parallel(), Resume(), 0.0, Limits())


def test_the_awaited_one_is_believed() -> None:
    assert judge_sender(RUN, MESSAGE).refusal is None
    assert judge_self_test(RUN, MESSAGE, EXPECTED).refusal is None


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"epoch": 1}, Refusal.WRONG_EPOCH),
        ({"epoch": 3}, Refusal.WRONG_EPOCH),
        ({"instance": OLD}, Refusal.WRONG_INSTANCE),
        ({"router": "r2"}, Refusal.WRONG_INSTANCE),
        ({"node": "n2"}, Refusal.WRONG_NODE),
    ],
)
def test_a_stranger_is_refused(change: dict[str, object], refusal: Refusal) -> None:
    assert judge_sender(RUN, replace(MESSAGE, **change)).refusal is refusal  # type: ignore[arg-type]


def test_no_run_and_a_run_that_is_over() -> None:
    assert judge_sender(None, MESSAGE).refusal is Refusal.UNKNOWN_RUN
    over = replace(RUN, status=RunStatus.ROLLED_BACK)
    assert judge_sender(over, MESSAGE).refusal is Refusal.RUN_OVER


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"rules": RulesDigest(6, "ab" * 32)}, Refusal.WRONG_DIGEST),
        ({"rules": RulesDigest(7, "cd" * 32)}, Refusal.WRONG_DIGEST),
        ({"forwarding": ()}, Refusal.PORT_NOT_FORWARDING),
        ({"dns_answered": False}, Refusal.DNS_SILENT),
        ({"upstream": Upstream.UNREACHABLE}, Refusal.UPSTREAM_UNREACHABLE),
    ],
)
def test_an_unfit_replacement_is_refused(change: dict[str, object], refusal: Refusal) -> None:
    message = replace(MESSAGE, self_test=replace(GOOD, **change))  # type: ignore[arg-type]
    assert judge_self_test(RUN, message, EXPECTED).refusal is refusal
