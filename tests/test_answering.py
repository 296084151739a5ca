"""What a client gets of what the model wrote, in as many rounds as it took."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.answering import Answering
from qwenproxy.chat import (
    AnswerFormat,
    ChatRequest,
    Delta,
    Drawing,
    Finished,
    Message,
    Source,
    Started,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    Usage,
    fold,
)
from qwenproxy.errors import InvalidAnswer, InvalidToolCall, UpstreamError

STARTED = Started("chat", "r1", "qwen-x")
READ = Tool(
    "read_file",
    "Reads a file.",
    {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
)
TALK = (Message("user", "Read it"),)
CALL = '<tool_call>\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n</tool_call>'
BAD = '<tool_call>\n{"name": "read_file", "arguments": {"file": 1}}\n</tool_call>'
PERSON = AnswerFormat({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]})


def asked(**more: object) -> ChatRequest:
    return ChatRequest("qwen", TALK, **{"tools": (READ,), **more})  # type: ignore[arg-type]


def rounds(request: ChatRequest, *answers: str | Sequence[Delta]) -> tuple[list[Delta], Answering]:
    """What comes out when the model writes `answers`, one a round, for as long as it is asked."""
    numbers = itertools.count(1)
    answering = Answering(request, lambda: f"call_{next(numbers)}")
    seen: list[Delta] = []
    for index, answer in enumerate(answers):
        assert (answering.again is not None) == (index > 0), f"round {index}"
        said = [Text(answer)] if isinstance(answer, str) else answer
        for delta in (STARTED, *said, Finished("stop", Usage(10, 5, 1))):
            seen += answering.push(delta)
    return seen, answering


def test_a_call_is_taken_out_of_the_text_around_it() -> None:
    seen, answering = rounds(asked(), f"I will look.\n\n{CALL}\n\nDone.")
    reply = fold(seen)
    assert reply.parts[0] == Text("I will look.")
    assert reply.calls == (ToolCall("call_1", "read_file", '{"path":"a.txt"}'),)
    assert "tool_call" not in reply.text
    assert reply.text.endswith("Done.")
    assert (reply.finished.reason, reply.finished.usage.input_tokens, reply.finished.cut) == (
        "tool_calls",
        10,
        False,
    )
    assert answering.again is None


def test_words_alone_pass_as_they_come() -> None:
    answering = Answering(asked(), lambda: "call")
    assert list(answering.push(STARTED)) == [], "nothing is begun before there is something"
    assert list(answering.push(Thinking("Hm"))) == [STARTED, Thinking("Hm")]
    assert list(answering.push(Text("It is 3 < 4", 7))) == [Text("It is 3 < 4", 7)]
    source = Source(1, "https://x", "X")
    assert list(answering.push(source)) == [source]
    assert list(answering.push(Finished("length", Usage(1, 2)))) == [Finished("length", Usage(1, 2))]


def test_a_call_that_cannot_be_used_is_asked_for_once_more() -> None:
    seen, answering = rounds(asked(), f"Let me see. {BAD}")
    assert answering.again is not None
    wrote, told = answering.again.messages
    assert wrote == Message("assistant", f"Let me see. {BAD}")
    assert told.role == "user"
    assert "path" in told.text
    assert [type(delta) for delta in seen] == [Started, Text]
    seen, answering = rounds(asked(), f"Let me see. {BAD}", f"Sorry, here it is: {CALL}")
    reply = fold(seen)
    assert (len(reply.calls), reply.finished.reason, reply.finished.cut) == (1, "tool_calls", True)
    assert "Sorry" not in reply.text
    assert reply.finished.usage == Usage(20, 10, 2)
    assert sum(isinstance(delta, Started) for delta in seen) == 1


def test_twice_unusable_is_an_error_that_says_why() -> None:
    with pytest.raises(InvalidToolCall, match="path"):
        rounds(asked(), BAD, BAD)


def test_good_calls_beside_a_bad_one_are_not_asked_for_again() -> None:
    seen, _ = rounds(asked(), f"{CALL}\n{BAD}", CALL)
    assert [call.id for call in fold(seen).calls] == ["call_1", "call_2"]


def test_who_gives_up_a_call_may_answer_in_words() -> None:
    seen, _ = rounds(asked(), BAD, "There is no such file.")
    assert (fold(seen).text, fold(seen).finished.reason) == ("There is no such file.", "stop")


def test_a_call_that_is_required_must_come() -> None:
    must = asked(tool_choice=ToolChoice("required"))
    _, answering = rounds(must, "I would rather talk.")
    assert answering.again is not None
    assert fold([*rounds(must, "No.", CALL)[0]]).finished.reason == "tool_calls"
    with pytest.raises(InvalidToolCall):
        rounds(must, "No.", "Still no.")


def test_one_call_where_one_is_wanted() -> None:
    one = asked(tool_choice=ToolChoice(parallel=False))
    assert len(fold(rounds(one, f"{CALL}\n{CALL}")[0]).calls) == 1
    assert len(fold(rounds(asked(), f"{CALL}\n{CALL}")[0]).calls) == 2


def test_the_services_own_machinery_has_the_request_repeated_in_fenced_json() -> None:
    seen, answering = rounds(asked(), "Tool read_file does not exists.")
    assert seen == []
    assert answering.again is not None
    assert (answering.again.fenced, answering.again.messages) == (True, ())
    fenced = '```json\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n```'
    reply = fold(rounds(asked(), "Tool read_file does not exists.", fenced)[0])
    assert (len(reply.calls), reply.text, reply.finished.cut) == (1, "", True)
    with pytest.raises(InvalidToolCall, match="no such tool"):
        rounds(asked(), "Tool read_file does not exists.", "Tool read_file does not exists.")


def test_calls_that_were_given_out_are_not_asked_for_again() -> None:
    seen, answering = rounds(asked(), f"{CALL}\nTool read_file does not exists.")
    assert answering.again is None
    assert (len(fold(seen).calls), fold(seen).text) == (1, "")


def test_who_says_twice_that_there_is_no_such_tool_may_be_right() -> None:
    said = "Tool frobnicate does not exist. Use another."
    reply = fold(rounds(asked(), said, said)[0])
    assert (reply.text.split(), reply.finished.reason) == (said.split(), "stop")


def test_after_fenced_json_there_is_a_correction_too() -> None:
    bad = '```json\n{"name": "read_file", "arguments": {"file": 1}}\n```'
    good = '```json\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n```'
    seen, _ = rounds(asked(), "Tool read_file does not exists.", bad, good)
    assert len(fold(seen).calls) == 1


def test_an_answer_of_markup_alone_is_none() -> None:
    empty = "<tool_response>\nall good\n</tool_response>"
    assert rounds(asked(), empty)[1].again is not None
    with pytest.raises(InvalidToolCall):
        rounds(asked(), empty, empty)


def test_calls_where_there_are_no_tools_never_reach_the_client() -> None:
    talk = (*TALK, Message("assistant", "", calls=(ToolCall("c", "read_file", "{}"),)), Message("tool", "x"))
    request = ChatRequest("qwen", talk)
    assert Answering.wanted(request)
    seen, _ = rounds(request, CALL, "It says x.")
    assert (fold(seen).text, fold(seen).calls) == ("It says x.", ())


def test_json_is_held_back_until_it_fits() -> None:
    request = ChatRequest("qwen", TALK, answer_format=PERSON)
    reply = fold(rounds(request, 'Here:\n```json\n{"age": "7"}\n```')[0])
    assert json.loads(reply.text) == {"age": 7}
    seen, answering = rounds(request, '{"name": "Bo"}')
    assert seen == []
    assert answering.again is not None
    assert "age" in answering.again.messages[1].text
    reply = fold(rounds(request, '{"name": "Bo"}', '{"age": 8}')[0])
    assert (json.loads(reply.text), reply.finished.cut) == ({"age": 8}, True)
    with pytest.raises(InvalidAnswer, match="age"):
        rounds(request, "{}", "{}")


def test_json_about_calls_is_left_as_it_is() -> None:
    told = {"age": 3, "note": CALL}
    reply = fold(rounds(ChatRequest("qwen", TALK, answer_format=PERSON), json.dumps(told))[0])
    assert json.loads(reply.text) == told


def test_with_tools_and_a_format_a_call_comes_first_and_json_in_the_end() -> None:
    request = asked(answer_format=PERSON)
    reply = fold(rounds(request, f"I look. {CALL}")[0])
    assert (reply.text.strip(), len(reply.calls)) == ("I look.", 1)
    assert json.loads(fold(rounds(request, '{"age": 9}')[0]).text) == {"age": 9}


def test_usage_is_unknown_when_that_of_a_round_is() -> None:
    answering = Answering(asked(), lambda: "c")
    seen: list[Delta] = []
    for text, usage in ((BAD, Usage(10, 5)), (CALL, Usage())):
        for delta in (STARTED, Text(text), Finished("stop", usage)):
            seen += answering.push(delta)
    assert fold(seen).finished.usage == Usage()


def test_only_answers_with_tools_or_a_format_are_read() -> None:
    assert not Answering.wanted(ChatRequest("qwen", TALK))
    assert Answering.wanted(asked())
    assert Answering.wanted(ChatRequest("qwen", TALK, answer_format=PERSON))
    assert not Answering.wanted(asked(drawing=Drawing()))
    assert not Answering.wanted(asked(research=True))


OUTPUTS = st.sampled_from(
    [f"Hi {CALL} there", f"{CALL}{BAD}", "a < b", BAD, "Tool x does not exist.", "<tool_"]
)


@given(OUTPUTS, OUTPUTS, st.lists(st.integers(1, 9), min_size=1))
def test_any_cut_gives_the_same_answer(first: str, second: str, cuts: list[int]) -> None:
    def answer(sizes: list[int]) -> tuple[object, ...]:
        numbers = itertools.count(1)
        answering = Answering(asked(), lambda: f"call_{next(numbers)}")
        seen: list[Delta] = []
        try:
            for text in (first, second, second):
                pieces = []
                for size in itertools.cycle(sizes):
                    pieces.append(text[:size])
                    text = text[size:]
                    if not text:
                        break
                deltas: list[Delta] = [STARTED, *map(Text, pieces), Finished("stop")]
                for delta in deltas:
                    seen += answering.push(delta)
                if answering.again is None:
                    break
        except UpstreamError as exc:
            return (str(exc),)
        reply = fold(seen)
        return reply.text, reply.calls, reply.finished

    assert answer(cuts) == answer([1000])
