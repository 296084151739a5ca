from __future__ import annotations

from typing import Any, get_type_hints

import pytest
from anthropic.types import Message as OfficialMessage
from anthropic.types import RawMessageStreamEvent, message_create_params
from anthropic.types.beta import BetaMessage, BetaRawMessageStreamEvent
from pydantic import TypeAdapter

from qwenproxy.chat import AnswerFormat, Attachment, ChatRequest, Message, Tool, ToolCall, ToolChoice
from qwenproxy.dialects.anthropic_events import content_of
from qwenproxy.dialects.anthropic_messages import PARAMETERS, AnthropicMessages
from qwenproxy.errors import BadRequest, CallerError, UnsupportedParameter
from tests.dialects.golden import events, golden_reply, golden_stream, replies, scenario, scenarios, streamed

DIALECT = AnthropicMessages()
FOLDER = "anthropic_messages"
SCENARIOS = scenarios(FOLDER)
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}


def parse(**body: Any) -> ChatRequest:
    return DIALECT.parse({**HELLO, **body}, {})


def refused(**body: Any) -> tuple[str, str | None]:
    with pytest.raises(CallerError) as caught:
        parse(**body)
    assert caught.value.status == 400
    return caught.value.code, caught.value.param


def test_there_are_scenarios() -> None:
    assert {"text", "thinking", "call", "parallel_calls", "search", "everything"} <= set(SCENARIOS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_stream_is_golden_and_has_anthropics_types(name: str) -> None:
    request, deltas = scenario(DIALECT, FOLDER, name)
    stream = streamed(DIALECT, request, deltas)
    assert stream == golden_stream(FOLDER, name)
    official: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    beta: TypeAdapter[Any] = TypeAdapter(BetaRawMessageStreamEvent)
    for event in events(stream):
        if event["type"] != "ping":
            official.validate_python(event, strict=True)
            beta.validate_python(event, strict=True)
    for written in stream.split("\n\n")[:-1]:
        assert written.startswith("event: ")


@pytest.mark.parametrize("name", SCENARIOS)
def test_reply_is_golden_and_says_what_the_stream_says(name: str) -> None:
    request, deltas = scenario(DIALECT, FOLDER, name)
    reply = DIALECT.reply(request, replies(request, deltas))
    assert reply == golden_reply(FOLDER, name)
    OfficialMessage.model_validate(reply, strict=True)
    BetaMessage.model_validate(reply, strict=True)
    sent = events(golden_stream(FOLDER, name))
    assert content_of(sent[2:-2]) == reply["content"]
    begun, ended = sent[0]["message"], sent[-2]
    assert (begun["id"], begun["model"]) == (reply["id"], reply["model"])
    assert ended["delta"].items() <= reply.items()
    assert ended["usage"].items() <= reply["usage"].items()


def test_least_request() -> None:
    request = parse()
    assert request.messages == (Message("user", "Hello"),)
    assert request.model == "qwen"
    assert (request.stream, request.counts_input, request.remember) == (False, False, False)
    assert (request.thinking, request.max_tokens, request.stop) == (None, None, ())


def test_everything_honoured() -> None:
    request = parse(
        model=" claude-sonnet-5 ",
        max_tokens=64,
        system="Be brief.",
        stream=True,
        stop_sequences=["END", "STOP"],
        thinking={"type": "enabled", "budget_tokens": 2048},
        tools=[{"name": "look", "input_schema": SCHEMA}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"},
    )
    assert request.model == "claude-sonnet-5"
    assert request.messages == (Message("system", "Be brief."), Message("user", "Hello"))
    assert (request.stream, request.counts_input) == (True, True)
    assert (request.thinking, request.thinking_budget) == (True, 2048)
    assert (request.max_tokens, request.stop) == (64, ("END", "STOP"))
    assert request.tools == (Tool("look", "", SCHEMA),)
    assert request.tool_choice == ToolChoice("required", parallel=False)
    assert request.answer_format == AnswerFormat(SCHEMA)
    assert not request.search


def test_what_claude_code_sends() -> None:
    """Its own way of ending `messages`, and blocks wherever a string would do (clients.md 5)."""
    request = DIALECT.parse(
        {
            "model": "claude-sonnet-5",
            "max_tokens": 32000,
            "temperature": 1,
            "metadata": {"user_id": "user_1"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "thinking": {"type": "adaptive"},
            "system": [{"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "List the files."}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "tool_use", "id": "call_1", "name": "Bash", "input": {"command": "ls"}}
                    ],
                },
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "a"}],
                },
                {"role": "system", "content": "Remember to be brief."},
            ],
            "tools": [{"name": "Bash", "description": "Runs.", "input_schema": SCHEMA}],
            "stream": True,
        },
        {},
    )
    assert request.messages == (
        Message("system", "You are an agent."),
        Message("user", "List the files."),
        Message("assistant", "", calls=(ToolCall("call_1", "Bash", '{"command":"ls"}'),)),
        Message("tool", "a", call_id="call_1"),
        Message("system", "Remember to be brief."),
    )
    assert request.thinking is True


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, None),
        ({"thinking": None}, None),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled"}}, True),
        ({"thinking": {"type": "adaptive"}}, True),
        ({"thinking": {"type": "between_tools"}}, True),
        ({"output_config": {"effort": "high"}}, None),
        ({"output_config": {"effort": None}, "thinking": {"type": "adaptive"}}, True),
        ({"output_config": {"effort": "high"}, "thinking": {"type": "adaptive", "display": "updates"}}, True),
        ({"output_config": {"effort": "low"}, "thinking": {"type": "adaptive"}}, None),
        ({"output_config": {"effort": "low"}, "thinking": {"type": "enabled"}}, True),
        ({"output_config": {"effort": "max"}, "thinking": {"type": "disabled"}}, False),
    ],
)
def test_whether_to_think(body: dict[str, Any], expected: bool | None) -> None:
    assert parse(**body).thinking is expected


def test_a_search_is_asked_for_with_its_wishes() -> None:
    tool = {"type": "web_search_20250305", "name": "web_search", "allowed_domains": ["example.org"]}
    request = parse(tools=[tool], system="Be brief.")
    assert request.search
    assert request.messages == (
        Message("system", "Use only web pages of example.org."),
        Message("system", "Be brief."),
        Message("user", "Hello"),
    )


@pytest.mark.parametrize(
    "body",
    [
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
            "output_format": {"type": "json_schema", "schema": {}},
        },
    ],
)
def test_an_answer_that_fits_a_schema(body: dict[str, Any]) -> None:
    assert parse(**body).answer_format == AnswerFormat(SCHEMA)
    assert parse(output_config={"format": None}).answer_format is None


def test_pictures_are_attached() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    (message,) = parse(messages=[{"role": "user", "content": [{"type": "image", "source": source}]}]).messages
    assert message == Message("user", "", (Attachment("image", "data:image/png;base64,iVBORw0KGgo="),))
    assert message.attachments[0].place == "messages[0].content[0]"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": None}, "messages"),
        ({"model": ""}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"thinking": "enabled"}, "thinking"),
        ({"thinking": {"type": "on"}}, "thinking.type"),
        ({"thinking": {"type": ["enabled"]}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": "many"}}, "thinking.budget_tokens"),
        ({"output_config": []}, "output_config"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"output_format": "json"}, "output_format.type"),
        ({"tools": {}}, "tools"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str) -> None:
    assert refused(**body) == (BadRequest.code, param)


@pytest.mark.parametrize(
    "name", [name for name, (treatment, _) in PARAMETERS.items() if treatment == "refused"]
)
def test_what_would_change_the_answer_is_refused(name: str) -> None:
    assert refused(**{name: {"type": "url"}}) == (UnsupportedParameter.code, name)
    assert refused(**{name: [{"type": "url"}]}) == (UnsupportedParameter.code, name)
    assert parse(**{name: None}) == parse(**{name: []}) == parse()


@pytest.mark.parametrize(
    "name", [name for name, (treatment, _) in PARAMETERS.items() if treatment == "ignored"]
)
def test_what_is_ignored_changes_nothing(name: str) -> None:
    for value in (0.5, "auto", {"type": "x"}, [1], True):
        assert parse(**{name: value}) == parse()


def test_every_official_parameter_is_decided_or_says_nothing_here() -> None:
    official = get_type_hints(message_create_params.MessageCreateParamsStreaming)
    silent = {"diagnostics", "user_profile_id", "workspace_id"}
    assert set(official) - silent <= set(PARAMETERS)
    assert not silent & set(PARAMETERS)


def test_errors_are_anthropics() -> None:
    body = DIALECT.error(BadRequest("why", param="tools"))
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
