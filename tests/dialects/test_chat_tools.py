from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage

from qwenproxy.chat import Attachment, Message, Tool, ToolCall, ToolChoice
from qwenproxy.dialects.chat_tools import PIECE_CHARACTERS, CallForm, Offer, calls_of, offer, result_of
from qwenproxy.errors import BadRequest, CallerError, UnsupportedParameter

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
LOOK = {"name": "look", "description": "Looks.", "parameters": SCHEMA}
READ = {"name": "read"}
TEXT_ONLY = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


def function(**row: Any) -> dict[str, Any]:
    return {"type": "function", "function": row}


def custom(**row: Any) -> dict[str, Any]:
    return {"type": "custom", "custom": row}


TWO = [function(**LOOK), function(**READ)]


def param_of(read: Any, *arguments: Any) -> str | None:
    with pytest.raises(BadRequest) as caught:
        read(*arguments)
    return caught.value.param


def choice(**body: Any) -> ToolChoice:
    return offer({"tools": TWO, **body}).choice


# ---- what is offered ----


def test_nothing_offered() -> None:
    assert offer({}) == offer({"tools": [], "functions": [], "tool_choice": "none"}) == Offer()


def test_functions() -> None:
    strict = {**LOOK, "strict": True}
    assert offer({"tools": [function(**strict), {"function": READ}]}).tools == (
        Tool("look", "Looks.", SCHEMA),
        Tool("read"),
    )


def test_a_tool_sent_twice_is_one_tool() -> None:
    assert offer({"tools": [*TWO, *TWO]}).tools == offer({"tools": TWO}).tools
    assert param_of(offer, {"tools": [*TWO, function(name="read", description="Other.")]}) == "tools[2]"
    assert param_of(offer, {"tools": [*TWO, custom(name="read")]}) == "tools[2]"


def test_a_custom_tool_takes_one_text() -> None:
    offered = offer({"tools": [custom(name="run", description="Runs it."), function(**READ)]})
    assert offered.tools == (Tool("run", "Runs it.", TEXT_ONLY), Tool("read"))
    assert offered.echo == {"custom": frozenset({"run"})}
    assert offer({"tools": [custom(name="run", format={"type": "text"})]}).tools[0].parameters == TEXT_ONLY


@pytest.mark.parametrize("syntax", ["lark", "regex"])
def test_the_model_is_told_of_a_grammar(syntax: str) -> None:
    grammar = {"definition": "start: /a+/", "syntax": syntax}
    for form in ({"type": "grammar", "grammar": grammar}, {"type": "grammar", **grammar}):
        (tool,) = offer({"tools": [custom(name="run", format=form)]}).tools
        described = tool.parameters["properties"]["input"]["description"]
        assert "start: /a+/" in described
        assert ("regular" in described) is (syntax == "regex")


def test_the_services_search_is_no_tool_to_be_called() -> None:
    alone = offer({"tools": [{"type": "web_search_preview"}], "tool_choice": "required"})
    assert alone == Offer(searches=True)
    beside = {"tools": [{"type": "web_search"}, *TWO], "tool_choice": "required"}
    assert offer(beside) == offer({"tools": TWO, "tool_choice": "required"})
    chosen = offer({**beside, "tool_choice": {"type": "web_search"}})
    assert chosen == Offer(offer({"tools": TWO}).tools, searches=True)
    assert offer({"tools": [{"type": "web_search"}], "tool_choice": "none"}) == Offer()


def test_a_type_that_only_openai_has_is_refused() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        offer({"tools": [*TWO, {"type": "code_interpreter"}]})
    assert caught.value.param == "tools[2]"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (None, ToolChoice()),
        ("auto", ToolChoice()),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ("any", ToolChoice("required")),
        (function(name="look"), ToolChoice("required", ("look",))),
        ({"type": "function", "name": "look"}, ToolChoice("required", ("look",))),
        (custom(name="look"), ToolChoice("required", ("look",))),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [function(name="read")]}},
            ToolChoice("auto", ("read",)),
        ),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [function(name="read"), {"type": "function", "name": "look"}],
                },
            },
            ToolChoice("required", ("read", "look")),
        ),
    ],
)
def test_which_must_be_called(raw: Any, expected: ToolChoice) -> None:
    assert choice(tool_choice=raw) == expected


def test_one_call_or_several() -> None:
    assert choice(parallel_tool_calls=True).parallel
    assert choice(parallel_tool_calls=None).parallel
    assert not choice(parallel_tool_calls=False).parallel
    assert not choice(parallel_tool_calls=False, tool_choice=function(name="look")).parallel


