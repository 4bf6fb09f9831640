"""What only a real lab can have done to it (`tests.system.labfaults`), beside LabNemesis."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress

from tests.system.labfaults import (
    CrashLoop,
    Damage,
    DiskFull,
    DropSwitch,
    Freeze,
    LabFault,
    Lossy,
    Order,
    Part,
    Reboot,
    Slow,
    Unmanaged,
)
from tests.system.labnemesis import LabNemesis
from vrha.cli.client import Client
from vrha.core.names import folder_name, host_port_prefix, namespace_name
from vrha.errors import VrhaError
from vrha.lab.faults import cables, lose, mend, processes
from vrha.lab.wiring import MGMT
from vrha.lab.zone import Lab
from vrha.model.rollouts import RolloutKind, RolloutRequest
from vrha.model.runs import RestartOptions
from vrha.model.spec import InstanceRef

DISK_BYTES = 2 * 1024 * 1024
_FILLER = "filler"
_RULES = """\
add table bridge {table}
add chain bridge {table} {chain} {{ type filter hook {hook} priority -250; }}
add rule bridge {table} {chain} {match} numgen random mod 1000 < {permille} drop
"""
_WIPE = """\
for name in $(ls /run/netns); do
    ip netns pids "$name" | xargs -r kill -9
    ip netns delete "$name"
done
nft delete table bridge vrha 2>/dev/null
for port in $(ip -o link | grep -o 'vrh[0-9a-f]\\{8\\}-[a-z0-9]*'); do
    ip link delete "$port" 2>/dev/null
done
true
"""


def small_disks(lab: Lab) -> None:
    """Before the daemons start: the state of every agent is on a small file system of its own."""
    for node in lab.nodes:
        folder = lab.folder / "state" / f"agent-{node}"
        folder.mkdir(parents=True, exist_ok=True)
        argv = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=711", "tmpfs", str(folder)]
        lab.run(node, argv)


class LabHands(LabNemesis):
    """Does all faults to a lab that `small_disks` was called for."""

    def __init__(self, lab: Lab, client: Client) -> None:
        super().__init__(lab)
        self._client = client
        self.drained: list[str] = []
        self._tables = 0

    def strike(self, fault: LabFault) -> None:
        match fault:
            case Freeze():
                self._freeze(fault)
            case Reboot():
                self._reboot(fault)
            case CrashLoop():
                self._crash(fault)
            case Unmanaged():
                self._unplug(fault.name, MGMT, fault.ms)
            case Lossy():
                self._lossy(fault)
            case Slow():
                self._slow(fault)
            case DiskFull():
                self._fill(fault)
            case Damage():
                self._damage(fault)
            case DropSwitch():
                self._lab.run(fault.name, ["nft", "delete", "table", "bridge", "vrha"])
            case Order():
                self._order(fault)
            case _:
                super().strike(fault)

    def heal(self) -> None:
        super().heal()
        for node in self.drained:
            with suppress(VrhaError):
                self._client.undrain(node)
        self.drained.clear()

    def _freeze(self, fault: Freeze) -> None:
        stopped = processes(self._lab, fault.name)
        for process in stopped:
            process.kill(signal.SIGSTOP)

        def go_on() -> None:
            for process in stopped:
                process.kill(signal.SIGCONT)

        self._later(fault.ms, go_on, fault.name)

    def _reboot(self, fault: Reboot) -> None:
        lose(self._lab, fault.name)
        for process in processes(self._lab, fault.name):
            process.kill()
            process.wait_gone(10)
        self._lab.run(fault.name, ["sh", "-c", _WIPE])
        self._later(fault.ms, lambda: mend(self._lab, fault.name), fault.name)

    def _crash(self, fault: CrashLoop) -> None:
        agent = self._lab.agent(fault.name)
        ends = threading.Event()

        def again() -> None:
            while not ends.wait(fault.life_ms / 1000):
                agent.kill()
                agent.start()

        thread = threading.Thread(target=again, daemon=True)
        thread.start()

        def leave() -> None:
            ends.set()
            thread.join()

        self._later(fault.ms, leave, fault.name)

    def _lossy(self, fault: Lossy) -> None:
        cable = self._management(fault.name)
        self._tables += 1
        table, permille = f"lossy{self._tables}", int(1000 * fault.share)
        hooks = (("prerouting", "iifname"), ("postrouting", "oifname"))
        rules = "".join(
            _RULES.format(
                table=table, chain=hook, hook=hook, match=f"{key} {cable}", permille=permille
            )
            for hook, key in hooks
        )
        self._nft("", rules)
        self._later(fault.ms, lambda: self._nft("", f"delete table bridge {table}"), fault.name)

    def _slow(self, fault: Slow) -> None:
        cable = self._management(fault.name)
        shape = ["tbf", "rate", f"{fault.kbit}kbit", "burst", "2000", "latency", "300ms"]
        self._lab.run("", ["tc", "qdisc", "add", "dev", cable, "root", *shape])
        back = ["tc", "qdisc", "delete", "dev", cable, "root"]
        self._later(fault.ms, lambda: self._lab.run("", back), fault.name)

    def _fill(self, fault: DiskFull) -> None:
        filler = self._lab.folder / "state" / f"agent-{fault.name}" / _FILLER
        # It ends with an error when nothing more goes in, as it is meant to.
        script = f"head -c {2 * DISK_BYTES} /dev/zero >{filler} 2>/dev/null; true"
        self._lab.run(fault.name, ["sh", "-c", script])
        empty = ["rm", "-f", str(filler)]
        self._later(fault.ms, lambda: self._lab.run(fault.name, empty), fault.name)

    def _damage(self, fault: Damage) -> None:
        view = next(r for r in self._client.routers() if r.name == fault.router)
        ref = ref_of(view.instance)
        netns = namespace_name(ref)
        folder = self._lab.folder / "state" / f"agent-{view.node}" / "instances" / folder_name(ref)
        scripts: dict[Part, str] = {
            "dnsmasq": f"kill -9 $(cat {folder}/dnsmasq.pid)",
            "namespace": f"ip netns pids {netns} | xargs -r kill -9; ip netns delete {netns}",
            "mount": f"umount -l /run/netns/{netns}",
            "port": f"ip link delete {host_port_prefix(ref)}n0",
            "rules": f"ip netns exec {netns} nft flush ruleset",
            "folder": f"rm -r {folder}",
        }
        # Another fault may have taken it already.
        script = f"[ -e /run/netns/{netns} ] || exit 0; {scripts[fault.part]}"
        self._lab.run(view.node, ["sh", "-c", script])

    def _order(self, fault: Order) -> None:
        # Another fault may forbid it: then there is nothing in the way of that one.
        with suppress(VrhaError):
            view = next(r for r in self._client.routers() if r.name == fault.router)
            if fault.what == "restart":
                self._client.restart_network(view.networks[0])
            elif fault.what == "move":
                nodes = sorted(self._lab.nodes)
                target = nodes[(nodes.index(view.node) + 1) % len(nodes)]
                self._client.move_router(view.name, RestartOptions(node=target))
            else:
                self.drained.append(view.node)
                self._client.start_rollout(RolloutRequest(RolloutKind.DRAIN, node=view.node))

    def _management(self, node: str) -> str:
        """The end in the fabric of the node's management cable."""
        return next(e for e, switch in cables(self._lab, node).items() if switch == MGMT)


def ref_of(instance: str) -> InstanceRef:
    """An instance by what a view calls it. Raises ValueError when it is the name of none."""
    router, generation = instance.split("#")
    return InstanceRef(router, int(generation))
