"""Scenario files: a zone's desired state plus what surrounds it in a lab.

`zone:` is a desired-state document as `vrha apply -f` takes it; `lab:` describes the machines
that no desired state holds::

    lab:
      outside:                    # machines on uplink bridges
        - name: outside
          bridge: br-public
          addresses: [203.0.113.1/24]
          loopback: [198.51.100.1/32]
          routes: [{cidr: "2001:db8:1::/64", via: "2001:db8:ffff::10"}]
      hosts:                      # tenant machines; default: every host of every network
        - {name: vm1, network: blue, mac: "02:..", addresses: [10.1.1.11], dhcp: false}

A tenant machine takes MAC and addresses from the zone's host of that name unless given here; its
default routes are the gateways of the subnets that its addresses lie in. `dhcp: true` brings its
link up without addresses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import yaml

from vrha.errors import InputError, NotFoundError
from vrha.model.spec import Address, Cidr, Interface

_MAX_BYTES = 4 * 1024 * 1024
_MAX_IFNAME = 15


@dataclass(frozen=True, slots=True)
class Machine:
    """One host of the lab, with a single network card on `segment`."""

    name: str
    segment: str
    mac: str
    addresses: tuple[Interface, ...] = ()
    gateways: tuple[Address, ...] = ()
    routes: tuple[tuple[Cidr, Address], ...] = ()
    loopback: tuple[Interface, ...] = ()
    dhcp: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a lab is built from; `segments` are bridge names, tenant networks first."""

    name: str
    zone: Mapping[str, Any]
    segments: tuple[str, ...]
    machines: tuple[Machine, ...]
    nodes: tuple[str, ...]


def scenario_names() -> tuple[str, ...]:
    """Names of the scenarios shipped with vrha."""
    folder = resources.files("vrha.lab") / "scenarios"
    return tuple(
        sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    )


def load_scenario(scenario: str | Path) -> Scenario:
    """The shipped scenario of that name, or the one in a file (a path with a slash or .yaml).

    Raises NotFoundError (`no-scenario`), InputError (`scenario-invalid`).
    """
    path = Path(scenario)
    if isinstance(scenario, Path) or "/" in scenario or path.suffix in (".yaml", ".yml"):
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise NotFoundError("no-scenario", f"{path}: {error.strerror}") from error
        return parse_scenario(path.stem, data)
    if scenario not in scenario_names():
        known = ", ".join(scenario_names())
        raise NotFoundError("no-scenario", f"no scenario {scenario!r}", f"There are: {known}.")
    shipped = resources.files("vrha.lab") / "scenarios" / f"{scenario}.yaml"
    return parse_scenario(scenario, shipped.read_bytes())


def parse_scenario(name: str, data: bytes) -> Scenario:
    """The scenario in a YAML document. Raises InputError (`scenario-invalid`)."""
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        document = yaml.safe_load(data)
        scenario = _build(name, document["zone"], document.get("lab") or {})
        _check(scenario)
    except KeyError as error:
        raise _invalid(name, f"{error.args[0]} is missing") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise _invalid(name, str(error)) from error
    return scenario


def _invalid(name: str, problem: str) -> InputError:
    return InputError("scenario-invalid", f"scenario {name}: {problem}", "Nothing was started.")


def _build(name: str, zone: Mapping[str, Any], lab: Mapping[str, Any]) -> Scenario:
    networks = {network["name"]: network for network in zone["networks"]}
    uplinks = [r["uplink"]["bridge"] for r in zone.get("routers", ()) if r.get("uplink")]
    outside = lab.get("outside", ())
    segments = [network["bridge"] for network in networks.values()]
    segments += [*uplinks, *(entry["bridge"] for entry in outside)]
    hosts = lab.get("hosts")
    if hosts is None:
        hosts = [
            {"name": host["name"], "network": network["name"]}
            for network in networks.values()
            for host in network.get("hosts", ())
        ]
    macs = _spare_macs()
    machines = [_tenant(host, networks[host["network"]], next(macs)) for host in hosts]
    machines += [_outside(entry, next(macs)) for entry in outside]
    nodes = tuple(node["name"] for node in zone["nodes"])
    return Scenario(name, zone, tuple(dict.fromkeys(segments)), tuple(machines), nodes)


def _spare_macs() -> Iterator[str]:
    """Locally administered addresses for machines that name none."""
    return (f"02:1a:b0:00:{i >> 8:02x}:{i & 255:02x}" for i in range(1, 65536))


def _tenant(host: Mapping[str, Any], network: Mapping[str, Any], spare_mac: str) -> Machine:
    same_name = (h for h in network.get("hosts", ()) if h["name"] == host["name"])
    known: Mapping[str, Any] = next(same_name, {})
    dhcp = bool(host.get("dhcp", False))
    texts = [] if dhcp else host.get("addresses", known.get("addresses", ()))
    addresses: list[Interface] = []
    gateways: list[Address] = []
    for text in texts:
        address = ip_address(str(text).split("/")[0])
        subnet = _subnet_of(address, network)
        addresses.append(ip_interface(f"{address}/{ip_network(subnet['cidr']).prefixlen}"))
        gateways.append(ip_address(subnet["gateway"]))
    return Machine(
        name=host["name"],
        segment=network["bridge"],
        mac=host.get("mac") or known.get("mac") or spare_mac,
        addresses=tuple(addresses),
        gateways=tuple(dict.fromkeys(gateways)),
        dhcp=dhcp,
    )


def _subnet_of(address: Address, network: Mapping[str, Any]) -> Mapping[str, Any]:
    for subnet in network["subnets"]:
        if address in ip_network(subnet["cidr"]):
            found: Mapping[str, Any] = subnet
            return found
    raise ValueError(f"{address} is in no subnet of network {network['name']}")


def _outside(entry: Mapping[str, Any], spare_mac: str) -> Machine:
    return Machine(
        name=entry["name"],
        segment=entry["bridge"],
        mac=entry.get("mac") or spare_mac,
        addresses=_interfaces(entry.get("addresses", ())),
        routes=tuple(
            (ip_network(r["cidr"]), ip_address(r["via"])) for r in entry.get("routes", ())
        ),
        loopback=_interfaces(entry.get("loopback", ())),
    )


def _interfaces(texts: Sequence[str]) -> tuple[Interface, ...]:
    return tuple(ip_interface(text) for text in texts)


def _check(scenario: Scenario) -> None:
    names = [*(machine.name for machine in scenario.machines), *scenario.nodes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"more than one machine or node is named {', '.join(twice)}")
    for name in names:
        if not name or name.strip(".") == "" or "/" in name or len(name) > 63:
            raise ValueError(f"{name!r} is no name for a machine")
    for segment in scenario.segments:
        if not 0 < len(segment) <= _MAX_IFNAME or "/" in segment:
            raise ValueError(f"{segment!r} is no name for a bridge (at most {_MAX_IFNAME} bytes)")
    if len(scenario.nodes) > 200:
        raise ValueError("more than 200 nodes")
