"""The stand-in's deep research: a question, then a run (protocol §10.5)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest

from qwenproxy.standin.reports import QUESTION
from tests.serve import Standin
from tests.standin.visitor import Visitor, deltas, parsed, question, text_of

MARK = "{{standin: research silence_s=0.05 rate=500}}"


@pytest.fixture
def visitor(standin: Standin) -> Iterator[Visitor]:
    with Visitor(standin) as found:
        yield found


def say(
    visitor: Visitor, prompt: str, chat: str, kind: str, sub: str, parent: str | None = None
) -> tuple[str, list[dict[str, Any]]]:
    """The id of the answer, and its frames."""
    body = question(chat, prompt, parent, chat_type=kind)
    message = body["messages"][0]
    message["sub_chat_type"] = message["extra"]["meta"]["subChatType"] = sub
    answer = visitor.call("POST", f"/api/v2/chat/completions?chat_id={chat}", body)
    frames = parsed(answer.text)
    return frames[0]["response.created"]["response_id"], frames


def test_the_first_message_is_answered_by_a_question_and_the_second_by_a_report(visitor: Visitor) -> None:
    chat = visitor.new_chat("deep_research")
    asked, frames = say(visitor, f"Wind {MARK}", chat, "deep_research", "deep_thinking")
    assert text_of(frames) == QUESTION
    _, frames = say(visitor, "Go on.", chat, "deep_research", "deep_research", asked)
    phases = [name for name, _ in groupby(delta["phase"] for delta in deltas(frames))]
    assert [phase for phase in phases if phase != "KeepAlive"] == [
        *("ResearchNotice", "ResearchPlanning", "WebResearch", "WebResearch", "WebResearch"),
        *("answer", "PdfMdGen"),
    ]
    assert "It was to be found out: Wind\n" in text_of(frames)
    ends = [
        frame for frame in frames if frame.get("choices") and next(deltas([frame]))["status"] == "finished"
    ]
    assert ["timestamp" in frame for frame in ends] == [True, True, True, True, False]
    references, files = (next(deltas([frame]))["extra"]["deep_research"] for frame in ends[-2:])
    assert [row["index_number"] for row in references["references"]] == [1, 2, 3]
    assert set(files) == {"md", "pdf"}
    assert visitor.http.get(files["md"]["link"]).text == text_of(frames)
    assert visitor.http.get(files["pdf"]["link"]).headers["content-type"] == "application/pdf"


def test_the_mode_is_fixed_for_a_chats_life(visitor: Visitor) -> None:
    for chat_type, kind in (("deep_research", "t2t"), ("t2t", "deep_research")):
        chat = visitor.new_chat(chat_type)
        body = question(chat, "Hi", chat_type=kind)
        answer = visitor.call("POST", f"/api/v2/chat/completions?chat_id={chat}", body).json()
        assert answer["data"]["code"] == "Bad_Request"


def test_a_message_may_ask_for_a_search_in_any_chat(visitor: Visitor) -> None:
    visitor.standin.options(pieces_per_s=500)
    chat = visitor.new_chat()
    body = question(chat, "{{standin: search silence_s=0.05}}", chat_type="search")
    frames = parsed(visitor.call("POST", f"/api/v2/chat/completions?chat_id={chat}", body).text)
    assert "[[1]]" in text_of(frames)
    (turn,) = visitor.standin.turns()
    assert (turn["chat_type"], turn["kind"], turn["sub_kind"]) == ("t2t", "search", "search")
