"""Tool calls as models write them, read to their end: JSON, or Qwen3-Coder's XML, in text still coming.

What is well-formed may hold anything: a `</tool_call>` in a JSON string or in a parameter's value is a part
of it. What is not (a quote or a brace too few) ends at the first tag that could end it, and what follows is
read anew. That is done once in an answer: from there on, any such tag ends a call at once, so that reading
takes time in proportion to the text whatever a model writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from qwenproxy.held_text import HeldText
from qwenproxy.json_edges import WHITE, JsonEnd
from qwenproxy.tool_tags import TAG_BEGINS, Tag, read_tag


@dataclass(frozen=True, slots=True)
class RawCall:
    """A call as the model wrote it, its markup taken off: JSON text, or the body of Qwen3-Coder's XML."""

    form: Literal["json", "xml"]
    body: str
    """JSON: an object or a list, broken ones too. XML: from `<function=…>` to its end, as written; other
    models' spellings of these tags are put right."""
    written: str
    """All of it as the model wrote it, with markup."""


Wrapper = Literal["tag", "fence", "none"]
_After = Literal["next", "closer", "closed", "done", "other", "broken"]
"""What comes after an object: another one in the same wrapper; what closes something, but not the wrapper;
its end; nothing of it; something else; something that shows the object to be broken."""
Reading: TypeAlias = Generator[None, None, None]
Calls: TypeAlias = Generator[RawCall | None, None, None]

MOST_WHITE: Final = 1000
"""Characters of white space that may part things that belong together."""

_TAG: Final = re.compile(TAG_BEGINS)
_TAG_OR_FENCE: Final = re.compile(rf"{TAG_BEGINS}|\n[ \t]{{0,20}}(?=`|\Z)")
_BLANK: Final = re.compile(f"[{WHITE}]*")
_EXTRA: Final = re.compile(rf"[{WHITE}}}\]]*")
_EXTRA_COMMAS: Final = re.compile(rf"[{WHITE}}}\],;]*")
_WORD: Final = re.compile(r"<?[\w.:/-]{0,128}+ ?[=>]?")
_LABEL: Final = re.compile(
    r"<?(?:(?:tool|function)(?:_?name)?|name|arguments|parameters) ?[:=>]", re.IGNORECASE
)
_FENCE: Final = re.compile(r"`{0,20}+[\w+-]{0,20}+")
_NAMED: Final = re.compile(r'[\[{\s]*"(?:name|tool|tool_name|function|function_name|type|tool_calls)"')
_NAME_FIRST: Final = re.compile(r"<?([\w.:/-]*\w)>?\s*[:(]?\s*(\{.*\})\s*\)?\s*(?:</\1>)?", re.DOTALL)
_OTHER_FUNCTION: Final = re.compile(r"<(?:function|invoke)\s+name\s*=\s*[\"']([^\"'<>\n]+)[\"'][^<>\n]*>")
_OTHER_PARAMETER: Final = re.compile(r"<parameter\s+name\s*=\s*[\"']([^\"'<>\n]+)[\"'][^<>\n]*>")
_ENDS: Final = frozenset({"close", "function_end", "parameter_end", "result_end", "tools_end"})


