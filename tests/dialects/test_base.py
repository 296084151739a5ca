from __future__ import annotations

import json

import pytest

from qwenproxy.dialects.base import frame, json_text


def test_a_frame_is_one_event() -> None:
    assert frame({"a": 1}) == 'data: {"a":1}\n\n'
    assert frame("[DONE]") == "data: [DONE]\n\n"
    assert frame({}, "done") == "event: done\ndata: {}\n\n"


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\u2028b", "a\u2029b", "a\x85b", "Привет", "😀", "\x00"])
def test_text_stays_what_it_was_on_one_line(text: str) -> None:
    written = json_text({"text": text})
    assert len(written.splitlines()) == 1
    assert json.loads(written) == {"text": text}


@pytest.mark.parametrize("half", ["\ud83d", "a\ud83db", "\ude00z"])
def test_half_a_character_does_not_break_the_answer(half: str) -> None:
    assert json.loads(json_text(half).encode()) == half.encode("utf-16-le", "surrogatepass").decode(
        "utf-16-le", "replace"
    )
