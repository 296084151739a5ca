from __future__ import annotations

import pytest

from qwenproxy.chat import (
    ChatRequest,
    Finished,
    Home,
    Media,
    Message,
    Source,
    Started,
    Text,
    Thinking,
    ToolCall,
)
from qwenproxy.errors import BadRequest
from qwenproxy.said import Said, last_question, new_messages

TALK = (Message("user", "One"), Message("assistant", "Two"), Message("user", "Three"))


def test_the_last_question_counts() -> None:
    assert last_question(ChatRequest("qwen", TALK)) == TALK[2]
    assert last_question(ChatRequest("qwen", TALK[:2])) == TALK[0]


@pytest.mark.parametrize(
    ("request_", "param"),
    [(ChatRequest("qwen", TALK[1:2]), "messages"), (ChatRequest("qwen", TALK, choices=2), "n")],
)
def test_there_has_to_be_one_and_one_answer(request_: ChatRequest, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        last_question(request_)
    assert caught.value.param == param


def test_results_of_calls_are_new_and_so_is_what_is_said_with_them() -> None:
    results = (Message("tool", "1", call_id="a"), Message("tool", "2", call_id="b"), Message("user", "So?"))
    called = Message("assistant", "", calls=(ToolCall("a", "x", "{}"), ToolCall("b", "x", "{}")))
    talk = (*TALK, called, Message("system", "Be brief"), *results)
    assert new_messages(ChatRequest("qwen", talk)) == results
    assert new_messages(ChatRequest("qwen", TALK)) == TALK[2:]


def test_an_answer_adds_up() -> None:
    said = Said()
    assert (said.content, said.response_id, said.home) == ("", "", Home())
    for delta in (
        Started("chat", "response", "m", "acc"),
        Thinking("Hm"),
        Text("He"),
        Text("llo"),
        Source(1, "https://x", "X"),
        Media("https://x/a b.png"),
        Finished("stop"),
    ):
        said.take(delta)
    assert said.message == Message("assistant", "Hello\n\n![image](https://x/a%20b.png)")
    assert said.home == Home("acc", "chat", "response")
    assert ("".join(said.thinking), len(said.sources)) == ("Hm", 1)


def test_calls_are_part_of_an_answer() -> None:
    said, call = Said(), ToolCall("call_1", "read", "{}")
    for delta in (Started("chat", "response", "m", "acc"), Text("Look"), call, Finished("tool_calls")):
        said.take(delta)
    assert said.message == Message("assistant", "Look", calls=(call,))
