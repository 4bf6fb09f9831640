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


def selectors(matches: Iterable[Match], flag: str) -> Iterator[str]:
    """Options that select each of `matches`, with a leading space; `flag` is for the far end.

    ICMP selects one type or all, never a range, so a range becomes one selector per type.
    """
    for match in matches:
        remote = "" if match.anywhere else f" {flag} {match.remote}"
        if match.protocol is Protocol.ICMP:
            yield from _icmp_selectors(match, remote)
        elif match.protocol is Protocol.ANY:
            yield remote
        else:
            ports = "" if match.whole else f" -m {match.protocol} --dport {_colon(match.ports)}"
            yield f"{remote} -p {match.protocol}{ports}"


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


def _icmp_selectors(match: Match, remote: str) -> Iterator[str]:
    v4 = match.remote.version == 4
    protocol = "icmp" if v4 else "ipv6-icmp"
    option = "-m icmp --icmp-type" if v4 else "-m icmp6 --icmpv6-type"
    if match.whole:
        yield f"{remote} -p {protocol}"
        return
    for number in range(match.ports.first, match.ports.last + 1):
        # In IPv4 type 255 (reserved) would select all types: net/ipv4/netfilter/ip_tables.c.
        if not (v4 and number == 255):
            yield f"{remote} -p {protocol} {option} {number}"


def _colon(ports: PortRange) -> str:
    return f"{ports.first}:{ports.last}" if len(ports) > 1 else str(ports.first)


def _bracketed(address: Address) -> str:
    return f"[{address}]" if address.version == 6 else str(address)
