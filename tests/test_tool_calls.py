from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from qwenproxy.chat import Message, Tool, ToolCall, ToolChoice
from qwenproxy.json_text import compact
from qwenproxy.sieve import RawCall, ToolSieve
from qwenproxy.tool_calls import BadCall, CallReader
from qwenproxy.tools import as_text
from tests.schema_values import JSON, any_of_them, arrays, fitting, objects, scalars

STRING, WHOLE = {"type": "string"}, {"type": "integer"}


def record(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


READ = Tool("read_file", "", {**record("path", path=STRING, limit=WHOLE), "additionalProperties": False})
WRITE = Tool("mcp__fs__write_file", "", record("path", "content", path=STRING, content=STRING))
PING = Tool("ping")
TODO = Tool("todo", "", record("items", items={"type": "array", "items": record("t", t=STRING, n=WHOLE)}))
TOOLS = (READ, WRITE, PING, TODO)


def reader(*tools: Tool, choice: ToolChoice = ToolChoice()) -> CallReader:  # noqa: B008
    numbers = count(1)
    return CallReader(tools or TOOLS, choice, lambda: f"call_{next(numbers)}")


def calls(body: str, form: Literal["json", "xml"] = "json", **options: Any) -> list[tuple[str, Any]]:
    read = reader(**options).read(RawCall(form, body, body))
    return [(call.name, json.loads(call.arguments)) for call in read]


def refusal(body: str, form: Literal["json", "xml"] = "json", **options: Any) -> str:
    with pytest.raises(BadCall) as caught:
        calls(body, form, **options)
    assert len(str(caught.value)) < 800
    return str(caught.value)


# ---- JSON ----


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "read_file", "arguments": {"path": "a"}}',
        '{"name": "read_file", "parameters": {"path": "a"}}',
        '{"tool": "read_file", "input": {"path": "a"}}',
        '{"tool_name": "read_file", "args": {"path": "a"}}',
        '{"function": "read_file", "arguments": {"path": "a"}}',
        '{"type": "function", "function": {"name": "read_file", "arguments": "{\\"path\\": \\"a\\"}"}}',
        '{"tool_calls": [{"function": {"name": "read_file", "arguments": {"path": "a"}}}]}',
        '[{"name": "read_file", "arguments": {"path": "a"}}]',
        '{"name": "read_file", "arguments": "\\"{\\\\\\"path\\\\\\": \\\\\\"a\\\\\\"}\\""}',
        '{"name": "read_file", "path": "a", "thought": "hm"}',
        '{"read_file": {"path": "a"}}',
        '{"name": "functions.ReadFile", "arguments": {"path": "a", "limit": null}}',
        '{"name": "read_file", "arguments": {"Path": "a"}}',
        "{'name': 'read_file', 'arguments': {'path': 'a',}",
        '{"name": "read_file", "arguments": "{\'path\': \'a\'}"}',
        '{"name": "read_file", "arguments": {"path": "a"}}}',
    ],
)
def test_a_call_is_read_however_it_is_written(body: str) -> None:
    assert calls(body) == [("read_file", {"path": "a"})]


@pytest.mark.parametrize(
    "body", ['{"name": "ping"}', '{"name": "ping", "arguments": null}', '{"name": "ping", "arguments": ""}']
)
def test_arguments_may_be_missing(body: str) -> None:
    assert calls(body) == [("ping", {})]


def test_several_calls_in_one() -> None:
    one = '{"name": "ping", "arguments": {}}'
    assert len(calls(f"{one}\n{one}")) == len(calls(f"[{one}, {one}]")) == 2


def test_arguments_are_given_out_compactly_each_call_with_an_id_of_its_own() -> None:
    body = '{"name": "write_file", "arguments": {"path": "ж.txt", "content": "\\ud83d\\ude00\\n"}}'
    first, second = reader().read(RawCall("json", body * 2, ""))
    assert first == ToolCall(
        "call_1", "mcp__fs__write_file", '{"path":"ж.txt","content":"\N{GRINNING FACE}\\n"}'
    )
    assert second.id == "call_2"


def test_arguments_are_made_to_fit() -> None:
    body = '{"name": "todo", "arguments": {"items": {"t": 5, "n": "3"}}}'
    assert calls(body) == [("todo", {"items": [{"t": "5", "n": 3}]})]


