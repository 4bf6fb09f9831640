"""Kinds of option values that several commands share."""

from __future__ import annotations

import re

import click

_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """Seconds of a time span such as `500ms`, `60s`, `2m`; a bare number means seconds.

    Raises BadParameter.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is no time span; write it like 500ms, 60s or 2m")
    return float(match[1]) * _UNITS[match[2]]
