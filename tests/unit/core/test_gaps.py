"""Gap analysis: the figures from known times, and what must hold for any times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrha.core.gaps import UNANSWERED, find_gaps, longest_step_ms
from vrha.core.loss import analyse
from vrha.model.probing import Gap, Loss, Rtt

MS = 1_000_000
T0 = 5_000 * MS


def times(pattern: str, rtt_ns: int = 200_000) -> tuple[list[int], list[int]]:
    """One probe per ms: `.` answered, `x` lost, `-` a tick that was missed by the prober."""
    ticks = [(T0 + i * MS, mark) for i, mark in enumerate(pattern) if mark != "-"]
    return (
        [at for at, _ in ticks],
        [at + rtt_ns if mark == "." else UNANSWERED for at, mark in ticks],
    )


def loss(pattern: str) -> Loss:
    sent, received = times(pattern)
    return analyse(sent, received, t0=T0, end=T0 + len(pattern) * MS, interval_ms=1.0)


@pytest.mark.parametrize(
    ("pattern", "gaps"),
    [
        ("", ()),
        ("....", ()),
        ("..x..", (Gap(2.0, 1.0, 1),)),
        ("x....", (Gap(0.0, 1.0, 1),)),
        (".xxx.x.", (Gap(1.0, 3.0, 3), Gap(5.0, 1.0, 1))),
        ("..xx", (Gap(2.0, 2.0, 2, unrestored=True),)),
        ("xxxx", (Gap(0.0, 4.0, 4, unrestored=True),)),
        (".x--x.", (Gap(1.0, 4.0, 2),)),
        (".x----", (Gap(1.0, 5.0, 1, unrestored=True),)),
        (".---.", ()),
    ],
)
def test_gaps_of_known_patterns(pattern: str, gaps: tuple[Gap, ...]) -> None:
    assert loss(pattern).gaps == gaps


def test_all_figures_of_one_outage() -> None:
    assert loss("..xxx..x.") == Loss(
        sent=9,
        lost=4,
        duplicates=0,
        gaps=(Gap(2.0, 3.0, 3), Gap(7.0, 1.0, 1)),
        longest_gap_ms=3.0,
        outage_ms=4.0,
        longest_silence_ms=4.0,
        longest_pause_ms=1.0,
        rtt_median_ms=0.2,
        rtt_max_ms=0.2,
        unrestored=False,
        rate_outage_ms=10.0,
        first_lost_ms=2.0,
        restored_ms=8.0,
        rtt_before=Rtt(2, 0.2, 0.2, 0.2),
        rtt_during=Rtt(2, 0.2, 0.2, 0.2),
        rtt_after=Rtt(1, 0.2, 0.2, 0.2),
    )


def test_outage_that_never_ends_is_flagged_and_counts_to_the_end_of_the_run() -> None:
    black = loss("...xxxxxxx")
    assert black.unrestored
    assert black.longest_gap_ms == 7.0
    assert black.longest_silence_ms == 1.0, "the silence between replies does not see it"


def test_without_replies_times_are_not_measured() -> None:
    nothing = loss("xx")
    assert (nothing.rtt_median_ms, nothing.rtt_max_ms) == (None, None)
    assert nothing.longest_silence_ms is None


def test_a_held_reply_is_not_lost_but_silent() -> None:
    sent, received = times("......")
    held = sent[4] + 300 * MS
    received[2:] = [held] * 4
    found = analyse(sent, received, t0=T0, end=T0 + 6 * MS, interval_ms=1.0)
    assert (found.lost, found.gaps) == (0, ())
    assert found.longest_silence_ms == pytest.approx(302.8)
    assert found.rtt_max_ms == pytest.approx(302.0)


def test_a_silence_that_is_the_probers_own_is_told_by_its_pause() -> None:
    stalled = loss("..-----..")
    assert (stalled.lost, stalled.longest_silence_ms, stalled.longest_pause_ms) == (0, 6.0, 6.0)


def test_reordered_replies_make_no_silence() -> None:
    assert longest_step_ms([3 * MS, 1 * MS, UNANSWERED, 2 * MS]) == 1.0


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 send times but 1 receive times"):
        analyse([1, 2], [1], t0=0, end=3, interval_ms=1.0)


@given(st.text(alphabet=".x-", max_size=200))
def test_gaps_account_for_every_lost_probe_and_never_overlap(pattern: str) -> None:
    found = loss(pattern)
    assert found.sent == pattern.count(".") + pattern.count("x")
    assert found.lost == pattern.count("x") == sum(gap.lost for gap in found.gaps)
    assert found.outage_ms == found.lost
    edges = [edge for g in found.gaps for edge in (g.start_ms, g.start_ms + g.length_ms)]
    assert edges == sorted(edges)
    for gap in found.gaps:
        assert gap.lost <= gap.length_ms, "a gap is at least one interval per lost probe"
    for before, after in zip(found.gaps, found.gaps[1:], strict=False):
        between = pattern[int(before.start_ms + before.length_ms) : int(after.start_ms)]
        assert "." in between


@given(st.text(alphabet=".x-", max_size=200))
def test_unrestored_exactly_when_the_last_probe_was_lost(pattern: str) -> None:
    found = loss(pattern)
    last = pattern.replace("-", "")[-1:]
    assert found.unrestored == (last == "x")
    assert [gap.unrestored for gap in found.gaps[:-1]] == [False] * len(found.gaps[:-1])
    if found.unrestored:
        assert found.gaps[-1].start_ms + found.gaps[-1].length_ms == len(pattern)


@given(st.text(alphabet=".x", min_size=1, max_size=100), st.integers(0, 10**9))
def test_shifting_the_clock_changes_nothing(pattern: str, shift: int) -> None:
    sent, received = times(pattern)
    moved = [at if at == UNANSWERED else at + shift for at in received]
    end = T0 + len(pattern) * MS
    assert find_gaps(sent, received, T0, end) == find_gaps(
        [at + shift for at in sent], moved, T0 + shift, end + shift
    )
