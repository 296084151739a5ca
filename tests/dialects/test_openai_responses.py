from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import (
    ResponseCreateParamsBase,
    ResponseCreateParamsStreaming,
)
from pydantic import TypeAdapter

from qwenproxy import errors
from qwenproxy.chat import (
    AnswerFormat,
    ChatRequest,
    ConversationRef,
    Finished,
    Message,
    Started,
    Text,
    Thinking,
    ToolChoice,
)
from qwenproxy.dialects.openai_chat import envelope
from qwenproxy.dialects.openai_responses import PARAMETERS, OpenAIResponses, ended_early
from qwenproxy.errors import CallerError
from tests.dialects.golden import (
    NOON,
    StandingClock,
    Told,
    events,
    golden_reply,
    golden_stream,
    replies,
    scenario,
    scenarios,
    streamed,
)

FOLDER = "openai_responses"
DIALECT = OpenAIResponses(StandingClock())
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
SCENARIOS = scenarios(FOLDER)


def parse(**body: Any) -> ChatRequest:
    return DIALECT.parse({"input": "Hello", **body}, {})


def refused(**body: Any) -> tuple[str, str | None]:
    with pytest.raises(CallerError) as caught:
        parse(**body)
    assert caught.value.status == 400
    return caught.value.code, caught.value.param


def checked(stream: str) -> list[Any]:
    """The events, each of an official type, named by its `event:` line, and numbered."""
    told = events(stream)
    for number, (event, raw) in enumerate(zip(told, stream.split("\n\n"), strict=False)):
        assert raw.startswith(f"event: {event['type']}\ndata: ")
        assert event["sequence_number"] == number
        assert EVENT.validate_python(event, strict=True).type == event["type"]
    return told


def test_there_are_scenarios() -> None:
    wanted = {
        "text",
        "thinking",
        "call",
        "every_call",
        "text_after_call",
        "search",
        "media",
        "length",
        "empty",
    }
    assert wanted <= set(SCENARIOS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_stream_is_golden_and_has_openais_types(name: str) -> None:
    stream = streamed(DIALECT, *scenario(DIALECT, FOLDER, name))
    assert stream == golden_stream(FOLDER, name)
    told = checked(stream)
    assert [event["type"] for event in told[:2]] == ["response.created", "response.in_progress"]
    assert told[-1]["type"] in {"response.completed", "response.incomplete"}


@pytest.mark.parametrize("name", SCENARIOS)
def test_reply_is_golden_and_the_end_of_the_stream(name: str) -> None:
    request, deltas = scenario(DIALECT, FOLDER, name)
    reply = DIALECT.reply(request, replies(request, deltas))
    assert reply == golden_reply(FOLDER, name)
    Response.model_validate(reply, strict=True)
    assert events(golden_stream(FOLDER, name))[-1]["response"] == reply


@pytest.mark.parametrize("name", SCENARIOS)
def test_items_are_announced_grow_and_are_told_whole(name: str) -> None:
    told = events(golden_stream(FOLDER, name))
    output = told[-1]["response"]["output"]
    added = [event for event in told if event["type"] == "response.output_item.added"]
    done = [event for event in told if event["type"] == "response.output_item.done"]
    assert [event["item"] for event in done] == output
    assert [event["output_index"] for event in added] == list(range(len(output)))
    assert [event["item"]["id"] for event in added] == [item["id"] for item in output]
    assert len({item["id"] for item in output}) == len(output)
    for index, item in enumerate(output):
        mine = [event for event in told if event.get("output_index") == index]
        assert mine[0]["type"] == "response.output_item.added"
        assert mine[-1]["type"] == "response.output_item.done"
        assert {event["item_id"] for event in mine if "item_id" in event} <= {item["id"]}
        assert grown(mine) == said(item)


def grown(mine: Iterable[Any]) -> str:
    return "".join(event["delta"] for event in mine if event["type"].endswith(".delta"))


def said(item: Any) -> str:
    match item["type"]:
        case "message":
            return str(item["content"][0]["text"])
        case "reasoning":
            return str(item["summary"][0]["text"])
        case "function_call":
            return str(item["arguments"])
        case "custom_tool_call":
            return str(item["input"])
        case _:
            return ""


def test_a_failure_is_told_in_the_response_and_nothing_after() -> None:
    request = parse(stream=True)
    deltas: list[Told] = [(0, Started("c", "r", "m")), (0, Thinking("Hm")), (0, Text("Hel"))]
    encoder = DIALECT.encoder(request)
    before = [frame for _, delta in deltas for frame in encoder.encode(delta)]
    told = checked("".join([*before, *encoder.fail(errors.Severed("the answer broke off"))]))
    assert told[-1]["type"] == "response.failed"
    body = told[-1]["response"]
    assert (body["status"], body["completed_at"], body["usage"]) == ("failed", None, None)
    assert body["error"] == {
        "code": "server_error",
        "message": "the answer broke off",
        "param": None,
        "type": "upstream_error",
    }
    assert [item["status"] for item in body["output"]] == ["completed", "incomplete"]
    assert (
        DIALECT.failed(request, [delta for _, delta in deltas], errors.Severed("the answer broke off"))
        == body
    )


def test_a_failure_before_anything_is_an_error_event() -> None:
    frames = DIALECT.encoder(parse(stream=True)).fail(errors.BadRequest("no", param="input"))
    (told,) = checked("".join(frames))
    assert told == {
        "type": "error",
        "sequence_number": 0,
        "code": "invalid_request",
        "message": "no",
        "param": "input",
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Severed("x"), "server_error"),
        (errors.AllWaiting("x", retry_after_s=1), "rate_limit_exceeded"),
        (errors.ContentBlocked("x"), "invalid_prompt"),
        (errors.InvalidToolCall(""), "server_error"),
    ],
)
def test_failures_have_openais_codes(error: errors.QwenProxyError, code: str) -> None:
    body = DIALECT.failed(parse(), [Started("c", "r", "m")], error)
    Response.model_validate(body, strict=True)
    assert (body["error"]["code"], body["error"]["type"]) == (code, error.code)
    assert body["error"]["message"]


def test_a_response_that_has_no_answer_yet() -> None:
    request = parse(background=True, instructions="Be brief", metadata={"a": "b"})
    request = ChatRequest(
        **{name: getattr(request, name) for name in request.__slots__} | {"answer_id": "a1"}
    )
    body = DIALECT.without_answer(request, "queued")
    assert (body["id"], body["status"], body["output"], body["model"]) == ("resp_a1", "queued", [], "qwen")
    assert body["background"] is True
    Response.model_validate(body, strict=True)
    failed = ended_early(body, errors.ShuttingDown("it stopped"))
    Response.model_validate(failed, strict=True)
    assert (failed["status"], failed["error"]["message"]) == ("failed", "it stopped")
    assert DIALECT.failed(request, [], errors.ShuttingDown("it stopped")) == failed


def test_who_asks_first_settles_when_an_answer_ended() -> None:
    class Running(StandingClock):
        seconds = 0

        def now(self) -> Any:
            self.seconds += 5
            return NOON.fromtimestamp(self.seconds, NOON.tzinfo)

    dialect = OpenAIResponses(Running())
    request = dialect.parse({"input": "Hello"}, {})
    deltas: list[Told] = [(0, Started("c", "r", "m")), (0, Text("Hi")), (0, Finished("stop"))]
    first, second = (dialect.reply(request, replies(request, deltas)) for _ in range(2))
    assert first == second
    assert first["completed_at"] == first["created_at"] + 5


def test_least_request() -> None:
    request = parse()
    assert request == ChatRequest("qwen", (Message("user", "Hello"),), echo=request.echo)


def test_everything_honoured() -> None:
    request = parse(
        model=" qwen3-max ",
        stream=True,
        instructions="Be brief",
        previous_response_id="resp_r0",
        store=False,
        max_output_tokens=7,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        reasoning={"effort": "high"},
        thinking_budget=100,
        text={"format": {"type": "json_object"}, "verbosity": "low"},
    )
    assert request == ChatRequest(
        model="qwen3-max",
        messages=(Message("system", "Be brief"), Message("user", "Hello")),
        stream=True,
        thinking=True,
        thinking_budget=100,
        max_tokens=7,
        conversation=ConversationRef("r0", is_chat=False, appends=True),
        remember=False,
        tools=request.tools,
        tool_choice=ToolChoice("required", parallel=False),
        answer_format=AnswerFormat({"type": "object"}),
        echo=request.echo,
    )
    assert [tool.name for tool in request.tools] == ["weather"]


