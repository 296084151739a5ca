from __future__ import annotations

import itertools
import json
import random
import re
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwenproxy.sieve import NoSuchTool, Piece, RawCall, ToolSieve
from tests.bench import agents

CORPUS = {path.stem: path for path in sorted((Path(__file__).parent / "wire/tool_text").glob("*.txt"))}
"""What models write, by hand; beside each file the pieces that must come out."""
TOOLS = ("read_file", "write_file", "bash", "Task", "get_weather", "mcp__files__list_dir")
CALL = '{"name": "read_file", "arguments": {"path": "a.txt"}}'
WRAPPED = f"<tool_call>\n{CALL}\n</tool_call>"
XML = "<function=bash>\n<parameter=command>\nls\n</parameter>\n</function>"


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """With texts that follow each other as one."""
    every: list[Piece] = []
    for is_text, group in itertools.groupby(pieces, lambda piece: isinstance(piece, str)):
        same = list(group)
        assert "" not in same
        every += ["".join(map(str, same))] if is_text else same
    return every


def sieved(pieces: Iterable[str], names: Iterable[str] = TOOLS) -> list[Piece]:
    sieve = ToolSieve(tuple(names))
    out = [piece for text in pieces for piece in sieve.push(text)]
    return joined([*out, *sieve.finish()])


def text_of(pieces: Iterable[Piece]) -> str:
    return "".join(piece for piece in pieces if isinstance(piece, str))


def bodies(text: str) -> list[str]:
    return [piece.body for piece in sieved([text]) if isinstance(piece, RawCall)]


def told(piece: Piece) -> Any:
    """As the corpus writes it."""
    match piece:
        case RawCall():
            return {piece.form: piece.body}
        case NoSuchTool():
            return {"no_such_tool": piece.name}
        case str():
            return piece


def cut(text: str, places: Iterable[int]) -> list[str]:
    at = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(at)]


# ---- the corpus ----


def test_the_corpus_is_there() -> None:
    assert len(CORPUS) >= 130


@pytest.mark.parametrize("name", list(CORPUS))
def test_reads_what_models_write_at_every_cut(name: str) -> None:
    raw = CORPUS[name].read_bytes().decode()
    case = json.loads(CORPUS[name].with_suffix(".json").read_text("utf-8"))
    whole = sieved([raw], case["tools"])
    assert [told(piece) for piece in whole] == case["pieces"]
    assert sieved(raw, case["tools"]) == whole
    for place in range(len(raw)):
        assert sieved([raw[:place], raw[place:]], case["tools"]) == whole, place


@pytest.mark.parametrize("name", list(CORPUS))
def test_a_call_tells_how_it_was_written(name: str) -> None:
    raw = CORPUS[name].read_bytes().decode()
    place = 0
    for piece in sieved([raw]):
        if isinstance(piece, RawCall):
            place = raw.index(piece.written, place) + len(piece.written)
            assert piece.body == piece.body.strip() or piece.form == "xml"


@pytest.mark.parametrize("stop", range(1, 6))
def test_an_answer_that_is_cut_anywhere_shows_no_markup(stop: int) -> None:
    """A tag's first letters alone (`<`, `<tool`, `</func`) may be anything."""
    for path in CORPUS.values():
        raw = path.read_bytes().decode()
        for place in range(stop, len(raw), 5):
            text = text_of(sieved([raw[:place]]))
            assert not re.search(r"(?<!\w)<[/|]?(?:tool_(?:call|resp)|function=|parameter=)", text), raw[
                :place
            ]


# ---- any cut ----

