from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwenproxy.chat import Delta, Finished, Media, Source, Started, Text, Thinking, ToolCall, Usage
from qwenproxy.limits import Count, Cutter, Meter, by_bytes, estimated_tokens

STARTED = Started("c1", "r1", "m")
USAGE = Usage(10, 20, 5)
FINISHED = Finished("stop", USAGE)


def cut(deltas: Iterable[Delta], stop: Iterable[str] = (), max_tokens: int | None = None) -> list[Delta]:
    cutter = Cutter(tuple(stop), max_tokens)
    given = [out for delta in deltas for out in cutter.push(delta)]
    assert cutter.done == any(isinstance(delta, Finished) for delta in given)
    return given


def text_of(deltas: Iterable[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, Text))


def end_of(deltas: Iterable[Delta]) -> Finished:
    (finished,) = (delta for delta in deltas if isinstance(delta, Finished))
    return finished


def stream(*pieces: str) -> list[Delta]:
    return [STARTED, *map(Text, pieces), FINISHED]


# ---- no limits ----


@pytest.mark.parametrize("stop", [(), ("",)])
def test_without_limits_everything_passes_as_it_is(stop: tuple[str, ...]) -> None:
    deltas: list[Delta] = [
        STARTED,
        Thinking("t"),
        Text("a", 1),
        Source(1, "u", "t"),
        Media("u"),
        Text(""),
        FINISHED,
    ]
    given = cut(deltas, stop)
    assert all(a is b for a, b in zip(given, deltas, strict=True))


def test_nothing_comes_after_the_end() -> None:
    assert cut([FINISHED, Text("late"), FINISHED]) == [FINISHED]


# ---- stop sequences ----


def test_a_stop_sequence_ends_the_answer_and_is_not_given_out() -> None:
    assert cut(stream("one ST", "OP two"), ["STOP"]) == [
        STARTED,
        Text("one "),
        Finished("stop", Usage(output_tokens=3, estimated=True), cut=True, stopped_by="STOP"),
    ]
    assert cut([Text("one STOP", 7), Text("late")], ["STOP"]) == [
        Text("one ", 7),
        Finished("stop", Usage(output_tokens=7, estimated=True), cut=True, stopped_by="STOP"),
    ]


def test_a_stop_sequence_at_the_very_beginning() -> None:
    assert cut(stream("STOP"), ["STOP"])[1:] == [
        Finished("stop", Usage(output_tokens=1, estimated=True), cut=True, stopped_by="STOP")
    ]


def test_only_what_may_become_a_stop_sequence_is_held_back() -> None:
    cutter = Cutter(("\n\nUser:",))
    given = [text_of(cutter.push(Text(piece))) for piece in ("a", "b\n", "\nUs", "ed", " c")]
    assert given == ["a", "b", "", "\n\nUsed", " c"]


def test_held_text_comes_before_the_end() -> None:
    assert cut([Text("a EN", 3), FINISHED], ["END"]) == [Text("a ", 3), Text("EN", 3), FINISHED]


def test_other_deltas_are_not_held_back() -> None:
    assert cut([Text("aE"), Media("u"), Text("ND")], ["END"])[1] == Media("u")


def test_the_sequence_that_begins_first_wins() -> None:
    assert text_of(cut(stream("xabcd"), ["bc", "abcd"])) == "x"
    assert text_of(cut(stream("xab", "cd"), ["b", "abcd"])) == "x"
    assert text_of(cut(stream("xab", "z"), ["b", "abcd"])) == "xa"
    assert text_of(cut(stream("xab"), ["b", "abcd"])) == "xa"
    given = cut(stream("xab"), ["b", "abcd"])
    # With the service's own usage, for it had ended.
    assert end_of(given) == replace(FINISHED, cut=True, stopped_by="b")


