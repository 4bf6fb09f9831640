"""Building one instance: its parts in the order in which they are made.

Rules before ports, inner ends before host ends: nothing is ever forwarded unfiltered. The host
ends are muted from birth (`vrha.linux.mute`), so they come up and forward without a frame passing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vrha.core.names import PortTag, host_mac, host_port, link_group, namespace_name
from vrha.errors import StepError
from vrha.linux import dnsmasq, netns, rtnetlink, rules, sysctls
from vrha.linux.addresses import mac_bytes, port_addresses, routes
from vrha.linux.netlink import Message, Netlink, NetlinkError
from vrha.linux.rtnetlink import Link, VethEnd
from vrha.model.spec import InstanceSpec

FORWARDING_S = 3.0
"""Seconds within which bridge ports must forward: normally 0.4 ms, more while RTNL is busy."""

Timings = tuple[tuple[str, float], ...]
"""Phases in order, each with its milliseconds."""


class Stopwatch:
    """Milliseconds of each phase."""

    def __init__(self) -> None:
        self._laps: list[tuple[str, float]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self._laps.append((name, round((time.monotonic() - begin) * 1000, 3)))

    @property
    def timings(self) -> Timings:
        return tuple(self._laps)


@dataclass(frozen=True, slots=True)
class Site:
    """What a build needs of its node."""

    home: int
    """File descriptor of the node's network namespace."""
    route: Netlink
    rule_tools: rules.RuleTools
    dnsmasq: str


def bridges(route: Netlink, spec: InstanceSpec) -> dict[str, Link]:
    """The bridges of the ports by name. Raises StepError `bridge-missing`."""
    found: dict[str, Link] = {}
    for port in spec.ports:
        link = rtnetlink.link(route, port.bridge)
        if link is None or link.kind != "bridge":
            raise StepError(
                "bridge-missing",
                f"{spec.ref} needs bridge {port.bridge}, which is not on this node",
                f"ip link add {port.bridge} type bridge && ip link set {port.bridge} up",
            )
        found[port.bridge] = link
    return found


def construct(site: Site, spec: InstanceSpec, folder: Path, watch: Stopwatch) -> None:
    """Make everything of the instance whose folder is filled already.

    Raises StepError with the code of the part that failed, and leaves what it made.
    """
    on = bridges(site.route, spec)
    with watch.phase("namespace"):
        inner = netns.create(namespace_name(spec.ref), site.home)
    try:
        with netns.entered(inner, site.home):
            with watch.phase("sysctls"), rtnetlink.open_route() as route:
                send(route, [rtnetlink.set_up("lo")], "namespace")
                sysctls.apply(sysctls.INSTANCE)
            with watch.phase("rules"):
                rules.load(site.rule_tools, spec, fresh=True)
                sysctls.apply(sysctls.CONNTRACK)
        with watch.phase("links"):
            send(site.route, _pairs(spec, inner, on), "links")
        with netns.entered(inner, site.home):
            with watch.phase("addresses"):
                _address(spec)
            send(site.route, [rtnetlink.set_up(name) for name in host_ports(spec)], "links")
            with watch.phase("dnsmasq"):
                dnsmasq.start(site.dnsmasq, folder)
    finally:
        os.close(inner)
    with watch.phase("forwarding"):
        await_forwarding(site.route, spec)


def host_ports(spec: InstanceSpec) -> list[str]:
    """Names of the host-side ends of all ports."""
    return [host_port(spec.ref, port.name) for port in spec.ports]


def send(route: Netlink, messages: Sequence[Message], what: str) -> None:
    """Send rtnetlink messages. Raises StepError `<what>-failed` with the kernel's words."""
    try:
        route.talk(messages)
    except NetlinkError as error:
        raise StepError(
            f"{what}-failed", f"the kernel refused message {error.index}: {error.strerror}"
        ) from error


def port_states(route: Netlink, spec: InstanceSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ports whose bridge end forwards, and those whose does not."""
    good: list[str] = []
    bad: list[str] = []
    for port in spec.ports:
        link = rtnetlink.link(route, host_port(spec.ref, port.name))
        ok = link is not None and link.port_state == rtnetlink.FORWARDING
        (good if ok else bad).append(port.name)
    return tuple(good), tuple(bad)


def await_forwarding(route: Netlink, spec: InstanceSpec) -> None:
    """Wait until all bridge ports forward: a frame sent before is lost.

    Raises StepError `port-not-forwarding`.
    """
    until = time.monotonic() + FORWARDING_S
    while True:
        _, bad = port_states(route, spec)
        if not bad:
            return
        if time.monotonic() > until:
            where = {port.bridge for port in spec.ports if port.name in bad}
            raise StepError(
                "port-not-forwarding",
                f"ports {', '.join(bad)} of {spec.ref} do not forward after {FORWARDING_S:g} s",
                f"Is {', '.join(sorted(where))} up, and its spanning tree off?",
            )
        time.sleep(0.0005)


def _pairs(spec: InstanceSpec, inner: int, on: dict[str, Link]) -> list[Message]:
    messages = []
    for index, port in enumerate(spec.ports):
        name = host_port(spec.ref, port.name)
        bridge = on[port.bridge]
        messages += [
            rtnetlink.new_veth(
                VethEnd(name, host_mac(spec.ref, index)),
                VethEnd(port.name, mac_bytes(port)),
                inner,
                bridge.index,
                bridge.mtu,
                link_group(spec.ref),
            ),
            rtnetlink.tag_link(name, str(PortTag(spec.ref, spec.epoch, port.name))),
        ]
    return messages


def _address(spec: InstanceSpec) -> None:
    """Inner ends up, with addresses, then routes; inside the instance's namespace."""
    index = {port.name: socket.if_nametoindex(port.name) for port in spec.ports}
    messages = [rtnetlink.set_up(port.name) for port in spec.ports]
    for port in spec.ports:
        messages += [rtnetlink.add_address(index[port.name], a) for a in port_addresses(port)]
    for r in routes(spec):
        messages.append(rtnetlink.add_route(r.cidr, r.via, index[r.port], r.onlink))
    uplink = spec.uplink
    if uplink is not None:
        sysctls.apply([sysctls.loose_reverse_path(uplink.name)])
    with rtnetlink.open_route() as route:
        send(route, messages, "addresses")
