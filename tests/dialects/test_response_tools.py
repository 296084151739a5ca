"""What tools a request offers, and how the client hears of a call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwenproxy.chat import Tool, ToolCall, ToolChoice
from qwenproxy.dialects.response_tools import Known, Offer, call_item, flat_name, offer
from qwenproxy.errors import BadRequest, CallerError, UnsupportedParameter

PLACE = {"type": "object", "properties": {"place": {"type": "string"}}}
WEATHER = {"type": "function", "name": "weather", "description": "The weather", "parameters": PLACE}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Edits", "format": {"type": "text"}}
CLOSE = {"type": "function", "name": "close", "parameters": {"type": "object"}}
AGENTS = {"type": "namespace", "name": "agents", "description": "", "tools": [CLOSE, PATCH]}
FIND = {"type": "tool_search", "execution": "client", "parameters": {"type": "object"}}
WEB = {"type": "web_search"}


def offered(*tools: Any, **more: Any) -> Offer:
    return offer({"tools": list(tools), **more})


def refused(*tools: Any, **more: Any) -> tuple[str, str | None]:
    with pytest.raises(CallerError) as caught:
        offered(*tools, **more)
    return caught.value.code, caught.value.param


def test_each_kind_is_a_tool_to_the_model() -> None:
    found = offered(WEATHER, PATCH, AGENTS, FIND)
    assert [tool.name for tool in found.tools] == [
        "weather",
        "apply_patch",
        "agents__close",
        "agents__apply_patch",
        "tool_search",
    ]
    assert found.tools[0] == Tool("weather", "The weather", PLACE)
    assert found.tools[1].parameters["required"] == ["input"]
    assert found.known["weather"] == Known("weather")
    assert found.known["apply_patch"] == Known("apply_patch", "custom_tool_call")
    assert found.known["agents__close"] == Known("close", namespace="agents")
    assert found.known["agents__apply_patch"] == Known("apply_patch", "custom_tool_call", "agents")
    assert found.known["tool_search"] == Known("tool_search", "tool_search_call")
    assert (found.choice, found.search) == (ToolChoice(), False)


def test_tools_must_be_a_list() -> None:
    with pytest.raises(BadRequest) as caught:
        offer({"tools": {"type": "function"}})
    assert caught.value.param == "tools"


def test_a_grammar_is_told() -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}
    (tool,) = offered({**PATCH, "format": form}).tools
    assert "start: /.+/" in tool.parameters["properties"]["input"]["description"]


def test_no_tools() -> None:
    assert offer({}) == offered() == Offer()


@pytest.mark.parametrize(
    ("name", "namespace", "flat"),
    [
        ("a", "", "a"),
        ("a", "n", "n__a"),
        ("a", "mcp__server", "mcp__server__a"),
        ("a", "mcp__s__", "mcp__s__a"),
    ],
)
def test_flat_names(name: str, namespace: str, flat: str) -> None:
    assert flat_name(name, namespace) == flat


def test_a_search_for_tools_on_the_server_finds_nothing_that_is_not_offered() -> None:
    assert offered({"type": "tool_search"}, WEATHER).tools == offered(WEATHER).tools


def test_the_same_twice_is_one_and_another_of_the_name_is_refused() -> None:
    assert len(offered(WEATHER, WEATHER).tools) == 1
    assert refused(WEATHER, {**WEATHER, "description": "Other"}) == ("invalid_request", "tools[1]")


def test_what_came_with_the_input_replaces_what_has_its_name() -> None:
    newer = {**WEATHER, "description": "Newer"}
    found = offer({"tools": [WEATHER]}, [(newer, "input[0].tools[0]"), (AGENTS, "input[0].tools[1]")])
    assert [tool.name for tool in found.tools] == ["weather", "agents__close", "agents__apply_patch"]
    assert found.tools[0].description == "Newer"
    with pytest.raises(BadRequest) as caught:
        offer({}, [({"type": "function"}, "input[0].tools[0]")])
    assert caught.value.param == "input[0].tools[0].name"


@pytest.mark.parametrize("kind", ["web_search", "web_search_2025_08_26", "web_search_preview"])
@pytest.mark.parametrize(
    ("others", "choice", "searches"),
    [
        ([], "auto", True),
        ([], "required", True),
        ([], "none", False),
        ([WEATHER], "auto", False),
        ([WEATHER], "required", False),
        ([WEATHER], "web_search", True),
        ([], "web_search", True),
    ],
)
def test_when_the_web_is_searched(kind: str, others: list[Any], choice: str, searches: bool) -> None:
    wanted = {"type": kind} if choice == "web_search" else choice
    found = offered({"type": kind}, *others, tool_choice=wanted)
    assert found.search is searches
    assert found.tools == offered(*others).tools


def test_codex_searches_nothing_by_itself() -> None:
    assert not offered(WEATHER, {"type": "web_search", "external_web_access": False}).search


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("auto", ToolChoice()),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ("any", ToolChoice("required")),
        ({"type": "function", "name": "weather"}, ToolChoice("required", ("weather",))),
        ({"type": "function", "function": {"name": "weather"}}, ToolChoice("required", ("weather",))),
        ({"type": "function", "name": "close"}, ToolChoice("required", ("agents__close",))),
        (
            {"type": "function", "name": "close", "namespace": "agents"},
            ToolChoice("required", ("agents__close",)),
        ),
        ({"type": "custom", "name": "apply_patch"}, ToolChoice("required", ("apply_patch",))),
        ({"type": "tool_search"}, ToolChoice("required", ("tool_search",))),
        (
            {"type": "namespace", "name": "agents"},
            ToolChoice("required", ("agents__close", "agents__apply_patch")),
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "weather"}, WEB],
            },
            ToolChoice("auto", ("weather",)),
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "custom", "name": "apply_patch"}],
            },
            ToolChoice("required", ("apply_patch",)),
        ),
    ],
)
def test_choices(choice: Any, wanted: ToolChoice) -> None:
    found = offered(WEATHER, PATCH, AGENTS, FIND, WEB, tool_choice=choice)
    assert (found.choice, found.search) == (wanted, False)


def test_only_the_search_is_allowed() -> None:
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [WEB]}
    found = offered(WEATHER, WEB, tool_choice=choice)
    assert (found.choice.mode, found.search) == ("none", True)


def test_one_call_at_a_time() -> None:
    assert offered(WEATHER, parallel_tool_calls=False).choice == ToolChoice(parallel=False)


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ("weather", "tools[0]"),
        ({"name": "x"}, "tools[0]"),
        ({"type": 5}, "tools[0]"),
        ({"type": "function"}, "tools[0].name"),
        ({"type": "function", "name": "x", "parameters": []}, "tools[0].parameters"),
        ({"type": "custom"}, "tools[0].name"),
        ({"type": "namespace", "tools": []}, "tools[0].name"),
        ({"type": "namespace", "name": "x"}, "tools[0].tools"),
        ({"type": "namespace", "name": "x", "tools": ["y"]}, "tools[0].tools[0]"),
        ({"type": "namespace", "name": "x", "tools": [{"type": "function"}]}, "tools[0].tools[0].name"),
    ],
)
def test_what_is_no_tool_is_named(tool: Any, param: str) -> None:
    assert refused(tool) == ("invalid_request", param)


@pytest.mark.parametrize(
    "kind",
    ["file_search", "code_interpreter", "image_generation", "computer", "mcp", "local_shell", "shell"],
)
def test_tools_of_openais_own_service_are_refused_by_their_name(kind: str) -> None:
    with pytest.raises(UnsupportedParameter, match=kind) as caught:
        offered(WEATHER, {"type": kind})
    assert caught.value.param == "tools[1]"
    assert refused({"type": "namespace", "name": "n", "tools": [{"type": kind}]})[1] == "tools[0].tools[0]"


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ("sometimes", "tool_choice"),
        (5, "tool_choice"),
        ({"name": "weather"}, "tool_choice"),
        ({"type": "file_search"}, "tool_choice"),
        ({"type": "function"}, "tool_choice"),
        ({"type": "function", "name": "other"}, "tool_choice"),
        ({"type": "function", "name": "weather", "namespace": "other"}, "tool_choice"),
        ({"type": "tool_search"}, "tool_choice"),
        ({"type": "web_search"}, "tool_choice"),
        ({"type": "allowed_tools", "mode": "never", "tools": [WEATHER]}, "tool_choice.mode"),
        ({"type": "allowed_tools", "mode": ["auto"], "tools": [WEATHER]}, "tool_choice.mode"),
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, "tool_choice.tools"),
        ({"type": "allowed_tools", "mode": "auto", "tools": ["weather"]}, "tool_choice.tools"),
        ({"type": "allowed_tools", "tools": [{"type": "function", "name": "other"}]}, "tool_choice.tools"),
    ],
)
def test_choices_that_cannot_be_made_are_named(choice: Any, param: str) -> None:
    assert refused(WEATHER, tool_choice=choice) == ("invalid_request", param)


def test_a_call_is_wanted_and_there_are_no_tools() -> None:
    assert refused(tool_choice="required") == ("invalid_request", "tool_choice")
    assert offered(tool_choice="none").choice == ToolChoice()


def test_calls_come_back_as_the_client_knows_them() -> None:
    known = offered(WEATHER, PATCH, AGENTS, FIND).known

    def told(name: str, arguments: Any) -> Any:
        item = call_item(ToolCall("call_1", name, json.dumps(arguments)), known, "x_1")
        assert (item.pop("id"), item.pop("call_id"), item.pop("status")) == ("x_1", "call_1", "completed")
        return item

    assert told("weather", {"place": "x"}) == {
        "type": "function_call",
        "name": "weather",
        "arguments": '{"place": "x"}',
    }
    assert told("apply_patch", {"input": "a\nb"}) == {
        "type": "custom_tool_call",
        "name": "apply_patch",
        "input": "a\nb",
    }
    assert told("agents__close", {}) == {
        "type": "function_call",
        "name": "close",
        "namespace": "agents",
        "arguments": "{}",
    }
    assert told("agents__apply_patch", {"input": ""})["namespace"] == "agents"
    assert told("tool_search", {"query": "x"}) == {
        "type": "tool_search_call",
        "execution": "client",
        "arguments": {"query": "x"},
    }
    assert told("unheard_of", {})["name"] == "unheard_of"
