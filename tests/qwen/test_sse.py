from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwenproxy.errors import ProtocolChanged
from qwenproxy.qwen.sse import MAX_EVENT_BYTES, MAX_REPLY_BYTES, SseDecoder

WIRE = Path(__file__).parent.parent / "wire" / "qwen"
RECORDINGS = {path.stem: path.read_bytes().replace(b"\r\n", b"\n") for path in sorted(WIRE.glob("*.sse"))}
PLAIN = RECORDINGS["plain_answer"]

SEPARATORS = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei"
"""What `str.splitlines` takes for line ends and the standard does not."""

ODD: dict[str, tuple[bytes, list[str]]] = {
    "lf": (b"data: a\n\ndata: b\n\n", ["a", "b"]),
    "cr": (b"data: a\r\rdata: b\r\r", ["a", "b"]),
    "crlf": (b"data: a\r\n\r\ndata: b\r\n\r\n", ["a", "b"]),
    "mixed": (b"data: a\r\n\ndata: b\r\r\ndata: c\n\r", ["a", "b", "c"]),
    "lf cr is two line ends": (b"data: a\n\rdata: b\n\n", ["a", "b"]),
    "bom": (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
    "only the first bom": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", []),
    "comments": (b": hello\n:\ndata: a\n: x\n\n", ["a"]),
    "no space": (b"data:a\n\n", ["a"]),
    "one space of two": (b"data:  a \n\n", [" a "]),
    "a tab is no space": (b"data:\ta\n\n", ["\ta"]),
    "lines": (b"data: a\ndata:\ndata: b\n\n", ["a\n\nb"]),
    "no colon": (b"data\n\ndata\ndata\n\n", ["", "\n"]),
    "other fields": (b"event: x\nid: 1\nretry: 9\ndata: a\nnonsense\n data: b\nDATA: c\n\n", ["a"]),
    "colons": (b"data: a: b\n\n", ["a: b"]),
    "nothing": (b"\n\n\r\revent: x\n\n", []),
    "separators": (f"data: {SEPARATORS}\n\n".encode(), [SEPARATORS]),
    "multibyte": ("data: é€😀\n\n".encode(), ["é€😀"]),
    "no utf-8": (b"data: a\xffb\xc3\n\ndata: \xe2\x82\n\n", ["a\ufffdb\ufffd", "\ufffd"]),
    "surrogate": (b"data: \xed\xa0\x80\n\n", ["\ufffd\ufffd\ufffd"]),
    "nul": (b"data: a\x00b\n\n", ["a\x00b"]),
    "json over lines": (b'data: {"a":\ndata: {"b": 1}}\n\n', ['{"a":\n{"b": 1}}']),
    "a line that only looks whole": (b'data: {"a": {}\ndata: }\n\n', ['{"a": {}\n}']),
    "a deep line": (b"data: {" + b"[" * 9000 + b"}\ndata: x\n\n", ["{" + "[" * 9000 + "}\nx"]),
    "no blank lines": (b'data: {"a": 1} \ndata: {}\ndata: [DONE]\n', ['{"a": 1} ', "{}", "[DONE]"]),
    "no blank line before text": (b'data: {"a": 1}\ndata: b\n\n', ['{"a": 1}', "b"]),
    "no last line end": (b'data: a\n\ndata: {"b": 2}', ["a", '{"b": 2}']),
    "cut off": (b'data: a\n\ndata: {"b": ', ["a"]),
    "cut off text": (b"data: a\n\ndata: b\n", ["a"]),
    "cut off lines": (b'data: a\n\ndata: {"b":\ndata: 2}\n', ["a"]),
    "cut off done": (b"data: [DONE]", ["[DONE]"]),
    "empty": (b"", []),
}  # fmt: skip


def decoded(pieces: Iterable[bytes]) -> list[str]:
    """The events, and at the end the error if there is one."""
    decoder = SseDecoder()
    events = []
    try:
        for piece in pieces:
            for event in decoder.push(piece):
                events.append(event)  # noqa: PERF402 - those before an error count
        events.extend(decoder.flush())
    except ProtocolChanged as error:
        events.append(f"!{error}")
    return events


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    at = [0, *sorted(places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(at)]


@pytest.mark.parametrize(("data", "events"), ODD.values(), ids=list(ODD))
def test_reads_streams_as_the_standard_says(data: bytes, events: list[str]) -> None:
    assert decoded([data]) == events


@pytest.mark.parametrize("name", [*RECORDINGS, *ODD])
def test_no_cut_changes_the_events(name: str) -> None:
    data = RECORDINGS[name] if name in RECORDINGS else ODD[name][0]
    whole = decoded([data])
    for place in range(len(data) + 1 if len(data) < 9000 else 0):
        assert decoded(cut(data, [place])) == whole, place
    assert decoded(data[i : i + 1] for i in range(len(data))) == whole
    dice = random.Random(name)
    for _ in range(200 if len(data) < 9000 else 5):
        places = [dice.randrange(len(data) + 1) for _ in range(dice.randrange(1, 9))]
        assert decoded(cut(data, places)) == whole, places


@pytest.mark.parametrize("end", [b"\r", b"\r\n"])
@pytest.mark.parametrize("name", RECORDINGS)
def test_line_ends_do_not_matter(name: str, end: bytes) -> None:
    data = RECORDINGS[name]
    assert decoded([data.replace(b"\n", end)]) == decoded([data])
    assert len(decoded([data])) == data.count(b"data: ")


@pytest.mark.parametrize("name", RECORDINGS)
def test_blank_lines_may_be_missing(name: str) -> None:
    data = RECORDINGS[name]
    assert decoded([data.replace(b"\n\n", b"\n")]) == decoded([data])


PARTS = [
    b"data:",
    b"data",
    b" ",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b'{"a":',
    b"1}",
    b"{}",
    b"[DONE]",
    b":",
    b"x",
]
PARTS += [b"\xef\xbb\xbf", b"\xff", "é".encode(), "\u2028".encode(), b"", b"event: y"]


@given(
    st.lists(st.sampled_from(PARTS), max_size=40).map(b"".join), st.lists(st.integers(0, 200), max_size=12)
)
@example(b"data: {}\r\n\r\n", [9])
@example(b"data: x\r\n\r\n", [8, 8])
def test_no_cut_changes_anything(data: bytes, places: list[int]) -> None:
    whole = decoded([data])
    assert decoded(cut(data, [min(p, len(data)) for p in places])) == whole
    assert decoded(data[i : i + 1] for i in range(len(data))) == whole


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))))
def test_what_a_server_sends_arrives(values: list[str]) -> None:
    sent = "".join(f"data: {json.dumps([value])}\n\n" for value in values).encode()
    assert [json.loads(event) for event in decoded([sent])] == [[value] for value in values]


