from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.dialects.base import frame, json_text

ANY_TEXT = st.text(st.characters(exclude_categories=()))


@given(ANY_TEXT)
def test_json_is_one_line_of_valid_utf8_that_says_the_same(text: str) -> None:
    said = json_text({text: [text]})
    assert len(said.encode().decode().splitlines()) == 1
    sound = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert json.loads(said) == {sound: [sound]}


def test_text_that_needs_no_escape_is_left_readable() -> None:
    assert (
        json_text({"a": "жё \U0001f600", "b": [1, None, True]}) == '{"a":"жё \U0001f600","b":[1,null,true]}'
    )


@pytest.mark.parametrize(
    ("data", "event", "expected"),
    [
        ({"a": 1}, None, 'data: {"a":1}\n\n'),
        ({"a": "\n\u2028"}, "delta", 'event: delta\ndata: {"a":"\\n\\u2028"}\n\n'),
        ("[DONE]", None, "data: [DONE]\n\n"),
    ],
)
def test_frame(data: dict[str, object] | str, event: str | None, expected: str) -> None:
    assert frame(data, event) == expected