def test_of_two_sequences_at_one_place_the_end_names_the_one_that_is_whole_first() -> None:
    for pieces in (["xab"], ["x", "a", "b"]):
        assert end_of(cut(stream(*pieces), ["ab", "a"])).stopped_by == "a"
    assert end_of(cut(stream("x"), ["ab", "a"])).stopped_by == ""
    assert end_of(cut(stream("x" * 9), ["ab"], 1)).stopped_by == ""


def expected(text: str, stop: list[str]) -> str:
    found = [at for sequence in stop if sequence and (at := text.find(sequence)) >= 0]
    return text[: min(found, default=len(text))]


@given(
    st.text("abc", max_size=14),
    st.lists(st.text("abc", max_size=4), max_size=4),
    st.lists(st.integers(0, 14), max_size=6),
)
@example("aabab", ["abab", "bab"], [2, 3])
def test_no_cut_changes_what_comes_before_a_stop_sequence(text: str, stop: list[str], at: list[int]) -> None:
    places = [0, *sorted(min(place, len(text)) for place in at), len(text)]
    for pieces in (list(text), [text[a:b] for a, b in itertools.pairwise(places)]):
        given = cut(stream(*pieces), stop)
        assert text_of(given) == expected(text, stop)
        assert end_of(given).reason == "stop"
        stopped_by = end_of(given).stopped_by
        assert (stopped_by in stop and text.startswith(text_of(given) + stopped_by)) or text_of(given) == text
        assert end_of(given).usage.estimated == (text_of(given) != text) or end_of(given) == FINISHED


# ---- tokens ----


def test_the_services_tokens_are_counted() -> None:
    deltas = [Text("one", 1), Text(" two", 2), Text(" three", 3)]
    assert cut([*deltas, FINISHED], max_tokens=3) == [*deltas, FINISHED]
    assert cut([*deltas, FINISHED], max_tokens=2) == [
        *deltas[:2],
        Finished("length", Usage(output_tokens=2, estimated=True), cut=True),
    ]


def test_a_piece_of_many_tokens_is_cut_in_proportion() -> None:
    given = cut([Text("ab", 1), Text("0123456789", 11)], max_tokens=6)
    assert given == [
        Text("ab", 1),
        Text("01234", 11),
        Finished("length", Usage(output_tokens=6, estimated=True), cut=True),
    ]


def test_bytes_are_counted_where_the_service_does_not() -> None:
    assert cut([Text("abcd"), Text("efgh"), Text("i")], max_tokens=2) == [
        Text("abcd"),
        Text("efgh"),
        Finished("length", Usage(output_tokens=2, estimated=True), cut=True),
    ]
    assert text_of(cut([Text("abcdefghij")], max_tokens=2)) == "abcdefgh"
    assert text_of(cut([Text("ééééé")], max_tokens=1)) == "éé"
    assert text_of(cut([Text("a€€")], max_tokens=1)) == "a€"
    assert text_of(cut([Text("aaa€€")], max_tokens=1)) == "aaa"
    assert text_of(cut([Text("ab", 1), Text("cdefgh")], max_tokens=2)) == "abcdef"


def test_the_count_never_goes_back() -> None:
    deltas = [Text("abcd", 4), Text("efgh", 1), Text("ijkl", 5)]
    assert text_of(cut(deltas, max_tokens=4)) == "abcdefgh"


def test_no_tokens_at_all() -> None:
    given = cut(stream("abcd"), max_tokens=0)
    assert given == [STARTED, Finished("length", Usage(output_tokens=0, estimated=True), cut=True)]
    assert cut([STARTED, Text(""), FINISHED], max_tokens=0) == [STARTED, FINISHED]


def test_thoughts_cost_nothing() -> None:
    deltas: list[Delta] = [STARTED, Thinking("x" * 100), Text("abcd", 1), FINISHED]
    assert cut(deltas, max_tokens=1) == deltas


def test_both_limits() -> None:
    assert end_of(cut(stream("ab END cd"), ["END"], 1)) == Finished(
        "length", Usage(output_tokens=1, estimated=True), cut=True
    )
    assert text_of(cut(stream("ab END cd"), ["END"], 1)) == "ab E"
    given = cut(stream("a END cd"), ["END"], 2)
    assert (text_of(given), end_of(given).reason) == ("a ", "stop")
    assert text_of(cut(stream("abEN", "Dx"), ["END"], 1)) == "abEN"


