"""Signed datagrams: what is said arrives, and nothing that was not said."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from vrha.errors import InputError, PreconditionError
from vrha.fencing import keys as fencing_keys
from vrha.fencing import wire
from vrha.fencing.endpoint import Endpoint, address_of
from vrha.fencing.keys import Keys, file_name, make, pairs
from vrha.model.ownership import (
    MAX_ROUTERS,
    Ack,
    Depose,
    Deposed,
    Electorate,
    Grant,
    Holding,
    Message,
    Over,
    Refusal,
    Renew,
    Silenced,
    StandIn,
)

VOTERS = Electorate(3, ("n1", "n2", "o1"))
MANY = tuple((f"router-{i:04}/{i}", 1 << 40) for i in range(MAX_ROUTERS))
MESSAGES: tuple[tuple[str, str, Message], ...] = (
    ("n1", "o1", Renew("n1", 1 << 62, 7, 3)),
    ("o1", "n1", Ack("o1", "n1", 5, 7)),
    ("o1", "n1", Over("o1", "n1", 5, 9)),
    ("o1", "n1", Depose("o1", 4, 11, "n2", 5)),
    ("n1", "o1", Deposed("n1", 4, 11, "n2", 5, 123.456, 6)),
    ("o1", "n1", Grant("o1", 4, 2, "n1", 5, 7, VOTERS, (("r1/3", 8),), (("r2/1", 9),))),
    ("n1", "o1", Holding("n1", 5, 4, 2, (("r1/3", 8),), (("r2/1", 9),))),
    ("n1", "o1", Refusal("n1", 5, 4, 2, "late-grant")),
    ("n1", "o1", Silenced("n1", 5)),
    ("n1", "o1", Renew("n1", 5, 7, 3, health=9)),
    ("o1", "n1", StandIn("o1", 4, "n1", 5, 2.5)),
    ("o1", "n1", Grant("o1", 4, 2, "n1", 5, 7, VOTERS, MANY[:1000], MANY[1000:1500])),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("keys")
    list(make(made, pairs(["n1", "n2"], ["n1", "n2", "o1"], ["o1"])))
    return made


@pytest.mark.parametrize(("sender", "receiver", "message"), MESSAGES)
def test_what_is_said_arrives(sender: str, receiver: str, message: Message, folder: Path) -> None:
    said = wire.pack(message, sender, receiver, Keys(folder / sender))
    assert len(said) <= wire.MAX_DATAGRAM
    assert wire.unpack(said, receiver, Keys(folder / receiver)) == (sender, message)


def test_nothing_serves_for_somebody_else(folder: Path) -> None:
    said = wire.pack(Renew("n1", 5, 7, 3), "n1", "o1", Keys(folder / "n1"))
    with pytest.raises(wire.Rejected, match="wrong signature"):
        wire.unpack(said, "n2", Keys(folder / "n2"))
    for_another = wire.pack(Renew("n2", 5, 7, 3), "n1", "o1", Keys(folder / "n1"))
    with pytest.raises(wire.Rejected, match="somebody else"):
        wire.unpack(for_another, "o1", Keys(folder / "o1"))


def test_a_node_cannot_speak_for_the_leader(folder: Path) -> None:
    """It has the key by which the leader is known to it, and none by which others know it."""
    held = {path.name for path in (folder / "n1").iterdir()}
    assert file_name("o1", "n1") in held
    assert file_name("o1", "n2") not in held
    assert file_name("n2", "o1") not in held
    with pytest.raises(PreconditionError, match="o1\\+n2"):
        wire.pack(Depose("o1", 9, 1, "n2", 5), "o1", "n2", Keys(folder / "n1"))


def test_no_changed_datagram_is_taken(folder: Path) -> None:
    dice = random.Random(1)
    receivers = {name: Keys(folder / name) for name in ("n1", "o1")}
    said = [
        (receiver, wire.pack(message, sender, receiver, Keys(folder / sender)))
        for sender, receiver, message in MESSAGES[:-1]
    ]
    for _ in range(20_000):
        receiver, datagram = dice.choice(said)
        changed = bytearray(datagram)
        match dice.randrange(4):
            case 0:
                changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
            case 1:
                del changed[dice.randrange(len(changed)) :]
            case 2:
                at = dice.randrange(len(changed))
                changed[at:at] = dice.randbytes(dice.randint(1, 8))
            case _:
                changed = bytearray(dice.randbytes(dice.randrange(300)))
        if bytes(changed) != datagram:
            with pytest.raises(wire.Rejected):
                wire.unpack(bytes(changed), receiver, receivers[receiver])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"node": "n1", "incarnation": 5, "seq": 7},
        {"node": "n1", "incarnation": -1, "seq": 7, "electorate": 3},
        {"node": "n1", "incarnation": True, "seq": 7, "electorate": 3},
        {"node": "n1", "incarnation": 1 << 63, "seq": 7, "electorate": 3},
        {"node": "n1", "incarnation": 5.5, "seq": 7, "electorate": 3},
        {"node": ["n1"], "incarnation": 5, "seq": 7, "electorate": 3},
        {"node": "n1", "incarnation": 5, "seq": 7, "electorate": 3, "more": 1},
    ],
)
def test_what_is_signed_is_looked_at_too(fields: object, folder: Path) -> None:
    keys = Keys(folder / "n1")
    body = json.dumps(["n1", "Renew", fields]).encode()
    signed = b"vrha1" + body + wire._sign(body, "n1", "o1", keys)
    with pytest.raises(wire.Rejected, match="malformed"):
        wire.unpack(signed, "o1", Keys(folder / "o1"))


def test_endpoints_talk_and_count_what_they_do_not_take(folder: Path) -> None:
    first = Endpoint("n1", "127.0.0.1:17450", {"o1": "127.0.0.1:17451"}, Keys(folder / "n1"))
    second = Endpoint("o1", "127.0.0.1:17451", {"n1": "127.0.0.1:17450"}, Keys(folder / "o1"))
    try:
        first.send("o1", Renew("n1", 5, 7, 3))
        first._socket.sendto(b"noise", ("127.0.0.1", 17451))
        first.send("nobody", Renew("n1", 5, 7, 3))
        assert list(second.receive()) == [("n1", Renew("n1", 5, 7, 3))]
        assert dict(second.rejected) == {"not ours": 1}
        assert dict(first.rejected) == {"unknown receiver": 1}
        with pytest.raises(PreconditionError, match="Address already in use"):
            Endpoint("n1", "127.0.0.1:17450", {}, Keys(folder / "n1"))
    finally:
        first.close()
        second.close()


def test_addresses() -> None:
    assert address_of("10.0.0.1:99") == ("10.0.0.1", 99)
    assert address_of("[::1]:99") == ("::1", 99)
    assert address_of("host") == ("host", 7450)
    for bad in ("", ":9", "h:0", "h:70000", "h:x"):
        with pytest.raises(InputError):
            address_of(bad)


def test_keys_are_kept_and_guarded(tmp_path: Path) -> None:
    ways = pairs(["n1"], ["o1"], ["o1"])
    assert ways == {("n1", "o1"), ("o1", "n1")}
    assert len(list(make(tmp_path, ways))) == 2
    path = tmp_path / "n1" / file_name("n1", "o1")
    before = path.read_text()
    (tmp_path / "o1" / path.name).unlink()
    list(make(tmp_path, ways))
    assert (tmp_path / "o1" / path.name).read_text() == before, "the other end's key is the same"
    assert Keys(tmp_path / "n1").key("n1", "o1") == bytes.fromhex(before)
    path.chmod(0o644)
    with pytest.raises(PreconditionError, match="open to others"):
        Keys(tmp_path / "n1").key("n1", "o1")
    path.chmod(0o600)
    path.write_text("abcd")
    with pytest.raises(PreconditionError, match="2 bytes"):
        Keys(tmp_path / "n1").key("n1", "o1")
    with pytest.raises(PreconditionError, match="no folder"):
        Keys(tmp_path / "none")
    assert fencing_keys.LENGTH == 32
