from __future__ import annotations

from typing import Any

import pytest

from qwenproxy.chat import Tool
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


def test_plain_fields() -> None:
    assert fields.flag({"a": True}, "a") is True
    assert fields.flag({}, "a") is None
    assert param_of(fields.flag, {"a": 1}, "a", "b.") == "b.a"
    assert fields.count({"a": 3}, "a") == 3
    assert param_of(fields.count, {"a": True}, "a") == param_of(fields.count, {"a": 0}, "a") == "a"
    assert param_of(fields.count, {"a": 9}, "a", 8) == "a"
    assert fields.mapping({}, "a") == {}
    assert param_of(fields.mapping, {"a": []}, "a") == "a"
    assert fields.stop({"stop_sequences": ["x"]}, "stop_sequences") == ("x",)
    assert fields.stop({"stop": "x"}) == ("x",)
    assert param_of(fields.stop, {"stop": [""]}) == "stop"
    assert param_of(fields.stop, {"stop": ["x"] * 17}) == "stop"
