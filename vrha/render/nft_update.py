"""From one ruleset to the next without touching what stays.

Replacing the whole table loses a packet now and then: a rule of the old generation that looks up
a set at the very moment of the commit finds its elements gone already. Sets and chains that do
not change are therefore left alone, and of changed sets only the elements that differ move.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vrha.model.spec import InstanceSpec
from vrha.render.nft import TABLE, NftSet, nft_chains, nft_sets
from vrha.render.rules import rules_of

_CHAIN = re.compile(r"\tchain (?P<name>\S+) \{\n(?P<body>.*?)\t\}\n", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Ruleset:
    sets: dict[str, NftSet]
    chains: dict[str, tuple[str, ...]]
    """Lines of each chain; the first one of a base chain is its hook."""


def nft_update(old: InstanceSpec, new: InstanceSpec) -> str:
    """The text for `nft -f -` that makes table `inet vr` of `old` that of `new`, atomically.

    Empty when the two do not differ. The kernel refuses it as a whole when the table is not what
    `old` describes. Raises InputError.
    """
    was, now = _ruleset(old), _ruleset(new)
    added = [s for name, s in now.sets.items() if name not in was.sets]
    gone = [s for name, s in was.sets.items() if name not in now.sets]
    changed = {name for name, lines in now.chains.items() if was.chains.get(name) != lines}
    dropped = [name for name in was.chains if name not in now.chains]
    lines = [_declaration(each) for each in added]
    lines += [line for name, each in now.sets.items() for line in _moves(was.sets.get(name), each)]
    lines += [_chain(name, now.chains[name]) for name in changed if name not in was.chains]
    # Rules go before the chains and sets that they refer to.
    lines += [f"flush chain inet {TABLE} {name}" for name in (*sorted(changed), *dropped)]
    lines += [f"delete chain inet {TABLE} {name}" for name in dropped]
    lines += [
        f"add rule inet {TABLE} {name} {rule}"
        for name in sorted(changed)
        for rule in _rules(now.chains[name])
    ]
    lines += [f"delete {each.noun} inet {TABLE} {each.name}" for each in gone]
    return "".join(f"{line}\n" for line in lines)


def _ruleset(spec: InstanceSpec) -> _Ruleset:
    rules = rules_of(spec)
    sets = nft_sets(rules)
    found = {
        match["name"]: tuple(line.strip() for line in match["body"].splitlines())
        for match in _CHAIN.finditer(nft_chains(rules, sets))
    }
    return _Ruleset({each.name: each for each in sets}, found)


def _declaration(each: NftSet) -> str:
    flags = " flags interval;" if each.interval else ""
    return f"add {each.noun} inet {TABLE} {each.name} {{ type {each.type};{flags} }}"


def _moves(was: NftSet | None, now: NftSet) -> list[str]:
    """Elements that leave and that come; those that stay are not mentioned."""
    before = was.elements if was else ()
    present, wanted = set(before), set(now.elements)
    moves = []
    for verb, elements in (
        ("delete", [e for e in before if e not in wanted]),
        ("add", [e for e in now.elements if e not in present]),
    ):
        if elements:
            moves.append(f"{verb} element inet {TABLE} {now.name} {{ {', '.join(elements)} }}")
    return moves


def _chain(name: str, lines: tuple[str, ...]) -> str:
    hook = "".join(line for line in lines if line.startswith("type "))
    return f"add chain inet {TABLE} {name}" + (f" {{ {hook} }}" if hook else "")


def _rules(lines: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(line for line in lines if not line.startswith("type "))
