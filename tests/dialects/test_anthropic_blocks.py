from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.chat import Attachment, Message, ToolCall
from qwenproxy.dialects import anthropic_blocks
from qwenproxy.dialects.anthropic_blocks import messages_of, text_of
from qwenproxy.errors import BadRequest, CallerError, UnknownFile

PICTURE = "https://example.org/cat.png"
IMAGE = {"type": "image", "source": {"type": "url", "url": PICTURE}}
USE = {"type": "tool_use", "id": "call_1", "name": "look", "input": {"at": "ü"}}
RESULT = {"type": "tool_result", "tool_use_id": "call_1", "content": "seen"}
HELLO = {"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}, "citations": None}


def said(*content: Any, role: str = "user") -> tuple[Message, ...]:
    """What one message becomes, with another before it that says something."""
    given = {"messages": [{"role": "user", "content": "Hi"}, {"role": role, "content": list(content)}]}
    first, *rest = messages_of(given)
    assert first == Message("user", "Hi")
    return tuple(rest)


def test_strings() -> None:
    given = {
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "He"}],
    }
    assert messages_of(given) == (
        Message("system", "Be brief."),
        Message("user", "Hello"),
        Message("assistant", "He"),
    )


def test_the_system_as_blocks_and_as_the_last_message() -> None:
    given = {
        "system": [HELLO, {"type": "text", "text": "you"}],
        "messages": [{"role": "user", "content": "Hi"}, {"role": "system", "content": [HELLO]}],
    }
    assert messages_of(given) == (
        Message("system", "Hello\nyou"),
        Message("user", "Hi"),
        Message("system", "Hello"),
    )
    assert messages_of({"system": "", "messages": given["messages"]})[0] == Message("user", "Hi")


def test_the_same_role_may_follow_itself() -> None:
    given = {"messages": [{"role": "user", "content": text} for text in "ab"]}
    assert messages_of(given) == (Message("user", "a"), Message("user", "b"))


def test_a_call_belongs_to_the_text_before_it() -> None:
    thinking = {"type": "thinking", "thinking": "hm", "signature": "x"}
    redacted = {"type": "redacted_thinking", "data": "x"}
    call = ToolCall("call_1", "look", '{"at":"ü"}')
    assert said(thinking, redacted, HELLO, USE, role="assistant") == (
        Message("assistant", "Hello", calls=(call,)),
    )
    assert said(USE, {**USE, "id": "call_2"}, role="assistant") == (
        Message("assistant", "", calls=(call, ToolCall("call_2", "look", '{"at":"ü"}'))),
    )
    assert said(thinking, role="assistant") == (Message("assistant", ""),)


def test_results_come_before_the_text_of_their_message() -> None:
    second = {"type": "tool_result", "tool_use_id": "call_2"}
    assert said(HELLO, RESULT, IMAGE, second) == (
        Message("tool", "seen", call_id="call_1"),
        Message("tool", "", call_id="call_2"),
        Message("user", "Hello", (Attachment("image", PICTURE),)),
    )
    assert said(RESULT) == (Message("tool", "seen", call_id="call_1"),)


@pytest.mark.parametrize(
    ("content", "text", "attachments"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb", 0),
        ([{"type": "text", "text": "a"}, IMAGE, {**IMAGE, "type": "document"}], "a", 2),
        ([{"type": "tool_reference", "tool_name": "look"}], "The tool look may be used.", 0),
        ([], "", 0),
        ("", "", 0),
        (None, "", 0),
    ],
)
def test_what_a_result_may_hold(content: Any, text: str, attachments: int) -> None:
    (message,) = said({**RESULT, "content": content})
    assert (message.text, len(message.attachments)) == (text, attachments)


def test_the_model_is_told_that_a_tool_failed() -> None:
    (failed,) = said({**RESULT, "is_error": True})
    assert failed.text == "The tool failed:\nseen"
    (silent,) = said({**RESULT, "is_error": True, "content": []})
    assert silent.text == "The tool failed."
    (fine,) = said({**RESULT, "is_error": False})
    assert fine.text == "seen"


