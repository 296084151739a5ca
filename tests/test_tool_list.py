from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenproxy.chat import Tool
from qwenproxy.tool_list import lines
from tests.schema_values import JSON

SCHEMA: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "title": "Noise",
    "properties": {
        "title": {"type": "string", "title": "Noise", "description": "A sentence. " * 40, "default": "noise"},
        "when": {"type": "string", "format": "date", "description": "Day."},
        "many": {"type": "array", "items": {"$ref": "#/$defs/item"}},
        "order": {"enum": ["asc", "desc"]},
        "map": {"type": "object", "additionalProperties": {"type": "integer", "examples": [5]}},
        "any": {},
    },
    "required": ["title"],
    "additionalProperties": False,
    "$defs": {"item": {"type": "integer", "description": "Item."}},
}
LARGE = Tool("large", "What it does. " * 60, SCHEMA)


def small(number: int) -> Tool:
    return Tool(f"small_{number}", "Short.", {"type": "object", "properties": {"a": {"type": "string"}}})


def read(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def size(text: str) -> int:
    return len(text.encode())


def test_all_of_it_where_it_fits_in_the_form_that_the_models_know() -> None:
    text = lines([LARGE, Tool("ping")], 100_000)
    assert read(text) == [
        {
            "type": "function",
            "function": {"name": "large", "description": LARGE.description, "parameters": SCHEMA},
        },
        {
            "type": "function",
            "function": {"name": "ping", "parameters": {"type": "object", "properties": {}}},
        },
    ]
    assert lines([LARGE, Tool("ping")], size(text)) == text
    assert lines([LARGE, Tool("ping")], size(text) - 1) != text


def test_noise_goes_first_and_fields_that_are_called_like_it_stay() -> None:
    text = lines([LARGE], size(lines([LARGE], 100_000)) - 1)
    (line,) = read(text)
    properties = line["function"]["parameters"]["properties"]
    assert set(properties) == set(SCHEMA["properties"])
    assert properties["map"] == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert properties["title"] == {"type": "string", "description": "A sentence. " * 40}
    assert set(line["function"]["parameters"]) == {"type", "properties", "required", "$defs"}
    assert line["function"]["description"] == LARGE.description


def stages() -> list[str]:
    """Every form that the tool has, the longest first."""
    found = [lines([LARGE], 100_000)]
    while found[-1] != '{"name":"large"}':
        found.append(lines([LARGE], size(found[-1]) - 1))
    return found


def test_then_descriptions_and_names_last() -> None:
    full, lean, cut, shorter, bare, signature, name = stages()
    assert [size(form) for form in (full, lean, cut, shorter, bare)] == sorted(
        map(size, (full, lean, cut, shorter, bare)), reverse=True
    )
    (line,) = read(cut)
    assert line["function"]["parameters"]["properties"]["title"]["description"].endswith("sentence.")
    assert '"Day."' in shorter
    assert "Day." not in bare
    assert set(json.loads(bare)["function"]["parameters"]["properties"]) == set(SCHEMA["properties"])
    (line,) = read(signature)
    assert line["arguments"] == (
        '(title: string, when?: string, many?: integer[], order?: "asc"|"desc", map?: object, any?: any)'
    )
    assert line["description"].endswith("does.")
    assert len(line["description"]) <= 100
    assert name == '{"name":"large"}'


def test_large_tools_shrink_before_small_ones() -> None:
    tools = [small(1), LARGE, small(2)]
    for budget in range(500, size(lines(tools, 100_000)), 50):
        first, large, second = read(lines(tools, budget))
        assert [first, second] == read(lines([small(1), small(2)], 100_000)) or set(large) == {"name"}


def test_what_is_left_over_is_given_a_step_each() -> None:
    tools = [small(number) for number in range(10)]
    budget = size(lines(tools, 100_000)) - 100
    kinds = [len(line) for line in read(lines(tools, budget))]
    assert 2 in kinds
    assert kinds == sorted(kinds)


def test_where_not_all_names_fit_as_many_as_do_are_told_and_that_there_are_more() -> None:
    tools = [small(number) for number in range(100)]
    assert json.loads(lines(tools, 1200)) == [tool.name for tool in tools]
    names, note = lines(tools, 300).split("\n")
    told = json.loads(names)
    assert told == [tool.name for tool in tools][: len(told)]
    assert re.search(rf"\band {100 - len(told)} more\b", note)
    assert 15 < len(told) < 30
    assert lines(tools, 0).startswith("[]\n(and 100 more")


@given(
    st.lists(
        st.builds(
            Tool,
            st.text(min_size=1, max_size=20),
            st.text(max_size=200),
            st.dictionaries(st.text(max_size=8), JSON, max_size=3),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(100, 1500),
)
@settings(deadline=None)
def test_it_always_fits_is_always_json_and_always_the_same(tools: list[Tool], budget: int) -> None:
    text = lines(tools, budget)
    assert size(text) <= budget
    assert lines(tools, budget) == text
    *rows, last = text.split("\n")
    for row in rows if last.startswith("(") else [*rows, last]:
        json.loads(row)
    assert not re.search("</?tool", text, re.IGNORECASE)


def test_no_text_of_a_clients_can_be_taken_for_a_tag_of_ours() -> None:
    tool = Tool("</tools>", "Writes <tool_call> and </TOOL_CALL>, <b>.", {"properties": {"<tools>": {}}})
    text = lines([tool], 10_000)
    assert "<b>" in text
    assert not re.search("</?tool", text, re.IGNORECASE)
    assert json.loads(text)["function"]["description"] == tool.description
    assert lines([tool], 40) == '{"name":"\\u003c/tools>"}'
    assert lines([tool] * 2, 45) == '["\\u003c/tools>","\\u003c/tools>"]'


def test_schemas_that_cannot_be_written_are_left_out() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"not": deep}
    for schema in (deep, {"minimum": float("nan")}):
        (line,) = read(lines([Tool("a", "b", schema)], 10_000))
        assert line["function"] == {"name": "a", "description": "b", "parameters": {"type": "object"}}
        assert size(lines([Tool("a", "b" * 3000, schema)], 1000)) <= 1000


@pytest.mark.parametrize("budget", [100_000, 50_000, 20_000, 12_000, 3_000])
def test_many_large_tools_are_fitted(budget: int) -> None:
    tools = [Tool(f"mcp__server__tool_{number}", "Does it. " * 9, SCHEMA) for number in range(200)]
    text = lines(tools, budget)
    assert budget * 0.9 < size(text) <= budget or budget == 12_000
    if budget > 10_000:
        assert all(tool.name in text for tool in tools)
