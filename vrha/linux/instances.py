"""The instances of a node as the steps find them: their specs, ports and namespaces."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vrha import codec
from vrha.core.dhcp import reservations, shared_cidrs, superseded
from vrha.core.leases import cleaned
from vrha.core.names import host_port, host_port_prefix, namespace_name, ref_of_namespace
from vrha.errors import InputError, StepError
from vrha.linux import announce, build, dnsmasq, mute, netns, processes, rtnetlink
from vrha.linux.announce import Announcer
from vrha.linux.closing import SlowCloser
from vrha.linux.files import SPEC, InstanceFolders
from vrha.model.spec import InstanceRef, InstanceSpec


@dataclass(frozen=True, slots=True)
class Instances:
    """What all steps on a node work with; nothing is remembered, all is looked up."""

    site: build.Site
    folders: InstanceFolders
    switch: mute.Switch
    closer: SlowCloser

    @contextlib.contextmanager
    def apart(self) -> Iterator[Instances]:
        """The same for another thread, with kernel sockets of its own.

        Raises PreconditionError `no-nf-tables`.
        """
        with (
            rtnetlink.open_route() as route,
            contextlib.closing(mute.Switch(self.site.rule_tools.nft)) as switch,
        ):
            yield replace(self, site=replace(self.site, route=route), switch=switch)

    def refs(self) -> list[InstanceRef]:
        """All instances that have a namespace."""
        found = (ref_of_namespace(name) for name in netns.names())
        return sorted(ref for ref in found if ref is not None)

    def spec(self, ref: InstanceRef) -> InstanceSpec:
        """What the instance was built from. Raises StepError `no-instance`."""
        body = self.folders.read(ref, SPEC)
        if body is None:
            raise StepError("no-instance", f"there is no complete instance {ref} on this node")
        try:
            return codec.decode(InstanceSpec, body)
        except InputError as error:
            raise StepError("no-instance", f"{SPEC} of {ref} cannot be read: {error}") from error

    @contextlib.contextmanager
    def opened(self, ref: InstanceRef) -> Iterator[int]:
        """A file descriptor of the instance's namespace. Raises StepError `no-instance`."""
        try:
            inner = netns.open_named(namespace_name(ref))
        except FileNotFoundError as error:
            raise StepError("no-instance", f"there is no namespace of {ref}") from error
        try:
            yield inner
        finally:
            os.close(inner)

    @contextlib.contextmanager
    def inside(self, ref: InstanceRef) -> Iterator[int]:
        """The block runs in the instance's namespace. Raises StepError `no-instance`."""
        with self.opened(ref) as inner, netns.entered(inner, self.site.home):
            yield inner

    def active_ports(self, ref: InstanceRef) -> list[str]:
        """Host-side ports that may speak."""
        return _of(ref, self.switch.active())

    def relay_ports(self, ref: InstanceRef) -> list[str]:
        """Host-side ports that may only forward."""
        return _of(ref, self.switch.relays())

    def silence(self, ref: InstanceRef) -> None:
        """The instance forwards what still reaches it, and is silent otherwise.

        One that is not there is silent already. Raises StepError `mute-failed`.
        """
        self.switch.change(relay=self.active_ports(ref))

    def packets(self, ref: InstanceRef) -> dict[str, dict[str, int]]:
        """Packets that each port has received and sent, as the instance sees them.

        Raises StepError `no-instance`.
        """
        found = {}
        for port in self.spec(ref).ports:
            link = rtnetlink.link(self.site.route, host_port(ref, port.name))
            if link is not None:
                # What the host end has sent, the instance has received.
                found[port.name] = {"rx_packets": link.tx_packets, "tx_packets": link.rx_packets}
        return found

    def port_indices(self, spec: InstanceSpec) -> dict[str, int]:
        """Index of the host-side end of each port. Raises StepError `no-instance`."""
        found = {}
        for port in spec.ports:
            link = rtnetlink.link(self.site.route, host_port(spec.ref, port.name))
            if link is None:
                raise StepError("no-instance", f"{spec.ref} has lost its port {port.name}")
            found[port.name] = link.index
        return found

    @contextlib.contextmanager
    def announcer(self, spec: InstanceSpec) -> Iterator[Sequence[Announcer]]:
        """Sockets and frames that announce the instance. Raises StepError `announce-failed`."""
        with self.inside(spec.ref):
            ports = announce.open_ports(spec)
        try:
            yield ports
        finally:
            for sock, _ in ports:
                self.closer.close(sock)

    def memory_kib(self, ref: InstanceRef) -> int:
        """What the instance's dnsmasq keeps in memory, in KiB; 0 where there is none."""
        with contextlib.suppress(StepError, OSError), self.opened(ref) as inner:
            pid = dnsmasq.pid_of(self.folders.path(ref), inner)
            if pid is not None:
                return processes.resident_kib(pid)
        return 0

    def leases(self, ref: InstanceRef) -> bytes:
        """The DHCP leases of the instance, as its dnsmasq keeps them."""
        return dnsmasq.leases(self.folders, ref)

    def put_leases(self, ref: InstanceRef, leases: bytes, complete: bool = False) -> int | None:
        """Give the instance these DHCP leases; how many, None when it has them already.

        `complete`: there are no others, so it need not ask before it offers an address. Its
        dnsmasq reads both only at its start, so it is started again. Raises StepError
        `dnsmasq-failed`, `no-instance`.
        """
        # Without leases there is only the server's own DUID, which nobody has seen yet.
        has_all = _granted(leases) <= _granted(self.leases(ref))
        trusts = complete and dnsmasq.asks_before_offers(self.folders, ref)
        if has_all and not trusts:
            return None
        folder = self.folders.path(ref)
        with self.inside(ref) as inner:
            pid = dnsmasq.pid_of(folder, inner)
            if pid is not None:
                dnsmasq.stop(pid, inner)
            if trusts:
                dnsmasq.offer_at_once(self.folders, ref)
            if not has_all:
                dnsmasq.put_leases(self.folders, ref, leases)
            dnsmasq.start(self.site.dnsmasq, folder)
        return None if has_all else len(_granted(leases))

    def reserve(self, ref: InstanceRef, other: str) -> None:
        """The instance serves a network together with another DHCP server, which has granted
        `other` (a lease file, cleaned). Its dnsmasq reads that anew; only if it has leases that
        are not true any more it is started again, without them. Raises StepError
        `dnsmasq-failed`, `no-instance`.
        """
        spec, folder = self.spec(ref), self.folders.path(ref)
        own = cleaned(self.leases(ref).decode())
        untrue = superseded(own, other, shared_cidrs(spec.networks))
        lines = reservations(spec, other, own).encode()
        with self.inside(ref) as inner:
            changed = dnsmasq.put_reservations(self.folders, ref, lines)
            pid = dnsmasq.pid_of(folder, inner)
            if pid is not None and untrue:
                dnsmasq.stop(pid, inner)
                now = self.leases(ref).decode().splitlines(keepends=True)
                left = "".join(line for line in now if line.rstrip("\n") not in untrue)
                dnsmasq.put_leases(self.folders, ref, left.encode())
                dnsmasq.start(self.site.dnsmasq, folder)
            elif pid is not None and changed:
                dnsmasq.reload(pid)

    def refresh_leases(self, ref: InstanceRef, leases: bytes) -> None:
        """As `put_leases`, but for an instance that may speak: what it has granted itself counts.

        Raises as `put_leases`.
        """
        if not self.switch.speaks(self.active_ports(ref)):
            self.put_leases(ref, leases)


def _granted(leases: bytes) -> set[bytes]:
    """Lines of a lease file that stand for a lease."""
    return {line for line in leases.splitlines() if line and not line.startswith(b"duid")}


def _of(ref: InstanceRef, names: frozenset[str]) -> list[str]:
    prefix = host_port_prefix(ref)
    return sorted(name for name in names if name.startswith(prefix))
