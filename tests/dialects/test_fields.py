from __future__ import annotations

from typing import Any

import pytest

from qwenproxy.chat import AnswerFormat, Tool
from qwenproxy.dialects import fields
from qwenproxy.errors import BadRequest


def param_of(read: Any, *arguments: Any) -> str | None:
    with pytest.raises(BadRequest) as caught:
        read(*arguments)
    return caught.value.param


def test_a_tool_has_a_name_and_perhaps_more() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    whole = {"name": "read", "description": "Reads.", "input_schema": schema}
    assert fields.tool(whole, "tools[0]", "input_schema") == Tool("read", "Reads.", schema)
    assert fields.tool({"name": "read", "parameters": None}, "tools[0]") == Tool("read")


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ({}, "name"),
        ({"name": " "}, "name"),
        ({"name": 1}, "name"),
        ({"name": "x" * 257}, "name"),
        ({"name": "x", "description": 1}, "description"),
        ({"name": "x", "parameters": "object"}, "parameters"),
    ],
)
def test_an_unusable_tool_is_named(raw: dict[str, Any], name: str) -> None:
    assert param_of(fields.tool, raw, "tools[2]") == f"tools[2].{name}"


def test_how_hard_to_think() -> None:
    assert fields.thinks_by_effort(None, "effort") is None
    assert fields.thinks_by_effort("minimal", "effort") is False
    assert fields.thinks_by_effort("xhigh", "effort") is True
    assert param_of(fields.thinks_by_effort, "hard", "reasoning.effort") == "reasoning.effort"
    assert param_of(fields.thinks_by_effort, ["low"], "reasoning.effort") == "reasoning.effort"


def test_a_model_is_a_name() -> None:
    assert fields.model({}) == fields.DEFAULT_MODEL
    assert fields.model({"model": " qwen-max "}) == "qwen-max"
    assert param_of(fields.model, {"model": ""}) == param_of(fields.model, {"model": 3}) == "model"


def test_what_an_answer_must_be() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    whole = {"schema": schema, "name": "city", "description": "Where.", "strict": True}
    assert fields.answer_format(whole, "text.format") == AnswerFormat(schema, "city", "Where.")
    union = {"anyOf": [schema, {"$ref": "#/$defs/a"}], "$defs": {"a": schema}}
    assert fields.answer_format({"schema": union, "name": None}, "text.format") == AnswerFormat(union)


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ({}, "schema"),
        ({"schema": True}, "schema"),
        ({"schema": {"type": "array"}}, "schema"),
        ({"schema": {"type": ["object", "null"]}}, "schema"),
        ({"schema": {"type": "object", "properties": []}}, "schema"),
        ({"schema": {"type": "object", "properties": {"a": {"type": "word"}}}}, "schema"),
        ({"schema": {"$schema": "http://json-schema.org/draft-07/schema#", "required": True}}, "schema"),
        ({"schema": {"type": "object"}, "name": 1}, "name"),
        ({"schema": {"type": "object"}, "description": []}, "description"),
    ],
)
def test_a_form_that_is_none_is_named(raw: dict[str, Any], name: str) -> None:
    assert param_of(fields.answer_format, raw, "text.format") == f"text.format.{name}"


def test_plain_fields() -> None:
    assert fields.flag({"a": True}, "a") is True
    assert fields.flag({}, "a") is None
    assert param_of(fields.flag, {"a": 1}, "a", "b.") == "b.a"
    assert fields.count({"a": 3}, "a") == 3
    assert param_of(fields.count, {"a": True}, "a") == param_of(fields.count, {"a": 0}, "a") == "a"
    assert param_of(fields.count, {"a": 9}, "a", 8) == "a"
    assert param_of(fields.count, {"a": 0}, "a", None, "b.") == "b.a"
    assert param_of(fields.mapping, {"a": 1}, "a", "b.") == "b.a"
    assert fields.mapping({}, "a") == {}
    assert param_of(fields.mapping, {"a": []}, "a") == "a"
    assert fields.stop({"stop_sequences": ["x"]}, "stop_sequences") == ("x",)
    assert fields.stop({"stop": "x"}) == ("x",)
    assert param_of(fields.stop, {"stop": [""]}) == "stop"
    assert param_of(fields.stop, {"stop": ["x"] * 17}) == "stop"


@pytest.mark.parametrize(
    ("width", "height", "nearest"),
    [
        (1, 1, "1:1"),
        (1024, 1792, "9:16"),
        (99_999, 1, "16:9"),
        (1, 99_999, "9:16"),
        (1155, 1000, "4:3"),
        (1154, 1000, "1:1"),
        (1000, 1155, "1:1"),
    ],
)
def test_the_nearest_ratio_is_as_many_times_too_wide_as_too_narrow(
    width: int, height: int, nearest: str
) -> None:
    assert fields.nearest_ratio(width, height, ("1:1", "4:3", "16:9", "9:16")) == nearest
