"""Proof that the rules in the kernel are the rules that were rendered.

Every rule carries the hash of its own text as its comment, so rules compare without parsing what a
tool makes of them; elements of sets and maps are compared as values. The digest covers, per chain,
its hook, priority and policy and the tags of its rules in order, and, per set or map, its elements.
What carries no tag of ours counts with its full text, so a rule added by hand always shows. A rule
replaced by hand that keeps the comment of the old one does not: this proves a load, it is no guard
against somebody who is root on the node.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address, summarize_address_range
from typing import Any

from vrha.errors import InputError
from vrha.model.spec import Backend, InstanceSpec
from vrha.model.state import RulesDigest
from vrha.render.iptables import iptables_texts
from vrha.render.nft import TABLE, nft_chains, nft_sets
from vrha.render.rules import rules_of

_PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "srcnat": 100}
_CHAIN = re.compile(r"^\tchain (\S+) \{$")
_HOOK = re.compile(r"^\t\ttype (\w+) hook (\w+) priority (\w+); policy (\w+);$")
_NFT_RULE = re.compile(r'^\t\t.* comment "(vrha:[0-9a-f]{12})"$')
_SAVED_TAG = re.compile(r'--comment "?(vrha:[0-9a-f]{12})"?(?: |$)')
_SAVED_CHAIN = re.compile(r"^:(\S+) (\S+)")


@dataclass(slots=True)
class _Inventory:
    """What is loaded: `chains` by name with head and tags, `sets` by name with elements."""

    heads: dict[str, str] = field(default_factory=dict)
    rules: dict[str, list[str]] = field(default_factory=dict)
    sets: dict[str, list[str]] = field(default_factory=dict)

    def chain(self, name: str, head: str) -> None:
        self.heads[name] = head
        self.rules.setdefault(name, [])

    def rule(self, chain: str, tag: str) -> None:
        self.rules.setdefault(chain, []).append(tag)

    def digest(self) -> RulesDigest:
        hasher = hashlib.sha256()
        for chain, head in sorted(self.heads.items()):
            hasher.update(f"chain {chain} {head}\n".encode())
            hasher.update("".join(f"{tag}\n" for tag in self.rules[chain]).encode())
        for name, elements in sorted(self.sets.items()):
            hasher.update(f"set {name}\n".encode())
            hasher.update("".join(f"{element}\n" for element in sorted(elements)).encode())
        rules = sum(len(tags) for tags in self.rules.values())
        values = sum(len(elements) for elements in self.sets.values())
        return RulesDigest(rules + values, hasher.hexdigest())


def expected_digest(spec: InstanceSpec) -> RulesDigest:
    """The digest of the rules that `spec` asks for, with its backend. Raises InputError."""
    if spec.router.backend is Backend.IPTABLES:
        return digest_of_iptables(*iptables_texts(spec))
    inventory = _Inventory()
    rules = rules_of(spec)
    sets = nft_sets(rules)
    for each in sets:
        inventory.sets[each.name] = list(each.elements)
    chain = ""
    for line in nft_chains(rules, sets).splitlines():
        if found := _CHAIN.match(line):
            chain = found.group(1)
            inventory.chain(chain, "")
        elif found := _HOOK.match(line):
            kind, hook, priority, policy = found.groups()
            inventory.heads[chain] = f"{kind} {hook} {_PRIORITIES[priority]} {policy}"
        elif found := _NFT_RULE.match(line):
            inventory.rule(chain, found.group(1))
    return inventory.digest()


def digest_of_nft(json_text: str) -> RulesDigest:
    """The digest of what `nft -j list table inet vr` printed, with `-n` or without.

    Raises InputError (`rules-unreadable`) on anything that is not such a listing.
    """
    inventory = _Inventory()
    try:
        for item in json.loads(json_text)["nftables"]:
            ((kind, value),) = item.items()
            if value.get("table") == TABLE:
                _take(inventory, kind, value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("rules-unreadable", f"not a listing of nftables: {error!r}") from error
    return inventory.digest()


def digest_of_iptables(save_v4: str, save_v6: str) -> RulesDigest:
    """The digest of what iptables-legacy-save and ip6tables-legacy-save printed.

    Built-in chains that hold nothing and accept are left out: the kernel makes them by itself.
    """
    inventory = _Inventory()
    for version, text in (("4", save_v4), ("6", save_v6)):
        table = ""
        for line in text.splitlines():
            if line.startswith("*"):
                table = f"{version}/{line[1:].strip()}"
            elif found := _SAVED_CHAIN.match(line):
                inventory.chain(f"{table}/{found.group(1)}", found.group(2))
            elif line.startswith("-A "):
                tag = _SAVED_TAG.search(line)
                inventory.rule(f"{table}/{line.split(' ', 2)[1]}", tag.group(1) if tag else line)
    for chain, head in list(inventory.heads.items()):
        if head == "ACCEPT" and not inventory.rules[chain]:
            del inventory.heads[chain]
    return inventory.digest()


def _take(inventory: _Inventory, kind: str, value: dict[str, Any]) -> None:
    if kind == "chain":
        base = "type" in value
        keys = ("type", "hook", "prio", "policy")
        inventory.chain(value["name"], " ".join(str(value[key]) for key in keys) if base else "")
    elif kind == "rule":
        tag = str(value.get("comment", ""))
        text = tag if tag.startswith("vrha:") else json.dumps(value["expr"])
        inventory.rule(value["chain"], text)
    elif kind in ("set", "map"):
        inventory.sets[value["name"]] = _elements(value)
    else:
        inventory.sets[f"{kind} {value.get('name', '')}"] = [json.dumps(value, sort_keys=True)]


def _elements(value: dict[str, Any]) -> list[str]:
    """The elements of a set or map in the form in which the renderer writes them."""
    kinds = value["type"] if isinstance(value["type"], list) else [value["type"]]
    readers = [_READERS.get(kind, str) for kind in kinds]
    data = [_READERS.get(kind, str) for kind in value.get("map", "").split(" . ")]
    found = value.get("elem", [])
    if "map" in value:
        return [f"{_tuple(key, readers)} : {_tuple(target, data)}" for key, target in found]
    return [_tuple(element, readers) for element in found]


def _tuple(element: Any, readers: list[Callable[[Any], str]]) -> str:
    if isinstance(element, dict) and "elem" in element:
        element = element["elem"]["val"]
    parts = element["concat"] if isinstance(element, dict) and "concat" in element else [element]
    return " . ".join(_value(part, read) for part, read in zip(parts, readers, strict=True))


def _value(value: Any, read: Callable[[Any], str]) -> str:
    if not isinstance(value, dict):
        return read(value)
    if "prefix" in value:
        return f"{read(value['prefix']['addr'])}/{value['prefix']['len']}"
    first, last = (read(end) for end in value["range"])
    if read is _address:
        return " ".join(map(str, summarize_address_range(ip_address(first), ip_address(last))))
    return first if first == last else f"{first}-{last}"


def _address(value: Any) -> str:
    text = str(value)
    # inet_ntop(3) writes some IPv6 addresses with a dotted tail, the ipaddress module does not.
    return str(ip_address(text)) if ":" in text and "." in text else text


def _protocol(value: Any) -> str:
    return {"6": "tcp", "17": "udp"}.get(str(value), str(value))


def _icmp(value: Any) -> str:
    return _ICMP.get(str(value), str(value))


def _icmpv6(value: Any) -> str:
    return _ICMPV6.get(str(value), str(value))


_READERS: dict[str, Callable[[Any], str]] = {
    "ipv4_addr": _address,
    "ipv6_addr": _address,
    "inet_proto": _protocol,
    "icmp_type": _icmp,
    "icmpv6_type": _icmpv6,
}

# nftables src/proto.c: names that a listing uses instead of numbers.
_ICMP = {
    "echo-reply": "0",
    "destination-unreachable": "3",
    "source-quench": "4",
    "redirect": "5",
    "echo-request": "8",
    "router-advertisement": "9",
    "router-solicitation": "10",
    "time-exceeded": "11",
    "parameter-problem": "12",
    "timestamp-request": "13",
    "timestamp-reply": "14",
    "info-request": "15",
    "info-reply": "16",
    "address-mask-request": "17",
    "address-mask-reply": "18",
}
_ICMPV6 = {
    "destination-unreachable": "1",
    "packet-too-big": "2",
    "time-exceeded": "3",
    "parameter-problem": "4",
    "echo-request": "128",
    "echo-reply": "129",
    "mld-listener-query": "130",
    "mld-listener-report": "131",
    "mld-listener-done": "132",
    "mld-listener-reduction": "132",
    "nd-router-solicit": "133",
    "nd-router-advert": "134",
    "nd-neighbor-solicit": "135",
    "nd-neighbor-advert": "136",
    "nd-redirect": "137",
    "router-renumbering": "138",
    "ind-neighbor-solicit": "141",
    "ind-neighbor-advert": "142",
    "mld2-listener-report": "143",
}
