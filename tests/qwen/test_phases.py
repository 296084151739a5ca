from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenproxy.chat import Delta, Finished, Media, Source, Started, Text, Thinking, Usage
from qwenproxy.errors import (
    BadRequest,
    ContentBlocked,
    EmptyAnswer,
    LimitReached,
    NeedsHuman,
    ProtocolChanged,
    QwenProxyError,
    Severed,
    TokenRejected,
    UpstreamError,
)
from qwenproxy.qwen.phases import MAX_BROKEN, PhaseDecoder
from qwenproxy.qwen.sse import SseDecoder

WIRE = Path(__file__).parent.parent / "wire" / "qwen"
RECORDINGS = {path.stem: path.read_bytes() for path in sorted(WIRE.glob("*.sse"))}
STARTED = Started("c1", "r1", "qwen3.7-plus")
CREATED = {"response.created": {"chat_id": "c1", "response_id": "r1", "response_index": "0"}}
END = {"choices": [{"delta": {"content": "", "phase": "answer", "status": "finished"}}], "response_id": "r1"}


@dataclass
class Heard:
    """What came out: the deltas, then the error if there was one."""

    decoder: PhaseDecoder
    deltas: list[Delta] = field(default_factory=list)
    error: QwenProxyError | None = None

    def of(self, *kinds: type) -> list[Delta]:
        return [delta for delta in self.deltas if isinstance(delta, kinds)]

    @property
    def text(self) -> str:
        return "".join(d.text for d in self.deltas if isinstance(d, Text))

    @property
    def thinking(self) -> str:
        return "".join(d.text for d in self.deltas if isinstance(d, Thinking))


def hear(events: Iterable[object], end: str = "finish") -> Heard:
    heard = Heard(PhaseDecoder("c1", "qwen3.7-plus"))

    def every() -> Iterator[Delta]:
        for event in events:
            yield from heard.decoder.push(event if isinstance(event, str) else json.dumps(event))
        if end:
            yield from getattr(heard.decoder, end)()

    try:
        for delta in every():
            heard.deltas.append(delta)
    except QwenProxyError as error:
        heard.error = error
    return heard


def recorded(name: str) -> list[str]:
    decoder = SseDecoder()
    return [*decoder.push(RECORDINGS[name]), *decoder.flush()]


def frame(
    content: object = "",
    phase: object = "answer",
    *,
    status: object = "typing",
    usage: object = None,
    extra: object = None,
    role: object = "assistant",
    response_id: object = "r1",
    timestamp: object = 1787200000,
) -> dict[str, Any]:
    delta = {"role": role, "content": content, "phase": phase, "status": status, "extra": extra}
    whole = {
        "choices": [{"delta": delta}],
        "response_id": response_id,
        "usage": usage,
        "timestamp": timestamp,
    }
    return {key: value for key, value in whole.items() if value is not None}


def counts(read: int, wrote: int, thought: int | None = None) -> dict[str, Any]:
    details = {} if thought is None else {"reasoning_tokens": thought, "text_tokens": wrote}
    return {"input_tokens": read, "output_tokens": wrote, "output_tokens_details": details}


def summary(titles: object, thoughts: object) -> dict[str, Any]:
    extra = {"summary_title": {"content": titles}, "summary_thought": {"content": thoughts}}
    return frame(phase="thinking_summary", extra=extra)


def answer(*pieces: str) -> list[dict[str, Any]]:
    return [CREATED, *map(frame, pieces), END]


# ---- recordings ----


def test_plain_answer() -> None:
    assert hear(recorded("plain_answer")).deltas == [
        STARTED,
        Text("Hi", 1),
        Text(" there", 2),
        Text("!", 3),
        Finished("stop", Usage(1049, 3, 0)),
    ]


def test_summary_of_thoughts_then_answer() -> None:
    assert hear(recorded("thinking_then_answer")).deltas == [
        STARTED,
        Thinking("Parse the request\nThe user wants a product of two integers."),
        Thinking("\n\nCompute\n17*23 = 17*20 + 17*3 = 340 + 51."),
        Text("17 × 23", 2),
        Text(" = **391**.", 29),
        Finished("stop", Usage(1438, 131, 102)),
    ]


def test_raw_thoughts_then_answer() -> None:
    assert hear(recorded("thinking_detail_format")).deltas == [
        STARTED,
        Thinking("Simple"),
        Thinking(" addition."),
        Text("4", 2),
        Finished("stop", Usage(1430, 9, 7)),
    ]


