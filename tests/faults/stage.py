"""One zone in which daemons die at given places, one case after the other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.cases import AGENT, BROKER, FAILING, HELD, INSIDE, MOVE, ORCHESTRATOR, PEER, Case
from tests.system.zonekit import Zone, wait_for, zone
from vrha import failpoints
from vrha.errors import VrhaError
from vrha.lab.daemons import Daemon
from vrha.model.probing import Result, Stream
from vrha.model.runs import RestartOptions, Strategy
from vrha.model.views import RouterStatus, RunView
from vrha.probe.process import ProbeProcess, serving
from vrha.probe.responder import Services

LIMITS = {"step_s": 4.0, "sync_s": 6.0, "check_in_s": 4.0}
END_S = 60.0
"""Within this every run has ended, whoever died."""
REACHED_S = 20.0
_BEFORE_S, _AFTER_S = 0.2, 0.4
"""Seconds of probing before a run, and after its end."""
_HEARD_S = 30.0


@dataclass(frozen=True)
class Outcome:
    """What a case led to; no run where it died before it was journaled."""

    run: RunView | None
    probes: Result
    late: Result | None
    """Connections that began while the victim of a flip was dead."""
    seconds: float


class Stage:
    """A zone whose daemons look for failpoints in `folder`."""

    def __init__(self, made: Zone, folder: Path) -> None:
        self.zone, self.folder = made, folder
        self.lab, self.client = made.lab, made.client
        answer, self._echo, self._push = Services().ports
        self.answer = answer
        self.used: list[str] = []

    def is_fit(self) -> bool:
        """Whether the zone serves and everybody lives, so that a case may begin."""
        try:
            views = self.client.routers()
            living = all(self.lab.status().daemons.values())
        except VrhaError:
            return False
        idle = not self.client.runs(open_only=True)
        return living and idle and all(v.status is RouterStatus.SERVING for v in views)

    def play(self, case: Case) -> Outcome:
        """Let the victim of the case die, come back, and the run end."""
        for path in self.folder.iterdir():
            path.unlink()
        wait_for(self._all_heard, _HEARD_S, "all agents")
        nodes = self._nodes(case)
        known = {run.id for run in self.client.runs()}
        began = time.monotonic()
        with (
            ProbeProcess(self._streams(), require_reply_s=5) as probes,
            contextlib.ExitStack() as stack,
        ):
            time.sleep(_BEFORE_S)
            if case.undo:
                self._arm(FAILING, "error")
            waits = case.victim in (PEER, BROKER)
            self._arm(case.place, "wait" if waits else "kill")
            self._begin(case, nodes)
            self._await_reached(case.place)
            late = stack.enter_context(self._late()) if case.place == INSIDE else None
            self._die(case, nodes)
            run = self._end(known)
            time.sleep(_AFTER_S)
            result = probes.stop()
            begun = late.stop() if late else None
        return Outcome(run, result, begun, time.monotonic() - began)

    def last_words(self) -> str:
        """What the daemons have logged of late."""
        daemons = [self.lab.orchestrator(), *(self.lab.agent(node) for node in self.lab.nodes)]
        return "\n".join(f"--- {daemon.name}\n{daemon.tail(40)}" for daemon in daemons)

    def move(self, node: str) -> RunView:
        """Move the router, undisturbed."""
        run = self.client.move_router("r1", RestartOptions(node=node))
        return self.zone.await_run(run.id)

    # --- the case ---------------------------------------------------------------------------

    def _nodes(self, case: Case) -> dict[str, str]:
        giver = self.zone.router().node
        return {"giver": giver, "taker": "n2" if giver == "n1" else "n1"}

    def _begin(self, case: Case, nodes: dict[str, str]) -> None:
        # Who dies while it is asked gives no answer.
        lenient = case.victim == ORCHESTRATOR
        with contextlib.suppress(VrhaError) if lenient else contextlib.nullcontext():
            if case.scenario == MOVE:
                self.client.move_router("r1", RestartOptions(node=nodes["taker"]))
            else:
                options = RestartOptions(Strategy.HANDOVER, hold=case.scenario == HELD)
                self.client.restart_network(self.zone.network, options)

    def _die(self, case: Case, nodes: dict[str, str]) -> None:
        match case.victim:
            case "broker":
                broker = self.lab.broker()
                broker.kill()
                broker.start()
            case "orchestrator":
                self._again(self.lab.orchestrator())
            case "peer":
                agent = self.lab.agent(nodes[case.node])
                agent.kill()
                agent.start()
            case _:
                assert case.victim == AGENT
                self._again(self.lab.agent(nodes[case.node]))
        (self.folder / f"{case.place}.go").touch()

    def _again(self, daemon: Daemon) -> None:
        wait_for(lambda: not daemon.alive, 10, f"the death of {daemon.name}")
        if daemon.name == "orchestrator":
            self.lab.socket.unlink(missing_ok=True)
        daemon.start()
        if daemon.name == "orchestrator":
            daemon.wait_for(self.lab.socket)

    def _end(self, known: set[str]) -> RunView | None:
        """The run of the case at its end, and of whatever it led to."""

        def ours() -> list[RunView]:
            return [run for run in self.client.runs() if run.id not in known]

        wait_for(lambda: all(run.status.terminal for run in ours()), END_S, "end of the run")
        runs = ours()
        return self.client.run(runs[-1].id) if runs else None

    # --- failpoints -------------------------------------------------------------------------

    def _arm(self, place: str, action: str) -> None:
        (self.folder / place).write_text(action)
        self.used.append(place)

    def _await_reached(self, place: str) -> None:
        reached = self.folder / f"{place}.reached"
        wait_for(reached.exists, REACHED_S, f"anybody at {place}: {self._state()}")

    def _state(self) -> str:
        return f"{[path.name for path in self.folder.iterdir()]}"

    # --- the zone ---------------------------------------------------------------------------

    def _all_heard(self) -> bool:
        health = self.client.health()
        return health.broker and health.nodes_heard == len(self.lab.nodes)

    def _late(self) -> ProbeProcess:
        """Connections that begin now, those that only the far end keeps alive among them."""
        wanted = ("tcp_in", "tcp_out", "tcp_push", "tcp_snat_push")
        streams = [stream for stream in self._streams() if stream.name in wanted]
        return ProbeProcess(streams, require_reply_s=5)

    def _streams(self) -> tuple[Stream, ...]:
        """Probes both ways, and long connections by 1:1 and by source NAT, each way opened."""
        nat = self.zone.desired.routers[0].static_nat[0]
        public, target = str(nat.public), "203.0.113.1"
        outside = self.lab.netns_path("outside")
        inside, hidden = self.lab.netns_path("vm1"), self.lab.netns_path("vm11")
        return (
            Stream("egress", "icmp", target, netns=inside),
            Stream("ingress", "icmp", public, netns=outside),
            Stream("snat", "udp", target, self.answer, netns=hidden, interval_ms=5),
            Stream("fresh", "udp-fresh", target, self._echo, netns=hidden, interval_ms=5),
            Stream("tcp_in", "tcp-echo", public, self._echo, outside, 20, 2),
            Stream("tcp_out", "tcp-echo", target, self._echo, hidden, 20, 2),
            Stream("tcp_push", "tcp-push", target, self._push, inside, 20),
            Stream("tcp_snat_push", "tcp-push", target, self._push, hidden, 20),
        )


@contextlib.contextmanager
def stage(name: str) -> Iterator[Stage]:
    """A zone that serves, every node of which has had the router once."""
    folder = Path(f"/run/vrha-lab/{name}/failpoints")
    limits = dict(LIMITS)
    with zone("seed-10x10", name, limits, {failpoints.VARIABLE: str(folder)}) as made:
        folder.mkdir()
        ready = Stage(made, folder)
        machines = [made.lab.netns_path(machine) for machine in made.lab.machines]
        with serving(ready.answer, machines):
            for node in ("n2", "n1"):
                if made.router().node != node:
                    ready.move(node)
            yield ready
