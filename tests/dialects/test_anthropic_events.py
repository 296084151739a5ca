from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from anthropic.types.shared import ErrorResponse
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy import errors
from qwenproxy.chat import Delta, Finished, Media, Part, Source, Started, Text, Thinking, ToolCall, Usage
from qwenproxy.dialects.anthropic_events import (
    PIECE_CHARACTERS,
    SIGNATURE,
    Blocks,
    EventEncoder,
    content_of,
    error_body,
)
from qwenproxy.errors import CallerError, QwenProxyError

STARTED = Started("c", "r", "m")
SEARCHES = {"searches": True}


def content(*parts: Part, **echo: Any) -> list[dict[str, Any]]:
    blocks = Blocks("0b8f-1", echo)
    return content_of([*(event for part in parts for event in blocks.push(part)), *blocks.finish()])


def events(encoder: EventEncoder, deltas: Iterable[Delta]) -> list[Any]:
    """What the encoder writes, each event's name checked against what it holds."""
    found = []
    for written in "".join(frame for delta in deltas for frame in encoder.encode(delta)).split("\n\n")[:-1]:
        name, data = written.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": []}


def test_texts_and_pictures_that_follow_each_other_are_one_block() -> None:
    picture = Media("https://example.org/a.png")
    assert content(Text("a"), Text(""), Text("b"), picture, Text("c")) == [
        said("ab\n\n![image](https://example.org/a.png)c")
    ]
    assert content(picture) == [said("![image](https://example.org/a.png)")]


def test_thoughts_are_blocks_of_their_own_and_signed() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": SIGNATURE}
    text = said("a")
    parts = (Thinking("h"), Thinking("m"), Text("a"), Thinking("hm"), Thinking(""))
    assert content(*parts) == [thought, text, thought]
    assert content(*parts, omits_thinking=True) == [
        {**thought, "thinking": ""},
        text,
        {**thought, "thinking": ""},
    ]
    assert content(*parts, hides_thinking=True) == [text]


def test_calls_stand_where_they_came() -> None:
    call = ToolCall("call_1", "look", '{"at": [1, 2.50, "ü"]}')
    block = {
        "type": "tool_use",
        "id": "call_1",
        "name": "look",
        "input": {"at": [1, 2.5, "ü"]},
        "caller": {"type": "direct"},
    }
    assert content(Text("a"), call, call, Text("a")) == [said("a"), block, block, said("a")]


def test_a_call_without_arguments() -> None:
    assert content(ToolCall("call_1", "look", "{}"))[0]["input"] == {}