def test_the_older_form() -> None:
    offered = offer({"functions": [LOOK, READ]})
    assert offered == Offer(offer({"tools": TWO}).tools, ToolChoice(parallel=False), echo={"legacy": True})
    named = offer({"functions": [LOOK], "function_call": {"name": "look"}})
    assert named.choice == ToolChoice("required", ("look",), parallel=False)
    assert offer({"functions": [LOOK], "function_call": "none"}).choice == ToolChoice("none", parallel=False)
    assert offer({"functions": [LOOK], "tools": []}) == offer({"functions": [LOOK]})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": "look"}, "tools"),
        ({"tools": ["look"]}, "tools[0]"),
        ({"tools": [{"type": ["function"]}]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "name": "look"}]}, "tools[0].function"),
        ({"tools": [function(name="")]}, "tools[0].function.name"),
        ({"tools": [function(name="look", parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [custom()]}, "tools[0].custom.name"),
        ({"tools": [custom(name="run", format="text")]}, "tools[0].custom.format"),
        ({"tools": [custom(name="run", format={"type": "poem"})]}, "tools[0].custom.format"),
        ({"tools": [custom(name="run", format={"type": "grammar"})]}, "tools[0].custom.format"),
        ({"tools": [custom(name="run", format={"type": "grammar", "grammar": 1})]}, "tools[0].custom.format"),
        ({"tools": TWO, "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tools": TWO, "tool_choice": "some"}, "tool_choice"),
        ({"tools": TWO, "tool_choice": 1}, "tool_choice"),
        ({"tools": TWO, "tool_choice": {}}, "tool_choice"),
        ({"tools": TWO, "tool_choice": {"type": ["function"]}}, "tool_choice"),
        ({"tools": TWO, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": TWO, "tool_choice": function(name="lock")}, "tool_choice"),
        ({"tools": TWO, "tool_choice": function(name=["look"])}, "tool_choice"),
        ({"tools": TWO, "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        (
            {"tools": TWO, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": TWO}}},
            "tool_choice.allowed_tools.mode",
        ),
        (
            {"tools": TWO, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}},
            "tool_choice.allowed_tools.tools",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": function(name="look")}, "tool_choice"),
        ({"functions": "look"}, "functions"),
        ({"functions": ["look"]}, "functions[0]"),
        ({"functions": [{}]}, "functions[0].name"),
        ({"functions": [LOOK], "tools": TWO}, "functions"),
        ({"functions": [LOOK], "function_call": "required"}, "function_call"),
        ({"functions": [LOOK], "function_call": {"name": "lock"}}, "function_call"),
        ({"functions": [LOOK], "function_call": {}}, "function_call"),
    ],
)
def test_what_cannot_be_offered_is_named(body: dict[str, Any], param: str) -> None:
    assert param_of(offer, body) == param


@pytest.mark.parametrize(
    "row",
    ["look", function(name="lock"), {"type": []}, {"type": "function", "function": 1}, {"name": "look"}],
)
def test_what_cannot_be_allowed_is_named(row: Any) -> None:
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [row]}}
    assert param_of(offer, {"tools": TWO, "tool_choice": allowed}) == "tool_choice.allowed_tools.tools"


# ---- the history ----


def test_calls_of_the_history() -> None:
    message = {
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"city": "Omsk"}'}},
            {"id": "2", "function": {"name": "read", "arguments": ""}},
            {"id": "3", "type": "function", "function": {"name": "look", "arguments": {"city": "Ё"}}},
            {"id": "4", "type": "custom", "custom": {"name": "run", "input": "1 + 1"}},
            {"type": "function", "function": {"name": "read"}},
        ]
    }
    assert calls_of(message, "messages[1]") == (
        ToolCall("1", "look", '{"city": "Omsk"}'),
        ToolCall("2", "read", "{}"),
        ToolCall("3", "look", '{"city":"Ё"}'),
        ToolCall("4", "run", '{"input":"1 + 1"}'),
        ToolCall("", "read", "{}"),
    )
    assert calls_of({"tool_calls": None}, "messages[1]") == calls_of({}, "messages[1]") == ()


def test_results_of_the_history() -> None:
    assert result_of({"role": "tool", "tool_call_id": "1", "content": "4"}, "messages[2]", ()) == Message(
        "tool", "4", call_id="1"
    )
    assert result_of({"role": "tool", "content": None}, "messages[2]", ()) == Message("tool", "")
    picture = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    content = [{"type": "text", "text": "see"}, picture]
    seen = result_of({"role": "tool", "tool_call_id": "1", "content": content}, "messages[2]", ())
    assert seen == Message("tool", "see", (Attachment("image", "https://example.org/a.png"),), call_id="1")


