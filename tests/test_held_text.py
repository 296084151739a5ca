from __future__ import annotations

import re
from collections.abc import Generator

import pytest

from qwenproxy.held_text import HeldText


def wait(waiting: Generator[None, None, bool], held: HeldText, text: str = "") -> bool:
    """What `more` tells once that has come."""
    next(waiting)
    if text:
        held.add(text)
    with pytest.raises(StopIteration) as end:
        next(waiting)
    answer: bool = end.value.value
    return answer


def holding(text: str) -> HeldText:
    held = HeldText()
    assert wait(held.more(), held, text)
    return held


def test_new_text_comes_in_only_with_more() -> None:
    held = holding("abc")
    held.at = 1
    held.add("d")
    held.add("e")
    assert (held.text, held.at) == ("abc", 1)
    assert wait(held.more(), held, "f")
    assert (held.text, held.at) == ("bcdef", 0)


def test_at_the_end_there_is_what_has_come_and_then_no_more() -> None:
    held = holding("a")
    waiting = held.more()
    next(waiting)
    held.add("b")
    held.ended = True
    with pytest.raises(StopIteration):
        next(waiting)
    assert held.text == "ab"
    assert list(held.more()) == []


def test_what_is_taken_is_gathered_over_pieces() -> None:
    held = holding("abc")
    held.take(2)
    assert wait(held.more(), held, "de")
    held.take(2)
    assert (held.taken_length, held.text[held.at :]) == (4, "e")
    assert held.taken() == "abcd"
    assert (held.taken(), held.taken_length) == ("", 0)


@pytest.mark.parametrize(
    ("length", "kept", "left"), [(0, "", "abcdef"), (3, "abc", "def"), (4, "abcd", "ef")]
)
def test_what_is_taken_can_be_given_back(length: int, kept: str, left: str) -> None:
    held = holding("abcdef")
    held.take(2)
    held.take(4)
    held.untake(length)
    assert held.text[held.at :] == left
    assert held.taken_length == length
    assert held.taken() == kept


def test_looks_ahead() -> None:
    held = holding("ab  c")
    held.at = 1
    assert held.ahead(re.compile(r"\s*"), 1) == "  "
    assert held.ahead(re.compile("b")) == "b"
    assert held.ahead(re.compile("c")) == ""
