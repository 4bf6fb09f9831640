"""JSON at the edges: frozen dataclasses of `vrha.model` to bytes and back, validated.

Unknown fields are ignored (an older reader meets a newer writer) unless the caller asks for a
closed reading; unknown kinds of message or step, wrong types and missing fields are refused.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, TypeVar, cast

from pydantic import Discriminator, TypeAdapter, ValidationError
from pydantic_core import SchemaValidator

from vrha.errors import InputError
from vrha.model.messages import Message

T = TypeVar("T")

MAX_BODY = 256 * 1024
"""Largest accepted body in bytes of a message from the outside, unless told otherwise."""


@cache
def _adapter_of(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@cache
def _validator_of(kind: Any) -> SchemaValidator:
    return SchemaValidator(_decided(_adapter_of(kind).core_schema))


# `cache` wants what it is given to be Hashable, which mypy does not believe of types.
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return _adapter_of(kind)


def _validator(kind: Any) -> SchemaValidator:
    return _validator_of(kind)


def _decided(schema: Any) -> Any:
    """`schema` with finite numbers and unions that do not try every choice, which is slow.

    A union of dataclasses which all have a literal `kind` goes by that; any other takes the first
    choice that fits.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(_decided(each) for each in schema)
    if not isinstance(schema, dict):
        return schema
    decided = {key: _decided(value) for key, value in schema.items()}
    if schema.get("type") == "float":
        # What JSON has no word for could be read here, and written, and never be read again.
        return decided | {"allow_inf_nan": False}
    if schema.get("type") != "union":
        return decided
    kinds = [_kind_of(choice) for choice in schema["choices"]]
    if all(kinds):
        choices = dict(zip(kinds, decided["choices"], strict=True))
        return {"type": "tagged-union", "discriminator": "kind", "choices": choices}
    return decided | {"mode": "left_to_right"}


def _kind_of(schema: Any) -> str:
    """The literal that the field `kind` of a dataclass holds, or nothing."""
    if schema["type"] != "dataclass":
        return ""
    fields = {field["name"]: field["schema"] for field in schema["schema"]["fields"]}
    kind = fields.get("kind", {})
    (expected,) = kind.get("schema", kind).get("expected", [""])
    return str(expected)


def encode(value: object, kind: Any = None) -> bytes:
    """JSON bytes of a dataclass of the model; `kind` where the type is a union or a list."""
    return _adapter(kind or type(value)).dump_json(value)


def decode(kind: type[T], body: bytes | str, *, closed: bool = False) -> T:
    """The dataclass of `kind` in `body`; `closed` refuses unknown fields as well.

    Raises InputError (code `malformed`) with every problem when the body does not fit.
    """
    try:
        extra: Any = "forbid" if closed else None
        return cast(T, _validator(kind).validate_json(body, extra=extra))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()
        )
        raise InputError("malformed", f"does not fit the schema: {problems[:500]}") from error


def plain(value: object) -> Any:
    """The value as dicts, lists, strings and numbers, ready for JSON or YAML."""
    return _adapter(type(value)).dump_python(value, mode="json")


_MESSAGE: Any = Annotated[Message, Discriminator("type")]


def decode_message(body: bytes, limit: int = MAX_BODY) -> Message:
    """The message in `body`; refuses bodies over `limit` bytes. Raises InputError."""
    if len(body) > limit:
        raise InputError("too-large", f"message of {len(body)} bytes; the limit is {limit}")
    return cast(Message, decode(_MESSAGE, body))
