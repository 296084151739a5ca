from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from qwenproxy.json_schema import Misfit, Schema
from qwenproxy.json_text import compact, read
from tests.schema_values import JSON, any_of_them, fitting

WHOLE, STRING = {"type": "integer"}, {"type": "string"}


def schema(given: dict[str, Any]) -> Schema:
    return Schema(given, "the arguments")


def record(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


# ---- values that fit, and others ----


@given(fitting(any_of_them()))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_fits_comes_back_as_it_is(case: tuple[dict[str, Any], Any]) -> None:
    shape, value = case
    assert compact(schema(shape).fitted(read(compact(value)))) == compact(value)


@given(fitting(any_of_them()), JSON)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_comes_back_fits(case: tuple[dict[str, Any], Any], value: Any) -> None:
    try:
        found = schema(case[0]).fitted(value)
    except Misfit as exc:
        sentence = str(exc)
    else:
        assert Draft202012Validator(case[0]).is_valid(found)
        return
    assert not Draft202012Validator(case[0]).is_valid(value)
    assert 0 < len(sentence) < 1000


def written_loosely(value: Any) -> Any:
    """As models write it: numbers and flags in quotation marks, all the way down."""
    match value:
        case bool() | int():
            return compact(value)
        case list():
            return [written_loosely(each) for each in value]
        case dict():
            return {name: written_loosely(each) for name, each in value.items()}
    return value


PLAIN = st.recursive(
    st.sampled_from([(WHOLE, 7), ({"type": "boolean"}, True), (STRING, "7"), ({"type": "null"}, None)]),
    lambda inner: st.one_of(
        inner.map(lambda case: ({"type": "array", "items": case[0]}, [case[1], case[1]])),
        st.lists(inner, max_size=3).map(
            lambda cases: (
                record(
                    *(f"p{at}" for at in range(len(cases))),
                    **{f"p{at}": each[0] for at, each in enumerate(cases)},
                ),
                {f"p{at}": each[1] for at, each in enumerate(cases)},
            )
        ),
    ),
)


@given(PLAIN)
@settings(deadline=None)
def test_what_was_written_loosely_is_what_was_meant(case: tuple[dict[str, Any], Any]) -> None:
    shape, value = case
    assert schema(shape).fitted(written_loosely(value)) == value


def test_a_whole_number_with_a_point_becomes_one_without() -> None:
    assert compact(schema(record(n=WHOLE)).fitted({"n": 5.0})) == '{"n":5}'
    assert compact(schema(record(n={"type": "number"})).fitted({"n": 5.0})) == '{"n":5.0}'
    # Where there is no telling, the standard decides.
    assert compact(schema({"not": {"not": WHOLE}}).fitted(5.0)) == "5.0"
    value = {"filePath": "x", "n": 5.0}
    assert schema(record(file_path=WHOLE, n=WHOLE)).fitted(value) == value


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(Misfit, match=r"a must be a whole number.*; b is missing"):
        schema(record("b", a=WHOLE)).fitted({"a": "x"})


# ---- other drafts ----


@pytest.mark.parametrize("draft", ["draft-04", "draft-07"])
def test_the_draft_is_the_schemas_own(draft: str) -> None:
    limit = {"minimum": 0, "exclusiveMinimum": True} if draft == "draft-04" else {"exclusiveMinimum": 0}
    shape = schema({"$schema": f"http://json-schema.org/{draft}/schema#", **record(n=limit)})
    assert shape.fitted({"n": 1}) == {"n": 1}
    with pytest.raises(Misfit, match="n must be"):
        shape.fitted({"n": 0})


# ---- schemas that are of no use ----

ENDLESS = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(60)}


@pytest.mark.parametrize(
    "shape",
    [
        {"type": "anything"},
        {"type": "object", "required": "name"},
        record(a={"type": "string", "required": True}),
        {"properties": [1]},
        {"properties": {"a": {"minimum": "5"}}},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#/$defs/none"},
        {"$ref": "#"},
        {"$schema": ["odd"], "type": "string"},
        {"$schema": "http://[", "type": "string"},
        {"patternProperties": {"(a+)+$": STRING}},
        {"patternProperties": {"(": STRING}},
        {"multipleOf": 1e-320, "$comment": "the smallest"},
        {"$ref": "#/$defs/d0", "$defs": {**ENDLESS, "d60": STRING}},
    ],
)
def test_values_pass_where_a_schema_cannot_be_used(shape: dict[str, Any]) -> None:
    for value in ({"a": 7}, 10**400):
        assert schema(shape).fitted(value) == value


