"""What dead L3 and DHCP agents of Neutron leave on a node, rebuilt, beside what is not theirs.

The calling thread is in the node's own network namespace. Namespaces, links, chains, files, pid
files and rows of Open vSwitch are named as Neutron 29 names them (neutron/agent/l3, neutron/agent/
linux); processes other than dnsmasq are shells under the names of the real programs.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.netns import neutronrules
from tests.netns.neutronovs import Row, add_rows
from tests.netns.nodekit import until

LEGACY = "1f0c7a52-0b1d-4c2e-9a3f-5b6c7d8e9f01"
"""A plain router: one network, gateway, floating IP."""
HA = "2e1d8b63-1c2e-4d3f-8b40-6c7d8e9fa012"
DVR = "3d2e9c74-2d3f-4e40-9c51-7d8e9fa0b123"
"""Distributed: with its `snat-`, and `fip-` of the external network."""
EXTERNAL = "4c3fad85-3e40-4f51-8d62-8e9fa0b1c234"
LOST = "5b40be96-4f51-4062-9e73-9fa0b1c2d345"
"""`ip netns del` was run: its processes hold the namespace, which has no name any more."""
HOLLOW = "6a51cfa7-5062-4173-8f84-a0b1c2d3e456"
"""A plain file is left under the name of its namespace, and configuration."""
NETWORK = "7962d0b8-6173-4284-9095-b1c2d3e4f567"
ROUTERS = (LEGACY, HA, DVR, LOST, HOLLOW)

FOREIGN = "8873e1c9-7284-4395-a1a6-c2d3e4f50678"
"""An id that is nobody's of Neutron's, for names that only look like theirs."""
SHARED_ADDRESS = "10.9.9.1"
"""In two namespaces, so that nobody can tell whose connections it has."""


def port_id(owner: str, number: int) -> str:
    """The id of a port of an owner."""
    return f"{owner[:6]}{number:02x}-{owner[9:]}"


def link(prefix: str, owner: str, number: int) -> str:
    """The name of the link of that port, as long as the kernel lets it be."""
    return prefix + port_id(owner, number)[:11]


@dataclass
class Left:
    """What was made; `close` removes what a sweep has not."""

    state: Path
    programs: Path
    ovs: bool
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(timeout=10)

    def ended(self) -> set[str]:
        """Keys of the processes that live no more."""
        return {key for key, process in self.processes.items() if process.poll() is not None}


@contextmanager
def foreign(state: Path, programs: Path, ovs: bool) -> Iterator[Left]:
    """What must stay as it is."""
    left = Left(state, programs, ovs)
    fill = ("ha_confs", "external/pids", "ns-metadata-proxy", "ra", "dhcp", "lock")
    for folder in fill:
        (state / folder).mkdir(parents=True)
    write(state / "dhcp/README", "notes of the administrator")
    write(state / "ha_confs" / f"{FOREIGN}x", "not an id")
    write(state / "lock/neutron-iptables-br-int", "")
    write(state / "lock/somebody", "")
    write(state / f"instances/{LEGACY}/disk", "another program's folder")
    os.mkfifo(state / "block")
    shutil.copy("/bin/dash", programs / "haproxy")
    for name in ("radvd", "keepalived", "conntrackd", "neutron-keepalived-state-change"):
        os.link(programs / "haproxy", programs / name)
    batch(
        # Their IPv6 addresses change by themselves for a while.
        *(f"link del {bridge}" for bridge in ("br-a", "br-b", "br-up")),
        "link add brq0 type bridge",
        "link set brq0 addrgenmode none",
        "link set brq0 up",
        "link add tap-machine type veth peer name machine",
        f"link add {link('tap', FOREIGN, 1)} type veth peer name machine2",
        f"link set {link('tap', FOREIGN, 1)} addrgenmode none master brq0 up",
        "link set machine2 addrgenmode none up",
        "link add qr-somebody type bridge",
        "addr add 198.51.100.7/24 dev brq0",
        "netns add blue",
        "netns add qrouter-blue",
        f"netns add qrouter-{FOREIGN}-old",
        "-n blue link add qr-00000000-00 type bridge",
        f"-n blue addr add {SHARED_ADDRESS}/24 dev qr-00000000-00",
    )
    start(left, "own", None, "haproxy", "-f", "/etc/haproxy/haproxy.cfg")
    start(left, "blue", "blue", "radvd", "-C", "/etc/radvd.conf")
    neutronrules.load_foreign()
    connect("198.51.100.7", "192.0.2.9", 40001)
    connect("192.0.2.8", "192.0.2.9", 40002)
    connect(SHARED_ADDRESS, "192.0.2.9", 40005)
    connect("10.1.1.1", "192.0.2.9", 40006, "--zone", "5")
    if ovs:
        add_rows(
            Row(link("tap", FOREIGN, 1), port_id(FOREIGN, 1), {"vm-id": FOREIGN}),
            Row(link("qr-", FOREIGN, 2), port_id(FOREIGN, 3)),
            Row(link("tap", FOREIGN, 4), port_id(FOREIGN, 4)),
            Row("patch-tun", ""),
        )
    assert until(lambda: _operstate("brq0") == "UP"), "the bridge does not see its port"
    try:
        yield left
    finally:
        left.close()


@contextmanager
def dead(state: Path, programs: Path, ovs: bool) -> Iterator[Left]:
    """What the agents leave; `foreign` comes first."""
    left = Left(state, programs, ovs)
    try:
        for build in (_legacy, _highly_available, _distributed, _lost, _hollow, _network):
            build(left)
        neutronrules.load_agents()
        batch(f"link add {link('qr-', HOLLOW, 9)} type bridge")
        connect("10.1.1.1", "10.1.1.50", 40003)
        connect("192.0.2.9", "203.0.113.10", 40004)
        yield left
    finally:
        left.close()


def agent(left: Left, name: str) -> subprocess.Popen[bytes]:
    """A living process that is, by its command line, this agent; `left` ends it."""
    script = left.programs / name
    write(script, f"read _ < {left.state / 'block'}")
    started = subprocess.Popen(
        ["python3.11", str(script), "--config-file", "/etc/neutron.conf"], executable="/bin/dash"
    )
    left.processes[name] = started
    return started


def _legacy(left: Left) -> None:
    name, inner, outer = f"qrouter-{LEGACY}", link("qr-", LEGACY, 1), link("qg-", LEGACY, 2)
    batch(
        f"netns add {name}",
        f"-n {name} link add {inner} type bridge",
        f"-n {name} link add {outer} type bridge",
        f"-n {name} addr add 10.1.1.1/24 dev {inner}",
        f"-n {name} addr add {SHARED_ADDRESS}/24 dev {inner}",
        f"-n {name} addr add 203.0.113.9/24 dev {outer}",
        f"-n {name} addr add 203.0.113.10/32 dev {outer}",
        f"-n {name} link set {inner} up",
        f"-n {name} link set {outer} up",
        f"-n {name} route add default via 203.0.113.1 proto static",
    )
    neutronrules.load_inside(name)
    _metadata(left, LEGACY, name)
    _advertising(left, LEGACY, name, inner)
    # The process that it once was is gone, and its number another's.
    foreign_pid = os.getpid()
    write(left.state / f"external/pids/{LEGACY}.pid.radvd", str(foreign_pid))
    write(left.state / f"lock/neutron-iptables-{name}", "")
    _rows(left, Row(inner, port_id(LEGACY, 1)), Row(outer, port_id(LEGACY, 2)))


def _highly_available(left: Left) -> None:
    name, inner, between = f"qrouter-{HA}", link("qr-", HA, 1), link("ha-", HA, 3)
    batch(
        f"netns add {name}",
        f"-n {name} link add {between} type bridge",
        f"-n {name} addr add 169.254.192.5/18 dev {between}",
        # As the driver for Linux bridges does it: a pair of which one end is a port of the bridge.
        f"link add {link('tap', HA, 1)} type veth peer name {inner} netns {name}",
        f"link set {link('tap', HA, 1)} master brq0",
        f"-n {name} addr add 10.1.2.1/24 dev {inner}",
    )
    _keepalived(left, HA, name, between)
    start(
        left,
        "conntrackd",
        name,
        "conntrackd",
        "-d",
        "-C",
        str(left.state / f"ha_confs/{HA}/conntrackd.conf"),
    )
    monitor = start(
        left,
        "monitor",
        name,
        "neutron-keepalived-state-change",
        f"--router_id={HA}",
        f"--conf_dir={left.state}/ha_confs/{HA}",
    )
    pid_file = f"external/pids/{HA}.monitor.pid.neutron-keepalived-state-change-monitor"
    write(left.state / pid_file, str(monitor.pid))
    _metadata(left, HA, name)
    write(left.state / f"lock/neutron-iptables-{name}", "")
    _rows(left, Row(between, port_id(HA, 3)))


def _distributed(left: Left) -> None:
    name, snat, fip = f"qrouter-{DVR}", f"snat-{DVR}", f"fip-{EXTERNAL}"
    short = DVR[:11]
    batch(
        f"netns add {name}",
        f"netns add {snat}",
        f"netns add {fip}",
        f"-n {name} link add rfp-{short} type veth peer name fpr-{short} netns {fip}",
        f"-n {name} link add {link('qr-', DVR, 1)} type bridge",
        f"-n {snat} link add {link('sg-', DVR, 2)} type bridge",
        f"-n {snat} link add {link('qg-', DVR, 3)} type bridge",
        f"-n {fip} link add {link('fg-', EXTERNAL, 1)} type bridge",
        f"-n {fip} addr add 203.0.113.30/24 dev {link('fg-', EXTERNAL, 1)}",
    )
    for each in (name, snat, fip):
        write(left.state / f"lock/neutron-iptables-{each}", "")
    _metadata(left, DVR, name)
    _rows(
        left,
        *(Row(link(p, DVR, n), port_id(DVR, n)) for p, n in (("qr-", 1), ("sg-", 2), ("qg-", 3))),
        Row(link("fg-", EXTERNAL, 1), port_id(EXTERNAL, 1)),
    )


def _lost(left: Left) -> None:
    name, inner = f"qrouter-{LOST}", link("qr-", LOST, 1)
    batch(f"netns add {name}", f"-n {name} link add {inner} type bridge")
    batch(f"-n {name} link set {inner} up", f"-n {name} addr add 10.1.4.1/24 dev {inner}")
    _keepalived(left, LOST, name, link("ha-", LOST, 3))
    left.processes[f"keepalived {LOST}"].send_signal(signal.SIGSTOP)
    _advertising(left, LOST, name, inner)
    batch(f"netns del {name}")
    _rows(left, Row(inner, port_id(LOST, 1)), Row(link("ha-", LOST, 3), port_id(LOST, 3)))


def _hollow(left: Left) -> None:
    Path(f"/run/netns/qrouter-{HOLLOW}").touch(mode=0o444)
    write(left.state / f"ns-metadata-proxy/{HOLLOW}.conf", "global\n")
    on = f"vrrp_instance VR_9 {{\n    interface {link('ha-', HOLLOW, 3)}\n}}\n"
    write(left.state / f"ha_confs/{HOLLOW}/keepalived.conf", on)
    # One is named in a file alone; of the other nothing tells whose it is.
    _rows(
        left,
        Row(link("ha-", HOLLOW, 3), port_id(HOLLOW, 3)),
        Row(link("qr-", HOLLOW, 1), port_id(HOLLOW, 1)),
    )


def _network(left: Left) -> None:
    name, tap = f"qdhcp-{NETWORK}", link("tap", NETWORK, 1)
    batch(
        f"netns add {name}",
        f"-n {name} link set lo up",
        f"-n {name} link add {tap} type bridge",
        f"-n {name} addr add 10.1.1.2/24 dev {tap}",
        f"-n {name} link set {tap} up",
    )
    folder = left.state / f"dhcp/{NETWORK}"
    for file, text in (
        ("host", "fa:16:3e:00:00:01,host-10-1-1-50.example.,10.1.1.50\n"),
        ("addn_hosts", "10.1.1.50\thost-10-1-1-50.example. host-10-1-1-50\n"),
        ("opts", "tag:subnet-1,option:router,10.1.1.1\n"),
        ("leases", ""),
        ("interface", tap),
    ):
        write(folder / file, text)
    dnsmasq = run(
        left,
        "dnsmasq",
        ["ip", "netns", "exec", name, "dnsmasq", "--keep-in-foreground", "--no-hosts",
         "--no-resolv", "--bind-interfaces", f"--interface={tap}", "--user=root", "--conf-file=",
         f"--pid-file={folder}/pid", f"--dhcp-hostsfile={folder}/host",
         f"--addn-hosts={folder}/addn_hosts", f"--dhcp-optsfile={folder}/opts",
         f"--dhcp-leasefile={folder}/leases", "--dhcp-range=set:subnet-1,10.1.1.0,static,86400s"],
    )  # fmt: skip
    write(folder / "pid", str(dnsmasq.pid))
    _metadata(left, NETWORK, name)
    write(left.state / f"lock/neutron-iptables-{name}", "")
    _rows(left, Row(tap, port_id(NETWORK, 1)))


def _metadata(left: Left, owner: str, name: str) -> None:
    conf = left.state / f"ns-metadata-proxy/{owner}.conf"
    write(conf, f"listen listener\n    bind 0.0.0.0:9697\n    # {owner}\n")
    process = start(left, f"haproxy {owner}", name, "haproxy", "-f", str(conf))
    write(left.state / f"external/pids/{owner}.pid.haproxy", str(process.pid))


def _advertising(left: Left, owner: str, name: str, on: str) -> None:
    conf = left.state / f"ra/{owner}.radvd.conf"
    write(conf, f"interface {on}\n{{\n    AdvSendAdvert on;\n}};\n")
    start(left, f"radvd {owner}", name, "radvd", "-C", str(conf), "-m", "syslog")


def _keepalived(left: Left, owner: str, name: str, on: str) -> None:
    folder = left.state / f"ha_confs/{owner}"
    write(folder / "keepalived.conf", f"vrrp_instance VR_1 {{\n    interface {on}\n}}\n")
    write(folder / "state", "primary")
    write(folder / "neutron-keepalived-state-change.log", "")
    write(folder / "conntrackd.conf", "Sync {\n}\n")
    os.mkfifo(folder / "ip-monitor")
    process = start(
        left, f"keepalived {owner}", name, "keepalived", "-P", "-f", f"{folder}/keepalived.conf",
        stubborn=True,
    )  # fmt: skip
    for kind in ("keepalived", "keepalived-vrrp"):
        write(left.state / f"ha_confs/{owner}.pid.{kind}", str(process.pid))


def start(
    left: Left,
    key: str,
    namespace: str | None,
    program: str,
    *arguments: str,
    stubborn: bool = False,
) -> subprocess.Popen[bytes]:
    """A process of this name that waits; a stubborn one does not hear SIGTERM."""
    script = 'trap "" TERM; while :; do read _ < "$0"; done' if stubborn else 'read _ < "$0"'
    argv = [str(left.programs / program), "-c", script, str(left.state / "block"), *arguments]
    if namespace is not None:
        argv = ["ip", "netns", "exec", namespace, *argv]
    return run(left, key, argv)


def run(left: Left, key: str, argv: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start it, and wait until it is in its namespace."""
    started = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    left.processes[key] = started
    line = Path(f"/proc/{started.pid}/cmdline")
    arrived = until(lambda: line.read_bytes().split(b"\0")[0] not in (b"ip", b""))
    assert arrived, f"{argv} does not start"
    return started


