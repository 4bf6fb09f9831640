"""A real keepalived pair in a lab, as a peer to measure against; with conntrackd if wanted.

It takes the place of vrha's router: same bridges, addresses, kernel parameters and rules, each of
the two in a namespace of its own on a node of its own. The lab must have no daemons of vrha.
Everything is in the lab's namespaces, so it ends with the lab at the latest.
"""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import TracebackType

from tools.benchmarks import peerconf
from tools.benchmarks.peerconf import SYNC_PORT, Member
from vrha.config.desired import load
from vrha.core.instance import instance_spec
from vrha.errors import DeadlineError, VrhaError
from vrha.lab import enter
from vrha.lab.daemons import Daemon, Program
from vrha.lab.zone import Lab
from vrha.linux import rules, sysctls, tools
from vrha.model.spec import Desired, InstanceRef
from vrha.probe.process import serving
from vrha.render.nft import TABLE

LIMIT_S = 15.0
"""Limit of each wait. The slowest is a pair's first election, about four adverts."""

Progress = Callable[[str], None]


def missing(with_conntrackd: bool) -> str:
    """Why a pair cannot run on this machine; empty when it can."""
    wanted = ("keepalived", *(("conntrackd", "conntrack") if with_conntrackd else ()))
    return ", ".join(f"{name}: command not found" for name in wanted if not tools.find(name))


def versions() -> dict[str, str]:
    """Versions of the peers that are installed, by program: for the parameters of a result."""
    found = {}
    for program in ("keepalived", "conntrackd"):
        if path := tools.find(program):
            done = tools.run([path, "-v"])
            match = re.search(r" v(\d[\d.]*)", done.stdout + done.stderr)
            found[program] = match.group(1).rstrip(".") if match else "unknown"
    return found


@contextmanager
def serving_pair(
    scenario: str, name: str, with_conntrackd: bool, progress: Progress
) -> Iterator[KeepalivedPair]:
    """A lab of its own in which a pair serves and every host answers probes.

    Taken down at the end whatever happens. Raises as `Lab.up` and `KeepalivedPair.start`.
    """
    with Lab.up(scenario, name, progress=progress, ephemeral=True) as lab:
        pair = KeepalivedPair(lab, load(lab.zone_file), with_conntrackd, progress)
        with serving(7, [lab.netns_path(machine) for machine in lab.machines]), pair:
            yield pair