def test_a_schema_too_deep_to_be_read_lets_all_pass() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"not": deep}
    assert schema(deep).fitted(5) == 5


def test_a_draft_named_within_does_not_escape_the_budget() -> None:
    first = {"$schema": "http://json-schema.org/draft-07/schema#", **ENDLESS["d0"]}
    assert schema({"$ref": "#/$defs/d0", "$defs": {**ENDLESS, "d0": first, "d60": STRING}}).fitted(5) == 5


def test_names_by_patterns_are_checked_where_that_is_quick() -> None:
    shape = schema({"patternProperties": {"^x-": WHOLE}, "additionalProperties": False})
    assert shape.fitted({"x-a": 1}) == {"x-a": 1}
    with pytest.raises(Misfit):
        shape.fitted({"y": 1})


# ---- patterns and lists ----


def test_patterns_are_checked() -> None:
    with pytest.raises(Misfit, match="must match the pattern"):
        schema(record(a={"pattern": r"^\p{L}+$"})).fitted({"a": "1"})
    assert schema(record(a={"pattern": r"^\p{L}+$"})).fitted({"a": "ж"}) == {"a": "ж"}
    assert schema(record(a={"pattern": "("})).fitted({"a": "ж"}) == {"a": "ж"}
    assert schema(record(a={"pattern": "^b"})).fitted({"a": 5}) == {"a": 5}


def test_a_pattern_that_takes_for_ever_is_left() -> None:
    shape = schema({"items": {"type": "string", "pattern": r"^(\w+\s?)*\1$"}})
    value = ["a" * 5000 + "!"] * 100
    assert shape.fitted(value) == value


def test_items_must_differ_in_lists_that_can_be_compared() -> None:
    shape = schema({"uniqueItems": True})
    with pytest.raises(Misfit, match="twice"):
        shape.fitted([{"a": 1}, {"a": 1}])
    assert len(shape.fitted([{"a": 1}] * 5000)) == 5000


# ---- what a schema lists ----


def test_its_fields_and_types() -> None:
    shape = schema({"$ref": "#/$defs/a", "$defs": {"a": record(x=WHOLE)}})
    assert (set(shape.names), set(shape.kinds)) == ({"x"}, {"object"})
    assert schema({"properties": 5}).names == frozenset()


@pytest.mark.parametrize(
    ("part", "text", "value"),
    [
        (STRING, " 5\n", " 5\n"),
        (STRING, '{"a": 1}', '{"a": 1}'),
        ({"enum": ["1", "2"]}, "1", "1"),
        (WHOLE, " 5 ", 5),
        (WHOLE, "five", "five"),
        ({"type": "boolean"}, "True", True),
        ({"type": "null"}, "None", None),
        ({"type": "array"}, '["a", "b",]', ["a", "b"]),
        ({"type": "object"}, "{'a': 1}", {"a": 1}),
        ({"type": "object"}, '{"a": 1}{"b": 2}', '{"a": 1}{"b": 2}'),
        ({"type": "array"}, "[1", "[1"),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "5", "5"),
        ({"type": ["string", "integer"]}, "5", "5"),
        ({"anyOf": [STRING, {"type": "array"}]}, "[1]", [1]),
        ({"anyOf": [STRING, {"type": "array"}]}, "[a]", "[a]"),
        ({}, "5", "5"),
        ({}, "null", "null"),
        ({}, "[5]", [5]),
        (None, '{"a": 1}', {"a": 1}),
    ],
)
def test_a_bare_text_means_what_the_field_may_be(part: Any, text: str, value: Any) -> None:
    shape = schema(record() if part is None else record(field=part))
    assert shape.from_text("field", text) == value
