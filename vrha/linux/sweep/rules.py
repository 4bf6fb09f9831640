"""Chains, rules and tables of an agent in the node's own iptables, ip6tables and nftables.

Agents have those of their namespaces inside them, which go with the namespace; what is looked for
here lies beside other people's rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from vrha.core.cleanup.items import Item, Kind, Outcome, Result
from vrha.errors import VrhaError
from vrha.linux import nftwire
from vrha.linux.netlink import Netlink
from vrha.linux.sweep import legacyrules, nftrules
from vrha.linux.sweep.chains import Choose, Content, Doomed, chosen_by, owners
from vrha.linux.sweep.legacyrules import Legacy
from vrha.linux.sweep.site import Site

_NFT, _LEGACY = "nft", "legacy"
_PROGRAMS = {4: "iptables", 6: "ip6tables"}
_TABLES: Final = frozenset(("filter", "nat", "mangle", "raw", "security"))
"""Those of iptables; other tables of nftables are nobody's but their maker's."""


def find(at: Site) -> list[Item]:
    """One item for each table and owner that has chains in it. Raises StepError."""
    return [
        _item(variant, version, table, owner, _doomed(at, owner, content))
        for variant, version, table, content in _contents(at)
        for owner in owners(content, at.profile.chain_owner)
    ]


def remove(at: Site, items: Sequence[Item]) -> Iterator[Outcome]:
    """Each table in one transaction, in which all other rules stay as they are."""
    legacy = legacyrules.best() if any(i.detail["variant"] == _LEGACY for i in items) else None
    with Netlink(nftwire.NETLINK_NETFILTER) as netlink:
        for item in items:
            try:
                gone = _remove(at, item, netlink, legacy)
            except VrhaError as error:
                yield Outcome(item, Result.FAILED, error.message)
            else:
                yield Outcome(item, Result.REMOVED if gone else Result.GONE)


def _remove(at: Site, item: Item, netlink: Netlink, legacy: Legacy | None) -> Doomed:
    version, table = item.number("version"), str(item.detail["table"])
    choose = _choose(at, item.owner)
    if legacy is not None and item.detail["variant"] == _LEGACY:
        return legacy.delete(version, table, choose)
    return nftrules.delete(netlink, version, table, choose)


def _contents(at: Site) -> Iterator[tuple[str, int, str, Content]]:
    with Netlink(nftwire.NETLINK_NETFILTER) as netlink:
        for version in _PROGRAMS:
            found: Mapping[str, Content] = nftrules.contents(netlink, version)
            for table, content in sorted(found.items()):
                if table in _TABLES:
                    yield _NFT, version, table, content
    legacy: Legacy | None = None
    for version in _PROGRAMS:
        for table in legacyrules.tables(version):
            legacy = legacy or legacyrules.best()
            yield _LEGACY, version, table, legacy.content(version, table)


def _choose(at: Site, owner: str) -> Choose:
    return lambda content: _doomed(at, owner, content)


def _doomed(at: Site, owner: str, content: Content) -> Doomed:
    return chosen_by(content, at.profile.chain_owner, owner, at.profile.shared_chains)


def _item(variant: str, version: int, table: str, owner: str, chosen: Doomed) -> Item:
    return Item(
        Kind.RULES,
        f"{_PROGRAMS[version]}-{variant} -t {table}: {owner}",
        owner,
        f"chains {', '.join(chosen.chains)}",
        {
            "variant": variant,
            "version": version,
            "table": table,
            "chains": len(chosen.chains),
            "rules": len(chosen.rules),
        },
    )
