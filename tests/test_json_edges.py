from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwenproxy.json_edges import LEAST_HELD, MOST_HELD, CallHead, JsonEnd

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def edge(*pieces: str, wary: bool = False) -> tuple[str, int]:
    """What is come upon, and after how many characters of all."""
    scan, before = JsonEnd(), 0
    found, place = "more", 0
    for piece in pieces:
        found, place = scan.read(piece, 0, wary=wary)
        if found != "more":
            break
        assert place == len(piece)
        before += len(piece)
    return found, before + (place if found != "more" else 0)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=6), json_values, max_size=4), st.text(max_size=5), st.booleans())
@example({"a": '\\" }] \\\\'}, "}", False)
def test_finds_the_end_of_any_value_at_any_cut(value: dict[str, Any], after: str, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=None if ascii_only else 2)
    assert edge(text + after) == ("end", len(text))
    assert edge(*(text + after)) == ("end", len(text))
    for length in range(len(text)):
        assert edge(text[:length]) == ("more", length)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{'a': 1}", ("broken", 1)),
        ('{"a": "b"c"}', ("broken", 9)),
        ('{"a" \n: "b" \n"', ("broken", 13)),
        ('{"a": <b>}', ("broken", 6)),
        ('{"a": 1 // b', ("broken", 8)),
        ("{“a”: 1}", ("broken", 1)),
        ("{a: True, b: -1.5e+3}", ("end", 21)),
        ('  [{"a": 1}, 2] x', ("end", 15)),
        ("{{}}}", ("end", 4)),
        ('{"a": [1}]', ("end", 10)),
        ('{"a": "\\', ("more", 8)),
    ],
)
def test_tells_what_is_no_json(text: str, found: tuple[str, int]) -> None:
    assert edge(text) == found
    assert edge(*text) == found


def test_stops_at_tags_in_strings_where_it_is_to() -> None:
    text = '{"a": "x <b> </b>", "<t": "<"}'
    assert edge(text) == ("end", len(text))
    assert edge(text, wary=True) == ("tag", text.index("</b>"))
    scan = JsonEnd()
    stops = [*itertools.takewhile(lambda row: row[0] == "tag", iter(lambda: read_on(scan, text), None))]
    assert [text[place : place + 3] for _, place in stops] == ["</b", '<t"']


def read_on(scan: JsonEnd, text: str, places: list[int] = []) -> tuple[str, int]:  # noqa: B006
    """Each time behind where it stopped before."""
    found, place = scan.read(text, places[-1] + 1 if places else 0, wary=True)
    places.append(place)
    return found, place


# ---- heads ----


def verdict(text: str, names: tuple[str, ...] = ("bash",), most: int = MOST_HELD) -> tuple[bool | None, int]:
    """And after how many characters."""
    head = CallHead(lambda name: name in names, most)
    for length, character in enumerate(text, 1):
        if (found := head.read(character)) is not None:
            assert CallHead(lambda name: name in names, most).read(text) is found
            return found, length
    assert CallHead(lambda name: name in names, most).read(text) is None
    return None, len(text)


CALLS = (
    '{"name": "bash", "arguments": {',
    '{ "name" : "bash" ,\n "arguments" :\n {',
    '[{"name": "bash", "arguments": {',
    '{"name": "bash", "parameters": {',
    '{"tool": "bash", "input": {',
    '{"tool_name": "bash", "arguments": n',
    '{"function": "bash", "arguments": "{',
    '{"name": "bash", "arguments": ""',
    '{"name": "bash", "id": "a\\"}{", "arguments": {',
    '{"name": "bash", "id": null, "index": 1 , "arguments": {',
    '{"id": "1", "type": "function", "function": {"name": "bash", "arguments": "{',
    '{"type": "tool_use", "id": 1, "name": "bash", "input": {',
    '{"tool_calls": [{"function": {"name": "bash", "arguments": {',
    '{"tool_call": {"name": "bash", "arguments": {',
    '{"function_call": {"name": "bash", "arguments": {',
    '{"arguments": {"a": [1, "}\\""], "b": {}}, "name": "bash"',
    '{"input": {}, "call_id": 7, "tool": "bash"',
)
OTHERS = (
    *("{}", "[]", "[1", '["', "x", "{a", "{'", '{"x', '{"nat', '{"name"}', '{"name" "', '{"name": 1', "[["),
    *('{"name": "Ada ', '{"name": "Ada"', '{"name": "bash"}', '{"name": "bash" }', '{"name": "bash", "s'),
    *('{"name": "bash", "arguments"}', '{"name": "bash", "arguments": [', '{"name": "bash", "arguments": 1'),
    *('{"name": "bash", "arguments": "l', '{"name": [', '{"type": "p', '{"type": 1', '{"type": "function"}'),
    *('{"arguments": "', '{"arguments": {}}', '{"arguments": {}, "name": "Ada"', '{"id": 1}', '{"id": {}}'),
    *('{"id": [1, {"a": "}"}]}', '{"id": <', '{"tool_calls": {"x', '{"tool_calls": "', '{"function": {"x'),
    *('{"id": "1" "', '{"name": "' + "x" * 129, "{" + " " * 200, '{"arguments": {}' + " " * 200),
    *('{"id": 1' + " " * 201, '{"id":' + " " * 200, '{"type": "functiona', '{"name": ' + " " * 199),
)


@pytest.mark.parametrize("text", CALLS)
def test_a_call_is_known_by_its_name_and_its_arguments(text: str) -> None:
    assert verdict(text) == (True, len(text))
    assert verdict(text, ("other",))[0] is False


@pytest.mark.parametrize("text", OTHERS)
def test_what_is_no_call_is_known_at_once(text: str) -> None:
    assert verdict(text) == (False, len(text))


def test_arguments_before_the_name_are_read_to_a_limit() -> None:
    text = '{"arguments": {"a": "' + "x" * MOST_HELD
    assert verdict(text) == (False, MOST_HELD)
    assert verdict(text, most=LEAST_HELD) == (False, LEAST_HELD)
    head = CallHead(bool)
    assert not head.gave_up
    assert head.read(text) is False
    assert head.gave_up
    assert not CallHead(bool).gave_up