@given(
    st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=4), st.integers(0, 3)
)
def test_arguments_survive_being_sent_in_pieces(arguments: dict[str, Any], times: int) -> None:
    arguments["long"] = "x€" * (PIECE_CHARACTERS // 2) * times
    call = ToolCall("call_1", "look", json.dumps(arguments, ensure_ascii=False))
    sent = events(EventEncoder("", {}), [call])
    pieces = [event["delta"]["partial_json"] for event in sent[1:-1]]
    assert pieces[0] == ""
    assert all(0 < len(piece) <= PIECE_CHARACTERS for piece in pieces[1:])
    assert "".join(pieces) == call.arguments
    assert content_of(sent)[0]["input"] == arguments


def cited(block: dict[str, Any]) -> list[str]:
    return [citation["encrypted_index"] for citation in block["citations"]]


def test_sources_are_cited_by_the_text_that_is_open_or_comes_next() -> None:
    one, two, three = (Source(number, f"https://example.org/{number}", "") for number in (1, 2, 3))
    first, thought, last = content(one, Text("a"), two, Text("b"), Thinking("hm"), three, Text("c"))
    assert [cited(first), thought["type"], cited(last)] == [["1", "2"], "thinking", ["3"]]
    assert (first["text"], last["text"]) == ("ab", "c")


def test_sources_after_the_last_text_are_not_lost() -> None:
    blocks = content(Text("a"), ToolCall("call_1", "look", "{}"), Source(1, "https://example.org", "A"))
    assert [block["type"] for block in blocks] == ["text", "tool_use", "text"]
    assert (blocks[-1]["text"], cited(blocks[-1])) == ("", ["1"])


def test_a_search_that_was_asked_for_is_told_before_the_text_it_serves() -> None:
    sources = [Source(1, "https://example.org/1", "One"), Source(2, "https://example.org/2", "Two")]
    asked, found, text = content(*sources, Text("a [[1]]"), **SEARCHES)
    assert asked == {
        "type": "server_tool_use",
        "id": "srvtoolu_0b8f11",
        "name": "web_search",
        "input": {"query": ""},
        "caller": {"type": "direct"},
    }
    assert found["tool_use_id"] == asked["id"]
    assert [(page["url"], page["title"]) for page in found["content"]] == [
        (source.url, source.title) for source in sources
    ]
    assert (text["text"], cited(text)) == ("a [[1]]", ["1", "2"])


def test_pages_that_come_within_a_text_do_not_tear_it() -> None:
    parts = (Text("a"), Source(1, "https://example.org/1", "One"), Text("b"), Source(2, "u", "Two"))
    text, asked, found = content(*parts, **SEARCHES)
    assert (text["text"], cited(text), len(found["content"])) == ("ab", ["1", "2"], 2)
    assert asked["type"] == "server_tool_use"
    blocks = content(*parts, Thinking("hm"), *parts, **SEARCHES)
    ids = [block["id"] for block in blocks if block["type"] == "server_tool_use"]
    assert len(ids) == len(set(ids)) == 2


def test_how_a_message_begins() -> None:
    begun, ping = events(EventEncoder("", {}), [Started("c", "r", "m", input_tokens=7)])
    assert begun["message"]["id"] == "msg_r"
    assert begun["message"]["model"] == "m"
    assert begun["message"]["usage"]["input_tokens"] == 7
    assert ping == {"type": "ping"}
    named, _ = events(EventEncoder("a1", {}), [STARTED])
    assert named["message"]["id"] == "msg_a1"


@pytest.mark.parametrize(
    ("finished", "reason", "sequence"),
    [
        (Finished("stop"), "end_turn", None),
        (Finished("length", cut=True), "max_tokens", None),
        (Finished("tool_calls"), "tool_use", None),
        (Finished("stop", cut=True, stopped_by="END"), "stop_sequence", "END"),
    ],
)
def test_how_a_message_ends(finished: Finished, reason: str, sequence: str | None) -> None:
    delta, stop = events(EventEncoder("", {}), [finished])
    assert (delta["delta"]["stop_reason"], delta["delta"]["stop_sequence"]) == (reason, sequence)
    assert stop == {"type": "message_stop"}
    assert EventEncoder("", {}).end() == []


def test_usage_says_what_it_is() -> None:
    told, _ = events(EventEncoder("", {}), [Finished("stop", Usage(9, 5, 3))])
    assert told["usage"] == {
        "input_tokens": 9,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 5,
        "output_tokens_details": {"thinking_tokens": 3},
        "server_tool_use": None,
    }
    guessed, _ = events(EventEncoder("", {}), [Finished("stop", Usage(9, 5, estimated=True))])
    assert guessed["usage"]["estimated"] is True
    encoder = EventEncoder("", SEARCHES)
    searched = events(encoder, [STARTED, Source(1, "u", "t"), Text("a"), Finished("stop")])
    assert searched[-2]["usage"]["server_tool_use"]["web_search_requests"] == 1


EVERY = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, QwenProxyError)
]
SPECIAL: dict[str, dict[str, Any]] = {"retry_after_s": {"retry_after_s": 1.0}, "wait_s": {"wait_s": 1.0}}


