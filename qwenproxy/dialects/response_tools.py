"""Tools in OpenAI's Responses: what a request offers, and the items of an answer that call them. Pure.

| tool | offered to the model as | called as |
|---|---|---|
| `function` | itself | `function_call` |
| `custom` | a tool with one string, `input` | `custom_tool_call` |
| `namespace` | each of its tools, as `namespace__name` | the same two, with `namespace` beside `name` |
| `tool_search`, which the client executes | itself | `tool_search_call` |
| `tool_search` of the server | nothing: all that it could find is offered at once | – |
| `web_search`, `web_search_preview` | the service's own search | `web_search_call` |

Codex calls a tool of a namespace by both its names only, `multi_agent_v1__close_agent` is "unsupported" to it
(Codex CLI 0.169.0, 2026-11-21).

Decision, 2026-11-21: the web is searched when its search is all that is offered, or when `tool_choice` names
it. Who offers nothing else expects a search, as the examples of OpenAI's packages do; but Codex offers it
with every request, beside its own tools, and a search on each of its steps would be slow and wrong. The
service cannot leave that choice to the model and still call the client's tools; one that can would reverse
this.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from qwenproxy.chat import Tool, ToolCall, ToolChoice
from qwenproxy.dialects.base import Json
from qwenproxy.dialects.chat_tools import INPUT, custom_tool
from qwenproxy.dialects.fields import flag, tool
from qwenproxy.errors import BadRequest, UnsupportedParameter

SEARCHES: Final = ("web_search", "web_search_preview")
"""How the types of tools begin that are the service's own search."""
TOOL_SEARCH: Final = "tool_search"
SEPARATOR: Final = "__"
"""Between a namespace and a name, as tools of MCP servers are written everywhere."""
ELSEWHERE: Final[Mapping[str, str]] = MappingProxyType(
    {"image_generation": "; POST /v1/images/generations draws"}
)

CallKind = Literal["function_call", "custom_tool_call", "tool_search_call"]
Mode = Literal["auto", "none", "required"]
MODES: Final[Mapping[str, Mode]] = MappingProxyType(
    {"auto": "auto", "none": "none", "required": "required", "any": "required"}
)
FREE: Final = ToolChoice()


