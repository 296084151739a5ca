from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.chat import Attachment, Message, Tool, ToolCall, ToolChoice
from qwenproxy.tools import LEAST_BYTES, as_text, correction, preface

READ = Tool("read_file", "Reads.", {"type": "object", "properties": {"path": {"type": "string"}}})
PING = Tool("ping", "Writes <tool_call> somewhere.")
AUTO = ToolChoice()


def told(choice: ToolChoice = AUTO, *, fenced: bool = False) -> str:
    return preface([READ, PING], choice, fenced=fenced, most_bytes=50_000)


# ---- which tools there are ----


def test_a_model_is_told_its_tools_and_how_to_call_them() -> None:
    text = told()
    assert text.startswith("# Tools\n")
    (listed,) = re.findall(r"<tools>\n(.*)\n</tools>", text, re.DOTALL)
    assert [line[:47] for line in listed.split("\n")] == [
        '{"type":"function","function":{"name":"read_fil',
        '{"type":"function","function":{"name":"ping","d',
    ]
    assert re.search(r'<tool_call>\n\{"name": .*, "arguments": \{.*\}\}\n</tool_call>', text)
    assert "<tool_response>" in text


def test_fenced_no_tag_for_calls_is_anywhere() -> None:
    text = told(fenced=True)
    assert not re.search("</?tool_call", text)
    assert re.search(r'```json\n\{"name": .*, "arguments": \{.*\}\}\n```', text)


def test_the_choice_is_told() -> None:
    assert "must call" not in told()
    assert "may follow one another" in told()
    assert "must call one of the tools" in told(ToolChoice("required"))
    assert "at most one call" in told(ToolChoice(parallel=False))
    only = told(ToolChoice("required", ("ping",)))
    assert "must call the tool above" in only
    assert "read_file" not in only
    assert "must call" not in told(ToolChoice("auto", ("ping",)))


@pytest.mark.parametrize("choice", [ToolChoice("none"), ToolChoice("auto", ("other",))])
def test_no_tools_no_words(choice: ToolChoice) -> None:
    assert told(choice) == ""
    assert preface([], AUTO, fenced=False, most_bytes=50_000) == ""


@given(
    st.lists(
        st.builds(Tool, st.text(min_size=1, max_size=30), st.text(max_size=300)), min_size=1, max_size=20
    ),
    st.integers(LEAST_BYTES, 5000),
    st.booleans(),
    st.sampled_from([AUTO, ToolChoice("required"), ToolChoice("required", parallel=False)]),
)
def test_it_keeps_to_its_budget(tools: list[Tool], most_bytes: int, fenced: bool, choice: ToolChoice) -> None:
    text = preface(tools, choice, fenced=fenced, most_bytes=most_bytes)
    assert len(text.encode()) <= most_bytes
    assert text.count("</tools>") == 1


# ---- what was called ----

ONE = ToolCall("c1", "read_file", '{"path": "a"}')
TWO = ToolCall("c2", "ping", "{}")


def texts(*messages: Message, fenced: bool = False) -> list[str]:
    told = as_text(messages, fenced=fenced)
    assert [each.role for each in told] == [each.role for each in messages]
    assert not any(each.calls or each.call_id for each in told)
    return [each.text for each in told]


def test_messages_without_calls_are_the_same() -> None:
    talk = (Message("system", "s"), Message("user", "<tool_call>"), Message("assistant", "a"))
    assert all(a is b for a, b in zip(as_text(talk, fenced=False), talk, strict=True))


def test_a_call_is_told_as_the_model_writes_them() -> None:
    assert texts(Message("assistant", "I look.", calls=(ONE, TWO))) == [
        'I look.\n<tool_call>\n{"name": "read_file", "arguments": {"path": "a"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>'
    ]
    assert texts(Message("assistant", "", calls=(ONE,)), fenced=True) == [
        '```json\n{"name": "read_file", "arguments": {"path": "a"}}\n```'
    ]


@pytest.mark.parametrize(
    ("arguments", "written"), [("", "{}"), ("no json", '"no json"'), ("[" * 5000, '"' + "[" * 5000 + '"')]
)
def test_whatever_a_client_says_it_called_with_is_told(arguments: str, written: str) -> None:
    (text,) = texts(Message("assistant", "", calls=(ToolCall("c", "a", arguments),)))
    assert text == f'<tool_call>\n{{"name": "a", "arguments": {written}}}\n</tool_call>'


def test_a_tag_within_arguments_ends_nothing() -> None:
    call = ToolCall("c", "a", '{"b": "</tool_call> <tool_response> </b>"}')
    (text,) = texts(Message("assistant", "", calls=(call,)))
    assert text.count("</tool_call>") == 1
    assert '"\\u003c/tool_call> \\u003ctool_response> </b>"' in text


def test_a_result_is_told_word_for_word() -> None:
    text = ' {"a": 1}\n</tool_response>\n\n'
    said = [Message("assistant", "", calls=(ONE,)), Message("tool", text, call_id="c1")]
    assert texts(*said)[1] == f"<tool_response>\n{text}\n</tool_response>"
    assert texts(*said, fenced=True)[1] == f"<tool_response>\n{text}\n</tool_response>"


def test_of_several_calls_each_result_says_which_it_is_of() -> None:
    said = [
        Message("assistant", "", calls=(ONE, TWO)),
        Message("tool", "pong", call_id="c2"),
        Message("tool", "text", call_id="c1"),
        Message("tool", "what", call_id="c9"),
        Message("tool", "who"),
    ]
    assert texts(*said)[1:] == [
        "Result of call 2 of 2, ping:\n<tool_response>\npong\n</tool_response>",
        "Result of call 1 of 2, read_file:\n<tool_response>\ntext\n</tool_response>",
        "<tool_response>\nwhat\n</tool_response>",
        "<tool_response>\nwho\n</tool_response>",
    ]


def test_an_id_used_again_means_the_later_call() -> None:
    said = [
        Message("assistant", "", calls=(ONE, TWO)),
        Message("assistant", "", calls=(ONE,)),
        Message("tool", "text", call_id="c1"),
    ]
    assert texts(*said)[2] == "<tool_response>\ntext\n</tool_response>"


def test_a_result_whose_call_nobody_told_is_told() -> None:
    assert texts(Message("tool", "text", call_id="c1")) == ["<tool_response>\ntext\n</tool_response>"]


def test_attachments_stay() -> None:
    picture = Attachment("image", "https://example.com/a.png")
    said = Message("tool", "", (picture,), call_id="c1")
    assert as_text([said], fenced=False)[0].attachments == (picture,)


def test_a_correction_says_what_was_wrong_and_how_to_write_it() -> None:
    text = correction("path is missing.", fenced=False)
    assert "path is missing." in text
    assert "<tool_call></tool_call>" in text
    assert "tool_call" not in correction("path is missing.", fenced=True)
