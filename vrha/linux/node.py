"""The kernel half of one node: builds, tests, switches, announces, destroys and reports instances.

The process lives in the node's network namespace and sees the node's own /run/netns. Nothing that
matters is remembered between calls: what is there is read from the kernel and the state folder, so
a restart of the process touches nothing.

Threads may build, test and destroy different instances, and observe, all at the same time. The
rest wants the kernel for itself.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from vrha import codec
from vrha.core.cleanup.profiles.vrha import VRHA
from vrha.core.leases import cleaned
from vrha.core.names import (
    PortTag,
    folder_name,
    host_port,
    namespace_name,
)
from vrha.errors import PreconditionError, StepError
from vrha.linux import (
    announce,
    build,
    dnsmasq,
    live,
    mute,
    netns,
    processes,
    removal,
    rtnetlink,
    rules,
    sysctls,
    tools,
)
from vrha.linux.build import Stopwatch, Timings
from vrha.linux.closing import SlowCloser
from vrha.linux.files import SPEC, InstanceFolders
from vrha.linux.handover import Handovers
from vrha.linux.instances import Instances
from vrha.linux.observe import observed, outline
from vrha.linux.sweep.leaked import leaks_of
from vrha.linux.underway import UnderWay
from vrha.linux.upstream import Answered, UpstreamProbe
from vrha.model.spec import InstanceRef, InstanceSpec
from vrha.model.state import Activity, ObservedInstance, SelfTest

_DNS_S = 1.0
PERMISSION_S = 5.0
"""For a leader to hear of the node and of the run; it takes some hundred milliseconds at most."""

ANNOUNCE_MS = (0, 1, 5, 20, 100, 500)
"""When announcements are repeated, in milliseconds: single frames do get lost."""


class NodeKernel:
    """Everything of one node that needs root. Methods raise StepError unless they say more."""

    def __init__(self, state_dir: Path, governed: bool = False) -> None:
        """Prepare the node; instances that are there are not touched.

        `governed`: a watcher permits what may be active.

        Raises PreconditionError: `not-root`, `missing-tool:*`, `state-dir`, `netns-dir`,
        `no-nf-tables`, `processes-hidden`.
        """
        if os.geteuid() != 0:
            raise PreconditionError("not-root", "this needs root", "Run it by sudo.")
        processes.need_sight()
        rule_tools = rules.find_tools()
        program = tools.need("dnsmasq")
        self._folders = InstanceFolders(state_dir.absolute())
        self._leaks = leaks_of(VRHA, state_dir.absolute())
        netns.prepare_directory()
        sysctls.apply(sysctls.NODE, required=False)
        sysctls.at_least(sysctls.NODE_AT_LEAST)
        with contextlib.ExitStack() as stack:
            home = netns.current()
            stack.callback(os.close, home)
            route = stack.enter_context(rtnetlink.open_route())
            self._governed = governed
            self._switch = mute.Switch(rule_tools.nft, governed)
            stack.callback(self._switch.close)
            self._under_way = UnderWay()
            self._answered = Answered()
            self._closer = SlowCloser()
            stack.callback(self._closer.drain)
            self._site = build.Site(home, route, rule_tools, program)
            self.instances = Instances(self._site, self._folders, self._switch, self._closer)
            self.handovers = Handovers(self.instances)
            stack.callback(self.handovers.close)
            self._resources = stack.pop_all()

    def close(self) -> None:
        """Give back sockets and file descriptors; instances live on."""
        self._resources.close()

    def await_permission(self, ref: InstanceRef) -> None:
        """Wait until the watcher lets the ports of the instance speak; at once without a watcher.

        Raises StepError `not-permitted`.
        """
        if not self._governed:
            return
        ports = self._ports(ref)
        deadline = time.monotonic() + PERMISSION_S
        while not self._switch.all_granted(ports):
            if time.monotonic() > deadline:
                raise StepError(
                    "not-permitted",
                    f"{ref} was not permitted on this node within {PERMISSION_S:g} s",
                    "`vrha watcher status` on the node says why: no lease, or no leader heard of.",
                )
            time.sleep(0.005)

    def ready(self, ref: InstanceRef) -> None:
        """Let the instance speak from the moment on in which the watcher permits it, also a relay.

        Where nobody governs it would speak at once: it stays muted. Raises StepError
        `no-instance`, `mute-failed`.
        """
        if self._governed:
            ports = self._ports(ref)
            self._switch.change(unmute=ports, serve=ports)

    def unready(self, refs: Collection[InstanceRef]) -> list[InstanceRef]:
        """Those of these instances that `ready` would change; none where nobody governs."""
        if not self._governed or not refs:
            return []
        open_ports = self._switch.active() - self._switch.relays()
        return [ref for ref in refs if not open_ports.issuperset(self._ports(ref))]

    def build(
        self, spec: InstanceSpec, leases_from: InstanceRef | None = None, leases: str = ""
    ) -> Timings:
        """Build the instance beside whatever is there, complete and muted.

        It begins with the DHCP leases of `leases_from`, or if that is not here with `leases`.
        An identical complete one is left as it is; remains of one are destroyed first.
        Raises StepError: `instance-active`, `bridge-missing`, `namespace-exists`, `no-space`,
        `state-dir`, `rules-rejected`, `links-failed`, `addresses-failed`, `sysctl-failed`,
        `dnsmasq-failed`, `port-not-forwarding`, `tool-timeout`; PreconditionError
        `missing-tool:*`; InputError. Nothing is left behind then. Also `instance-leaked`, when
        remains of one of that name could not be removed.
        """
        self._leaks.refuse(folder_name(spec.ref))
        with self._under_way.working_on(spec.ref):
            return self._build(spec, leases_from, leases)

    def _build(self, spec: InstanceSpec, leases_from: InstanceRef | None, leases: str) -> Timings:
        watch = Stopwatch()
        if self._is_complete(spec):
            return watch.timings
        with watch.phase("clear"):
            self._clear(spec)
        try:
            self._switch.ensure()
            with watch.phase("files"):
                folder = self._folders.make(spec.ref)
                dnsmasq.write_files(self._folders, spec)
                self._give_leases(spec, leases_from, leases)
            build.construct(self._site, spec, folder, watch)
            self._folders.write(spec.ref, SPEC, codec.encode(spec))
        except BaseException as error:
            self._destroy(spec.ref)
            if isinstance(error, OSError):
                raise StepError("build-failed", f"cannot build {spec.ref}: {error}") from error
            raise
        return watch.timings

    def _give_leases(
        self, spec: InstanceSpec, leases_from: InstanceRef | None, leases: str
    ) -> None:
        """Before dnsmasq starts: it reads them only then."""
        here = leases_from is not None and self._folders.path(leases_from).exists()
        if here and leases_from is not None:
            found = self.instances.leases(leases_from)
        else:
            found = cleaned(leases).encode()
            # Whoever served the router before may have granted more than is known here.
            if spec.ref.generation > 1:
                dnsmasq.ask_before_offers(self._folders, spec)
        if found:
            dnsmasq.put_leases(self._folders, spec.ref, found)

    def is_muted(self, ref: InstanceRef) -> bool:
        """Whether no port of the instance may speak; also when it is not there."""
        return not self._switch.speaks(self.instances.active_ports(ref))

    def configure(self, spec: InstanceSpec, previous: InstanceSpec | None = None) -> Timings:
        """Bring a live instance to `spec` in place; repeating it changes nothing.

        `previous` is what its rules may stand for when an earlier change was cut short. Raises
        StepError: `no-instance`, `needs-rebuild`, and those of the parts as in `build`.
        """
        watch = Stopwatch()
        present = self.instances.spec(spec.ref)
        live.refuse_other_ports(present, spec)
        known = (present, *([previous] if previous else []))
        folder = self._folders.path(spec.ref)
        with self.instances.inside(spec.ref) as inner:
            with watch.phase("rules"):
                rules.change(self._site.rule_tools, known, spec)
            with watch.phase("addresses"):
                live.readdress(spec)
            with watch.phase("dnsmasq"):
                changed = dnsmasq.write_files(self._folders, spec)
                pid = dnsmasq.pid_of(folder, inner)
                if pid is not None and changed:
                    dnsmasq.check(self._site.dnsmasq, folder)
                    dnsmasq.stop(pid, inner)
                if pid is None or changed:
                    dnsmasq.start(self._site.dnsmasq, folder)
                else:
                    dnsmasq.reload(pid)
        tags = [PortTag(spec.ref, spec.epoch, port.name) for port in spec.ports]
        aliases = [rtnetlink.set_alias(host_port(spec.ref, t.port), str(t)) for t in tags]
        build.send(self._site.route, aliases, "links")
        self._folders.write(spec.ref, SPEC, codec.encode(spec))
        return watch.timings

    def self_test(self, spec: InstanceSpec) -> SelfTest:
        """Prove that the instance is complete; all but its link to the outside is read back.

        Raises StepError `no-instance`, `rules-unreadable`.
        """
        uplink, wanted = spec.uplink, spec.router.uplink
        bridge = rtnetlink.link(self._site.route, uplink.bridge) if uplink else None
        gateways = wanted.gateways if wanted is not None and bridge is not None else ()
        probe = UpstreamProbe(
            uplink.bridge if uplink else "",
            bridge.mac if bridge else b"",
            gateways,
            self._answered,
        )
        probe.start()
        with self.instances.inside(spec.ref):
            digest = rules.read_back(self._site.rule_tools, spec.router.backend)
            answered = dnsmasq.answers(_DNS_S)
        forwarding, not_forwarding = build.port_states(self._site.route, spec)
        upstream = probe.finish(self._closer)
        return SelfTest(forwarding, not_forwarding, digest, answered, upstream)

    def swap(self, old: InstanceRef, new: InstanceRef) -> None:
        """Mute `old` and unmute `new` in one kernel transaction; `new` announces itself at once.

        `old` need not exist. Raises StepError `no-instance` (`new`), `mute-failed`,
        `announce-failed`.
        """
        self._enable(
            new, mute=self.instances.active_ports(old), serve=self.instances.relay_ports(old)
        )

    def mute(self, ref: InstanceRef) -> None:
        """The kernel drops all that the instance's ports send or would receive.

        An instance that is not there is muted already. Raises StepError `mute-failed`.
        """
        self._switch.change(
            mute=self.instances.active_ports(ref), serve=self.instances.relay_ports(ref)
        )

    def relay(self, ref: InstanceRef) -> None:
        """As `Instances.silence`."""
        self.instances.silence(ref)

    def unmute(self, ref: InstanceRef) -> None:
        """Let the instance's ports speak, also those of a relay, and announce it at once.

        Raises StepError `no-instance`, `mute-failed`, `announce-failed`.
        """
        self._enable(ref)

    def _enable(
        self, ref: InstanceRef, mute: Sequence[str] = (), serve: Sequence[str] = ()
    ) -> None:
        # Until they hear of the new one, neighbours send to the old one: everything that an
        # announcement needs is there before the switch, and the first one follows it directly.
        spec = self.instances.spec(ref)
        ours = build.host_ports(spec)
        with self.instances.announcer(spec) as ports:
            self._switch.change(mute=mute, unmute=ours, serve=(*serve, *ours))
            announce.send_bursts(ports, (0,), lambda: None)

    def announce(self, ref: InstanceRef, delays_ms: Sequence[int] = ANNOUNCE_MS) -> None:
        """Tell the neighbours, at each of `delays_ms` milliseconds after now.

        Raises StepError `no-instance`, `not-active` (also when it is muted meanwhile),
        `announce-failed`.
        """
        spec = self.instances.spec(ref)
        wanted = set(build.host_ports(spec))

        def check() -> None:
            if not wanted <= self._switch.active():
                raise StepError("not-active", f"{ref} is muted: it must not announce itself")

        check()
        with self.instances.announcer(spec) as ports:
            announce.send_bursts(ports, delays_ms, check)

    def destroy(self, ref: InstanceRef) -> Timings:
        """Remove the instance and all that belongs to it; success when there is nothing.

        Raises StepError `ports-remain`, `process-stuck`, `mute-failed`; repeat it then.
        """
        with self._under_way.working_on(ref):
            return self._destroy(ref)

    def _destroy(self, ref: InstanceRef) -> Timings:
        watch = Stopwatch()
        self.handovers.end(ref)
        with watch.phase("mute"):
            ports = self._ports(ref)
            if not ports:
                self.mute(ref)
            elif self._switch.any_listed(ports):
                self._switch.change(mute=ports, serve=ports)
        with watch.phase("remove"):
            if not removal.vanishes(self.instances, ref, ports):
                removal.take_apart(self.instances, ref)
            self._folders.remove(ref)
        return watch.timings

    def observe(self) -> tuple[ObservedInstance, ...]:
        """All instances on the node, also the remains of one, as they are in the kernel.

        One that is incomplete because somebody is building or destroying it is left out.
        """
        with self._under_way.watched() as busy:
            active = self._switch.active()
            if self._governed:
                active &= self._switch.granted()
            found = observed(self._site.route, self._folders, active, self._switch.relays())
        return tuple(i for i in found if i.ref not in busy or i.activity is not Activity.PARTIAL)

    def revive(self, ref: InstanceRef) -> None:
        """Start the dnsmasq of an instance that has lost it; its leases are still in its folder.

        Raises StepError `no-instance`, `dnsmasq-failed`.
        """
        with self.instances.inside(ref) as inner:
            if dnsmasq.pid_of(self._folders.path(ref), inner) is None:
                dnsmasq.start(self._site.dnsmasq, self._folders.path(ref))

    def counters(self, ref: InstanceRef) -> dict[str, dict[str, int]]:
        """As `Instances.packets`."""
        return self.instances.packets(ref)

    def _is_complete(self, spec: InstanceSpec) -> bool:
        """Whether exactly this instance is there, with all its ports and its dnsmasq."""
        known = self._folders.read(spec.ref, SPEC)
        if known is None or known != codec.encode(spec):
            return False
        if build.port_states(self._site.route, spec)[1]:
            return False
        try:
            inner = netns.open_named(namespace_name(spec.ref))
        except FileNotFoundError:
            return False
        try:
            return dnsmasq.pid_of(self._folders.path(spec.ref), inner) is not None
        finally:
            os.close(inner)

    def _clear(self, spec: InstanceSpec) -> None:
        """Destroy the remains of a muted instance; the folder is the first thing that is made.

        Raises StepError `instance-active`.
        """
        ref = spec.ref
        places = self._folders.path(ref), netns.path_of(namespace_name(ref))
        remains = any(os.path.lexists(path) for path in places)
        # Without remains only what is about to be born is of interest.
        active = (
            not self.is_muted(ref) if remains else self._switch.any_active(build.host_ports(spec))
        )
        if active:
            raise StepError(
                "instance-active",
                f"{ref} is active and differs from what is to be built",
                "Mute or destroy it first.",
            )
        if remains:
            self._destroy(ref)

    def _ports(self, ref: InstanceRef) -> list[str]:
        """Host-side ports of a complete instance; none of any other."""
        spec = outline(self._folders, ref)
        return [host_port(ref, port.name) for port in spec.ports] if spec else []