def test_search_with_thoughts_is_two_rounds() -> None:
    heard = hear(recorded("web_search_answer"))
    assert heard.deltas == [
        STARTED,
        Thinking("Find the news\nI should search the web before answering."),
        Source(1, "https://example.org/1", "Result 1"),
        Source(2, "https://example.org/2", "Result 2"),
        Source(3, "https://example.org/3", "Result 3"),
        Thinking("\n\nSummarise the findings\nThree sources agree."),
        Text("Two things were announced [[", 13 + 22),
        Text("1]], and a third one [[3", 13 + 32),
        Text("]].", 13 + 35),
        Finished("stop", Usage(1326 + 6581, 159 + 73, 146 + 38)),
    ]


def test_the_first_finished_answer_of_a_search_is_not_the_end() -> None:
    heard = hear(recorded("web_search_fast_with_preamble"))
    assert heard.text == "I will search for that.Here is what I found [[2]]."
    assert [d.output_tokens for d in heard.deltas if isinstance(d, Text)] == [4, 9, 41, 49]
    assert heard.deltas[-1] == Finished("stop", Usage(1417 + 4519, 36 + 13, 0))
    assert len(heard.of(Source)) == 3


@pytest.mark.parametrize(
    "name", ["web_search_fast_with_preamble", "web_search_answer", "thinking_then_answer"]
)
def test_an_answer_that_breaks_off_anywhere_is_no_answer(name: str) -> None:
    events = recorded(name)
    for length in range(len(events)):
        heard = hear(events[:length])
        assert not heard.decoder.ended
        assert not heard.of(Finished)
        assert isinstance(heard.error, Severed if heard.of(Text, Thinking) else EmptyAnswer), length


@pytest.mark.parametrize(
    "extra", [{}, {"output_image_hw": []}, {"output_image_hw": [[1]]}, {"output_image_hw": [["a", -2]]}]
)
def test_a_picture_of_no_known_size(extra: object) -> None:
    events = [CREATED, frame("https://x/1.png", "image_gen", extra=extra), END]
    assert hear(events).of(Media) == [Media("https://x/1.png")]


def test_pictures() -> None:
    heard = hear(recorded("image_generation"))
    assert [type(d) for d in heard.deltas] == [Started, Media, Media, Finished]
    sizes = [(each.width, each.height) for each in heard.deltas if isinstance(each, Media)]
    assert sizes == [(2688, 1536)] * 2
    heard = hear(recorded("image_tool_inside_chat"))
    assert heard.of(Media) == [Media("https://cdn.qwenlm.ai/output/u0000000000/t2i/r1/cat.png?key=K2")]
    assert heard.text == "Here is a cat."
    assert heard.deltas[-1] == Finished("stop", Usage(1561 + 1793, 70 + 60, 57 + 36))


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("quota_inband_after_partial", "The first part", LimitReached),
        ("content_inspection_output_inband", "Once upon", ContentBlocked),
        ("rate_limited_inband", "", LimitReached),
        ("error_string_inband", "", UpstreamError),
        ("severed_stream", "Half an ans", Severed),
        ("empty_stream", "", EmptyAnswer),
    ],
)
def test_failures_come_after_the_text_before_them(name: str, text: str, error: type[QwenProxyError]) -> None:
    heard = hear(recorded(name))
    assert (heard.text, type(heard.error)) == (text, error)
    assert not heard.of(Finished)


def test_stopped_is_an_end() -> None:
    heard = hear(recorded("stopped"), end="")
    assert heard.decoder.ended
    assert heard.deltas == [STARTED, Text("One two", 2), Finished("stop", Usage(1049, 2))]


def test_skipped_thoughts_do_not_end_the_answer() -> None:
    heard = hear(recorded("skip_think"))
    assert heard.text == "Short answer."
    assert heard.thinking == "Plan\nLong thoughts"


def test_a_second_response_is_not_ours() -> None:
    assert hear(recorded("two_responses")).text == "A1 A2"


# ---- beginnings and ends ----


