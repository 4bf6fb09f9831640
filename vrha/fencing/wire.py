"""Messages of ownership as signed datagrams: who says it, what, and HMAC-SHA256 (RFC 2104) of both.

The name of the receiver is under the signature too, so that nothing serves for somebody else. What
is said twice does no harm by what the messages hold (incarnation, seq, epoch, number, attempt).
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from vrha.errors import PreconditionError
from vrha.fencing.keys import Keys
from vrha.model import ownership
from vrha.model.ownership import MAX_ROUTERS, MAX_VOTERS, Electorate, Held, Message

MAX_DATAGRAM = 65_000
_MAGIC = b"vrha1"
_MAC = 32
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}(?:/[0-9]{1,18})?")
_MOST = 1 << 63


class Rejected(Exception):
    """A datagram that is not taken; the text says why, for the counters of the receiver."""


def pack(message: Message, sender: str, receiver: str, keys: Keys) -> bytes:
    """Raises PreconditionError as `Keys.key`."""
    kind = type(message).__name__
    fields = {f.name: getattr(message, f.name) for f in dataclasses.fields(message)}
    if isinstance(fields.get("electorate"), Electorate):
        fields["electorate"] = dataclasses.astuple(fields["electorate"])
    body = json.dumps([sender, kind, fields], separators=(",", ":")).encode()
    return _MAGIC + body + _sign(body, sender, receiver, keys)


def unpack(datagram: bytes, receiver: str, keys: Keys) -> tuple[str, Message]:
    """The sender, proved, and what it says of itself. Raises Rejected."""
    if not datagram.startswith(_MAGIC) or not _MAC < len(datagram) <= MAX_DATAGRAM:
        raise Rejected("not ours")
    body, mac = datagram[len(_MAGIC) : -_MAC], datagram[-_MAC:]
    try:
        sender, kind, fields = json.loads(body)
    except (ValueError, TypeError, RecursionError) as error:
        raise Rejected("malformed") from error
    if not isinstance(sender, str) or not _NAME.fullmatch(sender):
        raise Rejected("malformed")
    try:
        wanted = _sign(body, sender, receiver, keys)
    except PreconditionError as error:
        raise Rejected("unknown sender") from error
    if not hmac.compare_digest(mac, wanted):
        raise Rejected("wrong signature")
    message = _message(kind, fields)
    if getattr(message, _AUTHOR[type(message)]) != sender:
        raise Rejected("says it for somebody else")
    return sender, message


def _sign(body: bytes, sender: str, receiver: str, keys: Keys) -> bytes:
    key = keys.key(sender, receiver)
    return hmac.new(key, f"{sender}>{receiver}:".encode() + body, hashlib.sha256).digest()


def _message(kind: object, fields: object) -> Message:
    known = _KINDS.get(kind) if isinstance(kind, str) else None
    if known is None or not isinstance(fields, dict):
        raise Rejected("malformed")
    takers = _TAKERS[known]
    if fields.keys() != takers.keys():
        raise Rejected("malformed")
    try:
        values = {name: take(fields[name]) for name, take in takers.items()}
    except (ValueError, TypeError, OverflowError) as error:
        raise Rejected("malformed") from error
    return known(**values)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 64 or not (value == "" or value.isprintable()):
        raise ValueError("text")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise ValueError("number")
    return value


def _time(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1e15:
        raise ValueError("time")
    return float(value)


def _held(value: Any) -> Held:
    if not isinstance(value, list) or len(value) > MAX_ROUTERS:
        raise ValueError("routers")
    pairs = []
    for name, epoch in value:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError("router")
        pairs.append((name, _number(epoch)))
    return tuple(pairs)


def _electorate(value: Any) -> Electorate:
    version, voters = value
    if not isinstance(voters, list) or not 1 <= len(voters) <= MAX_VOTERS + 1:
        raise ValueError("voters")
    return Electorate(_number(version), tuple(_text(voter) for voter in voters))


_BY_TYPE: Mapping[str, Callable[[Any], Any]] = {
    "str": _text,
    "int": _number,
    "float": _time,
    "Held": _held,
    "Electorate": _electorate,
}
_KINDS: Mapping[str, type[Message]] = {each.__name__: each for each in get_args(Message)}
_TAKERS = {
    kind: {f.name: _BY_TYPE[str(f.type)] for f in dataclasses.fields(kind)}
    for kind in _KINDS.values()
}
_AUTHOR: Mapping[type[Message], str] = {
    ownership.Renew: "node",
    ownership.Ack: "voter",
    ownership.Over: "sender",
    ownership.Depose: "leader",
    ownership.Deposed: "voter",
    ownership.Grant: "leader",
    ownership.Holding: "node",
    ownership.Refusal: "node",
    ownership.Silenced: "voter",
    ownership.StandIn: "leader",
}
"""The field that must be the name of who signed."""