@pytest.mark.parametrize(
    ("body", "thinking"),
    [
        ({}, None),
        ({"reasoning": {"summary": "auto"}}, None),
        ({"reasoning": {"effort": "none"}}, False),
        ({"reasoning": {"effort": "minimal"}}, False),
        ({"reasoning": {"effort": "max"}}, True),
        ({"reasoning": {"effort": "high"}, "enable_thinking": False}, False),
        ({"enable_thinking": True}, True),
    ],
)
def test_thinking(body: dict[str, Any], thinking: bool | None) -> None:
    assert parse(**body).thinking is thinking


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, AnswerFormat({"type": "object"})),
        ({"type": "json_schema", "schema": {"type": "array"}}, AnswerFormat({"type": "array"})),
        (
            {"type": "json_schema", "schema": {}, "name": "n", "description": "d", "strict": True},
            AnswerFormat({}, "n", "d"),
        ),
    ],
)
def test_formats(form: Any, wanted: AnswerFormat | None) -> None:
    assert parse(text={"format": form}).answer_format == wanted


@pytest.mark.parametrize("name", [name for name, (how, _) in PARAMETERS.items() if how == "refused"])
def test_refused_parameters_are_named(name: str) -> None:
    for value in ("conv_1", {"id": "x"}, 5, True):
        assert refused(**{name: value}) == ("unsupported_parameter", name)
    parse(**{name: None})


def test_no_logprobs_are_no_logprobs() -> None:
    assert parse(top_logprobs=0).messages == parse().messages


@pytest.mark.parametrize("name", [name for name, (how, _) in PARAMETERS.items() if how == "ignored"])
def test_ignored_parameters_change_nothing_but_what_is_given_back(name: str) -> None:
    for value in ({"any": "thing"}, 0.5, "text", ["list"], True, None):
        request = parse(**{name: value})
        assert request == ChatRequest("qwen", (Message("user", "Hello"),), echo=request.echo)
        answered = DIALECT.failed(request, [Started("c", "r", "m")], errors.Severed("x"))
        Response.model_validate(answered, strict=True)


def test_what_is_given_back() -> None:
    given = {
        "instructions": "Be brief",
        "metadata": {"a": "b"},
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "temperature": 0,
        "top_p": 0.5,
        "max_output_tokens": 9,
        "max_tool_calls": 2,
        "parallel_tool_calls": False,
        "previous_response_id": "resp_0",
        "store": False,
        "tool_choice": "none",
        "reasoning": {"effort": "low", "summary": "detailed"},
        "text": {"format": {"type": "json_object"}, "verbosity": "low"},
        "tools": [{"type": "web_search", "search_context_size": "low"}],
    }
    body = DIALECT.failed(parse(**given), [Started("c", "r", "m")], errors.Severed("x"))
    Response.model_validate(body, strict=True)
    assert {name: body[name] for name in given} == given


def test_a_function_is_given_back_with_all_its_fields() -> None:
    body = DIALECT.failed(parse(tools=[WEATHER]), [Started("c", "r", "m")], errors.Severed("x"))
    assert body["tools"] == [{"description": None, "strict": None, **WEATHER}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": None}, "input"),
        ({"instructions": ["x"]}, "instructions"),
        ({"model": ""}, "model"),
        ({"stream": "true"}, "stream"),
        ({"store": 1}, "store"),
        ({"background": "yes"}, "background"),
        ({"background": True, "store": False}, "background"),
        ({"previous_response_id": ""}, "previous_response_id"),
        ({"previous_response_id": 5}, "previous_response_id"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": "5"}, "max_output_tokens"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"reasoning": "high"}, "reasoning"),
        ({"reasoning": {"effort": "great"}}, "reasoning.effort"),
        ({"enable_thinking": 1}, "enable_thinking"),
        ({"text": "json"}, "text"),
        ({"text": {"format": "json"}}, "text.format.type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {}, "name": 5}}}, "text.format"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"tools": {}}, "tools"),
    ],
)
def test_wrong_values_are_named(body: dict[str, Any], param: str) -> None:
    assert refused(**body) == ("invalid_request", param)


def test_table_knows_every_parameter_of_the_official_package() -> None:
    official = {*ResponseCreateParamsBase.__annotations__, *ResponseCreateParamsStreaming.__annotations__}
    assert official - set(PARAMETERS) == set()


def test_errors_have_openais_shape() -> None:
    error = errors.UnknownModel("no")
    assert DIALECT.error(error) == envelope(error)


def test_its_input_is_listed() -> None:
    assert [item["id"] for item in DIALECT.items(parse(), "r1")] == ["msg_r1_in0"]


def test_a_body_is_plain_json() -> None:
    request, deltas = scenario(DIALECT, FOLDER, "everything")
    reply = DIALECT.reply(request, replies(request, deltas))
    assert json.loads(json.dumps(reply)) == reply
