"""Chains and rules as Neutron's agents make them, in both kinds of iptables, beside others'."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence

PROGRAMS = tuple(
    f"{family}tables-{variant}" for variant in ("nft", "legacy") for family in ("ip", "ip6")
)
_BASE = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
}
_AGENT_CHAINS = {
    "filter": ("FORWARD", "INPUT", "OUTPUT", "local", "scope"),
    "nat": ("OUTPUT", "POSTROUTING", "PREROUTING", "float-snat", "snat"),
    "mangle": ("FORWARD", "INPUT", "OUTPUT", "POSTROUTING", "PREROUTING", "mark", "scope"),
    "raw": ("OUTPUT", "PREROUTING"),
}
_SHARED = {"filter": "neutron-filter-top", "nat": "neutron-postrouting-bottom"}
_L2, _L3, _DHCP = "neutron-openvswi-", "neutron-l3-agent-", "neutron-dhcp-age-"


def load_foreign() -> None:
    """An administrator's rules, and with iptables-nft those of a living L2 agent."""
    subprocess.run(["ipset", "create", "NIPv4blue", "hash:ip"], check=True, timeout=10)
    for program in PROGRAMS:
        address = "fd00::/8" if program.startswith("ip6") else "10.0.0.0/8"
        texts = {
            "filter": [
                ":blue - [0:0]",
                f"-A FORWARD -s {address} -p tcp -m multiport --dports 80,443 -j ACCEPT",
                '-A FORWARD -i eth9 -m comment --comment "to neutron-l3-agent-FORWARD" -j blue',
                "-A blue -p udp -m limit --limit 5/sec -m conntrack --ctstate NEW -j RETURN",
                "-A INPUT -i lo -m state --state RELATED,ESTABLISHED -g blue",
                ":neutron-l3-agents - [0:0]",
                "-A OUTPUT -m mark --mark 0x1/0xff -j neutron-l3-agents",
            ],
            "nat": [f"-A POSTROUTING -s {address} -o eth9 -j MASQUERADE --random-fully"],
            "mangle": ["-A PREROUTING -i eth9 -j MARK --set-xmark 0x7/0xffff"],
            "raw": ["-A PREROUTING -i eth8 -j CT --zone 7"],
        }
        if program == "iptables-nft":
            texts["filter"].append("-A INPUT -m set --match-set NIPv4blue src -j DROP")
        if program.endswith("nft"):
            _add(texts, _owned(_L2))
        _restore(program, texts)


def load_agents() -> None:
    """Those of the L3 and the DHCP agent, each jump before the others' rules."""
    for program in PROGRAMS:
        texts: dict[str, list[str]] = {}
        for prefix in (_L3, _DHCP):
            _add(texts, _owned(prefix))
        texts["nat"].append(f"-A {_L3}snat -o qg-1 -j {_L3}float-snat")
        texts["filter"].append(
            "-I FORWARD 2 -m physdev --physdev-is-bridged -g neutron-l3-agent-local"
        )
        _restore(program, texts)


def load_inside(namespace: str) -> None:
    """A little of what a router has inside: a floating IP, SNAT, metadata."""
    texts = _owned(_L3)
    texts["nat"] += [
        f"-A {_L3}PREROUTING -d 203.0.113.10/32 -j DNAT --to-destination 10.1.1.50",
        f"-A {_L3}PREROUTING -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j REDIRECT"
        " --to-ports 9697",
        f"-A {_L3}snat -o qg-1 -j SNAT --to-source 203.0.113.9 --random-fully",
    ]
    _restore("iptables-nft", texts, ("ip", "netns", "exec", namespace))


def dump() -> dict[str, str]:
    """All rules of the calling thread's namespace by program, without dates and counters."""
    texts = {program: _output(f"{program}-save") for program in PROGRAMS}
    texts["nft"] = _output("nft", "list", "ruleset")
    return {
        name: re.sub(r"^#.*\n|\[\d+:\d+\]|packets \d+ bytes \d+", "", text, flags=re.MULTILINE)
        for name, text in texts.items()
    }


def _owned(prefix: str) -> dict[str, list[str]]:
    """Chains of one agent, with the jumps to them from the built-in and the shared ones."""
    texts: dict[str, list[str]] = {}
    for table, names in _AGENT_CHAINS.items():
        lines = [f":{prefix}{name} - [0:0]" for name in names]
        lines += [f"-I {name} -j {prefix}{name}" for name in names if name in _BASE[table]]
        if table in _SHARED:
            shared = _SHARED[table]
            last = "local" if table == "filter" else "snat"
            lines += [f":{shared} - [0:0]", f"-A {shared} -j {prefix}{last}"]
        texts[table] = lines
    return texts


def _add(texts: dict[str, list[str]], more: Mapping[str, Sequence[str]]) -> None:
    for table, lines in more.items():
        texts.setdefault(table, []).extend(lines)


def _restore(program: str, texts: Mapping[str, Sequence[str]], before: Sequence[str] = ()) -> None:
    parts = []
    for table, lines in texts.items():
        # A shared chain that is there already would be emptied by naming it once more.
        lines = list(dict.fromkeys(lines))
        shared = _SHARED.get(table)
        if shared and any(line.startswith(f":{shared} ") for line in lines):
            built_in = "FORWARD" if table == "filter" else "POSTROUTING"
            asked = [*before, program, "-w", "5", "-t", table, "-S", shared]
            known = subprocess.run(asked, capture_output=True, timeout=30).returncode == 0
            if known:
                lines = [line for line in lines if not line.startswith(f":{shared} ")]
            else:
                lines.append(f"-A {built_in} -j {shared}")
        parts += [f"*{table}", *sorted(lines, key=lambda line: not line.startswith(":")), "COMMIT"]
    done = subprocess.run(
        [*before, f"{program}-restore", "--noflush"],
        input="\n".join((*parts, "")), capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, f"{program}: {done.stderr}"


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout
