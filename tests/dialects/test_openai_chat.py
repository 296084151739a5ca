from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from qwenproxy import errors
from qwenproxy.chat import (
    AnswerFormat,
    Attachment,
    ChatRequest,
    Delta,
    Finished,
    Message,
    Started,
    Text,
    Thinking,
    ToolCall,
    ToolChoice,
    fold,
)
from qwenproxy.dialects.chat_parameters import HARMLESS, PARAMETERS
from qwenproxy.dialects.openai_chat import DONE, OpenAIChat, envelope
from qwenproxy.errors import BadRequest, CallerError, UnsupportedParameter
from tests.dialects.golden import (
    StandingClock,
    events,
    golden_reply,
    golden_stream,
    replies,
    scenario,
    scenarios,
    streamed,
)

FOLDER = "openai_chat"
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


DIALECT = OpenAIChat(StandingClock())


def parse(**body: Any) -> ChatRequest:
    return DIALECT.parse({**HELLO, **body}, {})


def refused(**body: Any) -> tuple[str, str | None]:
    with pytest.raises(CallerError) as caught:
        parse(**body)
    assert caught.value.status == 400
    return caught.value.code, caught.value.param


SCENARIOS = scenarios(FOLDER)


def test_there_are_scenarios() -> None:
    assert {"text", "thinking", "everything", "two_choices"} <= set(SCENARIOS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_stream_is_golden_and_has_openais_types(name: str) -> None:
    request, deltas = scenario(DIALECT, FOLDER, name)
    stream = streamed(DIALECT, request, deltas)
    assert stream == golden_stream(FOLDER, name)
    *chunks, done = events(stream)
    assert done == "[DONE]"
    models = [chunk_of(chunk) for chunk in chunks]
    assert len({(model.id, model.created, model.model) for model in models}) == 1


def chunk_of(raw: dict[str, Any]) -> ChatCompletionChunk:
    """Checked with OpenAI's type, which knows no chunks of custom tools: those it checks as of functions."""
    copy = deepcopy(raw)
    for choice in copy["choices"]:
        for call in choice["delta"].get("tool_calls", []):
            if "custom" in call:
                custom = call.pop("custom")
                assert call.pop("type", "custom") == "custom"
                call["function"] = {"name": custom.get("name"), "arguments": custom["input"]}
    return ChatCompletionChunk.model_validate(copy, strict=True)


def calls_streamed(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put together as clients do, by the index of each piece."""
    calls: list[dict[str, Any]] = []
    for piece in (piece for c in choices for piece in c["delta"].get("tool_calls", [])):
        if "id" in piece:
            assert piece["index"] == len(calls)
            calls.append({name: value for name, value in deepcopy(piece).items() if name != "index"})
        else:
            kind, text = ("function", "arguments") if "function" in piece else ("custom", "input")
            calls[piece["index"]][kind][text] += piece[kind][text]
    return calls


@pytest.mark.parametrize("name", SCENARIOS)
def test_reply_is_golden_and_says_what_the_stream_says(name: str) -> None:
    request, deltas = scenario(DIALECT, FOLDER, name)
    reply = DIALECT.reply(request, replies(request, deltas))
    assert reply == golden_reply(FOLDER, name)
    whole = ChatCompletion.model_validate(reply, strict=True)
    streamed = events(golden_stream(FOLDER, name))[:-1]
    for choice in whole.choices:
        mine = [c for chunk in streamed for c in chunk["choices"] if c["index"] == choice.index]
        assert "".join(c["delta"].get("content") or "" for c in mine) == (choice.message.content or "")
        assert calls_streamed(mine) == [call.to_dict() for call in choice.message.tool_calls or []]
        legacy = [c["delta"]["function_call"] for c in mine if "function_call" in c["delta"]]
        if choice.message.function_call is not None:
            assert legacy[0]["name"] == choice.message.function_call.name
        assert ("".join(piece["arguments"] for piece in legacy) or None) == (
            choice.message.function_call and choice.message.function_call.arguments
        )
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice.finish_reason]


def test_without_include_usage_no_chunk_speaks_of_usage() -> None:
    encoder = DIALECT.encoder(parse(stream=True))
    sent = [encoder.encode(Started("c", "r", "m")), encoder.encode(Finished("stop")), encoder.end()]
    assert "usage" not in "".join(piece for pieces in sent for piece in pieces)
    assert sent[-1] == [DONE]


def test_failure_is_one_event_and_nothing_after() -> None:
    encoder = DIALECT.encoder(parse(stream=True))
    encoder.encode(Started("c", "r", "m"))
    assert events("".join(encoder.fail(errors.Severed("the answer broke off")))) == [
        {
            "error": {
                "message": "the answer broke off",
                "type": "server_error",
                "param": None,
                "code": "upstream_error",
            }
        }
    ]


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_survives_on_one_line_of_valid_utf8(text: str) -> None:
    encoder = DIALECT.encoder(parse(stream=True))
    encoder.encode(Started("c", "r", "m"))
    (piece,) = encoder.encode(Text(text))
    line, *rest = piece.encode().decode().splitlines()
    assert rest == [""], "a reader that splits at Unicode separators must see one line and a blank one"
    said = json.loads(line.removeprefix("data: "))["choices"][0]["delta"]["content"]
    assert said == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def test_half_a_surrogate_pair_becomes_the_replacement_character() -> None:
    reply = fold([Started("c", "r", "m"), Text("\ud800"), Finished("stop")])
    assert DIALECT.reply(parse(), [reply])["choices"][0]["message"]["content"] == "\ud800"
    encoder = DIALECT.encoder(parse(stream=True))
    assert '"content":"\ufffd"' in encoder.encode(Text("\ud800"))[0]


def test_least_request() -> None:
    assert parse() == ChatRequest("qwen", (Message("user", "Hello"),))


def test_everything_honoured() -> None:
    request = parse(
        model=" qwen3-max ",
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        n=8,
        stop=["a", "b"],
        max_tokens=5,
        max_completion_tokens=7,
        reasoning_effort="high",
        thinking_budget=100,
    )
    assert request == ChatRequest(
        model="qwen3-max",
        messages=(Message("user", "Hello"),),
        stream=True,
        thinking=True,
        thinking_budget=100,
        max_tokens=7,
        stop=("a", "b"),
        choices=8,
        include_usage=True,
    )


def test_roles_and_parts() -> None:
    text = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request = parse(
        messages=[
            {"role": "developer", "content": "be kind"},
            {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
            {"role": "user", "content": text, "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": None},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "tool_calls": []},
        ]
    )
    assert request.messages == (
        Message("system", "be kind"),
        Message("system", "be brief"),
        Message("user", "one\ntwo"),
        Message("assistant", ""),
        Message("assistant", "no"),
    )


@pytest.mark.parametrize(
    ("body", "thinking"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, True),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "high"}, False),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {}}, None),
        ({"reasoning": {"enabled": True}}, True),
        ({"reasoning": {"enabled": False, "effort": "high"}}, False),
        ({"reasoning": {"effort": "none"}, "reasoning_effort": "high"}, False),
        ({"reasoning": {"max_tokens": 100}}, True),
        ({"reasoning": {"exclude": True}}, None),
        ({}, None),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, False),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "max"}, True),
        ({"enable_thinking": False, "reasoning_effort": "high"}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": False}, False),
        ({"chat_template_kwargs": {}}, None),
    ],
)
def test_thinking(body: dict[str, Any], thinking: bool | None) -> None:
    assert parse(**body).thinking is thinking


@pytest.mark.parametrize("name", [name for name, (how, _) in PARAMETERS.items() if how == "refused"])
def test_refused_parameters_are_named(name: str) -> None:
    assert refused(**{name: {"type": "any"}}) == ("unsupported_parameter", name)
    assert parse(**{name: None}) == parse()
    for value in HARMLESS.get(name, ()):
        assert parse(**{name: value}) == parse()


@pytest.mark.parametrize("name", [name for name, (how, _) in PARAMETERS.items() if how == "ignored"])
def test_ignored_parameters_change_nothing(name: str) -> None:
    assert parse(**{name: {"any": "thing"}}) == parse(**{name: 0.5}) == parse(**{name: None}) == parse()


def test_unknown_fields_are_ignored() -> None:
    assert parse(min_p=0.1, num_ctx=4096) == parse()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"messages": [{"content": "Hello"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "Hello"}]}, "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "Hello"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "input_image"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"messages": [{"role": "system", "content": "be kind"}]}, "messages"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": True}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.0}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"thinking_budget": 0}, "thinking_budget"),
        ({"reasoning_effort": "great"}, "reasoning_effort"),
        ({"reasoning_effort": []}, "reasoning_effort"),
        ({"enable_thinking": "yes"}, "enable_thinking"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"thinking": True}, "thinking"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"thinking": {"type": ["enabled"]}}, "thinking.type"),
        ({"thinking": {"budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"reasoning": "high"}, "reasoning"),
        ({"reasoning": {"effort": "great"}}, "reasoning.effort"),
        ({"reasoning": {"enabled": 1}}, "reasoning.enabled"),
        ({"reasoning": {"max_tokens": "many"}}, "reasoning.max_tokens"),
        ({"reasoning": {"exclude": "yes"}}, "reasoning.exclude"),
        ({"include_reasoning": 0}, "include_reasoning"),
        ({"enable_search": "yes"}, "enable_search"),
        ({"web_search_options": True}, "web_search_options"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": ["text"]}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": []}},
            "response_format.json_schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}},
            "response_format.json_schema.schema",
        ),
        ({"tools": {}}, "tools"),
        ({"conversation_id": 5}, "conversation_id"),
        ({"chat_id": "x", "parent_id": 5}, "parent_id"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"chat_template_kwargs": {"enable_thinking": 1}}, "chat_template_kwargs.enable_thinking"),
    ],
)
def test_wrong_values_are_named(body: dict[str, Any], param: str) -> None:
    assert refused(**body) == ("invalid_request", param)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "audio": {"id": "x"}}, "messages[1].audio"),
        (
            {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "file", "file": "C:/a"}]},
            "messages[1].content[1]",
        ),
    ],
)
def test_what_cannot_be_sent_is_refused_with_its_place(message: dict[str, Any], param: str) -> None:
    assert refused(messages=[*HELLO["messages"], message]) == ("unsupported_parameter", param)


def test_calls_and_results_stand_in_the_history() -> None:
    request, _ = scenario(DIALECT, FOLDER, "call_then_result_then_text")
    picture = Attachment("image", "https://example.org/tomsk.png")
    assert request.messages[1:] == (
        Message(
            "assistant",
            "",
            calls=(
                ToolCall("call_1", "get_weather", '{"city": "Omsk"}'),
                ToolCall("call_2", "get_weather", '{"city": "Tomsk"}'),
            ),
        ),
        Message("tool", "-12 °C", call_id="call_1"),
        Message("tool", "-14 °C", (picture,), call_id="call_2"),
    )
    assert [tool.name for tool in request.tools] == ["get_weather"]


def test_a_result_alone_is_something_said() -> None:
    """Where a conversation goes on by its id, the result is all that is new."""
    request = parse(messages=[{"role": "tool", "tool_call_id": "x", "content": ""}], conversation_id="y")
    assert request.messages == (Message("tool", "", call_id="x"),)


def test_what_was_thought_before_is_not_said_again() -> None:
    before = {"role": "assistant", "content": "Hm.", "reasoning_content": "Should I?", "reasoning": "Yes"}
    messages = [*HELLO["messages"], before, *HELLO["messages"]]
    assert parse(messages=messages).messages[1] == Message("assistant", "Hm.")


@pytest.mark.parametrize("body", [{"reasoning": {"exclude": True}}, {"include_reasoning": False}])
def test_thinking_is_left_out_where_it_is_not_wanted(body: dict[str, Any]) -> None:
    deltas: list[Delta] = [Started("c", "r", "m"), Thinking("hm"), Text("So."), Finished("stop")]
    request = parse(stream=True, **body)
    assert "hm" not in streamed(DIALECT, request, [(0, delta) for delta in deltas])
    assert "hm" not in json.dumps(DIALECT.reply(request, [fold(deltas)]))


@pytest.mark.parametrize(
    ("body", "budget"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, 2000),
        ({"reasoning": {"max_tokens": 100}}, 100),
        ({"reasoning": {"max_tokens": 100}, "thinking_budget": 5}, 5),
    ],
)
def test_how_long_to_think(body: dict[str, Any], budget: int) -> None:
    assert parse(**body).thinking_budget == budget


@pytest.mark.parametrize(
    ("body", "searches"),
    [
        ({"web_search_options": {}}, True),
        ({"web_search_options": {"search_context_size": "low"}}, True),
        ({"web_search_options": None}, False),
        ({"enable_search": True}, True),
        ({"enable_search": False}, False),
        ({"tools": [{"type": "web_search"}]}, True),
        ({"tools": [{"type": "web_search_preview_2025_03_11"}], "tool_choice": "required"}, True),
    ],
)
def test_searching_the_web(body: dict[str, Any], searches: bool) -> None:
    request = parse(**body)
    assert request.search is searches
    assert (request.tools, request.tool_choice) == ((), ToolChoice())


def test_what_an_answer_must_be() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    held = {"name": "city", "description": "Where.", "strict": True, "schema": schema}
    wanted = {"type": "json_schema", "json_schema": held}
    assert parse(response_format=wanted).answer_format == AnswerFormat(schema, "city", "Where.")
    assert parse(response_format={"type": "json_object"}).answer_format == AnswerFormat({"type": "object"})
    assert parse(response_format={"type": "text"}) == parse(response_format={}) == parse()


def test_an_id_of_our_own_wins_over_the_services() -> None:
    request = replace(parse(stream=True), answer_id="mine")
    deltas: list[Delta] = [Started("c", "r", "m"), Finished("stop")]
    assert DIALECT.reply(request, [fold(deltas)])["id"] == "chatcmpl-mine"
    first, *_ = events(streamed(DIALECT, request, [(0, delta) for delta in deltas]))
    assert first["id"] == "chatcmpl-mine"


@pytest.mark.parametrize("value", [True, 1, 0, "no"])
def test_logprobs_true_in_any_form_is_refused(value: Any) -> None:
    assert refused(logprobs=value) == ("unsupported_parameter", "logprobs")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadRequest("no", param="n"), "invalid_request_error"),
        (errors.OriginRefused("no"), "permission_error"),
        (errors.UnknownModel("no"), "invalid_request_error"),
        (errors.QueueFull("no"), "rate_limit_error"),
        (errors.Severed("no"), "server_error"),
        (errors.QwenProxyError("no"), "server_error"),
    ],
)
def test_error_types(error: errors.QwenProxyError, kind: str) -> None:
    param = error.param if isinstance(error, CallerError) else None
    expected = {"message": "no", "type": kind, "param": param, "code": error.code}
    assert DIALECT.error(error) == envelope(error) == {"error": expected}


def test_an_error_without_words_says_its_code() -> None:
    assert envelope(UnsupportedParameter(""))["error"]["message"] == "unsupported_parameter"
