from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from qwenproxy import errors
from qwenproxy.chat import (
    AnswerFormat,
    Attachment,
    ChatRequest,
    ConversationRef,
    Delta,
    Finished,
    Message,
    Started,
    Text,
    Thinking,
    fold,
)
from qwenproxy.dialects.native import NativeChat, NativeRegenerate, content_of, error_body
from qwenproxy.errors import BadRequest, CallerError, UnsupportedParameter
from tests.dialects.golden import (
    StandingClock,
    events,
    golden_reply,
    golden_stream,
    replies,
    scenario,
    streamed,
)

FOLDER = "native"
CHAT = "550e8400-e29b-41d4-a716-446655440000"
PICTURE = "https://example.com/image.jpg"


DIALECT = NativeChat(StandingClock())


def parse(**body: Any) -> ChatRequest:
    return DIALECT.parse(body, {})


def again(**body: Any) -> ChatRequest:
    return NativeRegenerate(StandingClock()).parse(body, {"chat_id": CHAT})


@pytest.mark.parametrize("name", ["text", "everything"])
def test_a_stream_is_golden_openais_and_says_where_it_is_kept(name: str) -> None:
    request, deltas = scenario(DIALECT, FOLDER, name)
    stream = streamed(DIALECT, request, deltas)
    assert stream == golden_stream(FOLDER, name)
    *chunks, done = events(stream)
    assert done == "[DONE]"
    (reply,) = replies(request, deltas)
    started = reply.started
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
        assert (chunk["chatId"], chunk["parentId"]) == (started.conversation_id, started.message_id)
        assert chunk["account"] == started.account_id
        assert chunk.get("rebuilt", "") == started.rebuilt
        assert len(chunk["choices"]) == 1, "clients of the seed read choices[0] of every chunk"
    assert [bool(chunk.get("usage")) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


@pytest.mark.parametrize("name", ["text", "everything"])
def test_a_reply_is_golden_and_says_what_the_stream_says(name: str) -> None:
    request, deltas = scenario(DIALECT, FOLDER, name)
    reply = DIALECT.reply(request, replies(request, deltas))
    assert reply == golden_reply(FOLDER, name)
    whole = ChatCompletion.model_validate(reply, strict=True)
    chunks = events(golden_stream(FOLDER, name))[:-1]
    said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert said == whole.choices[0].message.content
    assert chunks[-1]["usage"] == reply["usage"]
    for name in ("id", "chatId", "parentId", "account"):
        assert {chunk[name] for chunk in chunks} == {reply[name]}


def test_reasoning_and_sources_stand_there_only_where_there_are_any() -> None:
    bare = DIALECT.reply(parse(message="x"), [fold([Started("c", "r", "m"), Text("y"), Finished("stop")])])
    assert not {"reasoning", "sources", "rebuilt"} & set(bare)
    request, deltas = scenario(DIALECT, FOLDER, "everything")
    full = DIALECT.reply(request, replies(request, deltas))
    assert full["reasoning"] == "hm"
    assert full["sources"] == [{"number": 1, "url": "https://example.org/a?b=1", "title": 'A "page"'}]
    assert full["rebuilt"] == "account waiting"


def test_a_failure_inside_a_stream_is_no_end() -> None:
    encoder = DIALECT.encoder(parse(message="x", stream=True))
    early = events("".join(encoder.fail(errors.QueueFull("full"))))
    assert early == [{"error": "full", "code": "queue_full"}]
    encoder.encode(Started("c", "r", "m", conversation_id=CHAT))
    late = events("".join(encoder.fail(errors.Severed("it broke off"))))
    assert late == [{"error": "it broke off", "code": "upstream_error", "chatId": CHAT}]


def test_an_error_tells_the_field_and_the_chat() -> None:
    assert DIALECT.error(BadRequest("no", param="message")) == {
        "error": "no",
        "code": "invalid_request",
        "param": "message",
    }
    error = errors.LimitReached("wait", wait_s=3)
    error.conversation_id = CHAT
    assert error_body(error) == {"error": "wait", "code": "all_accounts_waiting", "chatId": CHAT}
    assert error_body(errors.UnknownChat(""))["error"] == "chat_not_found"


def test_the_seeds_requests() -> None:
    new = ConversationRef()
    assert parse(message="Расскажи о Python") == ChatRequest(
        "qwen", (Message("user", "Расскажи о Python"),), conversation=new
    )
    assert parse(message="Продолжи рассказ", model="qwen-max-latest", chatId=CHAT) == ChatRequest(
        "qwen-max-latest", (Message("user", "Продолжи рассказ"),), conversation=ConversationRef(CHAT)
    )
    parts = [{"type": "text", "text": "Что это?"}, {"type": "image", "image": PICTURE}]
    assert parse(message=parts, model="qwen-vl-max").messages == (
        Message("user", "Что это?", (Attachment("image", PICTURE),)),
    )


HISTORY = [
    {"role": "system", "content": "Ты полезный ассистент"},
    {"role": "user", "content": "Привет!"},
    {"role": "assistant", "content": "Здравствуйте!"},
    {"role": "user", "content": "Как дела?"},
]


def test_of_messages_the_last_of_the_user_counts_and_wins_over_message() -> None:
    asked = Message("user", "Как дела?")
    assert parse(messages=HISTORY, message="no").messages == (
        Message("system", "Ты полезный ассистент"),
        asked,
    )
    assert parse(messages=HISTORY, chatId=CHAT).messages == (asked,)
    assert parse(messages=[*HISTORY, {"role": "assistant", "content": None}]).messages[-1] == asked
    assert parse(messages=[{"role": "tool", "content": 4}, *HISTORY]).messages[-1] == asked


def test_parts_and_addresses() -> None:
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": "one"},
        {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}},
        {"type": "text", "text": "two"},
        {"type": "image_url", "image_url": PICTURE},
        {"type": "file", "file": "http://example.com/a.pdf"},
    ]
    (message,) = parse(message=parts).messages
    picture = Attachment("image", PICTURE)
    assert message == Message("user", "one\ntwo", (picture, picture, Attachment("file", parts[4]["file"])))
    assert content_of(parts, "x")[1] == {"type": "image", "image": PICTURE}
    assert parse(message=parts[4:]).messages[0].text == ""