def test_starts_without_being_told() -> None:
    heard = hear([frame("a"), END])
    assert heard.deltas[0] == STARTED
    assert heard.decoder.response_id == "r1"
    heard = hear([frame("a", response_id=None), CREATED, frame("b"), END])
    assert heard.deltas[0] == Started("c1", "", "qwen3.7-plus")
    assert (heard.text, heard.decoder.response_id, len(heard.of(Started))) == ("ab", "r1", 1)


def test_the_first_response_is_ours_even_if_it_is_announced_second() -> None:
    other = {"response.created": {"response_id": "r2", "response_index": "1"}}
    heard = hear([other, frame("no", response_id="r2"), CREATED, frame("yes"), END])
    assert (heard.text, heard.decoder.response_id) == ("yes", "r1")


def test_only_failures_of_our_response_count() -> None:
    other = {"response.created": {"response_id": "r2", "response_index": "1"}}
    strange = {"response.stopped": {"response_id": "r2"}}
    failed: dict[str, Any] = {"error": {"code": "internal_error"}, "response_id": "r2"}
    heard = hear([CREATED, other, failed, strange, *answer("a")[1:]])
    assert (heard.text, heard.error) == ("a", None)
    failed["response_id"] = "never heard of"
    assert isinstance(hear([CREATED, failed]).error, UpstreamError)


@pytest.mark.parametrize("end", ["[DONE]", " [DONE] ", '{"done": true}', '{"response.stopped": {}}'])
def test_other_ends(end: str) -> None:
    heard = hear([CREATED, frame("a"), end, frame("late"), "broken", {"error": "late"}])
    assert heard.decoder.ended
    assert heard.deltas == [STARTED, Text("a"), Finished("stop")]


def test_ends_once() -> None:
    decoder = hear(answer("a")).decoder
    assert [*decoder.finish(), *decoder.settle(), *decoder.push(json.dumps(END))] == []


@pytest.mark.parametrize("phase", ["answer", "finished", None])
def test_phases_that_end_an_answer(phase: str | None) -> None:
    last = frame("!", phase="answer" if phase == "finished" else phase)
    end = frame(phase=phase, status="finished", timestamp=None)
    heard = hear([CREATED, last, end], end="")
    assert (heard.text, heard.decoder.ended) == ("!", True)


@pytest.mark.parametrize("phase", ["think", "thinking_summary", "web_search", "unheard of"])
def test_phases_that_do_not_end_an_answer(phase: str) -> None:
    heard = hear([CREATED, frame("a"), frame(phase=phase, status="finished", timestamp=None)], end="")
    assert not heard.decoder.ended


def test_settling() -> None:
    quiet = {"response.info": {"action": "keep_alive"}}
    preamble = [CREATED, frame("a"), frame(status="finished")]
    assert hear(preamble, end="").decoder.settling
    assert hear([*preamble, quiet, frame(phase="KeepAlive")], end="").decoder.settling
    assert not hear([*preamble, frame(phase="web_search")], end="").decoder.settling
    assert not hear([*preamble, END], end="").decoder.settling
    heard = hear(preamble, end="settle")
    assert heard.deltas == [STARTED, Text("a"), Finished("stop")]
    assert isinstance(hear(preamble, end="finish").error, Severed)
    assert isinstance(hear([CREATED, frame(status="finished")], end="settle").error, EmptyAnswer)


def test_keep_alives_say_nothing() -> None:
    heard = hear(
        [CREATED, {"response.info": {"action": "keep_alive"}}, frame("x", "KeepAlive"), {"other": 1}, ""]
    )
    assert heard.deltas == [STARTED]
    assert isinstance(heard.error, EmptyAnswer)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [CREATED, END],
        [CREATED, summary(["a"], ["b"]), END],
        [CREATED, frame("hm", "think"), END],
        ["[DONE]"],
        [CREATED, frame("not a picture", "image_gen"), END],
    ],
)
def test_an_answer_without_text_or_picture_is_empty(events: list[object]) -> None:
    assert isinstance(hear(events).error, EmptyAnswer)


def test_a_silent_tool_is_more_than_nothing() -> None:
    assert isinstance(hear([CREATED, frame(phase="bash", role="function")]).error, Severed)


# ---- broken and unknown frames ----


def test_broken_frames_are_passed_over() -> None:
    broken = ['{"a', "[]", '"text"', "7", "nul", "{} {}", "[" * 100_000, "9" * 5000]
    events = [CREATED, *(e for b in broken for e in (b, frame("a"))), END]
    heard = hear(events)
    assert (heard.text, heard.decoder.broken) == ("a" * len(broken), len(broken))