def batch(*commands: str) -> None:
    """Commands of ip(8), in order; those in a row for one namespace (`-n NAME`) in one process."""
    for namespace, group in itertools.groupby(commands, _namespace):
        inside = ["-n", namespace] if namespace else []
        words = (command.split()[len(inside) :] for command in group)
        _run(["ip", *inside, "-batch", "-"], "\n".join(" ".join(each) for each in words))


def _namespace(command: str) -> str:
    words = command.split()
    return words[1] if words[0] == "-n" else ""


def _operstate(name: str) -> str:
    # /sys shows the network namespace in which it was mounted.
    words = subprocess.run(
        ["ip", "-o", "link", "show", name], capture_output=True, text=True, timeout=10, check=True
    ).stdout.split()
    return words[words.index("state") + 1]


def connect(source: str, target: str, port: int, *more: str) -> None:
    """An established connection in the node's own table."""
    _run(["conntrack", "-I", "-p", "tcp", "-s", source, "-d", target, "--sport", str(port),
          "--dport", "22", "--state", "ESTABLISHED", "--timeout", "3000", *more])  # fmt: skip


def write(path: Path, text: str) -> None:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _rows(left: Left, *rows: Row) -> None:
    if left.ovs:
        add_rows(*rows)


def _run(argv: Sequence[str], given: str = "") -> None:
    done = subprocess.run(argv, input=given, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