def test_a_whole_event_does_not_wait_for_its_blank_line() -> None:
    decoder = SseDecoder()
    assert list(decoder.push(b'data: {"a": 1}\n')) == ['{"a": 1}']
    assert list(decoder.push(b"\n")) == []
    assert list(decoder.push(b"data: text\n")) == []
    assert list(decoder.push(b"\n")) == ["text"]


def test_what_comes_before_a_failure_is_given_out_however_it_is_cut() -> None:
    data = PLAIN + b"data: [DONE]\n" + b"x" * (MAX_EVENT_BYTES + 1)
    whole = decoded([data])
    assert whole[-2:] == ["[DONE]", f"!the service sent a line longer than {MAX_EVENT_BYTES} bytes"]
    for place in (len(PLAIN), len(PLAIN) + 13, len(PLAIN) + 20, len(data) - 1):
        assert decoded(cut(data, [place])) == whole


def test_the_longest_line_is_read() -> None:
    value = b"x" * (MAX_EVENT_BYTES - len("data: "))
    assert decoded([b"data: " + value + b"\n\n"]) == [value.decode()]
    assert decoded([b"data: x" + value + b"\n\n"])[0].startswith("!")


def test_many_lines_do_not_make_an_endless_event() -> None:
    assert decoded([b"data:\n" * (MAX_EVENT_BYTES + 1)]) == [
        f"!the service sent an event longer than {MAX_EVENT_BYTES} bytes"
    ]


def test_no_reply_is_endless() -> None:
    decoder = SseDecoder()
    comment = b": " + b"x" * (MAX_EVENT_BYTES - 3) + b"\n"
    for _ in range(MAX_REPLY_BYTES // MAX_EVENT_BYTES - 1):
        assert list(decoder.push(comment)) == []
    last = (b"data: [DONE]\n" + comment)[:MAX_EVENT_BYTES]
    events = decoder.push(last + b"data: late\n\n")
    assert next(events) == "[DONE]"
    with pytest.raises(ProtocolChanged, match="longer than 67108864"):
        next(events)
