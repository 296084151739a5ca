"""Calls as a model wrote them, made into calls that a client can rely on: its own names, arguments that fit.

What is harmless is put right (`json_text.py`, `tool_names.py`, `coercion.py`); what would have to be guessed
is refused, in words that let the model write it again. So an argument that the schema does not allow is
refused and not dropped: it may be `dry_run` misspelt. Only where it is null, and so says nothing, it goes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from qwenproxy.chat import Tool, ToolCall, ToolChoice
from qwenproxy.json_schema import Misfit, Schema
from qwenproxy.json_text import NotJson, compact, several
from qwenproxy.misfits import listed, quoted
from qwenproxy.sieve import RawCall
from qwenproxy.tool_names import NoSuchName, meant

_NAMES: Final = ("name", "tool", "tool_name", "function", "function_name")
_ARGUMENTS: Final = ("arguments", "parameters", "input", "args", "params", "tool_input")
_WRAPPERS: Final = ("function", "function_call", "tool_call", "tool_calls", "calls")
_FUNCTION: Final = re.compile(r"\s*+<function\s*+=([^>\n]{0,300}+)>")
_PARAMETER: Final = re.compile(r"<parameter\s*+=([^>\n]{0,300}+)>")
_END: Final = re.compile(r"</parameter\s*+>(?=\s*+(?:<parameter\s*+=|</function|</tool_call|\Z))")
_CLOSER: Final = re.compile(r"</(?:function|tool_call)\s*+>\Z")


class BadCall(Exception):
    """A call that cannot be used; `str(exc)` tells the model why, in one or two plain sentences."""


class CallReader:
    """Reads the calls of one answer."""

    def __init__(self, tools: Sequence[Tool], choice: ToolChoice, new_id: Callable[[], str]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._choice = choice
        self._new_id = new_id
        self._schemas: dict[str, Schema] = {}
        self._has_called = False

    def read(self, raw: RawCall) -> tuple[ToolCall, ...]:
        """The calls in it, checked. Where an answer may have only one, those after it are left out.

        Raises:
            BadCall: one of them cannot be used.
        """
        written = self._from_xml(raw.body) if raw.form == "xml" else self._from_json(raw.body)
        calls = []
        for name, arguments, is_mended in written:
            if self._has_called and not self._choice.parallel:
                break
            calls.append(self._checked(name, arguments, is_mended=is_mended))
            self._has_called = True
        return tuple(calls)

    def _checked(self, name: str, arguments: dict[str, Any], *, is_mended: bool) -> ToolCall:
        schema = self._schema(name)
        unknown = [each for each in arguments if each not in schema.names] if schema.names else []
        if is_mended and unknown:
            raise BadCall(f"The call of {quoted(name)} is not valid JSON near {listed(unknown)}.")
        try:
            fitted = schema.fitted(arguments)
        except Misfit as exc:
            raise BadCall(f"The call of {quoted(name)} does not fit its parameters: {exc}.") from None
        return ToolCall(self._new_id(), name, compact(fitted if isinstance(fitted, dict) else arguments))

    def _name(self, written: Any) -> str:
        """Raises: BadCall, where no such tool may be called."""
        if not isinstance(written, str):
            raise BadCall("The call does not name its tool.")
        if self._choice.mode == "none":
            raise BadCall("No tool may be called in this answer.")
        try:
            name = meant(written, tuple(self._tools))
        except NoSuchName as exc:
            raise BadCall(f"{_sentence(str(exc))}.") from None
        if self._choice.only and name not in self._choice.only:
            raise BadCall(f"The tool {quoted(name)} may not be called now, only {listed(self._choice.only)}.")
        return name

    def _schema(self, name: str) -> Schema:
        if name not in self._schemas:
            self._schemas[name] = Schema(self._tools[name].parameters, "the arguments")
        return self._schemas[name]

    # ---- JSON ----

    def _from_json(self, body: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
        try:
            values, is_mended = several(body)
        except NotJson as exc:
            raise BadCall(f"The call cannot be read: {exc}.") from None
        for value in values:
            for call in self._unwrapped(value):
                name, arguments, is_mended_inside = self._named(call)
                yield name, arguments, is_mended or is_mended_inside

    def _unwrapped(self, value: Any) -> Iterator[dict[str, Any]]:
        """The objects that are calls, out of lists and of other APIs' wrappers."""
        if isinstance(value, list) and value:
            for each in value:
                yield from self._unwrapped(each)
            return
        if not isinstance(value, dict):
            raise BadCall("A call must be a JSON object with a name and arguments.")
        inner = next((value[key] for key in _WRAPPERS if isinstance(value.get(key), dict | list)), None)
        if inner and not isinstance(value.get("name"), str):
            yield from self._unwrapped(inner)
        else:
            yield value

    def _named(self, call: dict[str, Any]) -> tuple[str, dict[str, Any], bool]:
        """The tool, its arguments, and whether these had to be mended."""
        key = next((key for key in _NAMES if isinstance(call.get(key), str)), None)
        if key is None and len(call) == 1 and next(iter(call)) in self._tools:
            ((written, arguments),) = call.items()
            return self._name(written), *_as_object(arguments)
        name = self._name(call[key] if key else None)
        given = next((each for each in _ARGUMENTS if each in call), None)
        if given is not None:
            return name, *_as_object(call[given])
        beside = {each: call[each] for each in call if each != key and each in self._schema(name).names}
        return name, beside, False

    # ---- Qwen3-Coder's XML ----

    def _from_xml(self, body: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
        head = _FUNCTION.match(body)
        if head is None:
            raise BadCall("The call does not name its tool.")
        name = self._name(head[1].strip().strip("\"'"))
        schema = self._schema(name)
        rest = body[head.end() :]
        if not _PARAMETER.search(rest) and rest.lstrip().startswith("{"):
            written = rest.partition("</function")[0]
            yield name, *_as_object(written)
            return
        arguments = {key: schema.from_text(key, text) for key, text in _parameters(rest, schema.names)}
        yield name, arguments, False


def _parameters(body: str, names: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Each parameter and its value as written. The ends may be missing; tags within a value are part of it,
    so where an end is missing only a parameter of the tool's that was not given yet begins the next."""
    given: set[str] = set()
    found = _PARAMETER.search(body)
    while found is not None:
        key = found[1].strip().strip("\"'")
        given.add(key)
        end = _END.search(body, found.end())
        following = _next_parameter(body, found.end(), end.start() if end else len(body), names - given)
        last = following or end
        stop = last.start() if last else len(body)
        value = body[found.end() : stop]
        value = value if last else _without_closers(value)
        line_break = "\r\n" if value.startswith("\r\n") else "\n"
        yield key, value.removeprefix(line_break).removesuffix(line_break)
        found = following or _PARAMETER.search(body, stop)


def _without_closers(value: str) -> str:
    """The last value without what closes the whole call, which stands on lines of its own."""
    for _ in range(2):
        closer = _CLOSER.search(value.rstrip())
        if closer is not None:
            value = value[: closer.start()]
            value = value if value.endswith("\n") else value + "\n"
    return value


def _next_parameter(body: str, start: int, end: int, names: frozenset[str]) -> re.Match[str] | None:
    """The first one before `end` that stands at the beginning of a line."""
    for found in _PARAMETER.finditer(body, start, end):
        if found[1].strip().strip("\"'") in names and body[: found.start()].rstrip(" \t").endswith("\n"):
            return found
    return None


def _as_object(arguments: Any) -> tuple[dict[str, Any], bool]:
    """The arguments, also where they are JSON text once or twice more, and whether they had to be mended."""
    is_mended = False
    for _ in range(2):
        if not isinstance(arguments, str) or not arguments.strip():
            break
        try:
            values, is_mended = several(arguments)
        except NotJson as exc:
            if not arguments.lstrip().startswith("{"):
                break
            raise BadCall(f"The arguments cannot be read: {exc}.") from None
        arguments = values[0] if len(values) == 1 else values
    if isinstance(arguments, dict):
        return arguments, is_mended
    if arguments is None or arguments in ("", []):
        return {}, False
    raise BadCall(f"The arguments must be a JSON object, not {quoted(arguments)}.")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
