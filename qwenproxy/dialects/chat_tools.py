"""Tools in OpenAI's Chat Completions: what is offered, the calls in the history, the calls of an answer.

| form | offered as | called as |
|---|---|---|
| function | `tools[]` of type `function` | `tool_calls[]`, arguments as JSON text |
| custom | `tools[]` of type `custom` | `tool_calls[]` of type `custom`, `input` as plain text |
| legacy | `functions[]` | `function_call`, one in an answer, without an id |

In the core all three are a `Tool`: a custom one has a single argument, the string `input`. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from qwenproxy.chat import Message, Tool, ToolCall, ToolChoice
from qwenproxy.dialects.base import Json, json_text
from qwenproxy.dialects.fields import flag, tool
from qwenproxy.dialects.parts import text_and_attachments
from qwenproxy.errors import BadRequest, UnsupportedParameter

PIECE_CHARACTERS: Final = 512
"""Of a call's arguments, in one chunk of a stream."""
SEARCH_TOOLS: Final = ("web_search", "web_search_preview")
"""How the type of a tool begins that is the service's own web search."""
TYPES: Final = ("function", "custom")
INPUT: Final = "input"
"""The one argument of a custom tool."""

Mode = Literal["auto", "none", "required"]
MODES: Final[Mapping[str, Mode]] = MappingProxyType(
    {"auto": "auto", "none": "none", "required": "required", "any": "required"}
)
LEGACY_MODES: Final[Mapping[str, Mode]] = MappingProxyType({"auto": "auto", "none": "none"})


