"""What the documents promise is what the code does."""

from __future__ import annotations

import configparser
import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import click
import pytest

from vrha import codec
from vrha.bus import topology
from vrha.cli.main import cli
from vrha.core.check_in import Refusal
from vrha.model.messages import Message
from vrha.model.spec import InstanceSpec
from vrha.model.steps import Step
from vrha.probe.cli import main as ping_gap

DOCS = Path(__file__).parents[2] / "docs"
PROTOCOL = (DOCS / "protocol.md").read_text()
EXAMPLES = re.findall(r"```json\n(.*?)```", PROTOCOL, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_a_message(example: str) -> None:
    assert codec.plain(codec.decode_message(example.encode()))


def test_every_kind_of_message_has_an_example() -> None:
    shown = {type(codec.decode_message(example.encode())) for example in EXAMPLES}
    assert shown == set(get_args(Message))


def test_every_word_of_the_protocol_is_there() -> None:
    names = [topology.DOWN.name, topology.UP.name, topology.dead_queue().name]
    names += [topology.orchestrator_queue().name, topology.node_queue("NODE").name]
    kinds = [step.__dataclass_fields__["kind"].default for step in get_args(Step)]
    missing = [word for word in (*names, *kinds, *Refusal) if f"`{word}`" not in PROTOCOL]
    assert missing == []


def names_in(kind: object) -> set[str]:
    """The fields of a dataclass and of all that it is made of."""
    found: set[str] = set()
    for part in (kind, *get_args(kind)):
        if is_dataclass(part):
            hints = get_type_hints(part)
            found |= hints.keys() | {n for hint in hints.values() for n in names_in(hint)}
        elif part is not kind:
            found |= names_in(part)
    return found


OF_DESIRED_STATE = names_in(InstanceSpec)
"""Described where desired state is."""


def test_every_field_of_messages_and_steps_is_there() -> None:
    names = {name for kind in (*get_args(Message), *get_args(Step)) for name in names_in(kind)}
    missing = {n for n in names if f"`{n}`" not in PROTOCOL and f'"{n}"' not in PROTOCOL}
    assert missing - OF_DESIRED_STATE == set()


def test_every_command_is_documented() -> None:
    text = (DOCS / "cli.md").read_text()
    context = click.Context(cli)
    missing = []
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        subcommands = getattr(command, "commands", {})
        missing += [f"{name} {sub}" for sub in subcommands if name != "lab" and sub not in text]
        missing += [name] if f"vrha {name}" not in text else []
    assert missing == []


def test_every_option_of_ping_gap_is_documented() -> None:
    text = (DOCS / "cli.md").read_text().split("## ping-gap")[1].split("\n## ")[0]
    options = [
        name
        for command in ping_gap.commands.values()
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in parameter.opts
    ]
    assert len(options) > 10
    assert [name for name in options if f"`{name}" not in text] == []
    assert [name for name in ping_gap.commands if name not in text] == []


def test_every_dependency_is_documented() -> None:
    text = (DOCS / "dependencies.md").read_text().lower()
    setup = configparser.ConfigParser()
    setup.read(DOCS.parent / "setup.cfg")
    asked = setup["options"]["install_requires"] + setup["options.extras_require"]["dev"]
    wanted = [re.split(r"[<>=]", line)[0].lower() for line in asked.split()]
    assert "pydantic" in wanted
    assert [name for name in wanted if name not in text] == []