def test_too_many_broken_frames_in_a_row() -> None:
    heard = hear([CREATED, frame("a"), *["<html>" + "x" * 100] * MAX_BROKEN, END])
    assert heard.text == "a"
    assert heard.error is None
    heard = hear([CREATED, frame("a"), *["<html>" + "x" * 100] * (MAX_BROKEN + 1), END])
    assert isinstance(heard.error, ProtocolChanged)
    assert heard.error.seen == "<html>" + "x" * 74
    assert heard.text == "a"


@pytest.mark.parametrize("content", [None, [], ["a"], 7, {"a": 1}, True])
def test_content_that_is_no_text(content: object) -> None:
    event = frame()
    event["choices"][0]["delta"]["content"] = content
    assert hear([CREATED, event, frame("a"), END]).text == "a"


@pytest.mark.parametrize("choices", [[], None, {}, "x", [None], [{}], [{"delta": []}], [{"delta": "x"}]])
def test_choices_of_another_shape(choices: object) -> None:
    assert hear([CREATED, {"choices": choices, "response_id": "r1"}, frame("a"), END]).text == "a"


def test_unknown_phases_are_skipped() -> None:
    heard = hear([CREATED, frame("no", "slides"), frame("no", 7), frame("no", "local_tool"), frame("a"), END])
    assert heard.text == "noa"  # 7 is no phase at all
    assert hear([CREATED, frame("a"), {"sources": [1]}, {"selected_model_id": "x"}, END]).text == "a"


def test_phases_in_any_order_stay_apart() -> None:
    events = [frame("A"), frame("t", "think"), frame("B"), frame("u", "think"), frame("C")]
    heard = hear([CREATED, *events, END])
    assert (heard.text, heard.thinking) == ("ABC", "tu")


# ---- failures in the stream ----


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"error": {"code": "invalid_input", "details": "Invalid input."}}, BadRequest),
        ({"error": {"code": "unauthorized", "details": "Token has expired."}}, TokenRejected),
        ({"error": "RateLimited: Guest limit exceeded"}, LimitReached),
        ({"error": "Something"}, UpstreamError),
        ({"error": 7}, ProtocolChanged),
        ({"error": ["x"]}, ProtocolChanged),
        ({"success": False, "data": {"code": "RateLimited"}}, LimitReached),
        ({"code": "RateLimited", "detail": "…", "num": 7}, LimitReached),
        ({"ret": ["FAIL_SYS_USER_VALIDATE"], "data": {"url": "https://x/punish"}}, NeedsHuman),
        (frame(status="error", extra={"error": {"code": "data_inspection_failed"}}), ContentBlocked),
        (frame(status="error", extra={"error": "RateLimited: x"}), LimitReached),
        (frame(status="error"), UpstreamError),
    ],
)
def test_failures_in_the_stream(event: object, error: type[QwenProxyError]) -> None:
    # The second piece is held back until it is known whether the text is cumulative.
    heard = hear([CREATED, frame("Once upon"), frame("Once upon a"), event, *answer("late")])
    assert type(heard.error) is error
    assert heard.text == "Once upon a"
    assert heard.decoder.ended


def test_fields_that_are_no_failure() -> None:
    harmless: list[object] = [{"error": None}, {"error": ""}, {"success": True}, {"code": 0}, {"ret": 1}]
    heard = hear([CREATED, *harmless, {**frame("a"), "code": "x", "error": None}, END])
    assert (heard.text, heard.error) == ("a", None)


def test_a_failed_tool_is_not_a_failed_answer() -> None:
    heard = hear([CREATED, frame(phase="web_search", role="function", status="error"), frame("a"), END])
    assert (heard.text, heard.error) == ("a", None)


# ---- thoughts ----


def test_only_what_is_new_of_a_summary() -> None:
    heard = hear(
        [
            CREATED,
            summary(["A"], []),
            summary(["A"], ["one"]),
            summary(["A"], ["one"]),
            summary(["A"], ["one two"]),
            summary(["A", "B"], ["one two", "three"]),
            summary(["A", "B!"], ["one two", "three"]),
            summary(["A", "B!"], ["one 2", "three"]),
            summary(["A", "B!"], ["one 2 3", "three"]),
        ]
    )
    given = ["A", "\none", " two", "\n\nB\nthree", "\n!", "\n\n 3"]
    assert heard.of(Thinking) == list(map(Thinking, given))