@given(st.lists(st.text(min_size=1, max_size=8), max_size=8), st.integers(0, 12))
def test_no_cut_changes_how_much_is_given_out(pieces: list[str], max_tokens: int) -> None:
    raw = "".join(pieces).encode("utf-8", "replace")
    given = text_of(cut(stream(*pieces), max_tokens=max_tokens))
    assert "".join(pieces).startswith(given)
    assert len(given.encode("utf-8", "replace")) <= max_tokens * 4
    assert len(given.encode("utf-8", "replace")) > min(max_tokens * 4, len(raw)) - 4


# ---- usage that the service did not tell ----


def words(text: str) -> int:
    """Counts nothing that a quarter of the bytes would."""
    return len(text.split())


def metered(prompt: str, deltas: Iterable[Delta], *count: Count) -> Usage:
    meter = Meter(prompt, *count)
    return end_of([meter.read(delta) for delta in deltas]).usage


def test_usage_that_was_told_stays() -> None:
    assert metered("x" * 400, stream("Hello"), words) == USAGE
    assert metered("x", [STARTED, Media("u"), Finished("stop", Usage(9))], words) == Usage(9)


def test_usage_that_was_not_told_is_a_quarter_of_the_bytes_and_says_so() -> None:
    deltas: list[Delta] = [STARTED, Thinking("т" * 10), Text("y" * 21), Finished("stop")]
    assert metered("x" * 400, deltas) == Usage(100, 11, 5, estimated=True)


def test_thoughts_texts_and_calls_are_counted_each_whole() -> None:
    deltas: list[Delta] = [
        STARTED,
        Thinking("one tw"),
        Thinking("o three"),
        Text("fo"),
        Source(1, "https://example.org", "not counted at all"),
        Text("ur five"),
        Finished("stop"),
    ]
    assert metered("a b", deltas, words) == Usage(2, 5, 3, estimated=True)
    call = ToolCall("call_1", "read", '{"path": "a b"}')
    with_call = metered("a b", [STARTED, call, Finished("tool_calls")], words)
    assert with_call.output_tokens > words(call.arguments)


def test_what_the_service_did_tell_is_kept_beside_the_estimate() -> None:
    deltas: list[Delta] = [STARTED, Text("one two"), Finished("stop", Usage(0, 40, 30))]
    assert metered("a b c", deltas, words) == Usage(3, 40, 30, estimated=True)
    deltas = [STARTED, Text("one two"), Finished("stop", Usage(50))]
    assert metered("a b c", deltas, words) == Usage(50, 2, 0, estimated=True)


def test_an_answer_that_was_cut_keeps_its_count_and_gets_its_prompts() -> None:
    cut_off = Finished("length", Usage(output_tokens=7, estimated=True), cut=True)
    assert metered("x" * 401, [STARTED, Text("y"), cut_off]) == Usage(101, 7, 0, estimated=True)
    # The cutter counts what is visible; what was thought comes on top.
    thought: list[Delta] = [STARTED, Thinking("one two"), Text("y"), cut_off]
    assert metered("a", thought, words) == Usage(1, 9, 2, estimated=True)


def test_of_a_long_text_samples_are_counted() -> None:
    counted: list[int] = []

    def count(text: str) -> int:
        counted.append(len(text))
        return text.count("a")

    assert estimated_tokens("ab" * 100_000, count) == 100_000
    assert counted == [200_000]
    counted.clear()
    uneven = "a" * 1_000_000 + "b" * 3_000_001
    assert estimated_tokens(uneven, count) == pytest.approx(1_000_000, rel=0.01)
    assert sum(counted) == 200_000


@given(st.text(max_size=50))
def test_a_quarter_of_the_bytes(text: str) -> None:
    assert by_bytes(text) == -(-len(text.encode()) // 4)