def made(kind: type[QwenProxyError]) -> QwenProxyError:
    for more in ({}, *SPECIAL.values()):
        try:
            return kind("why", **more)
        except TypeError:
            continue
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_is_one_of_anthropics(kind: type[QwenProxyError]) -> None:
    body = error_body(made(kind))
    # Two types of the documentation's are not in the SDK's union, which takes them as they are.
    if body["error"]["type"] not in {"request_too_large", "conflict_error"}:
        ErrorResponse.model_validate(body, strict=True)
    assert body["error"]["message"] == "why"
    assert body["error"]["details"]["error_code"] == kind.code


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.BadRequest("x"), "invalid_request_error"),
        (errors.InvalidKey("x"), "authentication_error"),
        (errors.NotAllowed("x"), "permission_error"),
        (errors.OriginRefused("x"), "permission_error"),
        (errors.UnknownModel("x"), "not_found_error"),
        (errors.MethodNotAllowed("x"), "invalid_request_error"),
        (errors.ChatBusy("x"), "conflict_error"),
        (errors.TooLarge("x"), "request_too_large"),
        (errors.WrongMediaType("x"), "invalid_request_error"),
        (errors.QueueFull("x"), "rate_limit_error"),
        (QwenProxyError("x"), "api_error"),
        (errors.Severed("x"), "api_error"),
        (errors.NoAccount("x"), "api_error"),
        (errors.NeedsHuman("x"), "api_error"),
        (errors.ShuttingDown("x"), "overloaded_error"),
        (errors.UpstreamTimeout("x"), "timeout_error"),
    ],
)
def test_types_of_errors(error: QwenProxyError, expected: str) -> None:
    assert error_body(error)["error"]["type"] == expected


def test_an_error_names_the_field_and_always_says_something() -> None:
    assert error_body(errors.BadRequest("x", param="tools"))["error"]["param"] == "tools"
    assert "param" not in error_body(CallerError("x"))["error"]
    assert error_body(QwenProxyError())["error"]["message"] == "internal_error"


def test_threads_are_refused_so_that_the_sdk_goes_on_without() -> None:
    error = errors.UnsupportedParameter("thread is not supported here", param="thread")
    body = error_body(error)
    assert body["error"]["details"] == {"error_code": "thread_unsupported_request"}
    assert body["error"]["type"] == "invalid_request_error"


def test_a_failure_is_one_event() -> None:
    (written,) = EventEncoder("", {}).fail(errors.Severed("it broke off"))
    name, data = written.strip().split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: ")) == error_body(errors.Severed("it broke off"))


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_survives_on_one_line_of_valid_utf8(text: str) -> None:
    (*_, piece) = EventEncoder("", {}).encode(Thinking("x" + text))
    name, line, *rest = piece.encode().decode().splitlines()
    assert rest == [""], "a reader that splits at Unicode separators must see one line of data"
    said = json.loads(line.removeprefix("data: "))["delta"]["thinking"]
    assert said == "x" + text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert name == "event: content_block_delta"


PARTS = st.lists(
    st.one_of(
        st.text(max_size=4).map(Text),
        st.text(max_size=4).map(Thinking),
        st.integers(1, 9).map(lambda number: Source(number, f"https://example.org/{number}", "t")),
        st.just(Media("https://example.org/a.png")),
        st.just(ToolCall("call_1", "look", '{"a": 1}')),
    ),
    max_size=12,
)


@given(PARTS, st.booleans(), st.booleans())
def test_every_block_is_opened_filled_and_closed_in_turn(
    parts: list[Part], searches: bool, hides_thinking: bool
) -> None:
    echo = {"searches": searches, "hides_thinking": hides_thinking}
    sent = events(EventEncoder("", echo), [STARTED, *parts, Finished("stop")])
    assert [event["type"] for event in sent[:2]] == ["message_start", "ping"]
    assert [event["type"] for event in sent[-2:]] == ["message_delta", "message_stop"]
    open_index: int | None = None
    blocks = 0
    for event in sent[2:-2]:
        if event["type"] == "content_block_start":
            assert open_index is None
            assert event["index"] == blocks
            open_index, blocks = blocks, blocks + 1
        else:
            assert event["index"] == open_index
        if event["type"] == "content_block_stop":
            open_index = None
    assert open_index is None
    built = content_of(sent[2:-2])
    texts = "".join(block["text"] for block in built if block["type"] == "text")
    for part in parts:
        if isinstance(part, Text):
            assert part.text in texts
    told = [cited(block) for block in built if block["type"] == "text"]
    pages = [page["url"] for block in built for page in block.get("content", [])]
    sources = [part for part in parts if isinstance(part, Source)]
    if searches:
        assert pages == [source.url for source in sources]
    else:
        assert [index for indices in told for index in indices] == [str(s.number) for s in sources]
