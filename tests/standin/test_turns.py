"""What the stand-in remembers of each turn: what the model was told and said, whatever became of the chat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve import Standin, until
from tests.standin.visitor import Visitor, parsed, text_of


@pytest.fixture
def visitor(standin: Standin) -> Iterator[Visitor]:
    with Visitor(standin) as found:
        yield found


def asked(visitor: Visitor, prompt: str, chat: str, parent: str | None = None) -> tuple[str, str]:
    """The id of the answer, and its text."""
    frames = parsed(visitor.ask(prompt, chat, parent=parent).text)
    return frames[0]["response.created"]["response_id"], text_of(frames)


def test_a_turn_is_remembered_whole_and_outlives_its_chat(standin: Standin, visitor: Visitor) -> None:
    chat = visitor.new_chat()
    first, _ = asked(visitor, "{{standin: say text=Hi}} Hello you", chat)
    second, _ = asked(visitor, "{{standin: say text=Bye}}", chat, first)
    visitor.call("DELETE", f"/api/v2/chats/{chat}")
    one, two = standin.turns()
    assert one.pop("user") != two.pop("user")
    common: dict[str, Any] = {"account": "one@example.com", "chat": chat, "model": "qwen3.7-plus"}
    assert one == {
        **common,
        "parent": "",
        "response": first,
        "content": "{{standin: say text=Hi}} Hello you",
        "prompt": "Hello you",
        "said": "Hi",
        "ending": "finished",
        "chat_type": "t2t",
        "kind": "t2t",
        "sub_kind": "t2t",
        "features": {"thinking_enabled": False, "output_schema": "phase", "thinking_mode": "Fast"},
        "size": "",
        "generator": "",
        "files": [],
        "documents": [],
    }
    assert (two["parent"], two["response"], two["said"]) == (first, second, "Bye")
    standin.reset(sessions=False)
    assert standin.turns() == []


def test_an_answer_that_runs_or_was_left_tells_what_was_said_so_far(
    standin: Standin, visitor: Visitor
) -> None:
    with visitor.asking("{{standin: long n=50 rate=200}}", visitor.new_chat()) as answer:
        pieces = answer.iter_text()
        next(pieces)
        until(lambda: standin.turns()[0]["said"].startswith("Sentence 1"))
        assert standin.turns()[0]["ending"] is None
    until(lambda: standin.turns()[0]["ending"] == "aborted")


def test_a_question_that_was_refused_was_not_asked(standin: Standin, visitor: Visitor) -> None:
    visitor.ask("{{standin: rate_limited}}")
    assert standin.turns() == []


def test_recall_tells_the_questions_that_led_to_it_and_no_others(visitor: Visitor) -> None:
    recall, chat = "{{standin: recall}}", visitor.new_chat()
    assert asked(visitor, recall, chat)[1] == "I remember 0 turns of this chat before this one."
    first, _ = asked(visitor, "{{standin: say text=Hi}} My name is Ada and I like long letters a lot", chat)
    asked(visitor, "{{standin: say text=Hi}} A side path", chat, first)
    assert asked(visitor, recall, chat, first)[1].endswith(
        'I remember 1 turn of this chat before this one. 1. "My name is Ada and I like long …"'
    )
    second, _ = asked(visitor, "{{standin: say text=Hi}} And yours?", chat, first)
    assert asked(visitor, recall, chat, second)[1].endswith('long …" 2. "And yours?"')
