from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from qwenproxy.chat import Tool, ToolChoice
from qwenproxy.dialects.anthropic_tools import Offered, offered
from qwenproxy.errors import BadRequest, CallerError, UnsupportedParameter

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "get_weather", "description": "The weather.", "input_schema": SCHEMA}
TIME = {"type": "custom", "name": "mcp__clock__time", "input_schema": SCHEMA, "cache_control": None}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}


def names(found: Offered) -> list[str]:
    return [tool.name for tool in found.tools]


def test_nothing_is_offered() -> None:
    nothing = Offered((), ToolChoice(), search=False, wish="")
    assert offered({}) == nothing
    assert offered({"tools": [], "tool_choice": {"type": "auto"}}) == nothing


def test_tools_of_the_client() -> None:
    deferred = {**WEATHER, "name": "other", "type": None, "defer_loading": True, "strict": True}
    found = offered({"tools": [WEATHER, TIME, deferred]})
    assert found.tools[0] == Tool("get_weather", "The weather.", SCHEMA)
    assert found.tools[1] == Tool("mcp__clock__time", "", SCHEMA)
    assert names(found)[2] == "other"
    assert found.choice == ToolChoice()
    assert offered({"tools": [{"name": "x"}]}).tools == (Tool("x"),)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, ToolChoice()),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice(parallel=False)),
        ({"type": "any", "disable_parallel_tool_use": False}, ToolChoice("required")),
        ({"type": "tool", "name": "get_weather"}, ToolChoice("required", ("get_weather",))),
        (
            {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
            ToolChoice("required", ("get_weather",), parallel=False),
        ),
        ({"type": "none"}, ToolChoice("none")),
    ],
)
def test_choices(choice: dict[str, Any], expected: ToolChoice) -> None:
    assert offered({"tools": [WEATHER, TIME], "tool_choice": choice}).choice == expected


