"""JSON as models write it: read strictly, else mended; and written compactly.

`json_repair` mends, but it is not let near sound texts, nor left alone with others (tried, 0.64, November
2026): it takes the last line break off a text, splits texts at commas, drops one of two calls, and needs time
in the square of some garbage, 5.6 s for 8,000 characters. So each text that ends where it seems to is
replaced by a mark before, and whatever had to be mended must hold all that was written. What breaks off
within a text is not mended at all: half a file written is worse than a call repeated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import count, islice
from types import MappingProxyType
from typing import Any, Final, SupportsIndex

from json_repair import repair_json

MOST_CHARACTERS: Final = 2_000_000
"""Of a text that is read at all; the longest answers of the service have a tenth of that."""
MOST_DEPTH: Final = 64
"""Objects and lists within each other, so that whatever walks a value may do so by recursion."""
MOST_MENDED: Final = 100_000
"""Characters; texts that end where they seem to do not count."""
MOST_TEXTS: Final = 10_000
MOST_NAMES: Final = 200
"""Different ones, where quotation marks are bare."""
LOOKS: Final = 50_000
LOOKS_PER_CHARACTER: Final = 4
"""How often `json_repair` may look at a text; whole programs with their quotation marks bare took 2.8 a
character, garbage takes thousands. 100,000 looks are some 0.2 s."""

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_BETWEEN: Final = re.compile(r"[\s,;]*")
_LEFT_OVER: Final = re.compile(r"[^\"{\[:]*")
_STRING: Final = re.compile(
    r""""[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|(\\?\Z))|"""
    r"""(?<![^\s{\[(,:])'[^'\\]*+(?:\\.[^'\\]*+)*+(?:'(?![^\s}\]),:])|(\\?\Z))""",
    re.DOTALL,
)
"""A text, with a group where it has no end; single quotation marks count where a value may begin and end."""
_MARK: Final = "\ue000"
"""Where a text was."""
_BARE: Final = re.compile(
    f"{_MARK}(?:{_MARK}|\\s*[^\\s{{}}\\[\\](),:#/{_MARK}])|[^\\s{{}}\\[\\](),:/{_MARK}]\\s*{_MARK}"
)
"""A word, or another text, directly beside a text: that had a quotation mark within."""
_NO_JSON: Final = frozenset({"nan", "infinity", "-infinity", "+infinity", "undefined"})
_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|.)|(\")", re.DOTALL)
_MARKED: Final = re.compile("\ue000([0-9]+)")
_WORDS: Final = re.compile(r"[^\W_]")
_STAND_INS: Final[Mapping[str, str]] = MappingProxyType(
    dict(zip("\\/bfnrt", "\ue001\ue002\ue003\ue004\ue005\ue006\ue007", strict=True))
)
_STOOD_FOR: Final = MappingProxyType(str.maketrans("".join(_STAND_INS.values()), "\\/\b\f\n\r\t"))


class NotJson(Exception):
    """`str(exc)` says what is wrong, as in "it is not valid JSON: …"; no full stop."""


class Decimal(float):
    """A number with a point, which knows how it was written: 1.10 may be a version."""

    written: str


def compact(value: Any) -> str:
    """The value as JSON text, without spaces, in characters as they are. Raises: ValueError, of NaN."""
    text = _ENCODER.encode(value)
    # Half a character cannot be sent as UTF-8; outside of strings there is none.
    return text if text.isascii() else _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def read(text: str) -> Any:
    """The one value that the text is. Lines may break within strings, which models forget to escape.

    Raises:
        NotJson: it is none, or deeper than anybody reads.
    """
    value, end = value_at(text, _end(_BETWEEN, text, 0))
    if text[end:].strip():
        raise _more_follows(text, end)
    return value


def value_at(text: str, start: int) -> tuple[Any, int]:
    """The value that begins there, and where it ends. Raises: NotJson."""
    if len(text) > MOST_CHARACTERS:
        raise NotJson("it is too long")
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as exc:
        raise NotJson(f"it is not valid JSON: {exc.msg}, {_place(text, exc.pos)}") from None
    except ValueError as exc:  # Of a number with thousands of digits, and of those that JSON does not have.
        raise NotJson(f"it is not valid JSON: {exc}"[:200]) from None
    except RecursionError:
        raise NotJson("it is nested too deeply") from None
    _check_sound(value)
    return value, end


def several(text: str) -> tuple[list[Any], bool]:
    """The values that follow each other in the text, and whether one had to be mended.

    What follows them and can be no part of a value counts for nothing, as brackets too many.

    Raises:
        NotJson: there is none, or it cannot be mended.
    """
    values: list[Any] = []
    at = 0
    try:
        while not values or text[at : at + 1] in ("{", "["):
            value, at = value_at(text, _end(_BETWEEN, text, at))
            values.append(value)
            at = _end(_BETWEEN, text, at)
        if _LEFT_OVER.fullmatch(text, at):
            return values, False
        # What follows is no value of its own: perhaps a bracket closed too early.
        problem, values, at = _more_follows(text, at), [], 0
    except NotJson as found:
        problem = found
    return [*values, mended(text[at:], problem)], True