@dataclass(frozen=True, slots=True)
class Known:
    """A tool as its client knows it."""

    name: str
    kind: CallKind = "function_call"
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of a request."""

    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = FREE
    search: bool = False
    """Whether the web must be searched."""
    known: Mapping[str, Known] = field(default_factory=dict)
    """By the name that the model is told."""


def flat_name(name: str, namespace: str = "") -> str:
    """What the model calls a tool."""
    return f"{namespace.removesuffix(SEPARATOR)}{SEPARATOR}{name}" if namespace else name


def offer(given: Mapping[str, Any], found: Sequence[tuple[Any, str]] = ()) -> Offer:
    """The tools that may be called, and which must be.

    `found` are those that came with the input, each with its place: newer ones replace what has their name.

    Raises:
        BadRequest: a tool is not one, two have one name, or the choice names none that is there.
        UnsupportedParameter: a tool that only OpenAI's own service has.
    """
    rows = given.get("tools", [])
    if not isinstance(rows, list):
        raise BadRequest("tools must be a list", param="tools")
    shelf = _Shelf()
    for index, row in enumerate(rows):
        shelf.put(row, f"tools[{index}]")
    for row, place in found:
        shelf.put(row, place, anew=True)
    parallel = flag(given, "parallel_tool_calls") is not False
    choice, search = _choice(given.get("tool_choice", "auto"), shelf, parallel=parallel)
    return Offer(tuple(shelf.tools.values()), choice, search, shelf.known)


class _Shelf:
    """The tools of a request, while they are read."""

    def __init__(self) -> None:
        self.tools: dict[str, Tool] = {}
        self.known: dict[str, Known] = {}
        self.searches = False

    def put(self, row: Any, place: str, *, anew: bool = False) -> None:
        kind = row.get("type") if isinstance(row, dict) else None
        if not isinstance(kind, str):
            raise BadRequest(f"{place} must be a tool with its type", param=place)
        if kind.startswith(SEARCHES):
            self.searches = True
        elif kind == "namespace":
            self._put_namespace(row, place, anew=anew)
        elif kind == TOOL_SEARCH:
            self._put_tool_search(row, place)
        else:
            self._put_own(kind, row, place, anew=anew)

    def _put_own(self, kind: str, row: Json, place: str, namespace: str = "", *, anew: bool) -> None:
        if kind == "function":
            self._add(tool(row, place), Known(row["name"], namespace=namespace), place, anew=anew)
        elif kind == "custom":
            known = custom_tool(row, place), Known(row["name"], "custom_tool_call", namespace)
            self._add(*known, place, anew=anew)
        else:
            hint = ELSEWHERE.get(kind, "")
            raise UnsupportedParameter(
                f"{place}: there are no tools of type {kind[:40]} here{hint}", param=place
            )

    def _put_namespace(self, row: Json, place: str, *, anew: bool) -> None:
        namespace, inner = row.get("name"), row.get("tools")
        if not isinstance(namespace, str) or not namespace:
            raise BadRequest(f"{place}.name must be a namespace's name", param=f"{place}.name")
        if not isinstance(inner, list):
            raise BadRequest(f"{place}.tools must be a list", param=f"{place}.tools")
        for index, each in enumerate(inner):
            at = f"{place}.tools[{index}]"
            kind = each.get("type") if isinstance(each, dict) else None
            if not isinstance(kind, str):
                raise BadRequest(f"{at} must be a tool with its type", param=at)
            self._put_own(kind, each, at, namespace, anew=anew)

    def _put_tool_search(self, row: Json, place: str) -> None:
        if row.get("execution") == "client":
            named = tool({**row, "name": TOOL_SEARCH}, place)
            self._add(named, Known(TOOL_SEARCH, "tool_search_call"), place, anew=True)

    def _add(self, offered: Tool, known: Known, place: str, *, anew: bool) -> None:
        name = flat_name(offered.name, known.namespace)
        flat = Tool(name, offered.description, offered.parameters)
        if not anew and self.tools.get(name, flat) != flat:
            raise BadRequest(f"{place}: another tool is called {name[:80]} too", param=place)
        self.tools[name] = flat
        self.known[name] = known

    def names_of(self, row: Mapping[str, Any], place: str) -> Iterator[str]:
        """The tools that a choice means. Raises: BadRequest."""
        kind, name, namespace = row.get("type"), row.get("name"), row.get("namespace")
        held = row.get(kind) if isinstance(kind, str) else None
        if name is None and isinstance(held, dict):  # as Chat Completions says it
            name = held.get("name")
        if kind == TOOL_SEARCH:
            name = TOOL_SEARCH
        if kind == "namespace":
            meant = [flat for flat, known in self.known.items() if name and known.namespace == name]
        elif isinstance(namespace, str) and namespace:
            meant = [
                flat
                for flat, known in self.known.items()
                if (known.namespace, known.name) == (namespace, name)
            ]
        else:
            meant = [name] if isinstance(name, str) and name in self.known else []
            meant = meant or [flat for flat, known in self.known.items() if known.name == name]
        if not meant:
            raise BadRequest(f"{place} must name one of the tools that are sent", param=place)
        yield from meant


def _choice(raw: Any, shelf: _Shelf, *, parallel: bool) -> tuple[ToolChoice, bool]:
    """Which tools must be called, and whether the web must be searched."""
    alone = shelf.searches and not shelf.tools
    if isinstance(raw, str) and raw in MODES:
        mode = MODES[raw]
        if mode == "required" and not shelf.tools and not shelf.searches:
            raise BadRequest("tool_choice wants a call, but there are no tools", param="tool_choice")
        return ToolChoice(mode if shelf.tools else "auto", parallel=parallel), alone and mode != "none"
    kind = raw.get("type") if isinstance(raw, dict) else None
    if kind == "allowed_tools":
        return _allowed(raw, shelf, parallel=parallel)
    if isinstance(kind, str) and kind.startswith(SEARCHES):
        if not shelf.searches:
            raise BadRequest("tool_choice must name one of the tools that are sent", param="tool_choice")
        return ToolChoice(parallel=parallel), True
    if kind in {"function", "custom", "namespace", TOOL_SEARCH}:
        only = tuple(shelf.names_of(raw, "tool_choice"))
        return ToolChoice("required", only, parallel), False
    told = f"tool_choice must be one of {', '.join(MODES)}, a tool of its type, or allowed_tools"
    raise BadRequest(told, param="tool_choice")


def _allowed(raw: Mapping[str, Any], shelf: _Shelf, *, parallel: bool) -> tuple[ToolChoice, bool]:
    rows, mode = raw.get("tools"), raw.get("mode", "auto")
    if not isinstance(mode, str) or mode not in MODES:
        raise BadRequest("tool_choice.mode must be auto or required", param="tool_choice.mode")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise BadRequest("tool_choice.tools must be a list of tools", param="tool_choice.tools")
    named = [row for row in rows if not str(row.get("type")).startswith(SEARCHES)]
    names = [name for row in named for name in shelf.names_of(row, "tool_choice.tools")]
    if not names:  # nothing but the search
        choice = ToolChoice("none" if shelf.tools else "auto", parallel=parallel)
        return choice, shelf.searches and MODES[mode] != "none"
    return ToolChoice(MODES[mode], tuple(dict.fromkeys(names)), parallel), False


# ---- the calls of an answer ----


def call_item(call: ToolCall, known: Mapping[str, Known], item_id: str) -> Json:
    """The item that calls a tool, as it is when it is done."""
    tool_known = known.get(call.name, Known(call.name))
    item: Json = {"id": item_id, "type": tool_known.kind, "status": "completed", "call_id": call.id}
    if tool_known.kind == "tool_search_call":
        return {**item, "execution": "client", "arguments": json.loads(call.arguments)}
    if tool_known.kind == "custom_tool_call":
        item |= {"name": tool_known.name, INPUT: _input(call)}
    else:
        item |= {"name": tool_known.name, "arguments": call.arguments}
    return {**item, "namespace": tool_known.namespace} if tool_known.namespace else item


def _input(call: ToolCall) -> str:
    """What a custom tool is given: its arguments were checked against the schema of its one string."""
    return str(json.loads(call.arguments)[INPUT])
