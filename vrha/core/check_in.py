"""Whether a check-in is believed: the replacement must be the awaited one, and fit to serve."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vrha.model.messages import CheckIn
from vrha.model.runs import Run, RunStatus
from vrha.model.state import RulesDigest, Upstream
from vrha.model.steps import Build


class Refusal(StrEnum):
    """Why a check-in is not believed. The first group says nothing about the replacement."""

    UNKNOWN_RUN = "unknown-run"
    RUN_OVER = "run-over"
    WRONG_EPOCH = "wrong-epoch"
    WRONG_INSTANCE = "wrong-instance"
    WRONG_NODE = "wrong-node"
    WRONG_TOKEN = "wrong-token"

    WRONG_DIGEST = "wrong-digest"
    PORT_NOT_FORWARDING = "port-not-forwarding"
    DNS_SILENT = "dns-silent"
    UPSTREAM_UNREACHABLE = "upstream-unreachable"


@dataclass(frozen=True, slots=True)
class Judgement:
    """`refusal` is None for an accepted check-in."""

    refusal: Refusal | None = None
    detail: str = ""


def build_of(run: Run) -> Build | None:
    """The build whose check-in the run awaits."""
    return next((r.step for r in run.steps if isinstance(r.step, Build)), None)


def judge_sender(run: Run | None, message: CheckIn) -> Judgement:
    """Whether the check-in is the one the run awaits; its token is judged by the store."""
    if run is None:
        return Judgement(Refusal.UNKNOWN_RUN, message.run)
    if run.status is not RunStatus.RUNNING:
        return Judgement(Refusal.RUN_OVER, f"the run is {run.status}")
    build = build_of(run)
    if build is None or build.spec.ref != message.instance or run.router != message.router:
        return Judgement(Refusal.WRONG_INSTANCE, f"{message.instance} of {message.router}")
    if message.epoch != run.epoch:
        return Judgement(Refusal.WRONG_EPOCH, f"{message.epoch}, the run has {run.epoch}")
    if message.node != build.node:
        return Judgement(Refusal.WRONG_NODE, f"{message.node}, expected {build.node}")
    return Judgement()


def judge_self_test(run: Run, message: CheckIn, expected: RulesDigest) -> Judgement:
    """Whether the replacement is fit to serve."""
    test = message.self_test
    build = build_of(run)
    ports = {port.name for port in build.spec.ports} if build else set()
    missing = sorted(ports - set(test.forwarding))
    if test.rules != expected:
        found = f"{test.rules.count} rules, digest {test.rules.digest[:12]}"
        wanted = f"{expected.count} rules, digest {expected.digest[:12]}"
        return Judgement(Refusal.WRONG_DIGEST, f"kernel has {found}; expected {wanted}")
    if missing:
        return Judgement(Refusal.PORT_NOT_FORWARDING, ", ".join(missing))
    if not test.dns_answered:
        return Judgement(Refusal.DNS_SILENT, "dnsmasq did not answer a query")
    if test.upstream is Upstream.UNREACHABLE:
        return Judgement(Refusal.UPSTREAM_UNREACHABLE, "the uplink's gateway does not answer")
    return Judgement()
