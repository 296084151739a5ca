"""Values made to fit a JSON Schema without a change of what they mean: "5" for 5, one item for a list of it.

Only what does not fit is touched. Harmless is what nobody could have meant otherwise: a list does not become
a text, nor 1 `true`. A name in another spelling (`filePath`) is the listed one that is not there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, Final

from qwenproxy.json_text import Decimal, NotJson, compact, read
from qwenproxy.schema_parts import alike, kind_of, kinds, target

_KINDS: Final = ("null", "boolean", "integer", "number", "object", "array", "string")
"""In this order they are tried where a value may have several types."""
_WHOLE: Final = re.compile(r"\s*[+-]?\d{1,40}(\.0*)?\s*")


class Coercion:
    def __init__(self, root: Mapping[str, Any], fits: Callable[[Any, Any], bool]) -> None:
        """`fits(value, part)` tells whether a value fits that part of the schema."""
        self._root = root
        self._fits = fits

    def made(self, value: Any, part: Any) -> Any:
        """What fits that part of the schema, or is at least nearer to it."""
        if not isinstance(part, Mapping) or self._fits(value, part):
            return value
        if "$ref" in part:
            value = self.made(value, target(part, self._root))
        for each in _listed(part, "allOf"):
            value = self.made(value, each)
        for converted in self._candidates(value, part):
            candidate = self._within(converted, part)
            if self._fits(candidate, part):
                return candidate
        value = self._within(value, part)
        for branch in chain(_listed(part, "anyOf"), _listed(part, "oneOf")):
            candidate = self.made(value, branch)
            if self._fits(candidate, part):
                return candidate
        return value

    def _candidates(self, value: Any, part: Mapping[str, Any]) -> Iterator[Any]:
        members = [*_listed(part, "enum"), *([part["const"]] if "const" in part else [])]
        said = _said(value).strip().casefold()
        same = [each for each in members if _said(each).casefold() == said]
        if len(same) == 1:
            yield same[0]
        wanted = kinds(part, self._root)
        for kind in _KINDS:
            if kind in wanted and kind != kind_of(value):
                yield from _as(kind, value)

    def _within(self, value: Any, part: Mapping[str, Any]) -> Any:
        if isinstance(value, dict):
            return self._object(value, part)
        if isinstance(value, list):
            first = _listed(part, "prefixItems") or _listed(part, "items")
            rest = part.get("items")
            return [self.made(each, first[at] if at < len(first) else rest) for at, each in enumerate(value)]
        return value

    def _object(self, value: dict[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
        listed = part.get("properties")
        listed = listed if isinstance(listed, Mapping) else {}
        others = part.get("additionalProperties")
        made = {}
        for given, each in value.items():
            name = _renamed(given, value, listed)
            wanted = listed.get(name, others)
            needless = name not in _listed(part, "required") and (name in listed or others is False)
            if each is None and needless and not self._fits(None, {"allOf": [wanted]}):
                continue
            made[name] = self.made(each, wanted)
        return made


def _renamed(name: str, value: Mapping[str, Any], listed: Mapping[str, Any]) -> str:
    """The one listed name that it may be another spelling of, else the name."""
    if name in listed:
        return name
    same = [each for each in listed if each not in value and alike(each) == alike(name)]
    rivals = [each for each in value if alike(each) == alike(name)]
    return same[0] if len(same) == len(rivals) == 1 else name


def _listed(part: Mapping[str, Any], name: str) -> list[Any]:
    found = part.get(name)
    return found if isinstance(found, list) else []


def _said(value: Any) -> str:
    if isinstance(value, str):
        return value
    return value.written if isinstance(value, Decimal) else compact(value)


def _as(kind: str, value: Any) -> Iterator[Any]:
    """The value as one of that type, where it can be."""
    match kind, value:
        case "integer", str() if _WHOLE.fullmatch(value):
            yield int(value.partition(".")[0])
        case "integer", float() if value.is_integer() and math.fabs(value) < 2**63:
            yield int(value)
        case "array", dict() | bool() | int() | float():
            yield [value]
        case "string", bool() | int() | float():
            yield _said(value)
        case _, str():
            yield from _read_as(kind, value)


def _read_as(kind: str, text: str) -> Iterator[Any]:
    """What the text says, as JSON or as Python has it."""
    try:
        found = read(text)
    except NotJson:
        words = {"true": True, "false": False, "null": None, "none": None}
        found = words.get(text.strip().lower(), text)
    if kind_of(found) == kind or (kind == "number" and kind_of(found) == "integer"):
        yield found
    elif kind == "array":
        yield [text]