def test_summaries_start_over_after_their_end() -> None:
    end = frame(phase="thinking_summary", status="finished")
    heard = hear([CREATED, end, summary(["A"], ["x"]), end, summary(["A"], ["x"]), end, frame("y", "think")])
    assert heard.thinking == "A\nx\n\nA\nx\n\ny"


def test_summaries_of_another_shape() -> None:
    heard = hear(
        [
            CREATED,
            frame(phase="thinking_summary", extra={"summary_title": ["A"], "summary_thought": 7}),
            frame(phase="thinking_summary", extra=[1]),
            summary("A", "x"),
            summary([None, 7, "B"], [["y"], "z"]),
            frame("a"),
            END,
        ]
    )
    assert heard.thinking == "A\nx\n\nz\n\nB"


# ---- cumulative text ----


def growing(pieces: Iterable[str]) -> list[str]:
    whole = ""
    return [whole := whole + piece for piece in pieces]


@pytest.mark.parametrize("phase", ["answer", "think"])
def test_cumulative_text(phase: str) -> None:
    pieces = ["Hel", "lo", " to", " everyone", " out", " there"]
    events = [frame(text, phase) for text in growing(pieces)]
    heard = hear([CREATED, *events, events[-1], events[2], END])
    given = heard.text if phase == "answer" else heard.thinking
    assert given == "Hello to everyone out there"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=12))
def test_any_cumulative_text_that_is_long_enough(pieces: list[str]) -> None:
    events = growing(["Well", ", here", *pieces])
    assert hear(answer(*events)).text == events[-1]


@given(st.lists(st.text("ab", min_size=1, max_size=2), max_size=6).map(lambda p: ["x", "y", *p]))
def test_no_appended_text_is_lost(pieces: list[str]) -> None:
    assert hear(answer(*pieces)).text == "".join(pieces)


@pytest.mark.parametrize(
    "pieces",
    [
        ["ha", "ha"],
        ["ha", "haha"],
        ["ha", "haha", "haha"],
        ["1", "10", "9", "8"],
        ["1", "10", "100", "99"],
        ["--------", "----------", "\n"],
        ["Hip hip hooray!\n", "Hip hip hooray!\n"],
        ["a", "ab", "b", "bab", "babab"],
        ["a"],
    ],
)
def test_repeated_pieces_are_never_eaten(pieces: list[str]) -> None:
    assert hear(answer(*pieces)).text == "".join(pieces)
    assert hear([CREATED, *map(frame, pieces)]).text == "".join(pieces)


@pytest.mark.parametrize(
    "pieces",
    [
        ["Long enough", "Long enough to tell"],
        ["Hi", "Hi there", "Hi there", "Hi there"],
        ["H", "He", "Hel", "Hell", "Hello", "Hello ", "Hello t", "Hello th", "Hello the", "Hello there"],
    ],
)
def test_short_cumulative_texts(pieces: list[str]) -> None:
    assert hear(answer(*pieces)).text == pieces[-1]


def test_appended_text_is_never_held_back() -> None:
    decoder = PhaseDecoder("c1", "m")
    given = [len(list(decoder.push(json.dumps(frame(piece))))) for piece in ("He", "llo", "llo!", "llo!!")]
    assert given == [2, 1, 1, 1]  # the first with Started


@pytest.mark.parametrize("starts_over", [True, False])
def test_cumulative_text_over_two_rounds(starts_over: bool) -> None:
    first = growing(["I will", " search", " for that."])
    second = growing(["I found", " it", "."]) if starts_over else growing([first[-1], "I found", " it."])[1:]
    events = [*map(frame, first), frame(status="finished"), *map(frame, second), END]
    assert hear([CREATED, *events]).text == "I will search for that.I found it."


def test_surrogate_halves_find_each_other() -> None:
    def sent(*pieces: str) -> str:
        return hear([CREATED, frame("é"), *map(frame, pieces), END]).text

    assert sent("a\ud83d", "\ude00b") == "éa😀b"
    assert sent("\ud83d", "\ude00") == "é😀"
    assert sent("a\ud83d", "b") == "éa\ufffdb"
    assert sent("\ude00", "a\ud83d") == "é\ufffda\ufffd"
    heard = hear([CREATED, summary(["\ud83d"], ["\ud83d\ude00"]), frame("http://\ud83d", "image_gen"), END])
    assert (heard.thinking, heard.of(Media)) == ("\ufffd\n😀", [Media("http://\ufffd")])