def mended(text: str, problem: NotJson) -> Any:
    """The object or list that the text was meant to be. Raises: NotJson, `problem` where nobody knows."""
    text = text.strip()
    if len(text) > MOST_CHARACTERS:
        raise problem
    found = list(islice(_STRING.finditer(text), MOST_TEXTS))
    if len(found) == MOST_TEXTS:
        raise problem
    strings = [each[0] for each in found]
    skeleton = _STRING.sub(_MARK, text)
    if skeleton.count(_MARK) > len(strings):
        raise problem
    if found and found[-1].lastindex:
        raise NotJson("a text in it does not end, or a quotation mark within one is not escaped")
    if not skeleton.rstrip("`;\n ").endswith(("}", "]", ")", _MARK)):
        raise NotJson("it breaks off, or is followed by something else")
    value = _by_guess(text, problem) if _BARE.search(skeleton) else _with(strings, skeleton, problem)
    _check_sound(value)
    return value


def _with(strings: list[str], skeleton: str, problem: NotJson) -> Any:
    """What is between the texts mended, each text put in as it was written."""
    numbers = count()
    value = _repaired(re.sub(_MARK, lambda _: f'"{_MARK}{next(numbers)}"', skeleton), problem)
    used: set[int] = set()

    def written(text: str) -> str:
        if _MARK not in text and text.lower() not in _NO_JSON:
            return text
        found = _MARKED.fullmatch(text)
        if found is None:
            raise problem
        used.add(int(found[1]))
        return _unescaped(strings[int(found[1])])

    try:
        value = _mapped(value, written)
    except _Twice:
        raise problem from None
    if len(used) < len(strings):
        raise problem
    return value


def _unescaped(string: str) -> str:
    """What a text with its quotation marks says; a backslash that escapes nothing is one."""
    quote = string[0]

    def escaped(found: re.Match[str]) -> str:
        if found[2]:
            return '\\"'
        if found[1] == quote == "'":
            return "'"
        return found[0] if len(found[1]) > 1 or found[1] in '"\\/bfnrt' else f"\\\\{found[1]}"

    text: str = _DECODER.decode(f'"{_ESCAPE.sub(escaped, string[1:-1])}"')
    return text


def _by_guess(text: str, problem: NotJson) -> Any:
    """With quotation marks bare within texts: `json_repair` guesses where the texts end.

    No word may be lost by that, or made up, and a name must stand before a colon. It loses line breaks and
    knows not every escape, hence stand-ins.
    """
    if any(mark in text for mark in (_MARK, *_STAND_INS.values())):
        raise problem
    text = _ESCAPE.sub(lambda found: _STAND_INS.get(found[1], found[0]), text)
    value = _repaired(text, problem)
    _check_sound(value)
    if _WORDS.findall(compact(value)) != _WORDS.findall(text):
        raise problem
    names = set(_names(value))
    if len(names) > MOST_NAMES or not all(
        re.search(re.escape(name) + r"[\"']?\s*+:", text) for name in names
    ):
        raise problem
    return _mapped(value, lambda each: each.translate(_STOOD_FOR))


def _repaired(text: str, problem: NotJson) -> Any:
    if len(text) > MOST_MENDED:
        raise problem
    looks = iter(range(LOOKS + LOOKS_PER_CHARACTER * len(text)))
    try:
        value = repair_json(_Watched(text, looks), return_objects=True, skip_json_loads=True)
    except (_TooManyLooks, ValueError, RecursionError):
        raise problem from None
    if not value or not isinstance(value, dict | list):
        raise problem
    return value


def _mapped(value: Any, said: Callable[[str], str]) -> Any:
    """The value with each of its texts, and names, as `said` has it. Raises: _Twice."""
    match value:
        case str():
            return said(value)
        case dict():
            mapped = {said(str(name)): _mapped(each, said) for name, each in value.items()}
            if len(mapped) < len(value):
                raise _Twice
            return mapped
        case list():
            return [_mapped(each, said) for each in value]
    return value


def _names(value: Any) -> Iterator[str]:
    for each in _inner(value):
        yield from _names(each)
    if isinstance(value, dict):
        yield from value


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.match(text, start)
    return found.end() if found else start


def _more_follows(text: str, at: int) -> NotJson:
    return NotJson(f"it is not valid JSON: more follows after its end, {_place(text, at)}")


def _place(text: str, at: int) -> str:
    return f"line {text.count(chr(10), 0, at) + 1}, column {at - text.rfind(chr(10), 0, at)}"


def _decimal(written: str) -> Decimal:
    value = Decimal(written)
    if not math.isfinite(value):
        raise ValueError(f"{written[:20]} is too large a number")
    value.written = written
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_DECODER: Final = json.JSONDecoder(strict=False, parse_float=_decimal, parse_constant=_constant)


def _check_sound(value: Any) -> None:
    """Raises: NotJson, of what JSON does not have, and of too deep a value."""
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [inner for each in level for inner in _inner(each)]
        if not level:
            return
    raise NotJson("it is nested too deeply")


def _inner(value: Any) -> Iterator[Any]:
    match value:
        case dict():
            yield from value.values()
        case list():
            yield from value
        case float() if not math.isfinite(value):
            raise NotJson("it is not valid JSON: a number is too large, or none")


class _Twice(Exception):
    """An object has one name twice, so it may have been two."""


class _TooManyLooks(Exception):
    """Not a ValueError or IndexError: those `json_repair` takes as news of the text."""


class _Watched(str):
    """A text that may be looked at only so often, and whatever is made of it with it."""

    _looks: Iterator[int]

    def __new__(cls, text: str, looks: Iterator[int]) -> _Watched:
        made = super().__new__(cls, text)
        made._looks = looks
        return made

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if next(self._looks, None) is None:
            raise _TooManyLooks
        found = super().__getitem__(key)
        return _Watched(found, self._looks) if isinstance(key, slice) else found

    def __add__(self, other: str) -> str:
        return _Watched(super().__add__(other), self._looks)

    def __radd__(self, other: str) -> str:
        return _Watched(other + str(self), self._looks)
