"""The jinja2 environment: strict, and deaf to text that could end a line or a token."""

from __future__ import annotations

import re
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vrha.errors import InputError, PreconditionError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_DNSMASQ_TOKEN = re.compile(r"[A-Za-z0-9._:\[\]/-]+", re.ASCII)


def render(template: str, **values: object) -> str:
    """The text of a shipped template. Functions among `values` can be called in it.

    Raises InputError (`control-character`, `not-a-token`) on values that could break out of their
    place, PreconditionError (`templates-missing`) when the templates are not installed.
    """
    return _environment().get_template(template).render(**values)


def render_html(template: str, **values: object) -> str:
    """As `render`, but an HTML page: all values are escaped, and nothing in them is refused.

    What happened must be told whatever the names and messages in it are.
    """
    return _html_environment().get_template(template).render(**values)


def printable(value: Any) -> Any:
    """`value` as it is, unless it is text with characters that cannot be seen; they are named."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in value)
    return value


def guard(value: Any) -> Any:
    """`value` as it is, unless it is text with a control character or a line separator.

    A newline in a host name would become a line of its own in a configuration file. Raises
    InputError.
    """
    if isinstance(value, str) and (found := _CONTROL.search(value)):
        raise InputError(
            "control-character",
            f"control character {ord(found.group()):#04x} in {value[:40]!r}",
            "Names and addresses are single lines of printable text.",
        )
    return value


def dnsmasq_token(value: object) -> str:
    """`value` as one token of dnsmasq: no comma, no `#`, no quote, no space. Raises InputError."""
    text = str(value)
    if not _DNSMASQ_TOKEN.fullmatch(text):
        raise InputError(
            "not-a-token",
            f"{text[:40]!r} cannot stand in a dnsmasq file",
            "Use letters, digits, dot and hyphen.",
        )
    return text


def template_folder() -> Path:
    """Where the templates are: beside the source, else where `pip install` put the data files.

    Raises PreconditionError (`templates-missing`).
    """
    here = Path(__file__).resolve()
    source = here.parents[2]
    if (source / "setup.cfg").is_file() and (source / "templates" / "nft.j2").is_file():
        return source / "templates"
    user = sysconfig.get_path("data", sysconfig.get_preferred_scheme("user"))
    # site-packages is <prefix>/lib/pythonX.Y/site-packages, also with `pip install --prefix`.
    prefixes: list[str | Path] = [*here.parents[5:6], sysconfig.get_path("data"), sys.prefix, user]
    folders = [Path(prefix) / "share" / "vrha" / "templates" for prefix in prefixes]
    for folder in folders:
        if (folder / "nft.j2").is_file():
            return folder
    raise PreconditionError(
        "templates-missing",
        "the templates of vrha are not installed; looked in "
        + ", ".join(str(folder) for folder in dict.fromkeys(folders)),
        "Install the package again: pip install --force-reinstall vrha",
    )


@cache
def _html_environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(template_folder()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=printable,
    )


@cache
def _environment() -> Environment:
    environment = Environment(  # noqa: S701 - no HTML here; `guard` is what protects
        loader=FileSystemLoader(template_folder()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=guard,
    )
    environment.filters["token"] = dnsmasq_token
    return environment
