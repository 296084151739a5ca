from __future__ import annotations

import pytest

from qwenproxy.chat import Finished, Media, Source, Started, Text, Thinking, Usage, fold

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
