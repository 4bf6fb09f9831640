"""The tests notice when a rule of the handover is broken: each row is a way to break one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ("tests/unit/core/test_handover.py",)
RUN = ("tests/unit/core/test_run.py", "-k", "not any_order and not reachable")
WORLD = ("tests/unit/orchestrator/test_handover.py", "-k")

MUTANTS: list[tuple[str, str, str, str, tuple[str, ...]]] = [
    (
        "the new one is not silenced before the old one speaks again",
        "vrha.core.steps",
        "return (Relay(node, new), Unmute(other, old), Announce(other, old))",
        "return (Unmute(other, old), Announce(other, old), Relay(node, new))",
        CORE,
    ),
    (
        "a flip is not taken back",
        "vrha.core.steps",
        "return (Flip(node, new, old),)",
        "return ()",
        CORE,
    ),
    (
        "a flip is taken back the wrong way round",
        "vrha.core.steps",
        "return (Flip(node, new, old),)",
        "return (Flip(node, old, new),)",
        CORE,
    ),
    (
        "destroyed before it is verified",
        "vrha.core.plan",
        "        Verify(node, old, new, way.max_lost),\n        Destroy(node, old),\n",
        "        Destroy(node, old),\n        Verify(node, old, new, way.max_lost),\n",
        CORE,
    ),
    (
        "flipped before it is synced",
        "vrha.core.plan",
        "        Sync(node, old, new, way.old_peer),\n"
        "        Flip(node, old, new, from_peer=live.node),\n",
        "        Flip(node, old, new, from_peer=live.node),\n"
        "        Sync(node, old, new, way.old_peer),\n",
        CORE,
    ),
    (
        "the point of no return is one step early",
        "vrha.core.plan",
        "else len(steps) - 1",
        "else len(steps) - 2",
        CORE,
    ),
    (
        "the point of no return is one step late",
        "vrha.core.plan",
        "else len(steps) - 1",
        "else len(steps)",
        CORE,
    ),
    (
        "the point of no return is passed when it is done, not when it is sent",
        "vrha.core.run",
        "any(r.attempt > 0 for r in run.steps if r.seq >= point)",
        "any(r.attempt > 0 for r in run.steps if r.seq > point)",
        CORE,
    ),
    (
        "others speak although a relay is not confirmed",
        "vrha.core.run",
        "case Mute() | Relay(), Unmute",
        "case Mute(), Unmute",
        CORE,
    ),
    (
        "others speak although a mute is not confirmed",
        "vrha.core.run",
        "case Mute() | Relay(), Unmute",
        "case Relay(), Unmute",
        RUN,
    ),
    (
        "what is gone counts as not silenced",
        "vrha.core.run",
        "and not is_gone(records, given_up)",
        "",
        CORE,
    ),
    (
        "a destroy that was only sent counts as gone",
        "vrha.core.outcome",
        "        and r.status is StepStatus.DONE\n",
        "",
        CORE,
    ),
    (
        "the new one goes after a flip back that is not confirmed",
        "vrha.core.run",
        "case Swap() | Flip(), Destroy",
        "case Swap(), Destroy",
        CORE,
    ),
    (
        "the new one goes after an unmute that is not confirmed",
        "vrha.core.run",
        "if other != given_up.instance:\n                    barred",
        "if other == given_up.instance:\n                    barred",
        CORE,
    ),
    (
        "a flip back that is not confirmed leaves no doubt",
        "vrha.core.outcome",
        "Build | Swap | Flip | Unmute)",
        "Build | Swap | Unmute)",
        CORE,
    ),
    (
        "a relay that is not confirmed leaves no doubt",
        "vrha.core.outcome",
        "isinstance(record.step, Mute | Relay)",
        "isinstance(record.step, Mute)",
        CORE,
    ),
    (
        "a sync is sent together with what follows",
        "vrha.core.run",
        " or isinstance(batch[-1].step, Sync)",
        "",
        CORE,
    ),
    (
        "a sync has no longer than any step",
        "vrha.core.happenings",
        "self.sync_s if isinstance(step, Sync) else self.step_s",
        "self.step_s",
        CORE,
    ),
    (
        "a destroy in doubt may come late",
        "vrha.core.run",
        "return in_doubt and",
        "return False and",
        CORE,
    ),
    (
        "what can be taken back never expires",
        "vrha.core.run",
        "return not _no_way_back(run)",
        "return False",
        CORE,
    ),
    (
        "secrets are kept",
        "vrha.core.steps",
        "        case Sync(peer=peer) if peer is not None:\n"
        '            return replace(step, peer=replace(peer, certificate="", token=""))\n',
        "",
        CORE,
    ),
    (
        "a replacement on the same node has MACs of its own",
        "vrha.orchestrator.reconcile",
        "if way.strategy is Strategy.HANDOVER and node == live.node:",
        "if False:",
        (*WORLD, "same_macs"),
    ),
    (
        "a replacement on another node has the MACs of the old one",
        "vrha.orchestrator.reconcile",
        "if way.strategy is Strategy.HANDOVER and node == live.node:",
        "if way.strategy is Strategy.HANDOVER:",
        (*WORLD, "macs_of_its_own"),
    ),
    (
        "others are not silenced when the owner is unknown",
        "vrha.orchestrator.reconcile",
        "        way = replace(way, silence=_others(tx, desired, state, live))\n",
        "        pass\n",
        (*WORLD, "late"),
    ),
    (
        "a relay counts as an owner",
        "vrha.orchestrator.reconcile",
        "not in (Activity.MUTED, Activity.RELAY)",
        "is not Activity.MUTED",
        (*WORLD, "needs_to_know_who_serves"),
    ),
    (
        "a handover although the owner is unknown",
        "vrha.orchestrator.reconcile",
        "if is_unsettled(state) and choice.strategy is Strategy.HANDOVER:",
        "if False:",
        (*WORLD, "needs_to_know_who_serves"),
    ),
]


# Each of them is a process of its own: every other one is left to `tools/test --long`.
@pytest.mark.parametrize(
    ("module", "old", "new", "tests"),
    [
        pytest.param(*mutant[1:], id=mutant[0], marks=[pytest.mark.long] if place % 2 else [])
        for place, mutant in enumerate(MUTANTS)
    ],
)
def test_it_is_noticed_when(module: str, old: str, new: str, tests: tuple[str, ...]) -> None:
    argv = [sys.executable, "-m", "tests.unit.mutant", module, old, new, *tests]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert " failed" in done.stdout
