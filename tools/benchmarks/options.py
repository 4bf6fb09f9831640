"""What the measurements take on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from vrha.errors import InputError


def count(text: str) -> int:
    """A number of runs: 1 or more."""
    number = amount(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def counts(text: str) -> list[int]:
    """Numbers with commas between them, each 1 or more."""
    return [count(word) for word in text.split(",")]


def amounts(text: str) -> list[int]:
    """Numbers with commas between them."""
    return [amount(word) for word in text.split(",")]


def amount(text: str) -> int:
    """A number of things, also none."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def words(text: str, known: Iterable[str], what: str) -> list[str]:
    """Words with commas between them, each once. Raises InputError `unknown-WHAT`."""
    found = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    names = list(known)
    for word in found:
        if word not in names:
            raise InputError(f"unknown-{what}", f"no {what} {word!r}", f"Of {', '.join(names)}.")
    return found