# ---- tokens ----


def test_tokens_are_summed_over_rounds() -> None:
    events = [
        CREATED,
        frame("a", usage=counts(10, 5)),
        frame("b", usage=counts(10, 8, 2)),
        frame("c", usage={}),
        frame("d", usage={"output_tokens": 9}),
        frame(phase="bash", role="function", usage={}),
        frame("e", usage=counts(30, 12, 4)),
        frame("f", usage=counts(30, 1)),
        frame("g", usage={"input_tokens": 30}),
    ]
    heard = hear([*events, END])
    assert [d.output_tokens for d in heard.deltas if isinstance(d, Text)] == [5, 6, 6, 7, 15, 16, 16]
    assert heard.deltas[-1] == Finished("stop", Usage(70, 22, 6))
    assert hear(events, end="").decoder.usage == Usage(70, 22, 6)


def test_a_round_with_the_same_prompt_goes_on() -> None:
    tool = frame(phase="bash", role="function")
    heard = hear([CREATED, frame("a", usage=counts(10, 5)), tool, frame("b", usage=counts(10, 8)), END])
    assert heard.deltas[-1] == Finished("stop", Usage(10, 8))


@pytest.mark.parametrize(
    "usage",
    [
        *(None, [], "x", {"output_tokens": True}, {"output_tokens": 1.5}, {"output_tokens_details": 7}),
        *({"input_tokens": -1, "output_tokens": "7"}, {"input_tokens": 0, "output_tokens": 0}),
    ],
)
def test_usage_of_another_shape_changes_nothing(usage: object) -> None:
    heard = hear([CREATED, frame("a", usage=counts(10, 5, 1)), {**frame("b"), "usage": usage}, END])
    assert heard.of(Text) == [Text("a", 4), Text("b", 4)]
    assert heard.deltas[-1] == Finished("stop", Usage(10, 5, 1))


def test_text_tokens_stand_in_for_output_tokens() -> None:
    usage = {"output_tokens_details": {"text_tokens": 9, "reasoning_tokens": 4}}
    assert hear([CREATED, frame("a", usage=usage), END]).of(Text) == [Text("a", 5)]
    usage = {"output_tokens_details": {"text_tokens": 2, "reasoning_tokens": 4}}
    assert hear([CREATED, frame("a", usage=usage), END]).of(Text) == [Text("a", 0)]


# ---- sources and pictures ----


def docs(*urls: str) -> list[dict[str, Any]]:
    return [{"url": url, "title": url.upper()} for url in urls]


def found(**extra: object) -> list[tuple[int, str]]:
    return [(s.number, s.url) for s in hear([CREATED, frame(extra=extra)]).deltas if isinstance(s, Source)]


def result(used_id: object, *urls: str) -> dict[str, Any]:
    return frame(phase="web_search", extra={"tool_result": {"docs": docs(*urls), "used_id": used_id}})


def test_sources_are_numbered_as_they_are_cited() -> None:
    heard = hear([CREATED, result(3, "a", "b"), result(3, "a", "b"), result(5, "a", "c"), frame("x"), END])
    numbered = [(s.number, s.url, s.title) for s in heard.deltas if isinstance(s, Source)]
    assert numbered == [(1, "a", "A"), (2, "b", "B"), (3, "a", "A"), (4, "c", "C")]


@pytest.mark.parametrize("used_id", [None, "3", 0, 2, -5, True, 1.0])
def test_sources_without_a_number_go_on(used_id: object) -> None:
    heard = hear([CREATED, result(5, "a"), result(used_id, "a", "b"), result(used_id, "a", "b")])
    assert [(s.number, s.url) for s in heard.deltas if isinstance(s, Source)] == [(4, "a"), (5, "b")]


def test_sources_from_the_list_that_is_complete_each_time() -> None:
    assert found(web_search_info=docs("a", "b")) == [(1, "a"), (2, "b")]
    assert found(web_search_info=[{"url": ""}, 7, {"title": "x"}, {"url": 7}, {"url": "e"}]) == [(5, "e")]
    assert found(web_search_info="x", tool_result={"docs": 7}) == []
    lists = [frame(extra={"web_search_info": docs(*urls)}) for urls in ("a", "ab", "abc")]
    assert [s.number for s in hear([CREATED, *lists]).deltas if isinstance(s, Source)] == [1, 2, 3]