@pytest.mark.parametrize("name", ["chatId", "chat_id", "conversation_id"])
def test_the_names_of_a_chat(name: str) -> None:
    for parent in ("parentId", "parent_id"):
        found = parse(message="x", **{name: CHAT, parent: "m1"}).conversation
        assert found == ConversationRef(CHAT, "m1", is_chat=True)
    assert parse(message="x", **{name: ""}).conversation == ConversationRef()
    assert parse(message="x", **{name: None}).conversation == ConversationRef()


def test_what_is_said_beside_the_message_is_openais() -> None:
    request = parse(message="x", stream=True, reasoning_effort="high", max_tokens=5, stop="a")
    assert (request.stream, request.thinking, request.max_tokens, request.stop) == (True, True, 5, ("a",))
    assert parse(message="x", enable_thinking=False).thinking is False
    assert parse(message="x", n=1, temperature=0.3).choices == 1


def test_regenerate() -> None:
    assert again() == ChatRequest("", (), conversation=ConversationRef(CHAT, "", regenerate=True))
    found = again(messageId="m2", model="qwen-max", stream=True, enable_thinking=True, message="ignored")
    assert found == ChatRequest(
        "qwen-max",
        (),
        stream=True,
        thinking=True,
        conversation=ConversationRef(CHAT, "m2", regenerate=True),
    )


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({}, "invalid_request", "message"),
    ({"message": ""}, "invalid_request", "message"),
    ({"message": " \n"}, "invalid_request", "message"),
    ({"message": 5}, "invalid_request", "message"),
    ({"message": []}, "invalid_request", "message"),
    ({"message": ["x"]}, "invalid_request", "message[0]"),
    ({"message": [{"type": "text"}]}, "invalid_request", "message[0]"),
    ({"message": [{"type": "image"}]}, "invalid_request", "message[0]"),
    ({"message": [{"type": "image", "image": "https://[::1"}]}, "invalid_request", "message[0]"),
    ({"message": [{"type": "image", "image": "https://"}]}, "invalid_request", "message[0]"),
    ({"message": [{"type": "image", "image": "https://a/ b"}]}, "invalid_request", "message[0]"),
    ({"message": [{"type": "image", "image": "https://a/\u0000"}]}, "invalid_request", "message[0]"),
    ({"message": [{"type": "text", "text": "x"}, {"type": "smell"}]}, "invalid_request", "message[1]"),
    ({"message": [{"type": "file", "file": "file:///etc/passwd"}]}, "unsupported_parameter", "message[0]"),
    ({"message": [{"type": "image", "image": "C:\\a.png"}]}, "unsupported_parameter", "message[0]"),
    ({"message": [{"type": "input_audio"}]}, "invalid_request", "message[0]"),
    ({"messages": "x"}, "invalid_request", "messages"),
    ({"messages": []}, "invalid_request", "messages"),
    ({"messages": ["x"]}, "invalid_request", "messages[0]"),
    ({"messages": [{"content": "x"}]}, "invalid_request", "messages[0]"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "invalid_request", "messages"),
    ({"messages": [{"role": "user"}]}, "invalid_request", "messages[0].content"),
    ({"messages": [{"role": "user", "content": ""}]}, "invalid_request", "messages[0].content"),
    (
        {"messages": [{"role": "system", "content": 1}, {"role": "user", "content": "x"}]},
        "invalid_request",
        "messages[0].content",
    ),
    ({"message": "x", "chatId": 5}, "invalid_request", "chatId"),
    ({"message": "x", "chatId": CHAT, "parentId": []}, "invalid_request", "parentId"),
    ({"message": "x", "parentId": "m1"}, "invalid_request", "parentId"),
    ({"message": "x", "stream": "true"}, "invalid_request", "stream"),
    ({"message": "x", "model": 5}, "invalid_request", "model"),
    ({"message": "x", "n": 2}, "unsupported_parameter", "n"),
    ({"message": "x", "tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
    ({"message": "x", "functions": [{"name": "look"}]}, "unsupported_parameter", "functions"),
    ({"message": "x", "response_format": {"type": "xml"}}, "invalid_request", "response_format.type"),
]


@pytest.mark.parametrize(("body", "code", "param"), WRONG)
def test_wrong_values_are_named(body: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(CallerError) as caught:
        parse(**body)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)


def test_search_format_and_thinking_are_asked_for_as_in_completions() -> None:
    request = parse(
        message="x",
        web_search_options={},
        response_format={"type": "json_object"},
        reasoning={"enabled": True},
        tools=[],
        tool_choice="none",
    )
    assert request.search
    assert request.answer_format == AnswerFormat({"type": "object"})
    assert request.thinking
    assert again(enable_search=True).search


def test_thinking_is_left_out_where_it_is_not_wanted() -> None:
    request = parse(message="x", stream=True, reasoning={"exclude": True})
    deltas: list[Delta] = [Started("c", "r", "m"), Thinking("hm"), Text("So."), Finished("stop")]
    assert "hm" not in json.dumps(DIALECT.reply(request, [fold(deltas)]))
    assert "hm" not in streamed(DIALECT, request, [(0, delta) for delta in deltas])


def test_a_wrong_message_id_is_named() -> None:
    with pytest.raises(BadRequest) as caught:
        again(messageId=7)
    assert caught.value.param == "messageId"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "image", "image_url", "file", "url", "role", "content"]), inner
        )
        | st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": inner})
        | st.fixed_dictionaries({"type": st.sampled_from(["text", "image", "file"]), "text": inner})
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(["message", "messages", "chatId", "parentId", "model", "stream", "n", "messageId"])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, VALUES))
def test_whatever_comes_is_a_request_or_the_callers_fault(body: dict[str, Any]) -> None:
    for dialect in (DIALECT, NativeRegenerate(StandingClock())):
        try:
            request = dialect.parse(body, {"chat_id": CHAT})
        except (BadRequest, UnsupportedParameter):
            continue
        assert request.conversation is not None
        assert request.conversation.regenerate or request.messages[-1].role == "user"
