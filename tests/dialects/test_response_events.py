"""The stream of a response: however its text is cut, it adds up to the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from qwenproxy.chat import (
    ChatRequest,
    Delta,
    Finished,
    Media,
    Message,
    Source,
    Started,
    Text,
    Thinking,
    ToolCall,
    Usage,
)
from qwenproxy.dialects.response_events import ResponseEncoder, failure_of, usage_of
from qwenproxy.dialects.response_tools import Known
from qwenproxy.errors import AllWaiting, BadRequest, Severed
from tests.dialects.golden import events

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
SETTLED = {
    "id": "",
    "object": "response",
    "created_at": 1,
    "model": "",
    "status": "in_progress",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
KNOWN = {"patch": Known("patch", "custom_tool_call")}
START, END = Started("c", "r1", "m"), Finished("stop", Usage(1, 2))

ANY_TEXT = st.text(st.characters(exclude_categories=()))
DELTAS = st.lists(
    st.one_of(
        st.builds(Text, ANY_TEXT),
        st.builds(Thinking, ANY_TEXT),
        st.builds(Source, st.integers(1, 4), st.just("https://example.org"), st.just("Page")),
        st.just(Media("https://example.org/a.png")),
        st.builds(ToolCall, st.just("call_1"), st.just("weather"), st.just('{"a":"' + "x" * 700 + '"}')),
        st.just(ToolCall("call_2", "patch", '{"input":"text"}')),
    ),
    max_size=8,
)


def encoder(answer_id: str = "") -> ResponseEncoder:
    request = ChatRequest("qwen", (Message("user", "Hello"),), answer_id=answer_id)
    return ResponseEncoder(request, SETTLED, KNOWN, lambda: 7)


def told(deltas: Sequence[Delta], answer_id: str = "") -> list[Any]:
    made = encoder(answer_id)
    return events("".join(frame for delta in deltas for frame in made.encode(delta)))


def kinds(deltas: Sequence[Delta]) -> list[str]:
    return [item["type"] for item in told([START, *deltas, END])[-1]["response"]["output"]]


@settings(deadline=None, max_examples=60)
@given(DELTAS)
def test_every_event_is_of_an_official_type_and_items_follow_each_other(deltas: list[Delta]) -> None:
    stream = told([START, *deltas, END])
    open_items = 0
    for number, event in enumerate(stream):
        assert event["sequence_number"] == number
        EVENT.validate_python(event, strict=True)
        open_items += event["type"] == "response.output_item.added"
        open_items -= event["type"] == "response.output_item.done"
        assert open_items in {0, 1}
    done = [event["item"] for event in stream if event["type"] == "response.output_item.done"]
    assert done == stream[-1]["response"]["output"]


@settings(deadline=None)
@given(st.text(min_size=1).filter(lambda text: "[[" not in text), st.data())
def test_any_cut_adds_up_to_the_same(text: str, data: st.DataObject) -> None:
    text = f"{text} [[1]] {text}"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    source = Source(1, "https://example.org", "Page")
    whole = told([START, source, Text(text), END])[-1]["response"]
    cut = told([START, source, *map(Text, pieces), END])[-1]["response"]
    assert cut == whole
    (annotation,) = whole["output"][1]["content"][0]["annotations"]
    assert text[annotation["start_index"] : annotation["end_index"]] == "[[1]]"


@given(ANY_TEXT.filter(bool))
def test_any_text_survives_on_one_line_of_valid_utf8(text: str) -> None:
    made = encoder()
    made.encode(START)
    *_, piece = made.encode(Text(text))
    event, data, *rest = piece.encode().decode().splitlines()
    assert (event, rest) == ("event: response.output_text.delta", [""])
    said = json.loads(data.removeprefix("data: "))["delta"]
    assert said == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([], []),
        ([Text(""), Thinking("")], []),
        ([Text("a"), Text("b")], ["message"]),
        (
            [Thinking("a"), Text("b"), Thinking("c"), Text("d")],
            ["reasoning", "message", "reasoning", "message"],
        ),
        ([Text("a"), ToolCall("1", "f", "{}"), Text("b")], ["message", "function_call", "message"]),
        (
            [ToolCall("1", "f", "{}"), ToolCall("2", "patch", '{"input":""}')],
            ["function_call", "custom_tool_call"],
        ),
        ([Source(1, "u", "t"), Source(2, "u", "t"), Text("a")], ["web_search_call", "message"]),
        ([Text("a"), Source(1, "u", "t"), Text("b")], ["message", "web_search_call"]),
        ([Text("a"), Source(1, "u", "t"), Thinking("b")], ["message", "web_search_call", "reasoning"]),
        ([Thinking("a"), Source(1, "u", "t"), Thinking("b")], ["reasoning", "web_search_call", "reasoning"]),
        ([Media("u"), Text("a"), Media("u")], ["message"]),
    ],
)
def test_which_items_come_of_it(deltas: list[Delta], expected: list[str]) -> None:
    assert kinds(deltas) == expected


def test_arguments_come_in_pieces() -> None:
    arguments = json.dumps({"text": "x" * 2000})
    stream = told([START, ToolCall("call_1", "f", arguments), END])
    pieces = [event["delta"] for event in stream if event["type"].endswith(".delta")]
    assert len(pieces) > 2
    assert "".join(pieces) == arguments
    added = next(event["item"] for event in stream if event["type"] == "response.output_item.added")
    assert (added["arguments"], added["status"], added["call_id"]) == ("", "in_progress", "call_1")


def test_what_is_cut_is_incomplete() -> None:
    body = told([START, Thinking("a"), Text("b"), Finished("length")])[-1]["response"]
    assert (body["status"], body["completed_at"]) == ("incomplete", None)
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in body["output"]] == ["completed", "incomplete"]


def test_ids() -> None:
    assert told([START])[0]["response"]["id"] == "resp_r1"
    stream = told([START, Text("a"), END], "a1")
    assert stream[0]["response"]["id"] == "resp_a1"
    assert stream[-1]["response"]["output"][0]["id"] == "msg_a1_0"


def test_the_body_is_that_of_the_last_event() -> None:
    made = encoder()
    frames = [frame for delta in (START, Text("a"), END) for frame in made.encode(delta)]
    assert events("".join(frames))[-1]["response"] == made.body
    assert made.body["completed_at"] == 7
    assert made.end() == []


def test_usage() -> None:
    assert usage_of(Usage(3, 5, 2)) == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 8,
    }
    assert usage_of(Usage(estimated=True))["estimated"] is True


def test_a_failure_is_the_last_event() -> None:
    made = encoder()
    frames = [frame for delta in (START, Text("a")) for frame in made.encode(delta)]
    last = events("".join([*frames, *made.fail(Severed("it broke"))]))[-1]
    EVENT.validate_python(last, strict=True)
    assert (last["type"], last["response"]) == ("response.failed", made.body)
    assert [item["status"] for item in made.body["output"]] == ["incomplete"]


def test_a_failure_between_items_and_before_all() -> None:
    made = encoder()
    made.encode(START)
    assert events("".join(made.fail(Severed("it broke"))))[-1]["response"]["output"] == []
    (error,) = events("".join(encoder().fail(Severed("it broke"))))
    assert (error["type"], error["code"], error["message"]) == ("error", "upstream_error", "it broke")


def test_a_search_for_tools_has_no_pieces() -> None:
    known = {"tool_search": Known("tool_search", "tool_search_call")}
    made = ResponseEncoder(ChatRequest("qwen", ()), SETTLED, known, lambda: 7)
    call = ToolCall("call_1", "tool_search", '{"query":"x"}')
    told = events("".join(frame for delta in (START, call) for frame in made.encode(delta)))[2:]
    assert [event["type"] for event in told] == ["response.output_item.added", "response.output_item.done"]
    assert [event["item"]["arguments"] for event in told] == [{}, {"query": "x"}]


def test_failures() -> None:
    assert failure_of(BadRequest("no", param="input"))["param"] == "input"
    assert failure_of(AllWaiting("x", retry_after_s=1))["code"] == "rate_limit_exceeded"
    assert failure_of(Severed("")) == {
        "code": "server_error",
        "message": "upstream_error",
        "param": None,
        "type": "upstream_error",
    }