def test_a_function_of_the_older_form_answers_the_last_call_of_its_name() -> None:
    rows = [("look", 1), ("read", 3), ("look", 5)]
    before = [
        Message("assistant", "", calls=calls_of({"function_call": {"name": name}}, f"messages[{place}]"))
        for name, place in rows
    ]
    (_,), (read,), (look,) = (message.calls for message in before)
    assert len({read.id, look.id, before[0].calls[0].id}) == 3

    def answered(name: str) -> str:
        return result_of({"role": "function", "name": name, "content": "4"}, "messages[6]", before).call_id

    assert (answered("look"), answered("read"), answered("lock")) == (look.id, read.id, "")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"tool_calls": "look"}, "m.tool_calls"),
        ({"tool_calls": ["look"]}, "m.tool_calls[0]"),
        ({"tool_calls": [{"id": "x"}]}, "m.tool_calls[0]"),
        ({"tool_calls": [{"type": "mcp", "mcp": {}}]}, "m.tool_calls[0]"),
        ({"tool_calls": [{"type": ["function"]}]}, "m.tool_calls[0]"),
        ({"tool_calls": [{"id": 1, "function": {"name": "look"}}]}, "m.tool_calls[0].id"),
        ({"tool_calls": [{"function": {}}]}, "m.tool_calls[0].function.name"),
        ({"tool_calls": [{"function": {"name": "a", "arguments": 1}}]}, "m.tool_calls[0].function.arguments"),
        ({"tool_calls": [{"type": "custom", "custom": {"name": "a"}}]}, "m.tool_calls[0].custom.input"),
        ({"function_call": "look"}, "m.function_call"),
        ({"function_call": {"arguments": "{}"}}, "m.function_call.name"),
        ({"function_call": {"name": "a", "arguments": []}}, "m.function_call.arguments"),
    ],
)
def test_a_call_that_is_none_is_named(message: dict[str, Any], param: str) -> None:
    assert param_of(calls_of, message, "m") == param


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "tool_call_id": 1, "content": ""}, "m.tool_call_id"),
        ({"role": "tool", "content": 4}, "m.content"),
        ({"role": "tool", "content": [{"type": "text"}]}, "m.content[0]"),
        ({"role": "function", "content": "4"}, "m.name"),
    ],
)
def test_a_result_that_is_none_is_named(message: dict[str, Any], param: str) -> None:
    with pytest.raises(CallerError) as caught:
        result_of(message, "m", ())
    assert (caught.value.status, caught.value.param) == (400, param)


# ---- the answer ----


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=3 * PIECE_CHARACTERS))
def test_pieces_of_a_call_add_up(said: str) -> None:
    text = json.dumps({"input": said}, ensure_ascii=False)
    for echo, key, expected in (({}, "function", text), ({"custom": frozenset({"run"})}, "custom", said)):
        first, *rest = map(json.loads, CallForm(echo).deltas(2, ToolCall("call_1", "run", text)))
        (head,) = first["tool_calls"]
        assert (head["index"], head["id"], head["type"], head[key]["name"]) == (2, "call_1", key, "run")
        pieces = [piece for delta in rest for piece in delta["tool_calls"]]
        assert all(set(piece) == {"index", key} and piece["index"] == 2 for piece in pieces)
        texts = [value for piece in pieces for value in piece[key].values()]
        assert "".join(texts) == expected
        assert all(0 < len(text) <= PIECE_CHARACTERS for text in texts)


def test_whole_calls_have_openais_types() -> None:
    calls = [ToolCall("1", "run", '{"input": "x"}'), ToolCall("2", "look", "{}")]
    for echo in ({}, {"custom": frozenset({"run"})}, {"legacy": True}):
        told = CallForm(echo).whole(calls)
        ChatCompletionMessage.model_validate({"role": "assistant", "content": None, **told}, strict=True)
    assert CallForm({}).whole([]) == CallForm({"legacy": True}).whole([]) == {}


def test_the_older_form_has_one_call() -> None:
    form = CallForm({"legacy": True})
    calls = [ToolCall("1", "look", '{"a": 1}'), ToolCall("2", "read", "{}")]
    assert form.whole(calls) == {"function_call": {"name": "look", "arguments": '{"a": 1}'}}
    assert list(map(json.loads, form.deltas(0, calls[0]))) == [
        {"function_call": {"name": "look", "arguments": ""}},
        {"function_call": {"arguments": '{"a": 1}'}},
    ]
    assert list(form.deltas(1, calls[1])) == []


def test_how_an_answer_with_calls_ends() -> None:
    assert CallForm({}).finish_reason("tool_calls") == "tool_calls"
    assert CallForm({"legacy": True}).finish_reason("tool_calls") == "function_call"
    assert CallForm({"legacy": True}).finish_reason("length") == "length"
