"""Chains and rules of `iptables-nft` in the tables of the calling thread's network namespace.

They are read and deleted over netlink, rules by their handle, which the kernel gives out only once
in a table: what else is in a table is neither parsed nor written again, as a restore would do.
Formats: include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence

from vrha.errors import StepError
from vrha.linux import nftwire
from vrha.linux.netlink import (
    NLM_F_DUMP,
    Message,
    Netlink,
    NetlinkError,
    attr,
    attributes,
    each_attribute,
    text,
)
from vrha.linux.sweep.chains import Chain, Choose, Content, Doomed, Rule

FAMILIES = {4: 2, 6: 10}
"""NFPROTO_IPV4 and NFPROTO_IPV6 by version of the address family."""

_ATTEMPTS = 3
_GETRULE, _DELRULE, _DELCHAIN = 7, 8, 5
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK = 1, 3, 4
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS = 1, 2, 3, 4
_EXPR_NAME, _EXPR_DATA, _IMMEDIATE_DATA, _DATA_VERDICT, _VERDICT_CHAIN = 1, 2, 2, 2, 2


def contents(netlink: Netlink, version: int) -> dict[str, Content]:
    """Chains and rules by table of one address family.

    Raises StepError `rules-unreadable`. A kernel without nftables has none.
    """
    family = FAMILIES[version]
    header = struct.pack("!BBH", family, 0, 0)
    found: dict[str, Content] = {}
    try:
        for body in netlink.ask(nftwire.kind(nftwire.GETCHAIN), header, NLM_F_DUMP):
            fields = attributes(body[4:])
            table = found.setdefault(_name(fields[_CHAIN_TABLE]), Content([], []))
            table.chains.append(Chain(_name(fields[_CHAIN_NAME]), _CHAIN_HOOK in fields))
        for body in netlink.ask(nftwire.kind(_GETRULE), header, NLM_F_DUMP):
            fields = attributes(body[4:])
            table = found.setdefault(_name(fields[_RULE_TABLE]), Content([], []))
            place = int.from_bytes(fields[_RULE_HANDLE], "big")
            target = _target(fields.get(_RULE_EXPRESSIONS, b""))
            table.rules.append(Rule(_name(fields[_RULE_CHAIN]), place, target))
    except NetlinkError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT):
            return {}
        raise StepError(
            "rules-unreadable", f"the kernel does not show its nftables rules: {error.strerror}"
        ) from error
    return found


def delete(netlink: Netlink, version: int, table: str, choose: Choose) -> Doomed:
    """Delete what `choose` says of the table in one transaction: all of it or nothing.

    What it was is returned. Raises StepError `rules-unreadable`, `rules-rejected`.
    """
    for attempt in range(_ATTEMPTS):
        content = contents(netlink, version).get(table)
        chosen = choose(content) if content is not None else Doomed((), ())
        if not chosen:
            return chosen
        try:
            netlink.talk(nftwire.transaction(*_messages(version, table, chosen)))
            return chosen
        except NetlinkError as error:
            # Somebody was quicker with one of them, so that the kernel refused them all.
            if error.errno not in (errno.ENOENT, errno.EAGAIN) or attempt + 1 == _ATTEMPTS:
                raise StepError(
                    "rules-rejected",
                    f"the kernel does not delete the chains of table {table}: {error.strerror}",
                    "`nft -a list ruleset` shows what still leads to them.",
                ) from error
    raise AssertionError("unreachable")


def _messages(version: int, table: str, chosen: Doomed) -> Iterator[Message]:
    header = struct.pack("!BBH", FAMILIES[version], 0, 0)
    for rule in chosen.rules:
        body = text(_RULE_TABLE, table) + text(_RULE_CHAIN, rule.chain)
        body += attr(_RULE_HANDLE, struct.pack("!Q", rule.place))
        yield Message(nftwire.kind(_DELRULE), 0, header + body)
    for chain in chosen.chains:
        # Without a handle: all rules of the chain.
        body = text(_RULE_TABLE, table) + text(_RULE_CHAIN, chain)
        yield Message(nftwire.kind(_DELRULE), 0, header + body)
    for chain in chosen.chains:
        body = text(_CHAIN_TABLE, table) + text(_CHAIN_NAME, chain)
        yield Message(nftwire.kind(_DELCHAIN), 0, header + body)


def _target(expressions: bytes) -> str:
    """The chain that a rule jumps or goes to, or empty."""
    for _, expression in each_attribute(expressions):
        fields = attributes(expression)
        if _name(fields.get(_EXPR_NAME, b"")) == "immediate":
            for verdict in _below(fields.get(_EXPR_DATA, b""), (_IMMEDIATE_DATA, _DATA_VERDICT)):
                return _name(attributes(verdict).get(_VERDICT_CHAIN, b""))
    return ""


def _below(data: bytes, path: Sequence[int]) -> Iterator[bytes]:
    for kind in path:
        fields = attributes(data)
        if kind not in fields:
            return
        data = fields[kind]
    yield data


def _name(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="surrogateescape")
