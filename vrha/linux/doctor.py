"""Whether this machine can run vrha: tried out in a throw-away namespace, not looked up.

Nothing is changed outside that namespace, which vanishes with the thread that made it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vrha.core.ownership.timing import PROFILES, Timing, problems
from vrha.errors import VrhaError
from vrha.linux import sysctls, tools

NEIGHBOURS = 4096
"""Neighbour entries that a node should be able to hold: one table for all its namespaces."""
CONNECTIONS = 65536
"""Tracked connections that a node should be able to hold, all its routers together."""
_TRIAL_S = 30.0
_CLONE_NEWNET = 0x40000000

_RULES = """\
table inet vr {
    map forward { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
    set open { type ipv4_addr . ipv4_addr; flags interval; }
    chain dstnat {
        type nat hook prerouting priority dstnat;
        dnat ip to ip daddr . meta l4proto . th dport map @forward
    }
    chain forward {
        type filter hook forward priority filter;
        ct state established,related accept
        ip saddr . ip daddr @open accept
    }
}
"""
_BRIDGE_RULES = """\
table bridge vrha {
    set active { type ifname; }
    chain from_instances {
        type filter hook prerouting priority -300;
        iifname "vrh*" iifname != @active drop
    }
}
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at; `hint` says how to get it where it is not `ok`."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class _Trial:
    name: str
    try_out: Callable[[], None]
    works: str
    hint: str


def checks() -> tuple[Check, ...]:
    """All checks, in the order in which they should be mended. Takes about 0.1 s."""
    root = os.geteuid() == 0
    found = [Check("root", root, f"user id {os.geteuid()}", "Run it by sudo.")]
    found += [_tool("nft"), _tool("dnsmasq")]
    if root:
        found += _in_throw_away_namespace(_TRIALS)
    else:
        found += [Check(t.name, False, "not tried: needs root", "Run it by sudo.") for t in _TRIALS]
    found += [
        _at_least(
            "neighbours",
            "/proc/sys/net/ipv4/neigh/default/gc_thresh3",
            NEIGHBOURS,
            "sysctl -w net.ipv4.neigh.default.gc_thresh3",
            required=False,
        ),
        _at_least(
            "connections",
            "/proc/sys/net/netfilter/nf_conntrack_max",
            CONNECTIONS,
            "sysctl -w net.netfilter.nf_conntrack_max",
            required=True,
        ),
        _optional("iptables-legacy-restore", "routers with backend iptables"),
        _optional("ip", "labs"),
        _optional("conntrack", "looking at tracked connections"),
        _optional("rabbitmq-server", "a broker on this machine"),
        *(_profile(name, timing) for name, timing in PROFILES.items()),
    ]
    return tuple(found)


def _tool(name: str) -> Check:
    path = tools.find(name)
    hint = f"apt-get install {tools.PACKAGE_OF[name]}"
    return Check(name, path is not None, path or "not installed", hint)


def _profile(name: str, timing: Timing) -> Check:
    detail = (
        f"lease {timing.lease_ms:g} ms, renewed every {timing.renew_ms:g} ms, slices of "
        f"{timing.slice_ms:g} ms; routers of a lost node are out for {timing.worst_outage_ms:.0f}"
        " ms at most"
    )
    wrong = tuple(problems(timing))
    return Check(f"lease profile {name}", not wrong, "; ".join(wrong) or detail)


def _optional(name: str, purpose: str) -> Check:
    path = tools.find(name)
    missing = f"not installed; only for {purpose} (apt-get install {tools.PACKAGE_OF[name]})"
    return Check(name, True, path or missing)


def _at_least(name: str, path: str, wanted: int, command: str, required: bool) -> Check:
    try:
        value = int(Path(path).read_text())
    except (OSError, ValueError):
        # The neighbour table belongs to the machine's first namespace and shows only there.
        return Check(name, not required, f"{path} cannot be read here", "modprobe nf_conntrack")
    detail = f"room for {value}"
    if value < wanted:
        detail += f"; better {wanted} or more: {command}={wanted}"
    return Check(name, value >= wanted or not required, detail, f"{command}={wanted}")


def _in_throw_away_namespace(trials: tuple[_Trial, ...]) -> list[Check]:
    found: list[Check] = []

    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            detail = os.strerror(ctypes.get_errno())
            hint = "The kernel needs CONFIG_NET_NS; in a container also CAP_SYS_ADMIN."
            found.append(Check("namespaces", False, detail, hint))
            return
        found.append(Check("namespaces", True, "a network namespace can be made"))
        found.extend(_try(trial) for trial in trials)

    thread = threading.Thread(target=work, name="doctor", daemon=True)
    thread.start()
    thread.join(_TRIAL_S)
    if thread.is_alive():
        found.append(Check("trial", False, f"not finished within {_TRIAL_S:g} s", "See dmesg."))
    return found


def _try(trial: _Trial) -> Check:
    try:
        trial.try_out()
    except VrhaError as error:
        return Check(trial.name, False, error.message, error.hint or trial.hint)
    except (OSError, NetlinkError) as error:
        return Check(trial.name, False, str(error), trial.hint)
    return Check(trial.name, True, trial.works)


def _load(rules: str) -> Callable[[], None]:
    def load() -> None:
        done = tools.run([tools.need("nft"), "-f", "-"], rules)
        if done.returncode != 0:
            raise OSError(done.complaint)

    return load


def _bridge_with_port() -> None:
    with IPRoute() as kernel:
        kernel.link("add", ifname="br-doctor", kind="bridge")
        kernel.link("add", ifname="vrhdoctor-n0", kind="veth", peer={"ifname": "n0"})
        bridge = kernel.link_lookup(ifname="br-doctor")[0]
        port = kernel.link_lookup(ifname="vrhdoctor-n0")[0]
        kernel.link("set", index=port, master=bridge)


_TRIALS = (
    _Trial(
        "ip_forward",
        lambda: sysctls.apply(sysctls.INSTANCE),
        "kernel parameters of a namespace can be written",
        "/proc/sys must be writable: in a container, run it privileged.",
    ),
    _Trial(
        "bridge",
        _bridge_with_port,
        "a bridge with a veth port can be made",
        "modprobe bridge veth",
    ),
    _Trial(
        "nf_tables",
        _load(_RULES),
        "NAT, connection tracking, maps and interval sets load",
        "modprobe nf_tables nft_chain_nat nft_ct nf_conntrack; a kernel with CONFIG_NF_TABLES_INET",
    ),
    _Trial(
        "nf_tables_bridge",
        _load(_BRIDGE_RULES),
        "rules for frames on bridges load",
        "modprobe nf_tables_bridge; a kernel with CONFIG_NF_TABLES_BRIDGE",
    ),
    _Trial(
        "conntrack-events",
        lambda: sysctls.apply(sysctls.CONNTRACK),
        "events of tracked connections can be switched on",
        "modprobe nf_conntrack; a kernel with CONFIG_NF_CONNTRACK_EVENTS",
    ),
)