def test_only_objects_are_arguments_whatever_the_schema_says() -> None:
    odd = Tool("odd", "", {"type": "array"})
    assert (
        reader(odd).read(RawCall("json", '{"name": "odd", "arguments": {"a": 1}}', ""))[0].arguments
        == '{"a":1}'
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "The call cannot be read: it breaks off"),
        ("nonsense", "cannot be read"),
        ("[]", "must be a JSON object"),
        ("[5]", "must be a JSON object"),
        ('{"arguments": {}}', "does not name its tool"),
        ('{"name": "red_file"}', 'There is no tool "red_file"; the nearest are "read_file"'),
        (
            '{"name": "read_file", "arguments": {}}',
            '"read_file" does not fit its parameters: path is missing.',
        ),
        ('{"name": "read_file", "arguments": {"path": []}}', "path must be a string, not []"),
        ('{"name": "read_file", "arguments": {"path": "a", "dry": true}}', 'must not have "dry"'),
        ('{"name": "read_file", "arguments": [1]}', "must be a JSON object, not [1]"),
        ('{"name": "read_file", "arguments": "a.txt"}', "The arguments must be a JSON object"),
        ('{"name": "read_file", "arguments": "{a b"}', "The arguments cannot be read"),
        ('{"name": "read_file", "arguments": {"path": "a', "a text in it does not end"),
        ('{"name": "write_file", "arguments": {"path": "a", "content":', "it breaks off"),
        ('{"name": "ping", "arguments": {"n": NaN}}', "NaN is no number of JSON"),
        ('{"name": "ping", "arguments": {"n": 1e999}}', "a number is too large"),
    ],
)
def test_what_cannot_be_used_is_told(body: str, why: str) -> None:
    assert why in refusal(body)


def test_a_mended_call_may_not_have_arguments_that_nobody_knows() -> None:
    """Where a quotation mark was not escaped, the rest of a text may look like one."""
    body = '{"name": "write_file", "arguments": {"path": "a", "content": "x "y", "z": "w" q"}}'
    assert refusal(body)
    assert 'not valid JSON near "other"' in refusal(
        '{"name": "write_file", "arguments": {"path": "a", "content": "b", "other": 1,}}'
    )


# ---- what may be called ----


def test_the_choice_is_obeyed() -> None:
    body = '{"name": "ping", "arguments": {}}'
    assert refusal(body, choice=ToolChoice("none")) == "No tool may be called in this answer."
    only = ToolChoice("required", ("read_file",))
    assert refusal(body, choice=only) == 'The tool "ping" may not be called now, only "read_file".'
    assert calls(body, choice=ToolChoice("required", ("ping",))) == [("ping", {})]


def test_one_call_an_answer_where_no_more_are_wanted() -> None:
    body = '{"name": "ping", "arguments": {}}'
    one = reader(choice=ToolChoice(parallel=False))
    assert len(one.read(RawCall("json", body * 2, ""))) == 1
    assert one.read(RawCall("json", body, "")) == ()


# ---- XML ----


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ("<function=read_file>\n<parameter=path>\na\n</parameter>\n</function>", {"path": "a"}),
        ("<function=read_file><parameter=path>a</parameter></function>", {"path": "a"}),
        ("<function=read_file>\r\n<parameter=path>\r\na\r\n</parameter>\r\n</function>", {"path": "a"}),
        ("<function=read_file>\n<parameter=path>\na", {"path": "a"}),
        ("<function=read_file>\n<parameter=path>\na\n</function>\n</tool_call>", {"path": "a"}),
        ("<function=read_file>\n<parameter=path>a</function>", {"path": "a"}),
        (
            "<function=read_file>\n<parameter=path>\na\n<parameter=limit>\n5\n</function>",
            {"path": "a", "limit": 5},
        ),
        (
            "<function=ReadFile>\n<parameter=limit>\n 5 \n</parameter>\n"
            "<parameter=path>\n\n a\n\n</parameter>\n</function>",
            {"limit": 5, "path": "\n a\n"},
        ),
        (
            "<function=read_file>\n<parameter=path>\n<parameter=x>1</parameter> </parameter>\n\n</function>",
            {"path": "<parameter=x>1</parameter> "},
        ),
        ('<function="read_file">\n{"path": "a"}\n</function>', {"path": "a"}),
    ],
)
def test_xml_is_read_with_its_slips(body: str, arguments: dict[str, Any]) -> None:
    assert calls(body, "xml") == [("read_file", arguments)]


def test_xml_without_parameters() -> None:
    assert calls("<function=ping>\n</function>", "xml") == [("ping", {})]


def test_values_in_xml_are_typed_by_the_schema() -> None:
    body = '<function=todo>\n<parameter=items>\n[{"t": "a", "n": 1},]\n</parameter>\n</function>'
    assert calls(body, "xml") == [("todo", {"items": [{"t": "a", "n": 1}]})]
    content = '{\n  "a": 1\n}\n'
    path = "<parameter=path>\n5\n</parameter>"
    body = f"<function=write_file>\n{path}\n<parameter=content>\n{content}\n</parameter>\n</function>"
    assert calls(body, "xml") == [("mcp__fs__write_file", {"path": "5", "content": content})]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("<function", "does not name its tool"),
        ("<function=nothing>\n</function>", "There is no tool"),
        ("<function=read_file>\n</function>", "path is missing"),
        (
            "<function=read_file>\n<parameter=path>\na\n</parameter>\n<parameter=limit>\nx\n</parameter>\n</function>",
            'limit must be a whole number, not "x"',
        ),
    ],
)
def test_what_cannot_be_used_in_xml_is_told(body: str, why: str) -> None:
    assert why in refusal(body, "xml")