FRAGMENTS = (
    *("<tool_call>", "</tool_call>", "<tool_call", "< tool_call >", "<|tool_call|>", "<ToolCall>", "<tools>"),
    *("<tool_response>", "</tool_response>", "</tools>", '<tool_call name="bash">', "<", ">", "</", "|"),
    *("<function=bash>", "</function>", "<parameter=command>", "</parameter>", '<invoke name="bash">'),
    *('<parameter name="x">', "</invoke>", "<function>", '<function name="main">', "function", "tool"),
    *(CALL, WRAPPED, XML, '{"name": "bash"', '{"name": "x", ', '"arguments": {', '{"arguments": {"a": 1}'),
    *(
        '{"tool_calls": [',
        '{"type": "function", ',
        '"function": ',
        '{"id": 12, ',
        ', "name": "bash"}',
        "{'a'",
    ),
    *("```json\n", "```", "`", "``", "\n```\n", "```py\n", "{", "}", "[", "]", '"', "\\", ":", ",", "'"),
    *("Tool ", "Tool bash does not exists.", " does not exist", "Tool x", "T", "bash", "read_file", "(", ")"),
    *("\n", "\n\n", " ", "\t", "\r\n", "a", "word", "é", ". ", ": ", "1", "null", " " * 250, "\n" * 600),
)
written_by_a_model = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)


@settings(max_examples=500, deadline=None)
@given(written_by_a_model, st.lists(st.integers(0, 300), max_size=6))
@example("{\n x\n" + CALL, [1])
@example("<tool_call>{}" + "}" * 1500, [1100])
@example("a" + " " * 1500 + WRAPPED, [1100])
@example("<tool_call>" + "\n" * 1500 + CALL, [1015])
@example("``" + "`" * 30 + "json\n" + CALL, [2, 19])
def test_no_cut_changes_what_comes_out(text: str, places: list[int]) -> None:
    whole = sieved([text])
    assert sieved(cut(text, places)) == whole
    assert sieved(text) == whole


MARKUP = (WRAPPED, XML, f"```json\n{CALL}\n```", "</tool_call>", "<tool_response>\nx\n</tool_response>")


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(("word", "a < b", "x {y} [z]", "1. é")), st.sampled_from(MARKUP)),
        max_size=6,
    )
)
def test_text_around_calls_is_kept_and_nothing_else(rows: list[tuple[str, str]]) -> None:
    raw = "".join(f"{text}\n\n{markup}\n\n" for text, markup in rows)
    pieces = sieved([raw])
    assert text_of(pieces) == "\n\n".join(text for text, _ in rows)
    calls = sum(markup in MARKUP[:3] for _, markup in rows)
    assert sum(isinstance(piece, RawCall) for piece in pieces) == calls


@settings(deadline=None)
@given(st.text(st.sampled_from("ab <>{}[]\"':,/|=\\\n\t#*_-.()1"), max_size=60))
def test_ordinary_text_is_kept_as_it_is(text: str) -> None:
    assert text_of(sieved([text])) == text


# ---- nothing is held back for longer than it must ----

SAMPLES = (
    *(
        WRAPPED,
        XML,
        f"```json \n{CALL}\n```",
        "```tool_call\n<tool_call>" + CALL,
        "Tool bash does not exists.",
    ),
    *('<tool_call id="1" name="x">{', '<|tool_call|>{"', '<function name="bash">', '<invoke name="bash">'),
    *(
        '<parameter="x" >',
        "<tool_responses>",
        "<tools>\n" + CALL,
        "<function_call>",
        '[{"name": "bash", "input":{',
    ),
    *(
        '{"type": "function", "function": {"name": "bash", "parameters": {',
        '{"tool_calls": [{"name": "bash", ',
    ),
    *('{"id": "1", "index": 2, "call_id": "3", "tool_name": "bash", "arguments": "{', '{"tool": "bash"'),
    *(
        '{"arguments": {"a": "b"}, "name": "bash"}',
        '<function= "bash" x >',
        "<functioncalls>",
        "<tool-results>",
    ),
)
ENDINGS = (
    *dict.fromkeys(sample[start:] for sample in SAMPLES for start in range(len(sample) + 1)),
    *('.bash", "arguments": {', ".bash ("),
    *(f'{quote}{"}" * depth}, "name": "bash"}}' for quote in ('"', "") for depth in range(9)),
)
"""However a held beginning goes on, if it is one of a call."""


