"""Where a JSON value in text that is still coming ends, and whether one that begins there is a tool call."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import Final, Literal

from qwenproxy.tool_tags import TAG_BEGINS

WHITE: Final = " \t\r\n"
MOST_HELD: Final = 4000
"""Characters after which an object is no call any more: one that tells its arguments before its name would
else hold back an ordinary answer for as long as that goes on."""
LEAST_HELD: Final = 400

_OUTSIDE: Final = re.compile(r'["{}\[\]]|[^\s\w.,:+-]', re.ASCII)
"""What matters outside of strings: the brackets, strings, and whatever is no JSON."""
_AFTER_STRING: Final = re.compile(r"\S")
_INSIDE: Final = re.compile(r'["\\]')
_INSIDE_WARY: Final = re.compile(rf'["\\]|{TAG_BEGINS}')

Edge = Literal["more", "end", "broken", "tag"]


class JsonEnd:
    """Looks for the end of a value that begins with a bracket. Strings may hold anything, brackets need not
    match in kind; what shows that strings were not told apart rightly makes it "broken"."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escapes = False
        self._after_string = False

    def read(self, text: str, at: int, *, wary: bool = False) -> tuple[Edge, int]:
        """What was come upon, and where: the place after the last bracket, of what is no JSON, or of a `<` in
        a string where `wary`; read on behind that. "more": all of the text is read."""
        while at < len(text):
            if self._escapes:
                self._escapes = False
                at += 1
            elif self._in_string:
                found = (_INSIDE_WARY if wary else _INSIDE).search(text, at)
                if found is None:
                    break
                if found[0] == "<":
                    return "tag", found.start()
                at = found.end()
                self._escapes = found[0] == "\\"
                self._in_string, self._after_string = self._escapes, not self._escapes
            else:
                edge, at = self._outside(text, at)
                if edge != "more":
                    return edge, at
        return "more", len(text)

    def _outside(self, text: str, at: int) -> tuple[Edge, int]:
        found = (_AFTER_STRING if self._after_string else _OUTSIDE).search(text, at)
        if found is None:
            return "more", len(text)
        character = found[0]
        if self._after_string:
            self._after_string = False
            return ("more" if character in ",:}]" else "broken"), found.start()
        if character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            if self._depth == 0:
                return "end", found.end()
        else:
            return "broken", found.start()
        return "more", found.end()


_NAMES: Final = ("name", "tool", "tool_name", "function", "function_name")
_ARGUMENTS: Final = ("arguments", "parameters", "input", "args", "params", "tool_input")
_WRAPPERS: Final = ("tool_calls", "tool_call", "function_call", "calls")
_OTHERS: Final = ("type", "id", "call_id", "index")
_KEYS: Final = (*_NAMES, *_ARGUMENTS, *_WRAPPERS, *_OTHERS)
_TYPES: Final = ("function", "tool_call", "tool_use", "function_call")
_LONGEST_NAME: Final = 128
_LONGEST_WHITE: Final = 200
_IN_NAMES: Final = re.compile(r"[\w.:/-]")

_Reading = Generator[None, str, str]
"""Is sent characters; gives back the one that comes after what it reads, "" where a call has nothing such."""
_Judging = Generator[None, str, bool]


class CallHead:
    """Tells of what begins with `{` or `[` whether it is a call of a known tool, as soon as that is certain.

    It is one when it tells the name of a tool, and arguments, and nothing before them that a call has not.
    A name alone is not enough: `{"name": "Task", …` is the beginning of many an ordinary answer.
    """

    def __init__(self, knows: Callable[[str], bool], most: int = MOST_HELD) -> None:
        """`knows`: whether a name is a tool's; `most`: characters that are read."""
        self._judging = _call(knows)
        self._left = most
        next(self._judging)

    @property
    def gave_up(self) -> bool:
        """Whether so many characters did not tell."""
        return self._left <= 0

    def read(self, text: str) -> bool | None:
        """None: what comes next will tell. Not to be asked again after that."""
        try:
            for character in text[: self._left]:
                self._judging.send(character)
        except StopIteration as verdict:
            return bool(verdict.value)
        self._left -= len(text)
        return False if self.gave_up else None


def _call(knows: Callable[[str], bool]) -> _Judging:
    return (yield from _value(knows, (yield from _solid())))


def _value(knows: Callable[[str], bool], first: str) -> _Judging:
    if first == "[":
        first = yield from _solid()
    return first == "{" and (yield from _object(knows))


def _object(knows: Callable[[str], bool]) -> _Judging:
    named = has_arguments = False
    after = ","
    while after == ",":
        if (yield from _solid()) != '"':
            return False
        key = yield from _one_of(_KEYS)
        if not key or (yield from _solid()) != ":":
            return False
        first = yield from _solid()
        if key in _WRAPPERS or (key == "function" and first == "{"):
            return (yield from _value(knows, first))
        if key in _ARGUMENTS:
            if named:
                return (yield from _is_arguments(first))
            has_arguments = first == "{"
            after = (yield from _rest(first)) if has_arguments else ""
        elif key in _NAMES:
            named = first == '"' and knows((yield from _name()))
            if not named or has_arguments:
                return named
            after = yield from _solid()
        elif key == "type":
            known = first == '"' and (yield from _one_of(_TYPES))
            after = (yield from _solid()) if known else ""
        else:
            after = yield from _rest(first)
    return False


def _is_arguments(first: str) -> _Judging:
    """An object, null, or one of both as text: OpenAI's form."""
    if first == '"':
        return (yield from _solid()) in ("{", '"')
    return first in ("{", "n")


def _solid() -> _Reading:
    """The next character that is not white."""
    for _ in range(_LONGEST_WHITE):
        character = yield
        if character not in WHITE:
            return character
    return ""


def _one_of(words: tuple[str, ...]) -> _Reading:
    """The word up to the closing quote; "" as soon as it is none of these."""
    word = ""
    while any(known.startswith(word) for known in words):
        character = yield
        if character == '"':
            return word if word in words else ""
        word += character
    return ""


def _name() -> _Reading:
    name = ""
    while len(name) <= _LONGEST_NAME:
        character = yield
        if character == '"':
            return name
        if not _IN_NAMES.fullmatch(character):
            break
        name += character
    return ""


def _rest(first: str) -> _Reading:
    """What comes after a value that begins so."""
    if first == '"':
        yield from _string()
        return (yield from _solid())
    if first not in ("{", "["):
        character = first
        while _IN_NAMES.fullmatch(character):
            character = yield
        return (yield from _solid()) if character and character in WHITE else character
    depth = 1
    while depth:
        character = yield
        if character == '"':
            yield from _string()
        depth += (character in "{[") - (character in "}]")
    return (yield from _solid())


def _string() -> Generator[None, str, None]:
    escapes = False
    while (character := (yield)) != '"' or escapes:
        escapes = character == "\\" and not escapes
