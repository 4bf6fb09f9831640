"""Large values are read once, and the memory of them is bounded."""

from __future__ import annotations

from vrha.store.rows import Remembered


class Reader:
    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, text: str) -> list[str]:
        self.read.append(text)
        return [text]


def test_a_text_that_is_kept_gives_the_same_object() -> None:
    reader = Reader()
    remembered = Remembered(reader, budget=10)
    assert remembered("abc") is remembered("abc")
    assert reader.read == ["abc"]


def test_the_longest_unused_goes_first() -> None:
    reader = Reader()
    remembered = Remembered(reader, budget=6)
    for text in ("aaa", "bbb", "aaa", "ccc", "aaa", "bbb"):
        remembered(text)
    assert reader.read == ["aaa", "bbb", "ccc", "bbb"]


def test_what_is_larger_than_all_memory_is_kept_alone() -> None:
    reader = Reader()
    remembered = Remembered(reader, budget=6)
    for text in ("a", "b", "c" * 100, "c" * 100, "a", "a", "b"):
        remembered(text)
    assert reader.read == ["a", "b", "c" * 100, "a", "b"]
