"""The floor of a mass failover, to be run on a node of a lab without daemons.

`python -m tools.benchmarks.massfloor NUMBER WORKERS`: as many routers as raw netlink, nft and
dnsmasq build, from messages and texts that were prepared before; no control plane. Writes when
each was ready, in ms from the beginning, as a list of JSON. What it makes stays: the lab goes.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import yaml

from tools.benchmarks import floor, massrouters
from tools.benchmarks.floor import Prepared
from vrha.config import desired
from vrha.core.instance import instance_spec
from vrha.model.spec import InstanceRef


def main(number: int, workers: int) -> None:
    """Build all, then print."""
    state = Path(tempfile.mkdtemp(prefix="floor-", dir="/run"))
    state.chmod(0o711)
    text = yaml.dump(dict(massrouters.scenario(number).zone), Dumper=massrouters.Fast)
    zone = desired.parse(text, "mass")
    specs = [
        instance_spec(zone, router, InstanceRef(router.name, place), 1)
        for place, router in enumerate(zone.routers, 1)
    ]
    prepared = [floor.prepare(state, spec) for spec in specs]
    # As nothing has been started yet, a fork has all that is prepared.
    context = multiprocessing.get_context("fork")
    start = context.Barrier(workers + 1)
    ends = []
    for worker in range(workers):
        ours, theirs = context.Pipe(duplex=False)
        arguments = (prepared[worker::workers], start, theirs)
        context.Process(target=_work, args=arguments, daemon=True).start()
        theirs.close()
        ends.append(ours)
    start.wait()
    began = time.monotonic()
    moments = [moment for end in ends for moment in end.recv()]
    print(json.dumps([round((moment - began) * 1000, 3) for moment in moments]))


def _work(
    mine: Sequence[Prepared], start: multiprocessing.synchronize.Barrier, to: Connection
) -> None:
    done = []
    start.wait()
    for one in mine:
        floor.make(one, answering=False)
        done.append(time.monotonic())
    to.send(done)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
