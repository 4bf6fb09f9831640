"""What the measurements take on the command line."""

from __future__ import annotations

import argparse


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
