from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenproxy.tool_tags import TAG_BEGINS, Tag, beginning, read_tag

SURE = {
    "<tool_call>": "open",
    "</tool_call>": "close",
    "<tool_calls>": "open",
    "<toolcall>": "open",
    "<tool-call>": "open",
    "<TOOL_CALL>": "open",
    "<TOOLCALL>": "open",
    "<Tool_Call>": "open",
    "<tool_call >": "open",
    "< tool_call>": "open",
    "< / tool_call >": "close",
    "</ tool_call\n>": "close",
    "<|tool_call|>": "open",
    "<|/tool_call|>": "close",
    "</|tool_call|>": "close",
    "<|tool_call_begin|>": "open",
    "<|tool_calls_start|>": "open",
    "<|tool_call_end|>": "close",
    "<tool_call/>": "open",
    '<tool_call id="1">': "open",
    "<function_call>": "open",
    "</function_calls>": "close",
    "<tool_response>": "result",
    "</tool_response>": "result_end",
    "<tool_results>": "result",
    "<function_result>": "result",
    "</function>": "function_end",
    "</invoke>": "function_end",
    "</parameter>": "parameter_end",
    "</parameter >": "parameter_end",
}
UNSURE = {
    "<ToolCall>": "open",
    "</ToolCall>": "close",
    "<ToolResponse>": "result",
    "<tools>": "tools",
    "</tools>": "tools_end",
}
NAMED = {
    "<function=bash>": ("function", "bash", True),
    '<function="bash">': ("function", "bash", True),
    "<function = bash >": ("function", "bash", True),
    "<function=mcp__a.b:c/d>": ("function", "mcp__a.b:c/d", True),
    "<function=>": ("function", "", True),
    '<function name="bash">': ("function", "bash", False),
    "<function name='bash' id=\"1\">": ("function", "bash", False),
    '<invoke name="bash">': ("function", "bash", False),
    "<parameter=path>": ("parameter", "path", True),
    '<parameter name="path" type="string">': ("parameter", "path", False),
    '<tool_call name="bash">': ("open", "bash", True),
    '<tool_call id="1" name="bash">': ("open", "bash", True),
}
PLAIN = ("<function>", "<function id=1>", "<parameter>", "<invoke method='x'>", "<invoke=bash>", "<function(")
NONE = (
    *("<_", "<>", "< b", "<b>", "<tool>", "<toolbox>", "<functional>", "<tool_call2>", "<tool_call.id>"),
    *("<tool_caller>", "<tool_call_history>", "<parameters>", "<1", "<<tool_call>", "<     tool_call>", "a"),
    *("<function2>", "<tool:call>", f"<{'tool_call' * 9}>", "<!-- tool_call -->", "<im_start>"),
)


@pytest.mark.parametrize("text", [*SURE, *UNSURE])
def test_knows_the_tags_of_calls_and_results(text: str) -> None:
    tag = read_tag(f"x{text}y", 1)
    assert tag is not None
    assert (tag.kind, tag.end) == ({**SURE, **UNSURE}[text], 1 + len(text))
    assert tag.sure == (text in SURE)
    assert tag.word in {"toolcall", "toolcalls"} or text not in list(SURE)[:12]


@pytest.mark.parametrize("text", NAMED)
def test_reads_names(text: str) -> None:
    kind, name, sure = NAMED[text]
    tag = read_tag(text, 0)
    assert tag is not None
    assert (tag.kind, tag.name, tag.sure, tag.end) == (kind, name, sure, len(text))


@pytest.mark.parametrize("text", PLAIN)
def test_tags_alike_are_told_apart(text: str) -> None:
    tag = read_tag(text, 0)
    assert tag is not None
    assert (tag.kind, tag.word) == ("plain", text[1:].split(" ")[0].strip("<>(=bash"))


@pytest.mark.parametrize("text", NONE)
def test_other_text_is_no_tag(text: str) -> None:
    assert read_tag(f"{text} ", 0) is None


@pytest.mark.parametrize("text", [*SURE, *UNSURE, *NAMED])
def test_a_tag_is_unfinished_at_every_cut(text: str) -> None:
    for length in range(1, len(text)):
        tag = read_tag(text[:length], 0)
        assert tag is not None, text[:length]
        assert tag.kind == "unfinished", text[:length]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<tool_c", "close"),
        ("</tool_", "close"),
        ("<tool_call", "close"),
        ('<tool_call id="', "close"),
        ("</tool_call", "close_cut"),
        ("<function=", "close"),
        ("<function=ba", "close"),
        ("<function = ba", "close"),
        ("<parameter=p", "close"),
        ("<function", "plain"),
        ("<function ", "plain"),
        ("<function name", "plain"),
        ("<invoke nam", "plain"),
        ("<tool", None),
        ("<", None),
        ("</", None),
        ("<to", None),
        ("</func", None),
        ("< x", None),
    ],
)
def test_what_the_end_of_an_answer_cuts_is_markup_where_it_can_be_nothing_else(
    text: str, kind: str | None
) -> None:
    tag = read_tag(text, 0, ended=True)
    assert (tag and tag.kind) == (kind and kind.removesuffix("_cut"))
    if kind == "close":
        assert tag is not None
        assert tag.end == len(text)


@pytest.mark.parametrize(
    ("text", "kind", "end"),
    [
        ('<tool_call{"a"', "open", 10),
        ("<tool_call\n\n\n\n\n\n\n\n\n{", "open", 10),
        ("</tool_call<", "close", 11),
        ("</function\nx", "function_end", 10),
        ("<tool_call a b>", "open", 10),
        ("<function=bash\n<p", "function", 14),
        ('<function=bash{"a"', "function", 14),
    ],
)
def test_an_end_may_be_missing(text: str, kind: str, end: int) -> None:
    tag = read_tag(text, 0)
    assert tag is not None
    assert (tag.kind, tag.end) == (kind, end)


def test_names_and_blanks_have_their_limits() -> None:
    assert read_tag(f"<function={'x' * 128}>", 0) == Tag("function", 139, "x" * 128, word="function")
    for text in (f"<function={'x' * 300}", f'<function name="{"x" * 300}', "<function" + " " * 300):
        tag = read_tag(text, 0)
        assert tag is not None
        assert tag.kind == "plain"


@settings(deadline=None)
@given(st.text(st.sampled_from("<|/ toolcalfunin=\"'_->\n{PT"), max_size=30), st.integers(0, 30))
def test_what_is_decided_stays_so_whatever_comes(text: str, length: int) -> None:
    for place in [found.start() for found in re.finditer("<", text[:length])]:
        early, late = read_tag(text[:length], place), read_tag(text, place)
        assert early == late or (early is not None and early.kind == "unfinished")


@settings(deadline=None)
@given(st.text(st.sampled_from("<|/ toolcalfunin=\"'_->\n{PT"), max_size=30))
def test_the_quick_look_finds_every_tag(text: str) -> None:
    quick = {found.start() for found in re.finditer(TAG_BEGINS, text)}
    assert {place for place in range(len(text)) if read_tag(text, place) is not None} <= quick


def test_the_beginning_of_a_pattern() -> None:
    pattern = re.compile(beginning("a", "[bc]{1,2}+", "d"))
    assert [bool(pattern.match(text)) for text in ("", "a", "ab", "abc", "abcd", "abcb", "b", "ad")] == [
        *(True, True, True, True, True, False, False, False)
    ]