@settings(max_examples=150, deadline=None)
@given(written_by_a_model)
@example("```js")
@example('{"name": "Ada L')
@example('```json\n{"name": "Ada"')
@example("a < b")
@example("<toolbox")
@example("Tool bash does not exist in")
@example("<function=bash\n")
def test_what_is_held_back_may_still_become_markup(text: str) -> None:
    sieve = ToolSieve(TOOLS)
    out = joined(sieve.push(text))
    if any(not isinstance(piece, str) for piece in [*out, *sieve.finish()]):
        return  # a call's own text is held, of course
    given_out = text_of(out)
    held = text_of(sieved([text])).removeprefix(given_out)
    if not held.strip() or re.fullmatch(r"\s*`{1,2}", held):
        return  # a fence, if not around a call, is followed too
    after = (sieved([text + ending]) for ending in ENDINGS)
    assert any(not text_of(pieces).startswith(given_out + held) for pieces in after), held


@pytest.mark.parametrize(
    ("pieces", "given_out"),
    [
        (["a <", " b"], ["a", " < b"]),
        (["Hello", " wor", "ld\n", "\nnext"], ["Hello", " wor", "ld", "\n\nnext"]),
        (["x<to", "ol>"], ["x", "<tool>"]),
        (["if (a <", "= b) {", "\n"], ["if (a", " <= b) {", ""]),
        (['{"name": "', "Ada", ' Love"'], ["", "", '{"name": "Ada Love"']),
        (['{"na', 'tion": 1}'], ["", '{"nation": 1}']),
        (["```", "python\n"], ["", "```python"]),
        (["```json", "\n{", '"a": 1}'], ["", "", '```json\n{"a": 1}']),
        (["To", "day"], ["", "Today"]),
        (["Tool", " use is"], ["", "Tool use is"]),
        (["List<Tool", "Call> x"], ["List", "<ToolCall> x"]),
        (["vector<tool_call>", " v;"], ["vector", "<tool_call> v;"]),
        (["<tool_call>", "\nprose", " is"], ["", "", "prose is"]),
        (["Call: {", '"x": 1}'], ["Call:", ' {"x": 1}']),
    ],
)
def test_text_comes_as_soon_as_it_is_certain(pieces: list[str], given_out: list[str]) -> None:
    sieve = ToolSieve(TOOLS)
    assert [text_of(sieve.push(piece)) for piece in pieces] == given_out


def test_a_call_comes_as_soon_as_it_is_closed() -> None:
    sieve = ToolSieve(TOOLS)
    assert list(sieve.push("Reading.\n" + WRAPPED[:-1])) == ["Reading."]
    assert list(sieve.push(">")) == [RawCall("json", CALL, WRAPPED)]
    assert list(sieve.push(CALL)) == []
    assert list(sieve.push("\nnext")) == [RawCall("json", CALL, CALL), "\nnext"]
    assert list(sieve.finish()) == []


def test_nothing_comes_of_nothing_and_nothing_comes_after_the_end() -> None:
    assert sieved([]) == sieved([""]) == []
    sieve = ToolSieve(())
    assert list(sieve.push("a ")) == ["a"]
    assert list(sieve.finish()) == [" "]
    assert list(sieve.push("late")) == list(sieve.finish()) == []


def test_what_was_not_read_of_a_push_is_not_lost() -> None:
    sieve = ToolSieve(TOOLS)
    first = next(iter(sieve.push(f"one\n{WRAPPED}\ntwo\n{WRAPPED}")))
    assert [first, *sieve.push(" three"), *sieve.finish()] == sieved(
        [f"one\n{WRAPPED}\ntwo\n{WRAPPED}", " three"]
    )


# ---- names ----