def test_pictures_are_given_once() -> None:
    listed = {
        "image_list": [{"image": "https://x/1"}, {"image": 7}, 7, {}],
        "tool_result": [{"image": "https://x/0"}],
    }
    original = {"tool_result": [{"image": "https://x/2"}]}
    events = [frame(phase="image_gen_tool", extra=extra) for extra in (listed, listed, original)]
    urls = [
        frame("http://x/3", "image_gen"),
        frame("http://x/3", "image_gen"),
        frame("file:///x", "image_gen"),
    ]
    heard = hear([CREATED, *events, *urls, END])
    assert heard.of(Media) == [Media("https://x/1"), Media("https://x/2"), Media("http://x/3")]
    assert heard.error is None


# ---- anything at all ----

NAMES = [
    "response.created",
    "response.info",
    "response.stopped",
    "response_id",
    "choices",
    "delta",
    "content",
]
NAMES += [
    "phase",
    "status",
    "extra",
    "usage",
    "error",
    "code",
    "details",
    "tool_result",
    "docs",
    "used_id",
    "url",
]
NAMES += [
    "summary_title",
    "summary_thought",
    "web_search_info",
    "image_list",
    "image",
    "role",
    "timestamp",
    "num",
]
NAMES += [
    "output_tokens_details",
    "input_tokens",
    "output_tokens",
    "action",
    "ret",
    "success",
    "data",
    "done",
]
WORDS = [
    "answer",
    "think",
    "thinking_summary",
    "image_gen",
    "finished",
    "typing",
    "error",
    "function",
    "r1",
    "0",
]
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(WORDS)
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=8,
)


def anything(dice: random.Random, depth: int) -> object:
    """The same by dice: thousands in the time of a few."""
    if depth and dice.random() < 0.6:
        if dice.random() < 0.3:
            return [anything(dice, depth - 1) for _ in range(dice.randrange(4))]
        return {dice.choice(NAMES): anything(dice, depth - 1) for _ in range(dice.randrange(6))}
    odd = (
        None,
        True,
        False,
        -1,
        0,
        1,
        10**400,
        1e400,
        float("nan"),
        "",
        "\ud83d",
        "https://x",
        "RateLimited",
    )
    return dice.choice((*odd, *WORDS))


def containers(value: object) -> Iterator[dict[str, Any] | list[Any]]:
    """Every object and array inside a frame that has something in it."""
    if isinstance(value, dict | list):
        if value:
            yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)


def spoil(dice: random.Random, events: list[Any]) -> None:
    """Puts anything somewhere."""
    where = dice.choice(list(containers(events)))
    if isinstance(where, dict):
        where[dice.choice([*where, *NAMES])] = anything(dice, 3)
    else:
        where[dice.randrange(len(where))] = anything(dice, 3)


def check_grammar(heard: Heard) -> None:
    """`Started x* Finished` or an error; all of it can be written as UTF-8."""
    kinds = [type(delta) for delta in heard.deltas]
    assert kinds.count(Started) <= 1
    assert kinds.count(Finished) == (heard.error is None)
    assert Started not in kinds[1:]
    assert Finished not in kinds[:-1]
    repr_of_all = "".join(str(getattr(delta, name)) for delta in heard.deltas for name in delta.__slots__)
    repr_of_all.encode()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=5), max_size=4))
def test_no_frame_is_too_strange(events: list[object]) -> None:
    check_grammar(hear([CREATED, *events]))


def test_ten_thousand_strange_streams() -> None:
    dice = random.Random(1)
    for _ in range(10_000):
        check_grammar(hear([CREATED, *(anything(dice, 5) for _ in range(dice.randrange(1, 6)))]))


@pytest.mark.parametrize("name", RECORDINGS)
def test_nothing_is_too_strange_anywhere(name: str) -> None:
    dice = random.Random(name)
    texts = recorded(name)
    for _ in range(300):
        events = list(map(json.loads, texts))
        for _ in range(dice.randrange(1, 4)):
            spoil(dice, events)
        check_grammar(hear(events))


# ---- deep research ----