class WrittenCalls:
    def __init__(self, held: HeldText, knows: Callable[[str], bool]) -> None:
        """`knows`: whether a name is a tool's."""
        self._held = held
        self._knows = knows
        self._wary = False
        """Whether tags end calls wherever they are."""
        self.fence_closed = False
        """Whether the fence around the last call that had one was closed."""

    # ---- what an opening tag opens ----

    def wrapped(self, name: str) -> Calls:
        """What follows an opening tag, which is taken; `name`: its attribute.

        Nothing is read, and the tag forgotten, if no call begins there: then the tag was only spoken of.
        """
        held = self._held
        while True:
            offset = yield from self._white()
            place = held.at + offset
            first = held.text[place : place + 1]
            if first and first in "{[":
                held.take(place)
                yield from self.object("tag", name)
                return
            tag = (yield from self._tag(offset)) if first == "<" else None
            if tag is not None and tag.kind == "open":
                held.taken()  # what only says the same again
                held.at += offset
                held.take(tag.end)
                name = tag.name or name
            elif first == "`" and (yield from self._starts_with("```", offset)):
                yield from self._fence(offset)
            else:
                yield from self._odd(offset, tag)
                return

    def _odd(self, offset: int, tag: Tag | None) -> Calls:
        held = self._held
        if tag is not None and tag.kind == "function":
            held.take(held.at + offset)
            yield from self.function(tag)
        elif tag is not None and tag.kind in _ENDS:
            held.take(tag.end)
            held.taken()
        elif (tag is None or tag.kind == "plain") and (yield from self._looks_called(offset)):
            held.take(held.at + offset)
            yield from self._textual("tag", held.taken_length)
        else:
            held.taken()

    def _looks_called(self, offset: int) -> Generator[None, None, bool]:
        """Whether it begins as broken calls do: with a tool's name, with a quote, or telling a name."""
        held = self._held
        while True:
            place = held.at + offset
            if held.text[place : place + 1] in {'"', "'"}:
                return True
            word = held.ahead(_WORD, offset)
            if place + len(word) < len(held.text) or not (yield from held.more()):
                return _LABEL.fullmatch(word.rstrip()) is not None or self._knows(word.strip("<.:/- =>"))

    def _fence(self, offset: int) -> Reading:
        """Takes the beginning of a fence within the tags."""
        held = self._held
        while True:
            end = held.at + offset + len(held.ahead(_FENCE, offset))
            if end < len(held.text) or not (yield from held.more()):
                held.take(end)
                return

    # ---- JSON ----

    def object(self, wrapper: Wrapper, name: str = "") -> Calls:
        """The call, or calls, that begin here with a bracket. `name`: of the tool, if it stands before."""
        held = self._held
        while True:
            start = held.taken_length
            if not (yield from self._to_end()):
                if not self._wary:
                    self._wary = True
                    held.untake(start)
                yield from self._textual(wrapper, start, name)
                return
            end = held.taken_length
            after = yield from self._after_object(wrapper)
            if after == "broken":
                yield from self._textual(wrapper, start, name)
                return
            written = held.taken()
            yield RawCall("json", _with_name(written[start:end].strip(), name), written)
            if after != "next":
                return

    def _to_end(self) -> Generator[None, None, bool]:
        """Takes a value. False: there is none; a part of it may be taken."""
        held, scan = self._held, JsonEnd()
        place = held.at
        while True:
            edge, place = scan.read(held.text, place, wary=self._wary)
            if edge == "tag":
                held.take(place)
                tag = yield from self._tag(0)
                if _parts(tag):
                    return False
                place = held.at + 1
                continue
            held.take(place)
            if edge != "more":
                return edge == "end"
            if not (yield from held.more()):
                return False
            place = held.at

    def _after_object(self, wrapper: Wrapper) -> Generator[None, None, _After]:
        """Takes what closes a call."""
        held = self._held
        extra = _EXTRA if wrapper == "none" else _EXTRA_COMMAS
        offset, is_new_line = 0, False
        while True:
            new = held.ahead(extra, offset)[: MOST_WHITE + 1 - offset]
            offset += len(new)
            is_new_line = is_new_line or "\n" in new
            if held.at + offset == len(held.text) and offset <= MOST_WHITE and (yield from held.more()):
                continue
            after = "done" if offset > MOST_WHITE else (yield from self._closer(wrapper, offset))
            if after == "closer":
                offset = 0
            elif after == "other":
                return "broken" if wrapper == "tag" and not is_new_line else self._without_closer(offset)
            elif after == "done":
                return self._without_closer(offset)
            else:
                return after

    def _without_closer(self, offset: int) -> _After:
        """Brackets too many go with the call, white space does not."""
        held = self._held
        held.take(held.at + len(held.text[held.at : held.at + offset].rstrip(WHITE)))
        return "done"

    def _closer(self, wrapper: Wrapper, offset: int) -> Generator[None, None, _After]:
        """Takes what is there if it closes something."""
        held = self._held
        first = held.text[held.at + offset : held.at + offset + 1]
        if first == "<":
            tag = yield from self._tag(offset)
            if tag is not None and tag.kind in _ENDS:
                held.take(tag.end)
                return "closed" if tag.kind in ("close", "tools_end") else "closer"
            return "done" if _parts(tag) else "other"
        if first == "{" and wrapper != "none":
            held.take(held.at + offset)
            return "next"
        if first == "`" and wrapper != "none" and (yield from self._starts_with("```", offset)):
            held.take(held.at + offset + 3)
            self.fence_closed = True
            return "closed" if wrapper == "fence" else "closer"
        return "done" if first in ("", "`") else "other"

    # ---- what is broken ----

    def _textual(self, wrapper: Wrapper, start: int, name: str = "") -> Calls:
        """Ends at the first tag, or where its fence ends."""
        held = self._held
        end = yield from self._to_tag(_TAG_OR_FENCE if wrapper == "fence" else _TAG)
        length = held.taken_length - start
        held.take(end)
        written = held.taken()
        body = written[start : start + length].strip().removesuffix("```").rstrip()
        yield RawCall("json", _with_name(self._name_first(body), name), written)

    def _to_tag(self, pattern: re.Pattern[str]) -> Generator[None, None, int]:
        """Takes what is before the tag or the end of the fence; where that ends if it closes the call."""
        held = self._held
        while True:
            found = pattern.search(held.text, held.at)
            held.take(found.start() if found else len(held.text))
            if found is None or (found[0] != "<" and found.end() == len(held.text)):
                if not (yield from held.more()):
                    return len(held.text)
            elif found[0] == "<":
                tag = yield from self._tag(0)
                if tag is not None and _parts(tag):
                    return tag.end if tag.kind in _ENDS else held.at
                held.take(held.at + 1)
            else:
                blank = len(found[0])
                if (yield from self._starts_with("```", blank)):
                    self.fence_closed = True
                    return held.at + blank + 3
                held.take(held.at + blank)

    def _name_first(self, body: str) -> str:
        """`read_file {"path": …}` and `read_file({"path": …})` as other calls are."""
        found = _NAME_FIRST.fullmatch(body)
        return _with_name(found[2], found[1]) if found and self._knows(found[1]) else body

    # ---- XML ----

    def function(self, tag: Tag) -> Calls:
        """The call that begins here with that tag."""
        held = self._held
        start = held.taken_length
        length = tag.end - held.at
        held.take(tag.end)
        if not (yield from self._to_function_end()) and not self._wary:
            self._wary = True
            held.untake(start)
            held.take(held.at + length)
            yield from self._to_function_end()
        end = held.taken_length
        yield from self._after_function()
        written = held.taken()
        yield RawCall("xml", _as_coder_xml(written[start:end]), written)

    def _to_function_end(self) -> Generator[None, None, bool]:
        """Takes the rest of it; False: there is no end that is certain."""
        held = self._held
        depth = 0
        place = held.at
        while True:
            found = _TAG.search(held.text, place)
            held.take(found.start() if found else len(held.text))
            if found is None:
                if not (yield from held.more()):
                    return depth == 0 or self._wary
            else:
                tag = yield from self._tag(0)
                kind = "" if tag is None else tag.kind
                depth = max(0, depth + (kind == "parameter") - (kind == "parameter_end"))
                if tag is not None and (depth == 0 or self._wary):
                    if kind == "function_end":
                        held.take(tag.end)
                        return True
                    if kind == "function" or _parts(tag):
                        return True
                held.take(tag.end if tag is not None else held.at + 1)
            place = held.at

    def _after_function(self) -> Reading:
        """Takes the tags that close a call."""
        held = self._held
        while True:
            offset = yield from self._white()
            if held.text[held.at + offset : held.at + offset + 1] != "<":
                return
            tag = yield from self._tag(offset)
            if tag is None or tag.kind not in _ENDS:
                return
            held.take(tag.end)
            if tag.kind == "close":
                return

    # ---- looking ahead ----

    def _white(self) -> Generator[None, None, int]:
        """How much white space there is."""
        held, offset = self._held, 0
        while True:
            offset += len(held.ahead(_BLANK, offset))
            if offset > MOST_WHITE or held.at + offset < len(held.text) or not (yield from held.more()):
                return min(offset, MOST_WHITE + 1)

    def _tag(self, offset: int) -> Generator[None, None, Tag | None]:
        held = self._held
        while True:
            tag = read_tag(held.text, held.at + offset, ended=held.ended)
            if tag is None or tag.kind != "unfinished":
                return tag
            yield from held.more()

    def _starts_with(self, word: str, offset: int) -> Generator[None, None, bool]:
        held = self._held
        while True:
            text = held.text[held.at + offset : held.at + offset + len(word)]
            if len(text) == len(word) or not word.startswith(text) or not (yield from held.more()):
                return text == word


def _parts(tag: Tag | None) -> bool:
    """Whether it ends a call whose own end is missing."""
    if tag is None or not tag.sure:
        return False
    return tag.kind in ("open", "close", "result", "result_end", "function")


def _with_name(arguments: str, name: str) -> str:
    if not name or _NAMED.match(arguments):
        return arguments
    return f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'


def _as_coder_xml(body: str) -> str:
    if "<parameter=" not in body:
        body = _OTHER_PARAMETER.sub(r"<parameter=\1>", body)
    if _OTHER_FUNCTION.match(body):
        body = _OTHER_FUNCTION.sub(r"<function=\1>", body, count=1)
        body = re.sub(r"</invoke\s*>\s*$", "</function>", body)
    return body