@pytest.mark.parametrize("kind", ["web_search_20250305", "web_search_20260318", "web_search_20991231"])
def test_a_search_alone_is_made(kind: str) -> None:
    for choice in ({}, {"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "web_search"}):
        found = offered({"tools": [{**SEARCH, "type": kind}], "tool_choice": choice})
        assert found == Offered((), ToolChoice(), search=True, wish="")
    assert not offered({"tools": [SEARCH], "tool_choice": {"type": "none"}}).search


def test_a_search_among_tools_is_made_when_it_is_chosen() -> None:
    both = {"tools": [WEATHER, SEARCH]}
    assert offered(both) == Offered(
        (offered({"tools": [WEATHER]}).tools), ToolChoice(), search=False, wish=""
    )
    chosen = offered({**both, "tool_choice": {"type": "tool", "name": "web_search"}})
    assert (chosen.search, chosen.choice, names(chosen)) == (True, ToolChoice(), ["get_weather"])
    other = offered({**both, "tool_choice": {"type": "tool", "name": "get_weather"}})
    assert (other.search, other.choice) == (False, ToolChoice("required", ("get_weather",)))
    assert offered({**both, "tool_choice": {"type": "any"}}).choice == ToolChoice("required")


def test_a_tool_of_the_client_may_be_called_web_search() -> None:
    found = offered(
        {"tools": [{"name": "web_search"}], "tool_choice": {"type": "tool", "name": "web_search"}}
    )
    assert (found.search, found.choice.only) == (False, ("web_search",))


def test_which_pages_may_be_used_is_told_to_the_model() -> None:
    narrow = {**SEARCH, "allowed_domains": ["example.org", "a.b"], "blocked_domains": []}
    assert offered({"tools": [narrow]}).wish == "Use only web pages of example.org, a.b."
    blocked = {**SEARCH, "allowed_domains": None, "blocked_domains": ["example.org"]}
    assert offered({"tools": [blocked]}).wish == "Use no web pages of example.org."
    assert offered({"tools": [narrow, WEATHER]}).wish == ""


INPUTS: list[tuple[str, str, list[dict[str, Any]], list[dict[str, Any]]]] = [
    ("bash_20250124", "bash", [{"command": "ls"}, {"restart": True}], [{"command": 5}]),
    (
        "text_editor_20250124",
        "str_replace_editor",
        [
            {"command": "undo_edit", "path": "/a"},
            {"command": "insert", "path": "/a", "insert_line": 0, "new_str": "x"},
        ],
        [{"path": "/a"}, {"command": "remove", "path": "/a"}],
    ),
    (
        "text_editor_20250728",
        "str_replace_based_edit_tool",
        [
            {"command": "view", "path": "/a", "view_range": [1, -1]},
            {"command": "insert", "path": "/a", "insert_line": 0, "insert_text": "x"},
            {"command": "str_replace", "path": "/a", "old_str": "x", "new_str": "y"},
            {"command": "create", "path": "/a", "file_text": "x"},
        ],
        [{"command": "undo_edit", "path": "/a"}, {"command": "view"}],
    ),
    (
        "memory_20250818",
        "memory",
        [
            {"command": "rename", "old_path": "/memories/a", "new_path": "/memories/b"},
            {"command": "delete", "path": "/memories/a"},
        ],
        [{"command": "undo_edit"}],
    ),
]


@pytest.mark.parametrize(("kind", "name", "right", "wrong"), INPUTS)
def test_tools_of_anthropics_that_the_client_does(
    kind: str, name: str, right: list[dict[str, Any]], wrong: list[dict[str, Any]]
) -> None:
    (tool,) = offered({"tools": [{"type": kind, "name": name, "cache_control": {"type": "ephemeral"}}]}).tools
    assert tool.name == name
    assert tool.description
    json.dumps(tool.parameters)
    Draft202012Validator.check_schema(tool.parameters)
    fits = Draft202012Validator(tool.parameters).is_valid
    assert all(map(fits, right))
    assert not any(map(fits, wrong))


def test_what_old_editors_call_the_text_to_insert() -> None:
    def fields(kind: str) -> set[str]:
        (tool,) = offered({"tools": [{"type": kind, "name": "edit"}]}).tools
        return set(tool.parameters["properties"])

    assert "insert_text" not in fields("text_editor_20241022")
    assert "insert_text" in fields("text_editor_20250429")


def test_looking_for_tools_is_not_needed_where_all_are_told() -> None:
    looking = {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}
    assert names(offered({"tools": [looking, {**WEATHER, "defer_loading": True}]})) == ["get_weather"]


@pytest.mark.parametrize(
    "kind",
    [
        "code_execution_20260120",
        "web_fetch_20250910",
        "computer_20250124",
        "computer_toolset_20260801",
        "browser_toolset_20260801",
        "mcp_toolset",
        "advisor_20260301",
    ],
)
def test_what_nobody_does_here_is_refused(kind: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        offered({"tools": [WEATHER, {"type": kind, "name": "x"}]})
    assert caught.value.param == "tools[1]"
    assert kind in str(caught.value)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": ["get_weather"]}, "tools[0]"),
        ({"tools": [{"type": 5}]}, "tools[0].type"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "x", "input_schema": "{}"}]}, "tools[0].input_schema"),
        ({"tools": [{"type": "bash_20250124"}]}, "tools[0].name"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{**SEARCH, "allowed_domains": "example.org"}]}, "tools[0].allowed_domains"),
        ({"tools": [{**SEARCH, "blocked_domains": [5]}]}, "tools[0].blocked_domains"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "required"}}, "tool_choice.type"),
        ({"tool_choice": {"type": ["any"]}}, "tool_choice.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "web_search"}}, "tool_choice.name"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "auto", "disable_parallel_tool_use": "yes"}},
            "tool_choice.disable_parallel_tool_use",
        ),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        offered(given)
    assert caught.value.param == param


@given(
    st.dictionaries(
        st.sampled_from(["type", "name", "input_schema", "allowed_domains"]),
        st.none() | st.integers() | st.text(max_size=4) | st.sampled_from(["bash_1", "memory_1", "custom"]),
    ),
    st.dictionaries(
        st.sampled_from(["type", "name"]), st.none() | st.sampled_from(["any", "tool", "bash", "none"])
    ),
)
def test_whatever_comes_is_offered_or_the_callers_fault(tool: Any, choice: Any) -> None:
    with suppress(CallerError):
        assert isinstance(offered({"tools": [tool], "tool_choice": choice}), Offered)