def report_of(*events: object, end: str = "finish") -> Heard:
    """As the answer to a research's second message is read."""
    heard = Heard(PhaseDecoder("c1", "qwen3.7-plus", researches=True))
    try:
        for event in (CREATED, *events):
            heard.deltas += heard.decoder.push(json.dumps(event))
        if end:
            heard.deltas += getattr(heard.decoder, end)()
    except QwenProxyError as error:
        heard.error = error
    return heard


def untimed(phase: str, **extra: object) -> dict[str, Any]:
    """A last frame, which has neither time nor usage."""
    return {
        key: value
        for key, value in frame("", phase, status="finished", extra=extra).items()
        if key != "timestamp"
    }


PAGES = {
    "deep_research": {"references": [{"index_number": 3, "title": "Three", "url": "https://example.org/3"}]}
}
FILES = {"deep_research": {"md": {"name": "Report", "size": 9, "link": "https://cdn.example.org/r.md"}}}
LOOKED = {"deep_research": {"0": {"query": "wind power", "stage": "streamingWebResult"}}}
RUN = (
    frame("I will ", "ResearchNotice"),
    frame("begin.", "ResearchNotice"),
    frame("", "ResearchNotice", status="finished"),
    frame("First this.", "ResearchPlanning"),
    frame("", "ResearchPlanning", status="finished"),
    frame("", "WebResearch", extra=LOOKED),
    frame("", "WebResearch", extra=LOOKED),
    frame("", "KeepAlive"),
    frame("", "WebResearch", status="finished"),
)
THOUGHTS = "I will begin.\n\nFirst this.\n\nSearching: wind power"


@pytest.mark.parametrize("phase", ["answer", "ReportGeneration"])
def test_a_research_and_its_report(phase: str) -> None:
    heard = report_of(
        *RUN,
        frame("Wind [[", phase),
        frame("3,4]].", phase),
        frame("", phase, status="finished", extra=PAGES),
        frame("", "KeepAlive"),
        frame("", "PdfMdGen", extra=FILES),
        untimed("PdfMdGen", **FILES),
        end="",
    )
    assert heard.error is None
    assert heard.thinking == THOUGHTS
    assert heard.text == "Wind [[3,4]].\n\n[Report.md](https://cdn.example.org/r.md)"
    assert heard.of(Source) == [Source(3, "https://example.org/3", "Three")]
    assert isinstance(heard.deltas[-1], Finished)


def test_a_report_may_end_its_stream_before_its_files() -> None:
    written = (*RUN, frame("Wind."))
    for last, end in (
        (untimed("answer"), "finish"),
        (frame(status="finished"), "settle"),
        (untimed("answer"), "settle"),
    ):
        heard = report_of(*written, last, end=end)
        assert (heard.error, heard.text) == (None, "Wind.")
        assert isinstance(heard.deltas[-1], Finished)
    waiting = report_of(*written, untimed("answer"), end="")
    assert waiting.decoder.settling
    assert not waiting.decoder.ended, "the files never come"
    assert isinstance(report_of(*written, frame(status="finished")).error, Severed)
    assert isinstance(report_of(*written).error, Severed)


def test_files_that_come_in_an_intermediate_end_do_not_end_it() -> None:
    heard = report_of(
        frame("Wind."), untimed("answer"), frame("", "PdfMdGen", status="finished", extra=FILES)
    )
    assert heard.text.endswith("(https://cdn.example.org/r.md)")


def test_a_question_that_comes_as_a_note_is_an_answer_too() -> None:
    for phase in ("ResearchNotice", "DeepThinking"):
        heard = hear([CREATED, frame("What matters most?", phase), frame("", phase, status="finished"), END])
        assert (heard.error, heard.thinking) == (None, "What matters most?")
    empty = hear([CREATED, frame("", "ResearchNotice", status="finished"), END])
    assert isinstance(empty.error, EmptyAnswer)


def test_outside_a_research_an_answer_ends_as_ever() -> None:
    heard = hear([*answer("Hi")[:-1], END], end="")
    assert heard.decoder.ended


def test_a_query_that_may_still_grow_is_told_when_its_phase_ends() -> None:
    growing = {"deep_research": [{"query": "wind", "stage": "streamingQueries"}]}
    heard = report_of(
        frame("", "WebResearch", extra=growing), frame("", "WebResearch", status="finished"), end=""
    )
    assert heard.thinking == "Searching: wind"
