from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsBase,
    CompletionCreateParamsStreaming,
)

from qwenproxy import errors
from qwenproxy.chat import ChatRequest, Finished, Message, Started, Text, fold
from qwenproxy.dialects.openai_chat import DONE, HARMLESS, PARAMETERS, OpenAIChat, envelope
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
    models = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in chunks]
    assert len({(model.id, model.created, model.model) for model in models}) == 1


@pytest.mark.parametrize("name", SCENARIOS)
def test_reply_is_golden_and_says_what_the_stream_says(name: str) -> None:
    request, deltas = scenario(DIALECT, FOLDER, name)
    reply = DIALECT.reply(request, replies(request, deltas))
    assert reply == golden_reply(FOLDER, name)
    whole = ChatCompletion.model_validate(reply, strict=True)
    streamed = events(golden_stream(FOLDER, name))[:-1]
    for choice in whole.choices:
        mine = [c for chunk in streamed for c in chunk["choices"] if c["index"] == choice.index]
        assert "".join(c["delta"].get("content") or "" for c in mine) == choice.message.content
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
    assert refused(**{name: {"type": "json_object"}}) == ("unsupported_parameter", name)
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
        ({"chat_template_kwargs": {"enable_thinking": 1}}, "chat_template_kwargs.enable_thinking"),
    ],
)
def test_wrong_values_are_named(body: dict[str, Any], param: str) -> None:
    assert refused(**body) == ("invalid_request", param)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "4", "tool_call_id": "x"}, "messages[1].role"),
        ({"role": "function", "content": "4", "name": "f"}, "messages[1].role"),
        ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "messages[1].tool_calls"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[1].function_call"),
        (
            {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "file", "file": "C:/a"}]},
            "messages[1].content[1]",
        ),
    ],
)
def test_what_comes_later_is_refused_with_its_place(message: dict[str, Any], param: str) -> None:
    assert refused(messages=[*HELLO["messages"], message]) == ("unsupported_parameter", param)


@pytest.mark.parametrize("value", [True, 1, 0, "no"])
def test_logprobs_true_in_any_form_is_refused(value: Any) -> None:
    assert refused(logprobs=value) == ("unsupported_parameter", "logprobs")


def test_table_knows_every_parameter_of_the_official_package() -> None:
    official = {*CompletionCreateParamsBase.__annotations__, *CompletionCreateParamsStreaming.__annotations__}
    assert official - set(PARAMETERS) == set()


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
