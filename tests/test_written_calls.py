from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenproxy.held_text import HeldText
from qwenproxy.tool_tags import read_tag
from qwenproxy.written_calls import MOST_WHITE, Calls, RawCall, Wrapper, WrittenCalls

CALL = '{"name": "bash", "arguments": {"command": "ls"}}'
OTHER = '{"name": "bash", "arguments": {"command": "pwd"}}'


class Reading:
    """One reader over pieces of text; `left` is what it did not read."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self.held = HeldText()
        self.calls = WrittenCalls(self.held, lambda name: name == "bash")
        self._pieces = iter(pieces)
        list(self.run(self._start()))

    def _start(self) -> Calls:
        yield from self.held.more()

    def run(self, calls: Calls) -> list[RawCall]:
        read = []
        for call in calls:
            if call is not None:
                read.append(call)
            elif (piece := next(self._pieces, None)) is not None:
                self.held.add(piece)
            else:
                self.held.ended = True
        return read

    @property
    def left(self) -> str:
        return self.held.text[self.held.at :] + "".join(self._pieces)


def both(text: str) -> tuple[Reading, Reading]:
    return Reading([text]), Reading(text)


def objects(text: str, wrapper: Wrapper = "none", name: str = "") -> tuple[list[RawCall], str]:
    whole, cut = ((each.run(each.calls.object(wrapper, name)), each.left) for each in both(text))
    assert whole == cut
    return whole


def wrapped(text: str, name: str = "") -> tuple[list[RawCall], str]:
    whole, cut = ((each.run(each.calls.wrapped(name)), each.left) for each in both(text))
    assert whole == cut
    return whole


def functions(text: str) -> tuple[list[RawCall], str]:
    """Of a text that begins with the tag of one."""
    length = text.index(">") + 1
    results = []
    for pieces in ([text], [text[:length], *text[length:]]):
        reading = Reading(pieces)
        tag = read_tag(reading.held.text, 0)
        assert tag is not None
        results.append((reading.run(reading.calls.function(tag)), reading.left))
    assert results[0] == results[1]
    return results[0]


# ---- JSON ----


@pytest.mark.parametrize(
    ("text", "written", "left"),
    [
        (CALL, CALL, ""),
        (f"{CALL}\n text", CALL, "\n text"),
        (f"{CALL}}}]\n text", f"{CALL}}}]", "\n text"),
        (f"{CALL}, text", CALL, ", text"),
        (f"{CALL}\n{OTHER}", CALL, f"\n{OTHER}"),
        (f"{CALL}\n```", CALL, "\n```"),
        (f"{CALL} <b>", CALL, " <b>"),
        (f"{CALL}</tool_call>x", f"{CALL}</tool_call>", "x"),
    ],
)
def test_a_bare_object_ends_at_its_bracket(text: str, written: str, left: str) -> None:
    assert objects(text) == ([RawCall("json", CALL, written)], left)


@pytest.mark.parametrize(
    ("after", "left"),
    [
        ("\n</tool_call>x", "x"),
        ("</function>\n</parameter>\n</tool_call>x", "x"),
        ("}]\n</tool_call>x", "x"),
        ("\n```\n</tool_call>x", "x"),
        ("\n<tool_call>x", "\n<tool_call>x"),
        ("\n<tool_response>x", "\n<tool_response>x"),
        ("\n<function=bash>", "\n<function=bash>"),
        ("\nx", "\nx"),
        ("`x", "`x"),
        ("\n<b>x", "\n<b>x"),
        ("", ""),
        (" \n", " \n"),
    ],
)
def test_a_wrapped_object_goes_with_what_closes_it(after: str, left: str) -> None:
    (call,), rest = objects(CALL + after, "tag")
    assert (call.body, rest) == (CALL, left)
    assert call.written + rest == CALL + after


@pytest.mark.parametrize("junk", [" // text", '"', " text", "<b>", ")", " = x\ny"])
def test_what_goes_on_behind_an_object_in_tags_is_a_part_of_it(junk: str) -> None:
    (call,), left = objects(f"{CALL}{junk}</tool_call>x", "tag")
    assert (call.body, left) == (CALL + junk, "x")


def test_several_objects_are_several_calls() -> None:
    first, second = RawCall("json", CALL, f"{CALL},\n"), RawCall("json", OTHER, f"{OTHER}</tool_call>")
    assert objects(f"{CALL},\n{OTHER}</tool_call>x", "tag") == ([first, second], "x")


def test_a_name_may_stand_before_the_arguments() -> None:
    body = '{"name": "ba\\"sh", "arguments": {"command": "ls"}}'
    assert objects('{"command": "ls"}', "tag", 'ba"sh')[0][0].body == body
    assert objects(CALL, "tag", "other")[0][0].body == CALL
    assert objects('{"command": "ls"', "tag", 'ba"sh')[0][0].body == body[:-2] + "}"


def test_tags_in_strings_end_nothing_while_the_json_is_sound() -> None:
    sound = '{"name": "bash", "arguments": {"command": "</tool_call><tool_call>"}}'
    assert objects(f"{sound}</tool_call>x", "tag") == ([RawCall("json", sound, f"{sound}</tool_call>")], "x")


def test_the_first_tag_ends_what_is_broken_and_from_then_on_any() -> None:
    broken = '{"name": "bash", "arguments": {"command": "ls}}'
    sound = '{"name": "bash", "arguments": {"command": "<b> </tool_call>"}}'
    for reading in both(f"{broken}</tool_call>\n{sound}</tool_call>"):
        (call,) = reading.run(reading.calls.object("tag"))
        assert call == RawCall("json", broken, f"{broken}</tool_call>")
        (call,) = reading.run(reading.calls.object("tag"))
        assert call.body == sound[: sound.index(" </tool_call>")]
        assert reading.left == '"}}</tool_call>'


@pytest.mark.parametrize("after", ["<tool_call>x", "<tool_response>x", "<function=bash>"])
def test_a_broken_object_ends_before_what_begins_anew(after: str) -> None:
    broken = "{'name': '<b>"
    assert objects(broken + after, "tag") == ([RawCall("json", broken, broken)], after)
    assert objects(broken) == ([RawCall("json", broken, broken)], "")


def test_a_broken_object_ends_with_its_fence() -> None:
    broken = "{'name': '``\n  `\n'"
    for reading in both(f"{broken}\n  ```\nx"):
        (call,) = reading.run(reading.calls.object("fence"))
        assert call == RawCall("json", broken, f"{broken}\n  ```")
        assert reading.left == "\nx"
        assert reading.calls.fence_closed
    assert objects(f"{broken}</tool_call>", "fence")[1] == ""


@pytest.mark.parametrize(("after", "left", "closed"), [("\n```\nx", "\nx", True), ("\nx", "\nx", False)])
def test_a_fence_goes_with_its_call(after: str, left: str, closed: bool) -> None:
    for reading in both(CALL + after):
        (call,) = reading.run(reading.calls.object("fence"))
        assert call.body == CALL
        assert (reading.left, reading.calls.fence_closed) == (left, closed)


def test_white_space_without_end_closes_a_call() -> None:
    white = " \n" * MOST_WHITE
    (call,), left = objects(f"{CALL}{white}</tool_call>", "tag")
    assert (call.written, left) == (CALL, f"{white}</tool_call>")
    assert wrapped(f"{white}{CALL}") == ([], f"{white}{CALL}")


# ---- after an opening tag ----


@pytest.mark.parametrize(
    ("text", "body"),
    [
        (CALL, CALL),
        (f"\n <tool_call>\n{CALL}", CALL),
        (f"```json\n{CALL}\n```\n", CALL),
        (f"```\n{CALL}", CALL),
        ('\n<function_call name="bash">{"command": "ls"}', CALL),
        ('bash\n{"command": "ls"}', CALL),
        ('bash({"command": "ls"})', CALL),
        ('bash: {"command": "ls"}', CALL),
        ('<bash>{"command": "ls"}</bash>', CALL),
        ("bash -c ls", "bash -c ls"),
        ('"name": "bash"}', '"name": "bash"}'),
        ("'bash'", "'bash'"),
        ("bash", "bash"),
        ("name: bash", "name: bash"),
        ("<name>bash</name>", "<name>bash</name>"),
        ("\n<function>bash</function>", "<function>bash</function>"),
        ('tool_name = "bash"', 'tool_name = "bash"'),
    ],
)
def test_calls_follow_in_many_forms(text: str, body: str) -> None:
    (call,), left = wrapped(f"{text}</tool_call>x")
    assert (call.form, call.body, left) == ("json", body, "x")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (" is a tag", " is a tag"),
        ("` is a tag", "` is a tag"),
        ("``x", "``x"),
        ("\n<b>bold</b>", "\n<b>bold</b>"),
        ("\n<functions>x", "\n<functions>x"),
        ("\n<tool_response>x", "\n<tool_response>x"),
        ("<parameter=x>y", "<parameter=x>y"),
        ("\n</tool_call>x", "x"),
        ("\n", "\n"),
        ("", ""),
        (" name", " name"),
        ("\n<names>", "\n<names>"),
        ("other {}</tool_call>", "other {}</tool_call>"),
        ("```\nx", "\nx"),
    ],
)
def test_a_tag_that_is_only_spoken_of_begins_no_call(text: str, left: str) -> None:
    assert wrapped(text) == ([], left)


def test_a_function_may_follow() -> None:
    body = "<function=bash>\n</function>"
    assert wrapped(f"\n{body}\n</tool_call>x") == ([RawCall("xml", body, f"\n{body}\n</tool_call>")], "x")


# ---- XML ----

XML = "<function=bash>\n<parameter=command>\n{}\n</parameter>\n</function>"


@settings(deadline=None)
@given(
    st.text(st.sampled_from("ab <>/\n={}\"'"), max_size=20)
    | st.sampled_from(("</function>", "</tool_call>", "<tool_call>", XML.format("x"), "<b></b>", "a < b"))
)
def test_a_value_may_hold_anything_that_is_paired(value: str) -> None:
    body = XML.format(value)
    assert functions(f"{body}\n</tool_call>x") == ([RawCall("xml", body, f"{body}\n</tool_call>")], "x")


@pytest.mark.parametrize(
    ("inner", "after", "left"),
    [
        ("<parameter=a>\n1\n", "</function>\n</tool_call>x", "x"),
        ("<parameter=a>\n1\n<parameter=b>\n2\n</parameter>\n", "</function></tool_call>x", "x"),
        ("<parameter=a>\n1\n</parameter>\n", "</tool_call>x", "x"),
        ("<parameter=a>\n1\n</parameter>\n", "<tool_call>x", "<tool_call>x"),
        ("<parameter=a>\n1\n</parameter>\n", "<function=bash>x", "<function=bash>x"),
        ("<parameter=a>\n1\n</parameter>\n", "<tool_response>x", "<tool_response>x"),
        ("<parameter=a>\n1\n", "<function=bash><parameter=a>x", "<function=bash><parameter=a>x"),
        ("<parameter=a>\n1\n</parameter></parameter>\n", "</function>\nx", "\nx"),
        ("<parameter=a>\n1\n</parameter>\n", "", ""),
        ("<parameter=a>\n1 </par", "", ""),
        ("", "</function> x", " x"),
        ("", "</function>\n<b>", "\n<b>"),
        ("", "</function>\n</invoke>\n</tool_calls>x", "x"),
    ],
)
def test_ends_may_be_missing(inner: str, after: str, left: str) -> None:
    ((call,), rest) = functions(f"<function=bash>\n{inner}{after}")
    assert call.body == f"<function=bash>\n{inner}" + ("</function>" if after.startswith("</f") else "")
    assert call.form == "xml"
    assert rest == left


def test_once_an_end_was_missing_the_first_one_counts() -> None:
    first, second = XML.format("x").replace("</parameter>\n", ""), XML.format("</function>")
    for reading in (Reading([first + second]), Reading([first[:15], *first[15:], *second])):
        tag = read_tag(reading.held.text, 0)
        assert tag is not None
        assert [call.body for call in reading.run(reading.calls.function(tag))] == [first]
        tag = read_tag(reading.held.text, reading.held.at)
        assert tag is not None
        (call,) = reading.run(reading.calls.function(tag))
        assert call.body == second[: second.index("</function>") + 11]


def test_other_models_spellings_are_put_right() -> None:
    body = XML.format("<b>")
    for name in ("function", "invoke"):
        text = f'<{name} name="bash">\n<parameter name="command" type="x">\n<b>\n</parameter>\n</{name}>'
        assert functions(text)[0] == [RawCall("xml", body, text)]
    mixed = '<function=bash><parameter name="a">1</parameter></function>'
    assert functions(mixed)[0][0].body == "<function=bash><parameter=a>1</parameter></function>"
    kept = XML.format('<parameter name="a">1</parameter>')
    assert functions(kept)[0][0].body == kept
