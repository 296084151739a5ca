from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from qwenproxy.coercion import Coercion
from qwenproxy.json_text import compact, read

STRING, WHOLE, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
FLAG, NULL = {"type": "boolean"}, {"type": "null"}


def made(value: Any, schema: dict[str, Any]) -> Any:
    def fits(each: Any, part: Any) -> bool:
        if isinstance(each, float) and kind(part) == "integer":
            return False
        return Draft202012Validator(schema).evolve(schema=part).is_valid(each)

    return Coercion(schema, fits).made(value, schema)


def kind(part: Any) -> Any:
    return part.get("type") if isinstance(part, dict) else None


def record(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


@pytest.mark.parametrize(
    ("value", "schema", "wanted"),
    [
        ("5", WHOLE, 5),
        (" +5 ", WHOLE, 5),
        ("-5.00", WHOLE, -5),
        (5.0, WHOLE, 5),
        ("9" * 40, WHOLE, int("9" * 40)),
        ("2.5", NUMBER, 2.5),
        ("3", NUMBER, 3),
        ("true", FLAG, True),
        ("False", FLAG, False),
        ("null", NULL, None),
        ("None", NULL, None),
        (5, STRING, "5"),
        (True, STRING, "true"),
        (read("1.10"), STRING, "1.10"),
        (1.5, STRING, "1.5"),
        ("one", {"type": "array", "items": STRING}, ["one"]),
        ("5", {"type": "array", "items": WHOLE}, [5]),
        ({"a": 1}, {"type": "array", "items": {"type": "object"}}, [{"a": 1}]),
        ('["a", "b"]', {"type": "array", "items": STRING}, ["a", "b"]),
        ('{"a": "1"}', record(a=WHOLE), {"a": 1}),
        ("ASC", {"enum": ["asc", "desc"]}, "asc"),
        (" asc\n", {"enum": ["asc", "desc"]}, "asc"),
        ("2", {"enum": [1, 2]}, 2),
        (1, {"const": "1"}, "1"),
        ("5", {"type": ["integer", "null"]}, 5),
        ("null", {"type": ["integer", "null"]}, None),
        ("5", {"anyOf": [NULL, WHOLE]}, 5),
        ({"k": "b", "n": "5"}, {"oneOf": [record("m", m=WHOLE), record("n", n=WHOLE)]}, {"k": "b", "n": 5}),
        ("5", {"allOf": [WHOLE, {"minimum": 1}]}, 5),
        ("5", {"$ref": "#/$defs/n", "$defs": {"n": WHOLE}}, 5),
        (["1", 2.0], {"type": "array", "items": WHOLE}, [1, 2]),
        (["1", 2], {"prefixItems": [WHOLE], "items": STRING}, [1, "2"]),
        ({"a": None, "b": 1}, record("b", a=STRING, b=WHOLE), {"b": 1}),
        ({"a": None, "b": "1"}, record("b", a={"type": ["string", "null"]}, b=WHOLE), {"a": None, "b": 1}),
        ({"a": None}, record("a", a=STRING), {"a": None}),
        ({"filePath": "x"}, record("file_path", file_path=STRING), {"file_path": "x"}),
        ({"a": "1", "x": "2"}, {**record(a=WHOLE), "additionalProperties": WHOLE}, {"a": 1, "x": 2}),
        ({"a": 1, "x": None}, {**record("a", a=WHOLE), "additionalProperties": False}, {"a": 1}),
    ],
)
def test_what_is_harmless_is_done(value: Any, schema: dict[str, Any], wanted: Any) -> None:
    assert compact(made(value, schema)) == compact(wanted)


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        ("5", STRING),
        ("true", {"type": ["string", "boolean"]}),
        ('{"a": 1}', {}),
        ("5", True),
        ({"filePath": "x"}, {"type": "object"}),
        ({"x": None}, {"type": "object"}),
    ],
)
def test_what_fits_is_left_alone(value: Any, schema: Any) -> None:
    assert made(value, schema) == value


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        ("5.5", WHOLE),
        ("five", WHOLE),
        (1, FLAG),
        ("1", FLAG),
        (True, WHOLE),
        (["ls", "-l"], STRING),
        ({"a": 1}, STRING),
        (None, STRING),
        ([1], {"type": "object"}),
        ("x", {"type": "object"}),
        ("a", {"enum": ["A ", "b"]}),
        ("a", {"enum": ["A", "aA", "ä"], "const": 5}),
        ({"file-path": "x", "filePath": "y"}, record("file_path", file_path=STRING)),
        ({"x": 1}, {**record(), "additionalProperties": False}),
        (1e300, {"type": "integer"}),
    ],
)
def test_what_would_be_a_guess_is_not_made_to_fit(value: Any, schema: dict[str, Any]) -> None:
    assert not Draft202012Validator(schema).is_valid(made(value, schema)) or value == 1e300
