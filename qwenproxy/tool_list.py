"""The client's tools as lines of JSON, fitted to a budget: what is least missed goes first, names last.

All of it if it fits; else all tools without what only validators read (`$schema`, `title`, `format` …); else
each as well as an equal share of the budget allows, and what is left over goes, a step each, to those that
lost. So the large shrink before the small: stripping forty small tools because of a giant would lose more.
The forms of a tool: long descriptions cut at a sentence, cut shorter, none of parameters, a signature such as
`(path: string, limit?: integer)`, the name. Where not even all the names fit, as many as do.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from qwenproxy.chat import Tool
from qwenproxy.json_text import compact
from qwenproxy.schema_parts import kinds, target

NOISE: Final = frozenset(
    {
        *("$schema", "$id", "$comment", "title", "examples", "example", "default", "format", "deprecated"),
        *("additionalProperties", "unevaluatedProperties", "readOnly", "writeOnly", "markdownDescription"),
    }
)
CUTS: Final = ((1200, 300), (400, 120), (400, 0))
"""Characters that are left of a tool's description, and of each within its parameters."""
SHORT: Final = 100
"""Characters of a description beside a signature."""
MOST_MEMBERS: Final = 6
"""Of an enum that a signature lists."""
_NAMED: Final = frozenset({"properties", "$defs", "definitions", "patternProperties", "dependentSchemas"})
"""Keywords under which the names are the client's own."""
_VALUES: Final = frozenset({"enum", "const", "required", "type"})
_OURS: Final = re.compile(r"<(?=/?tool)", re.IGNORECASE)
_SENTENCE: Final = re.compile(r"[.!?…](?=\s)|[。！？]|(?=\n)")


def lines(tools: Sequence[Tool], most_bytes: int) -> str:
    """One line a tool; where even the names are too long, one list of names, and how many are left out."""
    full = [_full(tool, tool.parameters) for tool in tools]
    if _size(full) <= most_bytes:
        return "\n".join(full)
    lean = [_full(tool, _pruned(tool.parameters)) for tool in tools]
    if _size(lean) <= most_bytes:
        return "\n".join(lean)
    forms = [_forms(tool, line) for tool, line in zip(tools, lean, strict=True)]
    if _size([each[-1] for each in forms]) <= most_bytes:
        return "\n".join(_shared(forms, most_bytes))
    return _names(tools, most_bytes)


def _shared(forms: Sequence[Sequence[str]], most_bytes: int) -> list[str]:
    """Of each tool the first form within a share: the largest share with which all fit."""
    sizes = [list(map(_bytes, each)) for each in forms]

    def places(share: int) -> list[int]:
        found = (next((at for at, size in enumerate(each) if size <= share), len(each) - 1) for each in sizes)
        return list(found)

    def total(share: int) -> int:
        return sum(each[at] + 1 for each, at in zip(sizes, places(share), strict=True)) - 1

    shares = [0, *sorted({size for each in sizes for size in each})]
    share = shares[bisect_right(shares, most_bytes, key=total) - 1]
    left = most_bytes - total(share)
    chosen = places(share)
    for _ in range(max(map(len, forms))):
        for tool, each in enumerate(sizes):
            more = each[chosen[tool] - 1] - each[chosen[tool]] if chosen[tool] else 0
            if 0 < more <= left:
                left -= more
                chosen[tool] -= 1
    return [form[at] for form, at in zip(forms, chosen, strict=True)]


def _forms(tool: Tool, lean: str) -> list[str]:
    """From the lean one to the name alone, each smaller than the one before."""
    short = _cut(" ".join(tool.description.split()), SHORT)
    made = [
        *(_full(tool, _pruned(tool.parameters, inner), most) for most, inner in CUTS),
        _line({"name": tool.name, "description": short, "arguments": _signature(tool)}),
        _line({"name": tool.name}),
    ]
    forms = [lean]
    for form in made:
        if _bytes(form) < _bytes(forms[-1]):
            forms.append(form)
    return forms


