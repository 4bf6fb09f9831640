"""JSON at the edges: every step comes back as itself, and long lists are read once."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from tests.unit.render.render_specs import small
from vrha import codec
from vrha.errors import InputError
from vrha.model.evidence import Measured
from vrha.model.messages import Command
from vrha.model.spec import Ingress, InstanceRef, InstanceSpec, PortRange, Protocol, Rule
from vrha.model.steps import (
    Announce,
    AwaitCheckIn,
    Build,
    Configure,
    Destroy,
    Mute,
    Step,
    Swap,
    Unmute,
)

REF = InstanceRef("r1", 7)


def command(*steps: Step) -> Command:
    return Command("run", "r1", 3, "n1", 1, 0, False, steps, "token")


def large(rules: int) -> InstanceSpec:
    spec = small()
    address = ip_address("203.0.113.10")
    many = tuple(
        Rule(Protocol.TCP, PortRange(n + 1, n + 1), ip_network("10.0.0.0/8")) for n in range(rules)
    )
    return replace(spec, router=replace(spec.router, ingress=(Ingress(address, many),)))


def test_every_step_comes_back_as_itself() -> None:
    told = command(
        Build("n1", small(), InstanceRef("r1", 6), "1 2 3 4 *"),
        AwaitCheckIn(REF),
        Swap("n1", REF, InstanceRef("r1", 6)),
        Mute("n1", REF),
        Unmute("n1", REF),
        Announce("n1", REF),
        Configure("n1", small(), small()),
        Destroy("n1", REF),
    )
    assert codec.decode_message(codec.encode(told)) == told


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b'"kind":"mute"', b'"kind":"explode"'),
        (b',"kind":"mute"', b""),
        (b'"generation":7', b'"generation":"seven"'),
        (b'"type":"command"', b'"type":"order"'),
    ],
)
def test_what_is_no_step_is_refused(good: bytes, bad: bytes) -> None:
    body = codec.encode(command(Mute("n1", REF)))
    assert good in body
    with pytest.raises(InputError) as caught:
        codec.decode_message(body.replace(good, bad))
    assert caught.value.code == "malformed"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_has_not_are_refused(number: str) -> None:
    """They would be written as null, and whoever reads that again would fail."""
    body = f'{{"stream": "a", "began": {number}, "interval_ms": 1, "sent": 1, "lost": 0}}'
    with pytest.raises(InputError):
        codec.decode(Measured, body)


def test_addresses_of_both_families_come_back() -> None:
    rule = Rule(Protocol.UDP, None, ip_network("2001:db8::/32"))
    assert codec.decode(Rule, codec.encode(rule)) == rule
    rule = Rule(Protocol.UDP, None, ip_network("10.0.0.0/8"))
    assert codec.decode(Rule, codec.encode(rule)) == rule
    with pytest.raises(InputError):
        codec.decode(Rule, codec.encode(rule).replace(b"10.0.0.0/8", b"10.0.0.256/8"))


def test_a_long_list_is_read_once() -> None:
    """A command takes about as long as the specification in it."""
    spec = large(2000)
    alone, within = codec.encode(spec), codec.encode(command(Build("n1", spec)))
    ratio = min(_decode_s(Command, within) for _ in range(3)) / min(
        _decode_s(InstanceSpec, alone) for _ in range(3)
    )
    assert ratio < 2


def _decode_s(kind: type[object], body: bytes) -> float:
    begin = time.thread_time()
    codec.decode(kind, body)
    return time.thread_time() - begin
