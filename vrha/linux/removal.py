"""Removing the namespace of an instance, with its ports and all that lives in it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence

from vrha.core.names import host_port_prefix, link_group, namespace_name
from vrha.errors import StepError
from vrha.linux import dnsmasq, netns, processes, rtnetlink
from vrha.linux.instances import Instances
from vrha.model.spec import InstanceRef

_GRACE_S = 0.2
"""Seconds between SIGTERM and SIGKILL for what lives in a namespace that is to go."""
_VANISH_S = 0.5
"""How long the ports of a namespace that nobody is in may take to vanish: 2 to 30 ms when one goes,
170 ms when a hundred do."""
_LOOK_S = 0.002
_SWEEPS = 5
"""How often processes are looked for: one may start another while it is being ended."""


def vanishes(at: Instances, ref: InstanceRef, ports: Sequence[str]) -> bool:
    """End the dnsmasq of a complete instance and let its namespace go; whether `ports` went too.

    The kernel takes namespaces away many at a time (net/core/net_namespace.c, cleanup_net), where
    deleting the ports of each one costs 16 ms under the network lock. `ports` are the host-side
    ends by name; when there is none, nothing is done, for nothing would show the end. Raises
    StepError `process-stuck`.
    """
    if not _present(at, ports):
        return False
    try:
        with at.opened(ref) as inner:
            pid = dnsmasq.pid_of(at.folders.path(ref), inner)
            if pid is not None:
                processes.end([pid], inner, _GRACE_S)
            place = processes.mark(inner)
    except StepError as error:
        if error.code != "no-instance":
            raise
        return False
    netns.remove(namespace_name(ref))
    until = time.monotonic() + _VANISH_S
    while _present(at, ports):
        if time.monotonic() > until:
            _end_holders(at, place, ports)
            return False
        time.sleep(_LOOK_S)
    return True


def _present(at: Instances, ports: Sequence[str]) -> bool:
    return any(rtnetlink.link(at.site.route, name) is not None for name in ports)


def _end_holders(at: Instances, place: processes.Mark, ports: Sequence[str]) -> None:
    for _ in range(_SWEEPS):
        pids = processes.inside(place)
        # While its ports are there the namespace lives, so that the mark is no other's yet.
        if not pids or not _present(at, ports):
            return
        processes.end(pids, place, _GRACE_S)


def take_apart(at: Instances, ref: InstanceRef) -> None:
    """Remove what there may be of an instance, one by one.

    Raises StepError `ports-remain`, `process-stuck`.
    """
    _delete_ports(at, ref)
    try:
        inner = netns.open_named(namespace_name(ref))
    except FileNotFoundError:
        _end_strays(at, ref)
    else:
        try:
            _end_processes(inner)
        finally:
            os.close(inner)
    netns.remove(namespace_name(ref))


def _delete_ports(at: Instances, ref: InstanceRef) -> None:
    prefix, group = host_port_prefix(ref), link_group(ref)
    links = rtnetlink.links(at.site.route)
    ours = [link for link in links if link.name.startswith(prefix)]
    if not ours:
        return
    in_group = [link for link in links if link.group == group]
    if in_group == ours:
        messages = [rtnetlink.delete_group(group)]
    else:
        messages = [rtnetlink.delete_link(link.index) for link in ours]
    with contextlib.suppress(OSError):
        at.site.route.talk(messages)
    left = [n.name for n in rtnetlink.links(at.site.route) if n.name.startswith(prefix)]
    if left:
        raise StepError("ports-remain", f"ports of {ref} are still there: {', '.join(left)}")


def _end_processes(inner: processes.Place) -> None:
    for _ in range(_SWEEPS):
        pids = processes.inside(inner)
        if not pids:
            return
        processes.end(pids, inner, _GRACE_S)
    raise StepError("process-stuck", "processes of the namespace keep starting others")


def _end_strays(at: Instances, ref: InstanceRef) -> None:
    """Somebody has taken the name away: the namespace lives as long as the dnsmasq in it."""
    for pid in dnsmasq.strays_of(at.folders.path(ref)):
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError),
            processes.home_of(pid) as place,
        ):
            processes.end([pid], place, _GRACE_S)