@pytest.mark.parametrize(
    ("written", "names", "is_call"),
    [
        ("read_file", ["read_file"], True),
        ("Read-File", ["read_file"], True),
        ("read.file", ["read-file"], True),
        ("readFile", ["read_file"], True),
        ("fs.v1.read_file", ["read_file"], True),
        ("server__read_file", ["mcp__server__read_file"], True),
        ("files", ["read_files"], False),
        ("functions.read_file", ["read_file"], True),
        ("default_api:read_file", ["read_file"], True),
        ("mcp__fs__read_file", ["read_file"], True),
        ("read_file", ["mcp__fs__read_file"], True),
        ("mcp__other__read_file", ["mcp__fs__read_file"], False),
        ("read_file", ["write_file"], False),
        ("read_file", [], False),
        ("", ["read_file"], False),
        ("mcp__", ["mcp__"], True),
        ("__", ["__"], False),
        ("read file", ["read file"], False),
        ("x" * 200, ["x" * 200], False),
    ],
)
def test_a_bare_object_is_a_call_if_its_name_is_a_tools(
    written: str, names: list[str], is_call: bool
) -> None:
    raw = json.dumps({"name": written, "arguments": {}})
    assert sieved([raw], names) == ([RawCall("json", raw, raw)] if is_call else [raw])


def test_an_object_in_one_that_is_no_call_is_none_until_an_empty_line() -> None:
    other = '{"a": 1}'
    assert sieved([f"{other}\n{CALL}"]) == [f"{other}\n{CALL}"]
    assert bodies(f"{other}\n\n{CALL}") == [CALL]
    assert bodies(f"{other}\n \r\n{CALL}") == [CALL]
    assert bodies(f"{other}\n</tool_call>{CALL}") == [CALL]
    assert bodies(f"[{other}, {CALL}]\n") == []


def test_an_object_that_goes_on_for_too_long_is_text() -> None:
    long = '{"arguments": {"a": "' + "x" * 5000
    sieve = ToolSieve(TOOLS)
    assert text_of(sieve.push(long)) == long
    assert bodies('{"arguments": {"a": "' + "x" * 3000 + '"}, "name": "bash"}') != []
    # One that held back text for nothing makes the next one hold back less.
    late = '{"arguments": {"a": "' + "x" * 3000 + '"}, "name": "bash"}'
    assert sieved([f"{long}\n\n{late}"]) == [f"{long}\n\n{late}"]


# ---- white space ----


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (f"a\n\n{WRAPPED}\nb", "a\n\nb"),
        (f"a{WRAPPED}\n\nb", "a\n\nb"),
        (f"a\n{WRAPPED}\n\n  b", "a\n\n  b"),
        (f"a\n\n  {WRAPPED}\n b", "a\n\n b"),
        (f"a\n\n  {WRAPPED} b", "a\n\nb"),
        (f"a\r\n\r\n{WRAPPED}\r\nb", "a\r\n\r\nb"),
        (f"a {WRAPPED}b", "a b"),
        (f"a {WRAPPED}, b", "a, b"),
        (f"a  {WRAPPED} b", "a b"),
        (f"a.{WRAPPED}b", "a.b"),
        (f"\n{WRAPPED}\n\nb", "b"),
        (f"a\n{WRAPPED}\n\n", "a"),
        (f"a.{WRAPPED}\n{WRAPPED} b", "a.\nb"),
        (f"a\n{WRAPPED}\n\n{WRAPPED} b", "a\n\nb"),
        ("  a \n", "  a \n"),
        (f"a\u3000{WRAPPED}", "a\u3000"),
    ],
)
def test_white_space_that_only_parted_calls_from_text_goes(raw: str, text: str) -> None:
    assert text_of(sieved([raw])) == text


def test_white_space_without_end_is_text() -> None:
    lot = " \n" * 2000
    assert text_of(sieved([f"a{lot}b"])) == f"a{lot}b"
    assert text_of(sieved([f"a{lot}"])) == f"a{lot}"
    assert text_of(sieved([f"a{' ' * 3000}{WRAPPED}b"])) == f"a{' ' * 3000}b"
    assert len(text_of(sieved([f"a.{WRAPPED}{lot}b"]))) < 1010
    sieve = ToolSieve(TOOLS)
    assert len(text_of(sieve.push("a" + lot))) > 3000
    # The line still begins where it begins.
    assert bodies(f"a{lot}{CALL}") == [CALL]
    assert bodies(f"a{lot}{' ' * 2000}{CALL}") == [CALL]


# ---- in proportion ----

SIZE = 300_000
SMALLER = 6
NOISE_S = 0.3