# ---- what a request offers ----


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of a request."""

    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = field(default_factory=ToolChoice)
    searches: bool = False
    """Whether the service must search the web."""
    echo: Mapping[str, Any] = field(default_factory=dict)
    """What `CallForm` has to know of the request when it is answered."""


def offer(given: Mapping[str, Any]) -> Offer:
    """The tools that may be called, and which must be.

    Raises:
        BadRequest: a tool is not one, two of them have one name, or the choice names none that is there.
        UnsupportedParameter: a tool of a type that only OpenAI's own service has.
    """
    raw, functions = _list(given, "tools"), _list(given, "functions")
    if functions:
        if raw:
            raise BadRequest("functions are the older form of tools: send one of them", param="functions")
        return _legacy(functions, given)
    own = [(place, kind, row) for place, kind, row in _kinds(raw) if not kind.startswith(SEARCH_TOOLS)]
    tools = _distinct([(_tool(kind, row, place), place) for place, kind, row in own])
    parallel = flag(given, "parallel_tool_calls") is not False
    wanted, searches = _searches(given.get("tool_choice"), offered=len(own) < len(raw), alone=not own)
    choice = _choice(wanted, tools, parallel=parallel)
    custom = frozenset(row["custom"]["name"] for _, kind, row in own if kind == "custom")
    return Offer(tools, choice, searches, {"custom": custom} if custom else {})


def _list(given: Mapping[str, Any], name: str) -> list[Any]:
    raw = given.get(name, [])
    if not isinstance(raw, list):
        raise BadRequest(f"{name} must be a list", param=name)
    return raw


def _kinds(raw: Sequence[Any]) -> Iterator[tuple[str, str, Json]]:
    for index, row in enumerate(raw):
        place = f"tools[{index}]"
        kind = row.get("type", "function") if isinstance(row, dict) else None
        if not isinstance(kind, str):
            raise BadRequest(f"{place} must be a tool with its type", param=place)
        yield place, kind, row


def _tool(kind: str, row: Json, place: str) -> Tool:
    if kind not in TYPES:
        raise UnsupportedParameter(f"{place}: there are no tools of type {kind[:40]} here", param=place)
    held = row.get(kind)
    if not isinstance(held, dict):
        raise BadRequest(f"{place}.{kind} must be an object", param=f"{place}.{kind}")
    return tool(held, f"{place}.function") if kind == "function" else custom_tool(held, f"{place}.custom")


def custom_tool(raw: Mapping[str, Any], place: str) -> Tool:
    """A tool that takes plain text; a grammar for it is told to the model. Raises: BadRequest."""
    named = tool({"name": raw.get("name"), "description": raw.get("description")}, place)
    form = raw.get("format") or {"type": "text"}
    kind = form.get("type") if isinstance(form, dict) else None
    if kind not in {"text", "grammar"}:
        raise BadRequest(f"{place}.format.type must be text or grammar", param=f"{place}.format")
    asked: Json = {"type": "string"}
    if kind == "grammar":
        # Responses has the two beside the type, completions in an object of their own.
        grammar = form.get("grammar", form)
        rules = grammar.get("definition") if isinstance(grammar, dict) else None
        if not isinstance(rules, str):
            raise BadRequest(f"{place}.format must hold a grammar's definition", param=f"{place}.format")
        syntax = "a regular expression" if grammar.get("syntax") == "regex" else "a Lark grammar"
        asked["description"] = f"Text that matches this, {syntax}:\n{rules}"
    schema = {"type": "object", "properties": {INPUT: asked}, "required": [INPUT]}
    return Tool(named.name, named.description, {**schema, "additionalProperties": False})


def _distinct(tools: Sequence[tuple[Tool, str]]) -> tuple[Tool, ...]:
    """Without those that come twice as they are."""
    known: dict[str, Tool] = {}
    for each, place in tools:
        if known.setdefault(each.name, each) != each:
            raise BadRequest(f"{place}: another tool is called {each.name[:80]} too", param=place)
    return tuple(known.values())


def _legacy(functions: Sequence[Any], given: Mapping[str, Any]) -> Offer:
    read: list[tuple[Tool, str]] = []
    for index, row in enumerate(functions):
        place = f"functions[{index}]"
        if not isinstance(row, dict):
            raise BadRequest(f"{place} must be an object", param=place)
        read.append((tool(row, place), place))
    tools = _distinct(read)
    raw = given.get("function_call", "auto")
    if isinstance(raw, dict):
        name = _named(raw.get("name"), tools, "function_call")
        choice = ToolChoice("required", (name,), parallel=False)
    else:
        choice = ToolChoice(_mode(raw, LEGACY_MODES, "function_call"), parallel=False)
    return Offer(tools, choice, echo={"legacy": True})


def _searches(choice: Any, *, offered: bool, alone: bool) -> tuple[Any, bool]:
    """What of the choice is about the client's own tools, and whether the web is searched.

    The model cannot be left the choice between a search of the service's and a call: where both are offered
    it is searched only if that is what must be called.
    """
    if not offered:
        return choice, False
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if isinstance(kind, str) and kind.startswith(SEARCH_TOOLS):
        return None, True
    if alone and kind in (None, "auto", "required", "any"):
        return None, True
    return choice, False


def _choice(raw: Any, tools: Sequence[Tool], *, parallel: bool) -> ToolChoice:
    if raw is None:
        return ToolChoice(parallel=parallel)
    if isinstance(raw, str):
        mode = _mode(raw, MODES, "tool_choice")
        if mode == "required" and not tools:
            raise BadRequest("tool_choice wants a call, but there are no tools", param="tool_choice")
        return ToolChoice(mode if tools else "auto", parallel=parallel)
    kind = raw.get("type") if isinstance(raw, dict) else None
    held = raw.get(kind) if isinstance(kind, str) else None
    if kind in TYPES:
        # A name without an object around it is how Responses says it.
        name = held.get("name") if isinstance(held, dict) else raw.get("name")
        return ToolChoice("required", (_named(name, tools, "tool_choice"),), parallel)
    if kind == "allowed_tools" and isinstance(held, dict):
        return _allowed(held, tools, parallel=parallel)
    told = f"tool_choice must be one of {', '.join(MODES)}, a tool of its type, or allowed_tools"
    raise BadRequest(told, param="tool_choice")


def _allowed(held: Mapping[str, Any], tools: Sequence[Tool], *, parallel: bool) -> ToolChoice:
    place = "tool_choice.allowed_tools"
    mode = _mode(held.get("mode"), MODES, f"{place}.mode")
    rows = held.get("tools")
    if not isinstance(rows, list) or not rows:
        raise BadRequest(f"{place}.tools must be a list with at least one tool", param=f"{place}.tools")
    names: list[str] = []
    for row in rows:
        kind = row.get("type") if isinstance(row, dict) else None
        inner = row.get(kind, row) if kind in TYPES else None
        name = inner.get("name") if isinstance(inner, dict) else None
        names.append(_named(name, tools, f"{place}.tools"))
    return ToolChoice(mode, tuple(dict.fromkeys(names)), parallel)


def _mode(raw: Any, modes: Mapping[str, Mode], place: str) -> Mode:
    if not isinstance(raw, str) or raw not in modes:
        raise BadRequest(f"{place} must be one of {', '.join(modes)}, or name a tool", param=place)
    return modes[raw]


def _named(name: Any, tools: Sequence[Tool], place: str) -> str:
    if not isinstance(name, str) or all(each.name != name for each in tools):
        raise BadRequest(f"{place} must name one of the tools that are sent", param=place)
    return name


# ---- the calls in a request's history ----


def calls_of(raw: Mapping[str, Any], place: str) -> tuple[ToolCall, ...]:
    """What an assistant's message calls. Raises: BadRequest."""
    rows = raw.get("tool_calls") or []
    if not isinstance(rows, list):
        raise BadRequest(f"{place}.tool_calls must be a list", param=f"{place}.tool_calls")
    calls = tuple(_call(row, f"{place}.tool_calls[{index}]") for index, row in enumerate(rows))
    legacy = raw.get("function_call")
    if not legacy:
        return calls
    at = f"{place}.function_call"
    if not isinstance(legacy, dict):
        raise BadRequest(f"{at} must be an object", param=at)
    return (*calls, ToolCall(_legacy_id(place), _name(legacy, at), _arguments(legacy, at)))