def _full(tool: Tool, parameters: Mapping[str, Any], most: int | None = None) -> str:
    """The line in the form that Qwen's models know."""
    about = {"description": _cut(tool.description, most)} if tool.description else {}
    wanted = parameters or {"type": "object", "properties": {}}
    function = {"name": tool.name, **about, "parameters": wanted}
    try:
        return _line({"type": "function", "function": function})
    except (RecursionError, ValueError):  # Too deep, or with numbers that JSON does not have.
        return _line({"type": "function", "function": {**function, "parameters": {"type": "object"}}})


def _line(value: Mapping[str, Any]) -> str:
    """No text of the client's is taken for a tag of ours."""
    return _OURS.sub(r"\\u003c", compact(value))


def _names(tools: Sequence[Tool], most_bytes: int) -> str:
    names = [_OURS.sub(r"\\u003c", compact(tool.name)) for tool in tools]
    every = f"[{','.join(names)}]"
    if _bytes(every) <= most_bytes:
        return every
    note = "\n(and {} more, whose names are left out for want of room)"
    sizes = list(accumulate((_bytes(name) + 1 for name in names), initial=1))
    fitting = max(0, bisect_right(sizes, most_bytes - _bytes(note.format(len(names)))) - 1)
    return f"[{','.join(names[:fitting])}]{note.format(len(names) - fitting)}"


# ---- schemas ----


def _pruned(schema: Mapping[str, Any], most: int | None = None) -> dict[str, Any]:
    """The schema without noise, its descriptions cut after so many characters; 0: without them."""
    try:
        return dict(_kept(schema, most))
    except RecursionError:
        return {"type": "object"}


def _kept(schema: Mapping[str, Any], most: int | None) -> Iterator[tuple[str, Any]]:
    for name, value in schema.items():
        if name in _VALUES:
            yield name, value
        elif name == "description" and isinstance(value, str):
            if most != 0:
                yield name, _cut(value, most)
        elif name in _NAMED and isinstance(value, dict):
            yield name, {own: _part(part, most) for own, part in value.items()}
        elif name not in NOISE or (name == "additionalProperties" and value and isinstance(value, dict)):
            yield name, _part(value, most)


def _part(part: Any, most: int | None) -> Any:
    if isinstance(part, dict):
        return dict(_kept(part, most))
    return [_part(each, most) for each in part] if isinstance(part, list) else part


def _signature(tool: Tool) -> str:
    schema = target(tool.parameters, tool.parameters)
    properties, required = schema.get("properties"), schema.get("required")
    needed = required if isinstance(required, list) else []
    given = properties.items() if isinstance(properties, Mapping) else ()
    told = (f"{name}{'' if name in needed else '?'}: {_type(part, tool.parameters)}" for name, part in given)
    return f"({', '.join(told)})"


def _type(part: Any, root: Mapping[str, Any]) -> str:
    found = target(part, root)
    members = found.get("enum")
    if isinstance(members, list) and len(members) <= MOST_MEMBERS:
        return "|".join(compact(member) for member in members)
    names = sorted(kinds(found, root))
    if names == ["array"]:
        inner = "|".join(sorted(kinds(found.get("items"), root)))
        return f"{inner}[]" if inner.isalpha() else "array"
    return "|".join(names) or "any"


# ---- sizes ----


def _cut(text: str, most: int | None) -> str:
    """The text up to the end of a sentence, or else of a word."""
    if most is None or len(text) <= most:
        return text
    ends = [found.end() for found in _SENTENCE.finditer(text, 0, most)]
    if ends and ends[-1] > most // 3:
        return text[: ends[-1]].rstrip()
    return (text[:most].rpartition(" ")[0] or text[:most]) + " …"


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _size(texts: Sequence[str]) -> int:
    return sum(_bytes(text) + 1 for text in texts) - 1