def monsters(size: int) -> dict[str, str]:
    return {
        "text": "The quick brown fox jumps. \n" * (size // 28),
        "less": "<" * size,
        "objects": '{"a":' * (size // 5),
        "white": " \n" * (size // 2),
        "ticks": "`" * size,
        "fences": "```json\n" * (size // 8),
        "heads": '\n\n{"arguments":{"a":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' * (size // 50),
        "call": '<tool_call>{"name":"bash","arguments":{"c":"'
        + 'a <b> \\" ' * (size // 9)
        + '"}}</tool_call>',
        "xml": "<function=bash>\n<parameter=c>\n" + "a <b>\n" * (size // 6) + "</parameter></function>",
        "openings": "<tool_call>" * (size // 11),
        "broken calls": '<tool_call>{"</tool_call><tool_call>{":"' * (size // 40),
        "broken xml": "<function=bash><parameter=c></function>" * (size // 39),
        "nested xml": "<function=bash>" + "<parameter=c>" * (size // 13),
        "white in a call": "<tool_call>{}" + " \n" * (size // 2) + "x",
        "braces": CALL + "}" * size,
        "result": "<tool_response>\n" + "<a " * (size // 3),
    }


MONSTERS = monsters(SIZE)


def read_s(raw: str) -> tuple[float, list[Piece]]:
    """How long a processor reads it in small pieces, and what comes out."""
    began_s = time.process_time()
    pieces = sieved(raw[place : place + 20] for place in range(0, len(raw), 20))
    return time.process_time() - began_s, pieces


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", list(MONSTERS))
def test_reading_takes_time_in_proportion_to_the_text(name: str) -> None:
    """If any of it were read anew for each piece, a text six times as long would take 36 times the time."""
    small_s, _ = read_s(monsters(SIZE // SMALLER)[name])
    large_s, pieces = read_s(MONSTERS[name])
    assert large_s < 2.5 * SMALLER * small_s + NOISE_S
    assert pieces == sieved([MONSTERS[name]])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["text", "less", "objects", "white", "heads", "openings", "result"])
def test_memory_is_for_calls_only(name: str) -> None:
    sieve = ToolSieve(TOOLS)
    raw = MONSTERS[name]
    tracemalloc.start()
    try:
        for place in range(0, len(raw), 50):
            for _ in sieve.push(raw[place : place + 50]):
                pass
        assert tracemalloc.get_traced_memory()[1] < 150_000
    finally:
        tracemalloc.stop()


def test_the_benchmark_of_agents_finds_what_it_looks_for(capsys: pytest.CaptureFixture[str]) -> None:
    """On few pieces; it checks by itself that nothing is lost."""
    rows = agents.rows(count=40, times=1)
    names = [row.what for row in rows]
    assert {"sieve: prose", "a whole call checked", "OpenAIChat: text", "OpenAIChat: a call"} <= set(names)
    assert len(names) == len(set(names))
    agents.report([agents.Row("sieve: prose", 60, 20), agents.Row("a whole call checked", 5000, 1)], 40)
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| sieve: prose | 60 | 20 | 1.00 |",
        "| a whole call checked | 5,000 | 1 |  |",
    ]
    with pytest.raises(SystemExit):
        agents.sieved(["<tool_call>"], 1)
    with pytest.raises(SystemExit):
        agents.sieved(["<tool_call>"], 0)
    offered = agents.schemas(200, 60_000)
    assert 55_000 < len(agents.as_json(offered)) < 65_000


def test_a_large_call_at_any_cut() -> None:
    chance = random.Random(7)
    content = "".join(chance.choices(['a"', "\\", "{", "}", "</tool_call>", "\n", "é", "<b>"], k=4000))
    body = json.dumps({"name": "write_file", "arguments": {"content": content}})
    raw = f"Text.\n<tool_call>\n{body}\n</tool_call>\nMore."
    for _ in range(5):
        assert [told(piece) for piece in sieved(cut(raw, chance.choices(range(len(raw)), k=200)))] == [
            "Text.",
            {"json": body},
            "\nMore.",
        ]