def _call(row: Any, place: str) -> ToolCall:
    kind = row.get("type", "function") if isinstance(row, dict) else None
    held = row.get(kind) if kind in TYPES else None
    if not isinstance(held, dict):
        raise BadRequest(f"{place} must be a call of a function or of a custom tool", param=place)
    at = f"{place}.{kind}"
    if kind == "function":
        return ToolCall(_id(row, "id", place), _name(held, at), _arguments(held, at))
    if not isinstance(held.get(INPUT), str):
        raise BadRequest(f"{at}.input must be a string", param=f"{at}.input")
    return ToolCall(_id(row, "id", place), _name(held, at), json_text({INPUT: held[INPUT]}))


def _id(row: Mapping[str, Any], name: str, place: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRequest(f"{place}.{name} must be an id", param=f"{place}.{name}")
    return value or ""


def _name(held: Mapping[str, Any], place: str) -> str:
    name = held.get("name")
    if not isinstance(name, str) or not name:
        raise BadRequest(f"{place}.name must be the name of what was called", param=f"{place}.name")
    return name


def _arguments(held: Mapping[str, Any], place: str) -> str:
    """As text; several clients send the object itself, or nothing where there are none."""
    raw = held.get("arguments")
    if isinstance(raw, dict):
        return json_text(raw)
    if raw is not None and not isinstance(raw, str):
        raise BadRequest(f"{place}.arguments must be JSON text", param=f"{place}.arguments")
    return raw if raw and not raw.isspace() else "{}"


def result_of(raw: Mapping[str, Any], place: str, before: Sequence[Message]) -> Message:
    """The message of a tool, or of a function, which answers the last call of its name in `before`.

    Raises: as `text_and_attachments`.
    """
    content = raw.get("content")
    said = text_and_attachments("" if content is None else content, f"{place}.content")
    call_id = _id(raw, "tool_call_id", place)
    if raw.get("role") == "function":
        name = _name(raw, place)
        named = (call.id for message in reversed(before) for call in message.calls if call.name == name)
        call_id = next(named, "")
    return Message("tool", *said, call_id=call_id)


def _legacy_id(place: str) -> str:
    """Of a call that has none: where it stands in the request is unique."""
    return "call_" + "".join(sign for sign in place if sign.isdigit())


# ---- the calls of an answer ----


class CallForm:
    """How the calls of one answer are written."""

    def __init__(self, echo: Mapping[str, Any]) -> None:
        """`echo` is the offer's."""
        self._legacy = bool(echo.get("legacy"))
        self._custom: frozenset[str] = echo.get("custom", frozenset())

    def finish_reason(self, reason: str) -> str:
        return "function_call" if self._legacy and reason == "tool_calls" else reason

    def whole(self, calls: Sequence[ToolCall]) -> Json:
        """What they add to the message of an answer."""
        if not calls:
            return {}
        if self._legacy:
            return {"function_call": {"name": calls[0].name, "arguments": calls[0].arguments}}
        return {"tool_calls": [self._whole(call) for call in calls]}

    def deltas(self, index: int, call: ToolCall) -> Iterator[str]:
        """The `delta` of each chunk, as JSON: the call's name and id, then its arguments in pieces.

        `index` counts the calls of a choice; of a legacy answer the first is the only one.
        """
        if self._legacy:
            if index == 0:
                head = {"function_call": {"name": call.name, "arguments": ""}}
                yield from _pieces(json_text(head), '{"function_call":{"arguments":', "}}", call.arguments)
            return
        kind, held, text, said = "function", {"name": call.name, "arguments": ""}, "arguments", call.arguments
        if call.name in self._custom:
            kind, held, text, said = "custom", {"name": call.name, INPUT: ""}, INPUT, _input(call)
        start = {"tool_calls": [{"index": index, "id": call.id, "type": kind, kind: held}]}
        more = f'{{"tool_calls":[{{"index":{index},"{kind}":{{"{text}":'
        yield from _pieces(json_text(start), more, "}}]}", said)

    def _whole(self, call: ToolCall) -> Json:
        if call.name in self._custom:
            return {"id": call.id, "type": "custom", "custom": {"name": call.name, INPUT: _input(call)}}
        held = {"name": call.name, "arguments": call.arguments}
        return {"id": call.id, "type": "function", "function": held}


def _pieces(start: str, before: str, after: str, said: str) -> Iterator[str]:
    yield start
    for at in range(0, len(said), PIECE_CHARACTERS):
        yield before + json_text(said[at : at + PIECE_CHARACTERS]) + after


def _input(call: ToolCall) -> str:
    """What a custom tool is given: its arguments were checked against the schema above."""
    return str(json.loads(call.arguments)[INPUT])
