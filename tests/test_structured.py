from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from qwenproxy.chat import AnswerFormat
from qwenproxy.json_text import compact
from qwenproxy.structured import BadAnswer, correction, preface, read
from tests.schema_values import JSON, any_of_them, fitting, objects

WHOLE, STRING = {"type": "integer"}, {"type": "string"}
ANY = {"type": "object"}
CITY = {"type": "object", "properties": {"city": STRING, "inhabitants": WHOLE}, "required": ["city"]}


@pytest.mark.parametrize(
    ("text", "schema", "answer"),
    [
        ('{"city": "Köln", "inhabitants": 5}', CITY, '{"city":"Köln","inhabitants":5}'),
        ('```json\n{"city": "Köln"}\n```', CITY, '{"city":"Köln"}'),
        ('Here it is:\n\n```\n{"city": "Köln"}\n```\nDone.', CITY, '{"city":"Köln"}'),
        ('Sure! {"city": "Köln"} Anything else?', CITY, '{"city":"Köln"}'),
        ('As [1] says, {x}: {"city": "Köln"}', CITY, '{"city":"Köln"}'),
        ('```json\n{"town": "Köln"}\n```\n```json\n{"city": "Köln"}\n```', CITY, '{"city":"Köln"}'),
        ('```json\n{"city": "Köln",}\n```', CITY, '{"city":"Köln"}'),
        ('{"city": "Köln", "inhabitants": "5"', CITY, '{"city":"Köln","inhabitants":5}'),
        ("{'city': 'Köln'}", CITY, '{"city":"Köln"}'),
        ('"{\\"city\\": \\"Köln\\"}"', CITY, '{"city":"Köln"}'),
        ('{"a": [1, 2.5, null]}', ANY, '{"a":[1,2.5,null]}'),
        ('{"a": 1,}', ANY, '{"a":1}'),
        ('["a", 1]', {"type": "array", "items": STRING}, '["a","1"]'),
        ("5", WHOLE, "5"),
        ("null", {"type": "null"}, "null"),
        ("Köln", STRING, '"Köln"'),
        ('"Köln"', STRING, '"Köln"'),
        ("Yes", {"enum": ["yes", "no"]}, '"yes"'),
        ('{"a": "\\ud800"}', ANY, '{"a":"\\ud800"}'),
        ('{"a": {"b": {"c": 1}}}', {}, '{"a":{"b":{"c":1}}}'),
    ],
)
def test_the_value_alone_is_given_out(text: str, schema: dict[str, Any], answer: str) -> None:
    assert read(text, AnswerFormat(schema)) == answer


@pytest.mark.parametrize(
    ("text", "schema", "why"),
    [
        ("", ANY, "The answer cannot be read: it is not valid JSON"),
        ("I cannot do that.", ANY, "cannot be read"),
        ('{"town": "Köln"}', CITY, "The answer does not fit: city is missing."),
        ('{"city": "Köln", "inhabitants": "many"}', CITY, 'inhabitants must be a whole number, not "many"'),
        ("[1, 2]", ANY, "the answer must be an object, not [1,2]"),
        ('{"a": {"b": 1}, "c": "half', ANY, "a text in it does not end"),
        ('{"a": {"b": 1}, "c":', ANY, "breaks off"),
        ('{"a": NaN}', ANY, "NaN is no number of JSON"),
        ('{"a": 1e999}', ANY, "too large"),
        ('{"city": "Köln", "region": 1,}', CITY, 'it is not valid JSON near "region"'),
        ("Maybe", {"enum": ["yes", "no"]}, 'must be one of "yes", "no", not "Maybe"'),
        ("5.5", WHOLE, "must be a whole number, not 5.5"),
        ('[1] [2] {"a"', CITY, "the answer must be an object, not [1]"),
        ("[1] " * 30, ANY, "the answer must be an object, not [1]"),
    ],
)
def test_what_does_not_fit_is_told(text: str, schema: dict[str, Any], why: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        read(text, AnswerFormat(schema))
    assert why in str(caught.value)
    assert len(str(caught.value)) < 400


# ---- asked for ----


def test_it_is_asked_for_with_its_schema_and_what_is_said_of_it() -> None:
    text = preface(AnswerFormat(CITY, "place", "Where it is. "))
    assert compact(CITY) in text
    assert 'It is called "place". Where it is.\n' in text
    assert compact(CITY) not in preface(AnswerFormat(ANY))
    assert "one JSON object." in preface(AnswerFormat(ANY))


def test_a_schema_too_deep_to_be_shown_is_left_out() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"not": deep}
    assert "too deep" in preface(AnswerFormat(deep))


def test_the_model_is_told_what_was_wrong() -> None:
    assert "city is missing." in correction("city is missing.")


# ---- all that is written is read back ----

AROUND = st.sampled_from(["{}", "```json\n{}\n```", "Here:\n\n```\n{}\n```\nDone.", "\n {}\n\n"])


@given(fitting(any_of_them()), AROUND, st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_value_that_fits_is_read_back(
    case: tuple[dict[str, Any], Any], around: str, is_ascii: bool
) -> None:
    schema, value = case
    written = around.replace("{}", json.dumps(value, ensure_ascii=is_ascii, indent=2))
    assert json.loads(read(written, AnswerFormat(schema))) == value


@given(fitting(objects(any_of_them())), JSON)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_given_out_fits(case: tuple[dict[str, Any], Any], value: Any) -> None:
    with suppress(BadAnswer):
        answer = read(json.dumps(value), AnswerFormat(case[0]))
        assert Draft202012Validator(case[0]).is_valid(json.loads(answer))


PIECES = st.sampled_from(
    [
        *(
            '{"city": ',
            '"a"',
            "}",
            "{",
            "[",
            "]",
            '"',
            ",",
            "\\",
            "\n",
            "```",
            "\n```json\n",
            "5",
            "NaN",
            "1e999",
            "\ud800",
        )
    ]
)


@given(
    st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join), st.sampled_from([CITY, ANY, STRING, {}])
)
@settings(max_examples=200, deadline=None)
def test_no_text_raises_anything_else_and_what_comes_out_can_be_sent(
    text: str, schema: dict[str, Any]
) -> None:
    try:
        answer = read(text, AnswerFormat(schema))
    except BadAnswer as exc:
        str(exc).encode()
    else:
        json.loads(answer.encode())


@pytest.mark.parametrize("unit", ["{", "[", '{"a":', "```\n", "```x\n{", '{"', "[1]", " ", '"'])
def test_a_million_characters_of_garbage_are_read_soon(unit: str) -> None:
    with suppress(BadAnswer):
        read(unit * (1_000_000 // len(unit)), AnswerFormat(ANY))