def test_documents() -> None:
    text = {"type": "text", "media_type": "text/plain", "data": "Once upon a time"}
    (plain,) = said({"type": "document", "source": text, "title": "A tale", "context": "for children"})
    assert plain == Message("user", "A tale\nfor children\nOnce upon a time")
    blocks = {"type": "content", "content": [HELLO, IMAGE]}
    (inner,) = said({"type": "document", "source": blocks, "title": None})
    assert inner == Message("user", "Hello", (Attachment("image", PICTURE),))
    assert inner.attachments[0].place == "messages[1].content[0].source.content[1]"
    (string,) = said({"type": "document", "source": {"type": "content", "content": "Hello"}})
    assert string == Message("user", "Hello")
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
    (attached,) = said({"type": "document", "source": pdf, "title": "a.pdf", "context": "of May"})
    url = "data:application/pdf;base64,JVBERi0="
    assert attached == Message("user", "of May", (Attachment("file", url, "a.pdf"),))
    (nameless,) = said({"type": "document", "source": pdf, "context": "of May"})
    assert nameless == Message("user", "of May", (Attachment("file", url),))


def test_what_was_found_is_told() -> None:
    result = {"type": "search_result", "source": "wiki", "title": "Omsk", "content": [HELLO]}
    assert said(result) == (Message("user", "Omsk (wiki)\nHello"),)
    asked = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}
    page = {"type": "web_search_result", "url": PICTURE, "title": "Cat", "encrypted_content": ""}
    pages = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [page, {"url": "u"}]}
    assert said(asked, pages, HELLO, role="assistant") == (
        Message("assistant", f"Found on the web:\n[[1]] Cat {PICTURE}\n[[2]] u\nHello"),
    )
    failed = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
    assert said({**pages, "content": failed}, HELLO, role="assistant") == (Message("assistant", "Hello"),)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Hello"}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": []}]}, "messages"),
    ({"messages": ["Hello"]}, "messages[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": {"type": "text", "text": "x"}}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [USE]}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "content": [RESULT]}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x"}], "system": 5}, "system"),
    ({"messages": [{"role": "user", "content": "x"}], "system": [IMAGE]}, "system[0]"),
]


@pytest.mark.parametrize(("given", "param"), WRONG)
def test_what_is_wrong_is_named(given: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        messages_of(given)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("block", "within"),
    [
        ("Hello", ""),
        ({}, ""),
        ({"type": ["text"]}, ""),
        ({"type": "text"}, ".text"),
        ({"type": "text", "text": None}, ".text"),
        ({"type": "image"}, ""),
        ({"type": "document"}, ""),
        ({"type": "document", "source": {"type": "text"}}, ".source.data"),
        ({"type": "document", "source": {"type": "content", "content": [USE]}}, ".source.content[0]"),
        ({"type": "document", "source": {"type": "text", "data": "x"}, "title": 5}, ".title"),
        ({"type": "search_result", "title": "x", "content": []}, ".source"),
        ({"type": "search_result", "title": "x", "source": "y"}, ".content"),
        ({**USE, "input": "{}"}, ".input"),
        ({**USE, "id": 1}, ".id"),
        ({**USE, "name": None}, ".name"),
        ({**RESULT, "tool_use_id": None}, ".tool_use_id"),
        ({**RESULT, "content": 5}, ".content"),
        ({**RESULT, "content": [RESULT]}, ".content[0]"),
        ({**RESULT, "content": [{"type": "browser_state"}]}, ".content[0]"),
        ({"type": "container_upload", "file_id": "x"}, ""),
        ({"type": "code_execution_tool_result"}, ""),
        ({"type": "mcp_tool_use"}, ""),
        ({"type": "x" * 500}, ""),
    ],
)
def test_a_wrong_block_is_named(block: Any, within: str) -> None:
    with pytest.raises(BadRequest) as caught:
        said(HELLO, block)
    assert caught.value.param == f"messages[1].content[1]{within}"
    assert len(str(caught.value)) < 200


def test_a_file_that_is_not_ours() -> None:
    with pytest.raises(UnknownFile) as caught:
        said({"type": "image", "source": {"type": "file", "file_id": "file_011CNha8iCJcU1wXNR6q4V8w"}})
    assert caught.value.param == "messages[1].content[0]"


def test_text_alone() -> None:
    assert text_of([HELLO, HELLO], "x") == "Hello\nHello"
    with pytest.raises(BadRequest):
        text_of([IMAGE], "x")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "source", "content", "text", "input", "id", "title", "url", "data"]),
            inner
            | st.sampled_from(["text", "tool_result", "document", "search_result", "base64", "content"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(VALUES, VALUES)
def test_whatever_comes_is_told_or_the_callers_fault(system: Any, content: Any) -> None:
    with suppress(CallerError):
        found = messages_of({"system": system, "messages": [{"role": "user", "content": content}]})
        assert all(isinstance(message, Message) for message in found)


def test_every_block_that_is_left_out_is_one_that_there_is() -> None:
    for kind in anthropic_blocks.LEFT_OUT:
        assert said({"type": kind}, role="assistant") == (Message("assistant", ""),)
