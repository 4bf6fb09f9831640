"""Loading the rules of an instance in one transaction, and reading them back from the kernel.

All functions act on the network namespace of the calling thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vrha.errors import PreconditionError, StepError
from vrha.linux import tools
from vrha.model.spec import Backend, InstanceSpec
from vrha.model.state import RulesDigest
from vrha.render.digest import digest_of_iptables, digest_of_nft, expected_digest
from vrha.render.iptables import iptables_texts
from vrha.render.nft import TABLE, nft_text
from vrha.render.nft_update import nft_update

_LOCK_S = "5"
"""Seconds to wait for the lock of iptables; without the option it waits for ever."""


@dataclass(frozen=True, slots=True)
class RuleTools:
    """Absolute paths of the programs; those of iptables are empty where not installed."""

    nft: str
    restore4: str
    save4: str
    restore6: str
    save6: str


def find_tools() -> RuleTools:
    """Raises PreconditionError `missing-tool:nft`; iptables is optional until it is used."""
    legacy = [
        tools.find(f"{family}tables-legacy-{verb}") or ""
        for family in ("ip", "ip6")
        for verb in ("restore", "save")
    ]
    return RuleTools(tools.need("nft"), *legacy)


def load(found: RuleTools, spec: InstanceSpec, fresh: bool) -> None:
    """Put the rules of `spec` in place of what is there; `fresh` when nothing is.

    Raises StepError `rules-rejected`; then the old rules still stand (per address family with
    iptables). Raises PreconditionError `missing-tool:iptables-legacy-restore`.
    """
    if spec.router.backend is Backend.NFTABLES:
        _feed([found.nft, "-f", "-"], nft_text(spec, fresh))
        return
    _need_legacy(found)
    text4, text6 = iptables_texts(spec)
    _feed([found.restore4, "-w", _LOCK_S], text4)
    _feed([found.restore6, "-w", _LOCK_S], text6)


def change(found: RuleTools, known: Sequence[InstanceSpec], spec: InstanceSpec) -> None:
    """Turn the rules of a live instance into those of `spec`, touching only what differs.

    `known` are the specs that its rules may stand for now; where none of them does, or the result
    is not right, everything is replaced, which may cost a packet. Raises as `load`.
    """
    if spec.router.backend is Backend.NFTABLES:
        present = read_back(found, spec.router.backend)
        old = next((each for each in known if expected_digest(each) == present), None)
        if old is not None:
            text = nft_update(old, spec)
            accepted = not text or tools.run([found.nft, "-f", "-"], text).returncode == 0
            if accepted and read_back(found, spec.router.backend) == expected_digest(spec):
                return
    load(found, spec, fresh=False)


def read_back(found: RuleTools, backend: Backend) -> RulesDigest:
    """Number and digest of the rules that the kernel holds. Raises StepError `rules-unreadable`."""
    if backend is Backend.NFTABLES:
        # Numeric: looking up a name for each element takes as long again.
        return digest_of_nft(_output([found.nft, "-j", "-n", "list", "table", "inet", TABLE]))
    _need_legacy(found)
    return digest_of_iptables(_output([found.save4]), _output([found.save6]))


def _need_legacy(found: RuleTools) -> None:
    if not (found.restore4 and found.save4 and found.restore6 and found.save6):
        raise PreconditionError(
            "missing-tool:iptables-legacy-restore",
            "the router wants backend iptables, and iptables-legacy is not installed",
            "apt-get install iptables, or set the router's backend to nftables.",
        )


def _feed(argv: list[str], text: str) -> None:
    done = tools.run(argv, text)
    if done.returncode != 0:
        raise StepError("rules-rejected", f"{argv[0]} refused the rules: {done.complaint}")


def _output(argv: list[str]) -> str:
    done = tools.run(argv)
    if done.returncode != 0:
        raise StepError("rules-unreadable", f"{' '.join(argv)}: {done.complaint}")
    return done.stdout
