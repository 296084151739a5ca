from __future__ import annotations

import pytest

from qwenproxy.chat import (
    Finished,
    Media,
    Source,
    Started,
    Text,
    Thinking,
    ToolCall,
    Usage,
    cited,
    fold,
)

STARTED = Started("chat", "response", "qwen3-max")
FINISHED = Finished("stop", Usage(3, 5, 2))


def test_a_whole_answer_is_its_stream_folded() -> None:
    source, media = Source(1, "https://example.com", "Example"), Media("https://example.com/a.png")
    reply = fold([STARTED, Thinking("Hm"), Thinking("m."), Text("Hel"), source, Text("lo"), media, FINISHED])
    assert (reply.thinking, reply.text) == ("Hmm.", "Hello")
    assert (reply.sources, reply.media) == ((source,), (media,))
    assert (reply.started, reply.finished) == (STARTED, FINISHED)


def test_an_answer_may_be_empty() -> None:
    assert fold((STARTED, FINISHED)).text == ""


@pytest.mark.parametrize("deltas", [[STARTED, Text("cut off")], [Text("no start"), FINISHED]])
def test_half_a_stream_is_no_answer(deltas: list[Started | Text | Finished]) -> None:
    with pytest.raises(StopIteration):
        fold(deltas)


def test_the_parts_of_an_answer_keep_their_order_and_neighbours_of_a_kind_are_one() -> None:
    call = ToolCall("call_1", "read", "{}")
    reply = fold(
        [STARTED, Thinking("H"), Thinking("m"), Text("Lo"), Text("ok"), call, call, Text("."), FINISHED]
    )
    assert reply.parts == (Thinking("Hm"), Text("Look"), call, call, Text("."))
    assert (reply.text, reply.calls) == ("Look.", (call, call))
    assert fold([STARTED, Media("https://x/a.png"), FINISHED]).parts == (Media("https://x/a.png"),)


@pytest.mark.parametrize(
    ("text", "place"),
    [("So [[2]].", (3, 8)), ("[[12]] [[1, 2]]", (7, 15)), ("[[29,2,181]]", (0, 12)), ("[[12]] [2]", (0, 0))],
)
def test_where_a_source_is_cited(text: str, place: tuple[int, int]) -> None:
    assert cited(text, 2) == place
