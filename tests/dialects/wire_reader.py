"""Reads what a dialect says as a client would, by rules in its folder of golden files.

`tests/wire/<folder>/contract.json` tells of one dialect all that `test_contract.py` cannot know:

| key | |
|---|---|
| `dialect` | its class, as it stands in `server.app.DIALECTS` |
| `requests` | bodies: `plain`; with tools also `tools` and `result`; see `REQUESTS` |
| `finish` | its words for `stop`, `length` and `tool_calls` |
| `stream`, `whole` | where to look in an event, or in the whole answer: a list of rules for each of `HEARD` |

A rule looks at every object that the path `each` leads to (none: the event itself) and that is as `where`
says, one value or several a path. It takes what stands under `take`; one of `calls` takes `id`, `name` and
`arguments`, and what has the same `key` is one call. A path has its steps between dots, `*` is every one of a
list; the empty path is the object itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from tests.dialects.golden import WIRE

REQUESTS: Final = {
    "plain": "asks for the weather in Omsk",
    "tools": "the same, and offers the tool `get_weather`",
    "result": "the same, after a call with the id `call_1` and its result, -12 °C",
}
HEARD: Final = ("text", "thinking", "sources", "calls", "finish", "end", "error")
CALL_FIELDS: Final = ("id", "name", "arguments")


@dataclass
class Call:
    id: str = ""
    name: str = ""
    written: str = ""
    """Its arguments, piece by piece."""

    @property
    def arguments(self) -> Any:
        return json.loads(self.written)


@dataclass
class Heard:
    """What a client makes of an answer."""

    text: str = ""
    thinking: str = ""
    sources: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    finish: list[str] = field(default_factory=list)
    ends: int = 0
    """How often it was told that nothing more comes."""
    errors: int = 0


@dataclass(frozen=True)
class Contract:
    folder: str
    raw: Mapping[str, Any]

    def finish(self, reason: str) -> str:
        return str(self.raw["finish"][reason])

    def stream(self, events: Iterable[Any]) -> Heard:
        return _heard(events, self.raw["stream"])

    def whole(self, body: Any) -> Heard:
        return _heard([body], self.raw["whole"])


@cache
def contracts() -> Mapping[str, Contract]:
    """By the name of the dialect's class."""
    found = {path.parent.name: json.loads(path.read_text("utf-8")) for path in WIRE.glob("*/contract.json")}
    return {raw["dialect"]: Contract(folder, raw) for folder, raw in found.items()}


def _heard(events: Iterable[Any], rules: Mapping[str, Any]) -> Heard:
    heard = Heard()
    calls: dict[Any, Call] = {}
    for event in events:
        heard.text += "".join(_taken(event, rules, "text"))
        heard.thinking += "".join(_taken(event, rules, "thinking"))
        heard.sources += _taken(event, rules, "sources")
        heard.finish += _taken(event, rules, "finish")
        heard.ends += len(list(_taken(event, rules, "end")))
        heard.errors += len(list(_taken(event, rules, "error")))
        _take_calls(event, rules, calls)
    heard.calls = list(calls.values())
    return heard


def _taken(event: Any, rules: Mapping[str, Any], name: str) -> Iterator[Any]:
    for rule in rules.get(name, []):
        for found in _found(event, rule):
            yield from (value for value in values(found, rule["take"]) if value is not None)


def _take_calls(event: Any, rules: Mapping[str, Any], calls: dict[Any, Call]) -> None:
    for rule in rules.get("calls", []):
        for found in _found(event, rule):
            key = next(values(found, rule["key"]), None) if "key" in rule else len(calls)
            call = calls.setdefault(key, Call())
            given = {name: next(values(found, rule[name]), None) for name in CALL_FIELDS if name in rule}
            call.id += given.get("id") or ""
            call.name += given.get("name") or ""
            written = given.get("arguments")
            call.written += written if isinstance(written, str) else json.dumps(written) if written else ""


def _found(event: Any, rule: Mapping[str, Any]) -> Iterator[Any]:
    for each in values(event, rule.get("each", "")):
        if all(_is(each, path, wanted) for path, wanted in rule.get("where", {}).items()):
            yield each


def _is(each: Any, path: str, wanted: Any) -> bool:
    several = wanted if isinstance(wanted, list) else [wanted]
    return any(value in several for value in values(each, path))


def values(row: Any, path: str) -> Iterator[Any]:
    """Everything that the path leads to."""
    if not path:
        yield row
        return
    step, _, rest = path.partition(".")
    if step == "*":
        for inner in row if isinstance(row, list) else []:
            yield from values(inner, rest)
    elif isinstance(row, dict) and step in row:
        yield from values(row[step], rest)
