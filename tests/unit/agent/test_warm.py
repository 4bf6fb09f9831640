"""The warm-up compiles everything that the first command needs."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
from unittest.mock import patch
from vrha.agent.warm import warm_up
warm_up()
import jinja2
from pydantic import TypeAdapter
from tests.unit.orchestrator.world import DESIRED, ROUTER
from vrha import codec
from vrha.core.instance import instance_spec
from vrha.model.messages import Command
from vrha.model.spec import InstanceRef
from vrha.model.steps import Build
from vrha.render.dnsmasq import dnsmasq_files
from vrha.render.nft import nft_text

spec = instance_spec(DESIRED, ROUTER, InstanceRef("r1", 1), 1)
body = codec.encode(Command("x", "r1", 1, "n1", 1, 0, False, (Build("n1", spec),)))
def refuse(*a, **k):
    raise AssertionError("compiled late")
late = patch.object(jinja2.Environment, "compile", refuse)
with late, patch.object(codec, "TypeAdapter", refuse):
    codec.decode_message(body)
    nft_text(spec, fresh=True)
    dnsmasq_files(spec, "/nowhere")
"""


def test_nothing_is_compiled_after_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
