"""Thinking, search and images: the frames of protocol §5.4, §5.5 and §10.1."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serve import Standin
from tests.standin.visitor import Visitor, deltas, text_of

QUICK = "silence_s=0.05 think_s=0.01 rate=500"


@pytest.fixture
def visitor(standin: Standin) -> Any:
    with Visitor(standin) as found:
        yield found


def thinking(frames: list[dict[str, Any]]) -> list[list[str]]:
    """The paragraphs that each summary frame re-sends."""
    return [
        delta["extra"]["summary_thought"]["content"]
        for delta in deltas(frames)
        if delta["phase"] == "thinking_summary" and "extra" in delta
    ]


def test_summaries_grow_and_are_sent_twice(visitor: Visitor) -> None:
    frames = visitor.frames(f"{{{{standin: think text=Done {QUICK}}}}}", thinking_enabled=True)
    sizes = [len(paragraphs) for paragraphs in thinking(frames)]
    assert sizes == [1, 1, 2, 2, 3, 3]
    (end,) = [f for f in frames if f.get("choices") and next(deltas([f]))["status"] == "finished"][:1]
    assert "timestamp" in end
    assert "usage" not in end
    assert text_of(frames) == "Done"
    assert frames[-2]["usage"]["output_tokens_details"]["reasoning_tokens"] > 0


def test_the_detail_format_is_plain_pieces(visitor: Visitor) -> None:
    prompt = f"{{{{standin: think text=Done {QUICK}}}}}"
    frames = visitor.frames(prompt, thinking_enabled=True, thinking_format="detail")
    thoughts = "".join(delta["content"] for delta in deltas(frames) if delta["phase"] == "think")
    assert thoughts.startswith("The user wrote something")
    assert not thinking(frames)


def test_a_plain_question_thinks_only_when_asked(visitor: Visitor) -> None:
    visitor.standin.options(pieces_per_s=2000)
    assert not thinking(visitor.frames("Hello"))
    assert thinking(visitor.frames("Hello", thinking_enabled=True))


def test_a_model_without_thinking_ignores_the_wish(visitor: Visitor) -> None:
    frames = visitor.frames("{{standin: say text=Hi}}", model="qwen3.5-omni-plus", thinking_enabled=True)
    assert text_of(frames) == "Hi"
    assert not thinking(frames)


def test_a_fast_search_has_an_end_that_is_none(visitor: Visitor) -> None:
    frames = visitor.frames(f"{{{{standin: search {QUICK}}}}}")
    ends = [f for f in frames if f.get("choices") and next(deltas([f]))["status"] == "finished"]
    phases = [next(deltas([frame]))["phase"] for frame in ends]
    assert phases == ["answer", "web_search", "answer"]
    assert ["timestamp" in frame for frame in ends] == [True, True, False]
    assert ends[1]["usage"] == {}
    extra = next(deltas([ends[1]]))["extra"]
    assert len(extra["web_search_info"]) == 3
    assert extra["tool_result"]["used_id"] == 4
    assert text_of(frames).endswith("[[1]], and a second page [[2]] agrees.")


def test_a_search_with_thinking_restarts_summaries_and_usage(visitor: Visitor) -> None:
    frames = visitor.frames(f"{{{{standin: search {QUICK}}}}}", thinking_enabled=True)
    sizes = [len(paragraphs) for paragraphs in thinking(frames)]
    assert sizes == [1, 1, 2, 2, 3, 3] * 2
    counts = [frame["usage"]["input_tokens"] for frame in frames if frame.get("usage")]
    assert counts == sorted(counts)
    assert len(set(counts)) == 2
    arguments = [d["function_call"]["arguments"] for d in deltas(frames) if "function_call" in d]
    assert arguments[0] == ""
    assert arguments[-1] == arguments[-2]
    assert arguments[-1].startswith(arguments[1])


def test_the_image_mode_gives_two_addresses(visitor: Visitor) -> None:
    chat = visitor.new_chat("t2i")
    frames = visitor.frames(f"{{{{standin: image {QUICK}}}}}", chat)
    urls = [delta["content"] for delta in deltas(frames) if delta["content"]]
    assert len(set(urls)) == 2
    assert next(deltas([frames[-1]])) == {
        "content": "",
        "role": "assistant",
        "status": "finished",
        "phase": "image_gen",
    }


def test_the_image_tool_shows_one_picture_inside_a_chat(visitor: Visitor) -> None:
    frames = visitor.frames(f"{{{{standin: image {QUICK}}}}}")
    (result,) = [d["extra"] for d in deltas(frames) if d["role"] == "function"]
    assert result["image_list"] != result["tool_result"]
    assert text_of(frames) == "Here is your picture."


def test_the_chat_remembers_what_was_said(visitor: Visitor) -> None:
    chat = visitor.new_chat()
    visitor.frames("{{standin: say text=Hi}} Hello you", chat)
    whole = visitor.call("GET", f"/api/v2/chats/{chat}").json()["data"]
    assert whole["title"] == "Hello you"
    assert whole["chat"]["messages"][1]["content_list"][-1]["content"] == "Hi"
    visitor.standin.options(history="map")
    whole = visitor.call("GET", f"/api/v2/chats/{chat}").json()["data"]
    assert whole["chat"]["history"]["messages"][whole["currentId"]]["done"] is True