class KeepalivedPair:
    """Two keepalived on the first two nodes, serving the first router of `desired`.

    `advert_s` is the interval of VRRP's adverts in seconds, a multiple of 0.01.
    As a context manager it is started, and taken down at the end whatever happened.
    """

    def __init__(
        self,
        lab: Lab,
        desired: Desired,
        with_conntrackd: bool,
        progress: Progress,
        advert_s: float = 0.1,
    ) -> None:
        router = desired.routers[0]
        self.lab, self.desired = lab, desired
        self.progress, self.advert_s = progress, advert_s
        self.with_conntrackd = with_conntrackd
        self.spec = instance_spec(desired, router, InstanceRef(router.name, 1), 1)
        self.folder = lab.folder / "keepalived"
        self.members = peerconf.members(desired, self.spec, lab.nodes, self.folder)
        self._addresses = frozenset(str(a.ip) for a, _ in peerconf.virtual_addresses(self.spec))
        self._markers = count(1)

    def missing(self) -> str:
        """Why it cannot run here; empty when it can."""
        return missing(self.with_conntrackd)

    def start(self) -> None:
        """Make both and wait until they are `ready`.

        Raises PreconditionError (`missing-tool:...`), VrhaError and its kin as `Lab.run` and
        `Daemon.start`, DeadlineError. Nothing but logs is left behind by any of them.
        """
        try:
            self.progress(f"keepalived {'and conntrackd ' * self.with_conntrackd}on two nodes")
            for member in self.members:
                self._configure(member)
                self._namespace(member)
            if self.with_conntrackd:
                self._cable()
                for member in self.members:
                    self._start_conntrackd(member)
            # One after the other, so that they need not find out which of two masters yields.
            first, second = self.members
            self._start_keepalived(first)
            self._await(lambda: self._serves(first), f"{first.name} is master")
            self._start_keepalived(second)
            self.ready()
        except BaseException:
            self.stop()
            raise

    def ready(self) -> None:
        """Wait until one serves, the other stands by, and entries get from the one to the other.

        Raises DeadlineError `keepalived-late`.
        """
        self._await(lambda: self.roles() is not None, "one is master, the other backup")
        if self.with_conntrackd:
            self._await_synced()

    def switchover(self) -> None:
        """End the master's keepalived, wait until the backup has all addresses, and start the
        former master again as backup.

        Raises DeadlineError (`keepalived-late`, `daemon-not-gone`), VrhaError as `Daemon.start`.
        """
        master, backup = self._settled()
        self._daemon(master, "keepalived").kill(signal.SIGTERM)
        self._await(lambda: self._serves(backup), f"{backup.name} has taken over")
        self._start_keepalived(master)
        self._await(lambda: self.roles() == (backup, master), f"{master.name} is backup")

    def restart(self, member: Member) -> None:
        """Start the keepalived of one again that has ended; raises as `Daemon.start`."""
        self._start_keepalived(member)

    def stop(self) -> None:
        """Remove both: processes, namespaces, ports, files. Idempotent."""
        for member in self.members:
            for program in ("keepalived", "conntrackd"):
                self._end(self._daemon(member, program))
            self._remove_network(member)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> KeepalivedPair:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def roles(self) -> tuple[Member, Member] | None:
        """Master and backup; None while one of the two is neither."""
        for one, other in (self.members, self.members[::-1]):
            if self._serves(one) and not self._owned(other) and self._said(other) == "backup":
                return one, other
        return None

    def place(self, member: Member) -> enter.Place:
        """Its namespaces; also while no process is in them."""
        pid = self.lab.place(member.node).pid
        return enter.Place(pid, f"/proc/{pid}/root/run/netns/{member.name}")

    def run_inside(self, member: Member, *argv: str, stdin: str = "") -> str:
        """Run a program in the namespace of one of them; raises as `Lab.run`."""
        inside = ["ip", "netns", "exec", member.name, *argv]
        return self.lab.run(member.node, inside, stdin=stdin)

    def _configure(self, member: Member) -> None:
        member.folder.mkdir(parents=True, mode=0o700)
        conntrackd = tools.need("conntrackd") if self.with_conntrackd else ""
        files = {
            "keepalived.conf": peerconf.keepalived_conf(self.spec, member, self.advert_s),
            "notify": peerconf.notify_script(member, conntrackd),
        }
        if self.with_conntrackd:
            files["conntrackd.conf"] = peerconf.conntrackd_conf(self.spec, member)
        for name, text in files.items():
            (member.folder / name).write_text(text)
        (member.folder / "notify").chmod(0o700)

    def _namespace(self, member: Member) -> None:
        self.lab.run(member.node, ["ip", "netns", "add", member.name])
        place, spec = self.place(member), self.spec
        uplink = spec.uplink
        loose = [sysctls.loose_reverse_path(uplink.name)] if uplink is not None else []
        enter.in_network(place, lambda: sysctls.apply(sysctls.INSTANCE))
        enter.in_network(place, lambda: rules.load(rules.find_tools(), spec, fresh=True))
        self.run_inside(
            member, tools.need("nft"), "-f", "-", stdin=peerconf.accept_lines(spec, TABLE)
        )
        conntrack = (*sysctls.CONNTRACK, *peerconf.LIBERAL)
        enter.in_network(place, lambda: sysctls.apply(conntrack))
        self._batch(member.node, ["ip"], peerconf.node_lines(spec, member))
        enter.in_network(place, lambda: sysctls.apply(loose))
        self._batch(member.node, ["ip", "-n", member.name], peerconf.inner_lines(spec, member))

    def _cable(self) -> None:
        first, second = self.members
        end = "link add {0} netns {1} type veth peer name {0} netns {2}"
        self._batch("", ["ip"], [end.format("kap-sync", first.node, second.node)])
        for member in self.members:
            inside = f"link set kap-sync netns {member.name} name {SYNC_PORT}"
            self._batch(member.node, ["ip"], [inside])
            lines = [f"address add {member.sync} dev {SYNC_PORT}", f"link set {SYNC_PORT} up"]
            self._batch(member.node, ["ip", "-n", member.name], lines)

    def _batch(self, where: str, ip: list[str], lines: list[str]) -> None:
        self.lab.run(where, [*ip, "-batch", "-"], stdin="\n".join(lines) + "\n")

    def _start_keepalived(self, member: Member) -> None:
        member.state.unlink(missing_ok=True)
        conf, pid = member.folder / "keepalived.conf", member.folder / "keepalived.pid"
        # Not --log-detail: a line per announcement stretches the time between the first and the
        # last, in which replies come back by the one of the two that does not know the flow.
        options = ["--dont-fork", "--log-console", "--no-syslog", "--vrrp", f"--use-file={conf}"]
        pids = [f"--pid={pid}", f"--vrrp_pid={member.folder / 'vrrp.pid'}"]
        self._spawn(member, "keepalived", *options, *pids)

    def _start_conntrackd(self, member: Member) -> None:
        self._spawn(member, "conntrackd", "-C", str(member.folder / "conntrackd.conf"))
        self._daemon(member, "conntrackd").wait_for(member.control)

    def _spawn(self, member: Member, program: str, *arguments: str) -> None:
        inside = (tools.need("ip"), "netns", "exec", member.name, tools.need(program))
        started = Program((*inside, *arguments), member.node, tools.ENVIRONMENT)
        self._daemon(member, program).start(started)

    def _daemon(self, member: Member, program: str) -> Daemon:
        return Daemon(self.lab.folder, f"{member.name}-{program}")

    def _owned(self, member: Member) -> frozenset[str]:
        """Those of the virtual addresses that it has now."""
        trie = Path("/proc/thread-self/net/fib_trie")
        text = enter.in_network(self.place(member), trie.read_text)
        return peerconf.local_addresses(text) & self._addresses

    def _said(self, member: Member) -> str:
        try:
            return member.state.read_text().strip()
        except FileNotFoundError:
            return ""

    def _serves(self, member: Member) -> bool:
        return self._owned(member) == self._addresses and self._said(member) == "primary"

    def _settled(self) -> tuple[Member, Member]:
        roles = self.roles()
        if roles is None:
            raise DeadlineError("keepalived-late", "the pair is not ready", self._words())
        return roles

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            if time.monotonic() > deadline:
                raise DeadlineError(
                    "keepalived-late", f"not within {LIMIT_S:g} s: {what}", self._words()
                )
            time.sleep(0.005)

    def _words(self) -> str:
        """What both said last."""
        return "\n".join(
            f"{member.name} {program}: {self._daemon(member, program).tail(5)}"
            for member in self.members
            for program in ("keepalived", "conntrackd")
        )

    def _await_synced(self) -> None:
        """An entry that is made here in the master's kernel turns up in the backup's.

        Messages of FTFW keep their order: what the master sent before is there too.
        """
        master, backup = self._settled()
        conntrack = tools.need("conntrack")
        ends = ["-p", "udp", "-s", "192.0.2.1", "-d", "192.0.2.2", "--dport", "9"]
        ends += ["--sport", str(1024 + next(self._markers))]
        self.run_inside(master, conntrack, "-I", *ends, "-t", "60")

        def arrived() -> bool:
            try:
                self.run_inside(backup, conntrack, "-G", *ends)
            except DeadlineError:
                raise
            except VrhaError:
                return False
            return True

        self._await(arrived, "conntrackd brings an entry to the backup")
        self.run_inside(master, conntrack, "-D", *ends)

    def _end(self, daemon: Daemon) -> None:
        if daemon.alive:
            try:
                daemon.kill(signal.SIGTERM)
            except DeadlineError:
                daemon.kill()

    def _remove_network(self, member: Member) -> None:
        ends = [member.host_end(port.name) for port in peerconf.v4_ports(self.spec)]
        for what in (*(["link", "del", end] for end in ends), ["netns", "del", member.name]):
            # What was never made, or went with the lab, is as good as removed.
            with suppress(VrhaError):
                self.lab.run(member.node, ["ip", *what])
