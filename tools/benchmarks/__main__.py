"""`./tools/bench NAME`: runs one measurement, prints its table, writes its raw values."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from pathlib import Path
from types import FrameType, ModuleType

from tools.benchmarks import report
from vrha.errors import VrhaError

NAMES = {
    "restart": "lost probes of `restart network with cleanup`, by strategy",
    "move": "lost probes of moving a router from node to node",
    "drain": "lost probes and time of moving many routers away from one node",
    "build": "building an instance, against the floor of raw netlink, nft and dnsmasq",
    "rules": "10,000 firewall rules: loading them, and what they cost per packet",
    "dead-man": "the kernel switch that mutes a node by itself: exactness, no revival, cost",
    "ownership": "leases in a real zone: what falls silent, when, and what does not",
    "failover": "outage when an agent, a node or a cable fails, beside keepalived pairs",
    "dais-54": "a paper's experiment: 54 machines, their agent or their node dies",
    "mass-failover": "a node of hundreds of routers is lost, against the floor of building them",
    "sweep": "what a dead agent left is removed, beside ip netns and the kernel's floor",
    "units": "units of systemd: what dies is noticed, muted, back and swept, and when",
    "ping-gap": "ping-gap: the rate it holds, its accuracy, and what other probers see",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    commands.add_parser("list", help="the measurements, one line each")
    for name, text in NAMES.items():
        module = _module(name)
        sub = commands.add_parser(name, help=text, description=text)
        module.add_arguments(sub)
        sub.add_argument("--json", type=Path, metavar="OUT", help="write raw per-run values here")
    arguments = parser.parse_args()
    if arguments.name == "list":
        for name, text in NAMES.items():
            print(f"{name:13} {text}")
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    module = _module(arguments.name)
    try:
        result = module.run(arguments)
    except KeyboardInterrupt:
        print("interrupted; nothing is left behind", file=sys.stderr)
        return 130
    except VrhaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(module.table(result))
    if arguments.json:
        report.write_json(arguments.json, result)
    if not report.is_made(result):
        print("error: no run was good; the reasons are above", file=sys.stderr)
        return 1
    return 0


def _module(name: str) -> ModuleType:
    return importlib.import_module("tools.benchmarks." + name.replace("-", ""))


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
