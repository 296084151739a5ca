from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from qwenproxy.misfits import listed, quoted, told


def problems(value: Any, schema: Any) -> str:
    return told(list(Draft202012Validator(schema).iter_errors(value)), "the answer")


def record(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


WHOLE = {"type": "integer"}


@pytest.mark.parametrize(
    ("value", "schema", "sentence"),
    [
        ("a", WHOLE, 'the answer must be a whole number, not "a"'),
        ({"a": [{"b": "x"}]}, record(a={"items": record(b=WHOLE)}), 'a[0].b must be a whole number, not "x"'),
        ([5], {"items": {"type": ["string", "null"]}}, "[0] must be a string or null, not 5"),
        ({}, record("a"), "a is missing"),
        ({"c": 1}, record("a", "b", "c"), "a, b are missing"),
        ({"x": {}}, record(x=record("y")), "x.y is missing"),
        ("c", {"enum": ["a", "b", None]}, 'the answer must be one of "a", "b", null, not "c"'),
        ("c", {"const": "a"}, 'the answer must be "a"'),
        (
            {"a": 1, "z": 2},
            {**record(a=WHOLE), "additionalProperties": False},
            'the answer must not have "z"; there is "a"',
        ),
        ({"z": 2}, {"additionalProperties": False}, 'the answer must not have "z"; there is no field'),
        ({"z": 2}, {"additionalProperties": {"type": "null"}}, "z must be null, not 2"),
        ({"n": 0}, record(n={"minimum": 1}), "n must be at least 1"),
        ([1, 1], {"uniqueItems": True}, "the answer must not have an item twice"),
        ("a", {"pattern": "^b"}, 'the answer must match the pattern "^b"'),
        (5, {"anyOf": [{"type": "string"}, {"type": "null"}]}, "the answer must be a string or null, not 5"),
        (5, {"oneOf": [{}, {}]}, "the answer fits more than one of the forms it may have"),
        ({"k": 1}, {"anyOf": [{"type": "string"}, record("m", "n")]}, "m, n are missing"),
        (
            {"k": "c"},
            {"oneOf": [record("k", k={"const": "a"}), record("k", k={"const": "b"})]},
            'k must be one of "a", "b", not "c"',
        ),
        (
            {"k": "b"},
            {"oneOf": [record("k", "x", k={"const": "a"}), record("y", k={"const": "b"})]},
            "y is missing",
        ),
        (
            {"k": 5},
            {"anyOf": [{"type": "string"}, record(k={"const": "b"})]},
            'the answer fits none of the forms it may have: {"k":5}',
        ),
        (1, False, 'the answer does not fit the "None" of the schema'),
        (1, {"not": {}}, 'the answer does not fit the "not" of the schema'),
    ],
)
def test_a_problem_is_told_in_a_sentence(value: Any, schema: Any, sentence: str) -> None:
    assert problems(value, schema) == sentence


def test_three_problems_are_told_and_the_others_counted() -> None:
    schema = record(**dict.fromkeys("abcde", WHOLE))
    assert problems(dict.fromkeys("abcde", "x"), schema) == (
        'a must be a whole number, not "x"; b must be a whole number, not "x"; '
        'c must be a whole number, not "x"; and 2 more'
    )


def test_it_never_becomes_a_page_and_can_always_be_sent() -> None:
    assert (
        len(problems({"x" * 5000: "y" * 5000}, {"additionalProperties": {"enum": ["z" * 5000] * 50}})) < 300
    )
    problems({"\ud800": 1}, {"additionalProperties": {"type": "null"}}).encode()


def test_long_values_and_long_lists_are_cut() -> None:
    assert quoted("x" * 100) == '"' + "x" * 59 + "…"
    assert listed(range(14)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more"
