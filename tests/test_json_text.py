from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenproxy.json_text import MOST_CHARACTERS, NotJson, compact, mended, read, several, value_at
from tests.schema_values import JSON

PROBLEM = NotJson("as before")


def one(text: str) -> Any:
    (value,), _ = several(text)
    return value


# ---- written ----


@given(JSON)
def test_compact_text_is_read_back_and_can_be_sent(value: Any) -> None:
    assert read(compact(value)) == value
    compact(value).encode()


@given(st.text(st.characters()))
def test_half_characters_stay_what_they_are_and_can_be_sent(text: str) -> None:
    assert json.loads(compact(text).encode()) == json.loads(json.dumps(text))


def test_compact_text_keeps_characters_and_spends_no_space() -> None:
    assert compact({"a": ["ж", "\ud800"]}) == '{"a":["ж","\\ud800"]}'
    with pytest.raises(ValueError, match="JSON"):
        compact(float("nan"))


# ---- read ----


def test_lines_may_break_within_strings() -> None:
    assert read(' {"a": "one\n\ttwo"}\n') == {"a": "one\n\ttwo"}


def test_a_number_knows_how_it_was_written() -> None:
    assert (read("1.10").written, read("1.10")) == ("1.10", 1.1)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value, line 1, column 1"),
        ('{"a": 1,\n "b" 2}', "line 2, column 6"),
        ("{} {}", "more follows"),
        ("NaN", "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ("1e999", "too large a number"),
        ("1" * 5000, "not valid JSON"),
        ("[" * 65 + "]" * 65, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        (" " * (MOST_CHARACTERS + 1), "too long"),
    ],
)
def test_what_is_no_json_is_told(text: str, why: str) -> None:
    with pytest.raises(NotJson, match=why):
        read(text)


def test_a_value_among_other_text() -> None:
    assert value_at('so: {"a": 1}, see', 4) == ({"a": 1}, 12)


# ---- several ----


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}{"a": 2}',
        '{"a": 1}\n\n{"a": 2}',
        '{"a": 1}, {"a": 2};',
        '{"a": 1} {"a": 2}}]',
        '{"a":1}{"a":2} ok',
    ],
)
def test_values_may_follow_each_other(text: str) -> None:
    assert several(text) == ([{"a": 1}, {"a": 2}], False)


def test_one_of_several_may_be_broken() -> None:
    assert several('{"a": "x,}"} {"a": 2,}') == ([{"a": "x,}"}, {"a": 2}], True)


# ---- mended ----


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2,], }', {"a": [1, 2]}),
        ('{"a": {"b": [1, 2}', {"a": {"b": [1, 2]}}),
        ('{"a": "x" "b": 1}', {"a": "x", "b": 1}),
        (
            "{'a': 'it\\'s', \"b\": \"it's\", 'c': True, 'd': None}",
            {"a": "it's", "b": "it's", "c": True, "d": None},
        ),
        ("{'a': 'say \"hi\"'}", {"a": 'say "hi"'}),
        ("{name: word, n: 1}", {"name": "word", "n": 1}),
        ('{"a": "x" // why\n, "b": 1}', {"a": "x", "b": 1}),
        ('{"name": "x"}, "arguments": {"a": 1}}', {"name": "x", "arguments": {"a": 1}}),
        (r'{"a": "\d+\.\w C:\dir \u12 \x41"}', {"a": r"\d+\.\w C:\dir \u12 \x41"}),
        ('{"a": "x \\\n y"}', {"a": "x \\\n y"}),
        ('{"a": "he said "yes", then", "b": 1}', {"a": 'he said "yes", then', "b": 1}),
        ('{"a": "<a href="x">\\n\\ty\\\\</a>\\n"}', {"a": '<a href="x">\n\ty\\</a>\n'}),
        ('{"a": 1,}\n```', {"a": 1}),
        ('"a": "x"}', {"a": "x"}),
        ("[{a: 1, b: 2 a: 3}]", [{"a": 1, "b": 2}, {"a": 3}]),
    ],
)
def test_common_slips_are_mended(text: str, value: Any) -> None:
    assert one(text) == value


@given(st.dictionaries(st.text(), st.text(st.characters()), min_size=1, max_size=4))
@settings(deadline=None)
def test_sound_texts_stay_word_for_word_whatever_is_mended_around_them(value: dict[str, str]) -> None:
    fields = [f"{json.dumps(name)}: {json.dumps(text)}" for name, text in value.items()]
    found = one("{" + ", ".join(fields) + ",]")
    assert found == json.loads(json.dumps(value))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"path": "a", "content": "half of the fi', "does not end"),
        ('{"path": "a", "content": "half\\', "does not end"),
        ("{'a': 'half", "does not end"),
        ('{"path": "a", "content":', "breaks off"),
        ('{"path": "a",', "breaks off"),
        ('{"n": 12', "breaks off"),
        ('{"a": b} and so on "x"', "as before"),
        ('{"a": 1', "breaks off"),
        ("", "breaks off"),
        ("words", "breaks off"),
        ('{"a": NaN, }', "as before"),
        ('{"a": 1e999, }', "too large"),
        ('{"a": """x "q" y"""}', "as before"),
        ('{"a": "x "y" z", "b" : 1, ' + ", ".join(f'"n{n}": 1' for n in range(200)) + "}", "as before"),
        ('{"name": "a", "x": {"y": 1}{"name": "b", "x": {}}', "as before"),
        ("{\ue000: 1,}", "as before"),
        ('{"a": "b "c" \ue001"}', "as before"),
        ("[" * 2000 + "]", "as before"),
        ("()", "as before"),
        ('{"x": 1, // "d"\n "b": 2,}', "as before"),
        ("""{"k": "b"('c'1{“/*["a"}""", "as before"),
    ],
)
def test_what_would_have_to_be_guessed_is_not_mended(text: str, why: str) -> None:
    with pytest.raises(NotJson, match=why):
        mended(text, PROBLEM)


@pytest.mark.parametrize(
    "unit", ["{1", "'-", 'a"a"', "('", "]{", '"#true…\\', '\\"“-{.', "{", "/*", '"', "'x\\'["]
)
@pytest.mark.parametrize("size", [8_000, 1_000_000, 2_100_000])
def test_garbage_is_given_up_soon(unit: str, size: int) -> None:
    """The test's own limit of time: unbounded, some of these take hours."""
    with suppress(NotJson):
        mended((unit * (size // len(unit) + 1))[:size], PROBLEM)


@given(st.text() | st.text(st.sampled_from("{}[]\",:'\\ \na1-/#(")))
@settings(deadline=None)
def test_whatever_is_read_is_json_or_told_not_to_be(text: str) -> None:
    try:
        values, _ = several(text)
    except NotJson:
        return
    assert [json.loads(compact(value)) for value in values] == values
