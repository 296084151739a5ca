"""Parts a model's answer into text and the tool calls written in it, piece by piece as it comes.

What is read as a call:

- `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, several objects or a list in it too, and the slips
  that `tool_tags.py` lists; Qwen3-Coder's `<function=…>` with or without that around it.
- JSON in a fence, or bare at the beginning of a line or after a colon, if it is a call of one of the client's
  tools: its name (in any spelling, with or without a prefix such as `mcp__server__`) and its
  arguments are told first. Any other object is text, and so are the objects in it.

Markup is never text, in code neither: a call in a fence is a call, and takes the fence with it; a tag that is
only spoken of is left out. Where a model only names a thing alike (`List<ToolCall>`, XML of somebody else),
what follows tells. A `<tool_response>` at the beginning of a line is a result the model made up: it goes.

White space around markup parts it from text and is no text itself. Where markup stood between two texts, as
many line breaks stay between them as were on that side that had more, or else the blanks; at the beginning
and at the end of the answer nothing does.

Not read: Qwen-Agent's `✿FUNCTION✿` (a prompt's notation that we never use), ReAct's `Action:` lines.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from qwenproxy.held_text import HeldText
from qwenproxy.json_edges import LEAST_HELD, MOST_HELD, WHITE, CallHead
from qwenproxy.tool_names import known_by
from qwenproxy.tool_tags import TAG_BEGINS, Tag, beginning, read_tag
from qwenproxy.written_calls import MOST_WHITE, Wrapper, WrittenCalls
from qwenproxy.written_calls import RawCall as RawCall


@dataclass(frozen=True, slots=True)
class NoSuchTool:
    """The service took a call for one of its own and has no such tool (protocol §5.5)."""

    name: str


Piece: TypeAlias = str | RawCall | NoSuchTool
_Pieces: TypeAlias = Generator[Piece | None, None, None]
_Place: TypeAlias = Generator[Piece | None, None, int]
"""Gives back how far after `at` the search goes on."""

_MARKS: Final = rf"{TAG_BEGINS}|`|T(?=ool |\Z|o\Z|oo\Z|ool\Z)"
_WITH_OBJECTS: Final = re.compile(rf'{_MARKS}|\{{(?=\s{{0,200}}(?:"|\Z))|\[(?=\s{{0,200}}(?:\{{|\Z))')
_WITHOUT_OBJECTS: Final = re.compile(rf"{_MARKS}|\n[ \t\r]*\n")
"""After an object that is no call, until an empty line: what is in it is none either."""

_NO_SUCH: Final = (*"Tool ", r"([\w.:/-]{1,128}+)", *" does not exist", "s?+", r"\.")
_NO_SUCH_TOOL: Final = re.compile("".join(_NO_SUCH))
_NO_SUCH_BEGINS: Final = re.compile(beginning(*_NO_SUCH))
_NO_SUCH_CUT: Final = re.compile("".join(_NO_SUCH[:-1]) + r"\Z")

_CALL_BEGINS: Final = re.compile(r'\s{0,200}+(?:\{\s{0,200}+"|\[\s{0,200}+\{|<function\s?=)')
_OBJECT_BEGINS: Final = re.compile(r'\{\s{0,200}"|\[\s{0,200}\{')
_CALL_MAY_BEGIN: Final = re.compile(
    r"\s{0,200}+(?:\Z|[{\[]\s{0,200}+\Z|<" + beginning(*"function", r"\s?+", "=") + ")"
)

_MOST_BACKTICKS: Final = 20
_BACKTICKS: Final = re.compile(f"`{{1,{_MOST_BACKTICKS}}}+")
_FENCE: Final = re.compile(r"`{3,}+([\w+-]{0,20}+)(\s{0,200}+)")
_LANGUAGES: Final = (
    *("", "json", "jsonc", "json5", "xml", "text", "txt", "plaintext"),
    *("tool", "tools", "tool_call", "tool_calls", "tool_code", "function", "function_call"),
)


class ToolSieve:
    """`push` the text as it comes, then `finish`; both are generators: nothing happens until they are read.

    However the text is cut, the same comes out, texts that follow each other joined. Text is held back only
    while it may be the beginning of markup, or white space before it.
    """

    def __init__(self, names: Collection[str]) -> None:
        """`names`: of the client's tools."""
        self._held = HeldText()
        self._knows = known_by(names)
        self._calls = WrittenCalls(self._held, self._knows)
        self._pieces = self._run()
        self._said = False
        """Whether any text has been given out."""
        self._last = ""
        """Its last character; "" after markup and in the beginning."""
        self._parted = False
        """Whether markup was the last thing read."""
        self._white = ""
        """What was between that and the text before."""
        self._white_given = 0
        """How much of the white space that is being read has been given out."""
        self._takes_objects = True
        self._most_held = MOST_HELD
        """Characters of an object that are read before it is text."""
        self._plain_words: set[str] = set()
        """Tags that are text in this answer: so are their ends."""
        self._fence = 0
        """Backticks of the fence that the text is in; 0: it is in none."""
        self._open_fence = False
        """Whether the end of a fence that was left out is still to come."""
        next(self._pieces)

    def push(self, text: str) -> Iterator[Piece]:
        if text:
            self._held.add(text)
            yield from self._until_more()

    def finish(self) -> Iterator[Piece]:
        self._held.ended = True
        yield from self._until_more()

    def _until_more(self) -> Iterator[Piece]:
        for piece in self._pieces:
            if piece is None:
                return
            yield piece

    def _run(self) -> _Pieces:
        held = self._held
        yield from held.more()
        offset = 0
        while True:
            pattern = _WITH_OBJECTS if self._takes_objects else _WITHOUT_OBJECTS
            found = pattern.search(held.text, held.at + offset)
            if found is not None:
                offset = yield from self._look(found)
                continue
            offset = 0
            yield from self._say(len(held.text))
            if not (yield from held.more()):
                break
        if not self._parted and held.at < len(held.text):
            yield held.text[held.at :]

    def _look(self, found: re.Match[str]) -> _Place:
        """Reads the markup that may begin here."""
        place, first = found.start(), found[0]
        if first == "<":
            return (yield from self._tag(place))
        if first in ("{", "["):
            if self._fence or not self._object_may_begin(place):
                return place + 1 - self._held.at
            return (yield from self._object(place))
        if first == "T":
            return (yield from self._no_such_tool(place))
        if first == "`":
            return (yield from self._backticks(place))
        self._takes_objects = True
        return place + 1 - self._held.at

    # ---- where in the text ----

    def _before(self, place: int) -> tuple[str, int]:
        """The last character before it that is not blank, and how many blanks there are between."""
        held, at = self._held, place
        while at > held.at and held.text[at - 1] in " \t":
            at -= 1
        return (held.text[at - 1] if at > held.at else self._last), place - at

    def _begins_line(self, place: int) -> bool:
        return self._before(place)[0] in ("", "\n", "\r")

    def _object_may_begin(self, place: int) -> bool:
        before, blanks = self._before(place)
        return before in ("", "\n", "\r") or (before in ":：" and blanks > 0)

    def _is_glued(self, place: int) -> bool:
        before, blanks = self._before(place)
        return not blanks and (before.isalnum() or before == "_")

    # ---- giving out ----

    def _say(self, until: int) -> _Pieces:
        """Gives out the text up to there but for the white space it ends with."""
        held = self._held
        chunk = held.text[held.at : until]
        if solid := chunk.rstrip(WHITE):
            held.at += len(solid)
            self._last = solid[-1]
            text = self._parted_text(solid) if self._parted else solid
            self._said, self._parted, self._white_given = True, False, 0
            yield text
        white = until - held.at
        if white + self._white_given <= MOST_WHITE:
            return
        if self._parted:
            if until == len(held.text):
                held.text = held.text[: held.at + MOST_WHITE]
            return
        line = held.text.rfind("\n", held.at, until)
        kept_from = line if line >= 0 and until - line <= MOST_WHITE else until
        if kept_from > held.at:
            text = held.text[held.at : kept_from]
            held.at = kept_from
            self._white_given += len(text)
            self._said = True
            if "\n" in text:
                self._last = "\n"
            yield text

    def _parted_text(self, text: str) -> str:
        bare = text.lstrip(WHITE)
        if not self._said:
            return bare
        return _between(self._white, text[: len(text) - len(bare)][:MOST_WHITE], bare) + bare

    def _part(self, place: int) -> _Pieces:
        """Ends the text before the markup that begins there."""
        yield from self._say(place)
        held = self._held
        white = held.text[held.at : place]
        if not self._parted or white.count("\n") > self._white.count("\n"):
            self._white = white
        held.at = place
        self._parted, self._last, self._white_given = True, "", 0
        self._takes_objects = True

    def _wait(self, place: int) -> _Place:
        """Gives out what is before, and waits for what comes behind."""
        yield from self._say(place)
        offset = place - self._held.at
        yield from self._held.more()
        return offset

    # ---- tags ----

    def _tag(self, place: int) -> _Place:
        held = self._held
        tag = read_tag(held.text, place, ended=held.ended)
        if tag is None:
            return place + 1 - held.at
        match tag.kind:
            case "unfinished":
                return (yield from self._wait(place))
            case "open":
                return (yield from self._open(place, tag))
            case "tools":
                return (yield from self._object(place, tag.end - place, "tag"))
            case "function" if tag.sure or self._knows(tag.name):
                yield from self._part(place)
                yield from self._calls.function(tag)
                return 0
            case "function" | "parameter" | "plain" if tag.kind != "parameter" or not tag.sure:
                self._plain_words.add(tag.word)
            case "tools_end":
                pass
            case _ if tag.sure and tag.word not in self._plain_words:
                yield from self._leave_out(place, tag)
                return 0
        return place + 1 - held.at

    def _leave_out(self, place: int, tag: Tag) -> _Pieces:
        is_result = tag.kind == "result" and self._begins_line(place)
        yield from self._part(place)
        self._held.at = tag.end
        if is_result:
            yield from self._result()

    def _result(self) -> _Pieces:
        """Leaves out what a model makes up to be a tool's result."""
        held = self._held
        while True:
            place = held.text.find("<", held.at)
            held.at = place if place >= 0 else len(held.text)
            tag = read_tag(held.text, held.at, ended=held.ended)
            if tag is not None and tag.kind == "open" and tag.sure:
                return
            if tag is not None and tag.kind == "result_end":
                held.at = tag.end
                return
            if place < 0 or (tag is not None and tag.kind == "unfinished"):
                if not (yield from held.more()):
                    return
            else:
                held.at += 1

    def _open(self, place: int, tag: Tag) -> _Place:
        held = self._held
        if not tag.sure or self._is_glued(place):
            length = tag.end - place
            yield from self._say(place)
            offset = place - held.at
            while not _CALL_BEGINS.match(held.text, held.at + offset + length):
                may_begin = _CALL_MAY_BEGIN.match(held.text, held.at + offset + length)
                if not may_begin or not (yield from held.more()):
                    return offset + 1
            place = held.at + offset
            tag = Tag(tag.kind, place + length, tag.name)
        yield from self._part(place)
        held.take(tag.end)
        yield from self._calls.wrapped(tag.name)
        return 0

    # ---- JSON without Qwen's tags ----

    def _object(self, place: int, before: int = 0, wrapper: Wrapper = "none") -> _Place:
        """What begins at `place` with so many characters of another wrapper; 0: it was a call."""
        held = self._held
        yield from self._say(place)
        offset = place - held.at
        if not (yield from self._is_object(offset + before)):
            if _OBJECT_BEGINS.match(held.text, held.at + offset):
                self._takes_objects = False
            return offset + 1
        yield from self._part(held.at + offset)
        held.take(held.at + before)
        self._calls.fence_closed = False
        yield from self._calls.object(wrapper)
        self._open_fence = wrapper == "fence" and not self._calls.fence_closed
        return 0

    def _is_object(self, offset: int) -> Generator[None, None, bool]:
        held = self._held
        head = CallHead(self._knows, self._most_held)
        while True:
            new = held.text[held.at + offset : held.at + offset + self._most_held]
            offset += len(new)
            verdict = head.read(new)
            if verdict is None and (yield from held.more()):
                continue
            if head.gave_up:
                # What has held back an ordinary answer for nothing holds back less the next time.
                self._most_held = max(self._most_held // 2, LEAST_HELD)
            return bool(verdict)

    # ---- fences ----

    def _backticks(self, place: int) -> _Place:
        held = self._held
        count = len(held.ahead(_BACKTICKS, place - held.at))
        end = place + count
        if count == _MOST_BACKTICKS or not self._begins_line(place):
            return end - held.at
        if end == len(held.text) and not held.ended and not 0 < self._fence <= count:
            return (yield from self._wait(place))
        if count < max(3, self._fence):
            return end - held.at
        if self._fence:
            self._fence = 0
            return end - held.at
        if self._open_fence:
            self._open_fence = False
            if not held.text[end : end + 1].isalpha():
                yield from self._part(place)
                held.at = end
                return 0
        return (yield from self._fence_begins(place, count))

    def _fence_begins(self, place: int, count: int) -> _Place:
        """Leaves the fence out if a call begins in it."""
        held = self._held
        length = len(held.ahead(_FENCE, place - held.at))
        fence = held.text[place : place + length]
        language = fence.strip().lstrip("`").lower()
        first = held.text[place + length : place + length + 1]
        if not first and not held.ended and self._may_call(language, is_whole=fence[-1].isspace()):
            return (yield from self._wait(place))
        if first and language in _LANGUAGES:
            if first in "{[":
                offset = yield from self._object(place, length, "fence")
                if not offset:
                    return 0
                place = held.at + offset - 1
            elif first == "<":
                tag = read_tag(held.text, place + length, ended=held.ended)
                if tag is not None and tag.kind == "unfinished":
                    return (yield from self._wait(place))
                if tag is not None and self._is_call(tag):
                    yield from self._part(place)
                    held.at += length
                    self._open_fence = True
                    return 0
        self._fence = count
        return place + count - held.at

    def _is_call(self, tag: Tag) -> bool:
        return tag.kind in ("open", "result", "function") and (tag.sure or self._knows(tag.name))

    @staticmethod
    def _may_call(language: str, *, is_whole: bool) -> bool:
        if is_whole:
            return language in _LANGUAGES
        return any(known.startswith(language) for known in _LANGUAGES)

    # ---- the service's own words ----

    def _no_such_tool(self, place: int) -> _Place:
        held = self._held
        if self._fence or not self._begins_line(place):
            return place + 1 - held.at
        found = _NO_SUCH_TOOL.match(held.text, place)
        if found is None and held.ended:
            found = _NO_SUCH_CUT.match(held.text, place)
        if found is not None:
            yield from self._part(place)
            held.at = found.end()
            yield NoSuchTool(found[1])
            return 0
        if held.ended or not _NO_SUCH_BEGINS.match(held.text, place):
            return place + 1 - held.at
        return (yield from self._wait(place))


def _between(before: str, after: str, text: str) -> str:
    """What stays of the white space on both sides of markup; `text` comes after it."""
    if "\n" not in before + after:
        return after or (before if text[0].isalnum() else "")
    if after.count("\n") >= before.count("\n"):
        return after
    # A call's own indentation goes, the text's stays.
    return before[: before.rindex("\n") + 1] + (after[after.rindex("\n") + 1 :] if "\n" in after else "")