# ---- all that is written is read back ----


def sieved(text: str, *tools: Tool) -> Iterator[RawCall]:
    sieve = ToolSieve([tool.name for tool in tools])
    pieces = [*sieve.push(text), *sieve.finish()]
    assert not [piece for piece in pieces if not isinstance(piece, RawCall)]
    return (piece for piece in pieces if isinstance(piece, RawCall))


@given(fitting(objects(any_of_them())), st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_call_told_in_the_history_is_one_the_model_could_have_written(
    case: tuple[dict[str, Any], Any], fenced: bool
) -> None:
    schema, value = case
    tool = Tool("do_it", "", schema)
    said = Message("assistant", "", calls=(ToolCall("c", "do_it", compact(value)),) * 2)
    (told,) = as_text([said], fenced=fenced)
    read = reader(tool)
    found = [call for raw in sieved(told.text, tool) for call in read.read(raw)]
    assert [(call.name, call.arguments) for call in found] == [("do_it", compact(value))] * 2


TEXTS = st.text().filter(
    lambda text: not any(mark in text for mark in ("<param", "</param", "</func", "</tool"))
)


@given(fitting(objects(scalars(TEXTS) | arrays(scalars(TEXTS)))))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_call_in_xml_is_read_back(case: tuple[dict[str, Any], Any]) -> None:
    schema, value = case
    parameters = (
        f"<parameter={name}>\n{each if isinstance(each, str) else json.dumps(each)}\n</parameter>\n"
        for name, each in value.items()
    )
    body = f"<function=do_it>\n{''.join(parameters)}</function>"
    assert calls_of(Tool("do_it", "", schema), RawCall("xml", body, body)) == [("do_it", value)]


def calls_of(tool: Tool, raw: RawCall) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in reader(tool).read(raw)]


@given(fitting(objects(any_of_them())), JSON, st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_given_out_fits_its_schema(case: tuple[dict[str, Any], Any], other: Any, mixes: bool) -> None:
    schema, value = case
    arguments = {**value, **dict.fromkeys(list(value)[:1], other)} if mixes else other
    body = json.dumps({"name": "do_it", "arguments": arguments})
    try:
        found = calls_of(Tool("do_it", "", schema), RawCall("json", body, body))
    except BadCall as exc:
        problem = str(exc)
    else:
        assert all(Draft202012Validator(schema).is_valid(given) for _, given in found)
        return
    assert problem.endswith(".")
    problem.encode()


PIECES = st.sampled_from(
    [
        *(
            '{"name": "read_file", "arguments": ',
            '{"path": "a"}',
            "}",
            "{",
            "[",
            "]",
            '"',
            ":",
            ",",
            "\\",
            "\n",
        ),
        *(
            "<function=read_file>",
            "<parameter=path>",
            "</parameter>",
            "</function>",
            "</tool_call>",
            "5",
            "NaN",
        ),
        *("1e999", "\ud800", "\\ud800", "[" * 200, "9" * 5000, "'", "`", "//", "null", "read_file"),
    ]
)


AROUND = st.sampled_from(
    [
        ("", ""),
        ('{"name": "write_file", "arguments": {"path": "a", "content": "', '"}}'),
        ('{"name": "ping", "arguments": ', "}"),
        ("<function=write_file>\n<parameter=path>\n", "\n</parameter>\n<parameter=content>a"),
    ]
)


@given(
    st.tuples(AROUND, st.lists(PIECES | st.text(max_size=5), max_size=12)).map(
        lambda each: "".join([each[0][0], *each[1], each[0][1]])
    ),
    st.sampled_from(["json", "xml"]),
)
@settings(max_examples=300, deadline=None)
def test_no_text_raises_anything_else_and_what_comes_out_can_be_sent(
    body: str, form: Literal["json", "xml"]
) -> None:
    try:
        found = reader().read(RawCall(form, body, body))
    except BadCall as exc:
        found = ()
        str(exc).encode()
    for call in found:
        assert isinstance(json.loads(call.arguments.encode()), dict)


@pytest.mark.parametrize(
    "unit",
    [
        "<parameter=path>",
        "<parameter=x>\n",
        "</parameter>",
        "</function>",
        " ",
        "<parameter=",
        "{",
        '{"name":',
        "</parameter >\n ",
    ],
)
@pytest.mark.parametrize("form", ["json", "xml"])
def test_a_million_characters_of_garbage_are_read_soon(unit: str, form: Literal["json", "xml"]) -> None:
    body = "<function=read_file>" + unit * (1_000_000 // len(unit))
    with suppress(BadCall):
        calls(body, form)
