"""The rules of one instance for iptables-restore, for hosts that may only have legacy iptables.

Semantics equal those of the nftables renderer; the cost of a packet grows with the number of rules
of the address it is sent to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vrha.model.spec import Address, InstanceSpec, PortRange, Protocol
from vrha.render.nft import rule_tag
from vrha.render.rules import FamilyRules, Forward, Match, rules_of
from vrha.render.templates import render


def iptables_texts(spec: InstanceSpec) -> tuple[str, str]:
    """The texts for `iptables-legacy-restore -w` and `ip6tables-legacy-restore -w`.

    Both hold all four tables, so a load replaces whatever was there; each table is replaced
    atomically, one after the other. Raises InputError.
    """
    rules = rules_of(spec)
    first, second = (_text(family, rules.uplink, rules.tenants) for family in (rules.v4, rules.v6))
    return first, second


def selectors(matches: Iterable[Match], flag: str) -> tuple[str, ...]:
    """Options that select each of `matches`, with a leading space; `flag` is for the far end."""
    found = (
        _selector(match, "" if match.anywhere else f" {flag} {match.remote}") for match in matches
    )
    return tuple(dict.fromkeys(selector for selector in found if selector is not None))


def translations(forward: Forward) -> Iterator[tuple[str, str]]:
    """Destination ports and the target of each DNAT rule that `forward` needs."""
    if forward.ports == forward.private_ports:
        yield _colon(forward.ports), str(forward.private)
        return
    for public, private in forward.each():
        yield str(public), f"{_bracketed(forward.private)}:{private}"


def _text(family: FamilyRules, uplink: str, tenants: tuple[str, ...]) -> str:
    text = render(
        "iptables.j2",
        rules=family,
        uplink=uplink,
        tenants=tenants,
        selectors=selectors,
        translations=translations,
    )
    lines = []
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A "):
            line += f" -m comment --comment {rule_tag(f'{family.version}/{table}', line)}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _selector(match: Match, remote: str) -> str | None:
    if match.protocol is Protocol.ICMP:
        return _icmp_selector(match, remote)
    if match.protocol is Protocol.ANY:
        return remote
    ports = "" if match.whole else f" -m {match.protocol} --dport {_colon(match.ports)}"
    return f"{remote} -p {match.protocol}{ports}"


def _icmp_selector(match: Match, remote: str) -> str | None:
    """iptables selects one type of ICMP or all, never a range.

    A range is what a wider far end left of all types, so all types of this far end mean the same.
    """
    v4 = match.remote.version == 4
    protocol = "icmp" if v4 else "ipv6-icmp"
    if len(match.ports) > 1:
        return f"{remote} -p {protocol}"
    if v4 and match.ports.first == 255:
        # Reserved, and net/netfilter/xt_tcpudp.c takes 255 for all types.
        return None
    option = "-m icmp --icmp-type" if v4 else "-m icmp6 --icmpv6-type"
    return f"{remote} -p {protocol} {option} {match.ports.first}"


def _colon(ports: PortRange) -> str:
    return f"{ports.first}:{ports.last}" if len(ports) > 1 else str(ports.first)


def _bracketed(address: Address) -> str:
    return f"[{address}]" if address.version == 6 else str(address)
