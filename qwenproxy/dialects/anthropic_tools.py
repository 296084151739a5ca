"""The tools that a request in Anthropic's words offers. Pure.

| tool | what becomes of it |
|---|---|
| with a name and an `input_schema` | may be called |
| `bash_…`, `text_editor_…`, `memory_…` | may be called; the client does them, their schemas are known |
| `web_search_…` | the service searches, if it is the only tool or `tool_choice` names it; else left out |
| `tool_search_tool_…` | left out: no tool waits to be found, all are told |
| any other | refused: what Anthropic's own servers do, nobody does here |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwenproxy.chat import Tool, ToolChoice
from qwenproxy.dialects.base import Json
from qwenproxy.dialects.fields import flag, mapping, tool
from qwenproxy.errors import BadRequest, UnsupportedParameter

SEARCH: Final = "web_search"
SEARCH_TYPES: Final = "web_search_"
FOUND_TOOLS: Final = "tool_search_tool_"
OLD_EDITORS: Final = frozenset({"text_editor_20241022", "text_editor_20250124"})
"""They could undo, and took the text to insert as `new_str` (anthropic-sdk-python#1155)."""
BASH: Final = """{"type": "object", "properties": {
  "command": {"type": "string", "description": "What to run; not with restart."},
  "restart": {"type": "boolean", "description": "true starts the shell anew."}
}}"""
EDITOR: Final = """{"type": "object", "required": ["command", "path"], "properties": {
  "command": {"type": "string", "enum": ["view", "create", "str_replace", "insert"]},
  "path": {"type": "string", "description": "Of the file; view also takes a folder's."},
  "view_range": {"type": "array", "items": {"type": "integer"},
    "description": "Of view: the first and the last line, from 1 on; -1 is the end."},
  "file_text": {"type": "string", "description": "Of create: all that the file is to hold."},
  "old_str": {"type": "string", "description": "Of str_replace: must be there exactly once."},
  "new_str": {"type": "string", "description": "Of str_replace."},
  "insert_line": {"type": "integer", "description": "Of insert: the line after which; 0 is the beginning."},
  "insert_text": {"type": "string", "description": "Of insert."}
}}"""
MEMORY: Final = """{"type": "object", "required": ["command"], "properties": {
  "command": {"type": "string", "enum": ["view", "create", "str_replace", "insert", "delete", "rename"]},
  "path": {"type": "string", "description": "Of all but rename; view also takes a folder's."},
  "view_range": {"type": "array", "items": {"type": "integer"},
    "description": "Of view: the first and the last line, from 1 on."},
  "file_text": {"type": "string", "description": "Of create: all that the file is to hold."},
  "old_str": {"type": "string", "description": "Of str_replace: must be there exactly once."},
  "new_str": {"type": "string", "description": "Of str_replace."},
  "insert_line": {"type": "integer", "description": "Of insert: the line after which; 0 is the beginning."},
  "insert_text": {"type": "string", "description": "Of insert."},
  "old_path": {"type": "string", "description": "Of rename."},
  "new_path": {"type": "string", "description": "Of rename."}
}}"""
CHOICES: Final = ("auto", "any", "tool", "none")


@dataclass(frozen=True, slots=True)
class Offered:
    tools: tuple[Tool, ...]
    choice: ToolChoice
    search: bool
    """Whether the web must be searched."""
    wish: str
    """What the model must be told of the search."""


def offered(given: Mapping[str, Any]) -> Offered:
    """What `tools` and `tool_choice` offer.

    Raises:
        BadRequest: they are malformed, or a tool is chosen that is not there.
        UnsupportedParameter: a tool that nobody does here.
    """
    raw = given.get("tools", [])
    if not isinstance(raw, list):
        raise BadRequest("tools must be a list", param="tools")
    tools: list[Tool] = []
    searches: list[tuple[Json, str]] = []
    for index, each in enumerate(raw):
        place = f"tools[{index}]"
        if not isinstance(each, dict):
            raise BadRequest(f"{place} must be an object", param=place)
        kind = "custom" if each.get("type") is None else each["type"]
        if not isinstance(kind, str):
            raise BadRequest(f"{place}.type must be a string", param=f"{place}.type")
        if kind.startswith(SEARCH_TYPES):
            searches.append((each, place))
        elif not kind.startswith(FOUND_TOOLS):
            tools.append(_tool(each, kind, place))
    _check_names(tools)
    choice, named = _choice(given, tools, has_search=bool(searches))
    search = bool(searches) and choice.mode != "none" and (named == SEARCH or not tools)
    if search:
        choice = ToolChoice(parallel=choice.parallel)
    wish = " ".join(_domains(each, place) for each, place in searches).strip()
    return Offered(tuple(tools), choice, search, wish if search else "")


def _tool(raw: Json, kind: str, place: str) -> Tool:
    if kind == "custom":
        return tool(raw, place, "input_schema")
    described = _known(kind)
    if described is None:
        told = f"{place} is of type {kind[:40]}, which is not done here"
        raise UnsupportedParameter(told, param=place)
    description, schema = described
    named = tool({"name": raw.get("name"), "description": description}, place)
    return Tool(named.name, named.description, schema)


def _choice(given: Mapping[str, Any], tools: Sequence[Tool], *, has_search: bool) -> tuple[ToolChoice, str]:
    """How tools are to be used, and which one is named."""
    raw = mapping(given, "tool_choice")
    if not raw:
        return ToolChoice(), ""
    kind, name = raw.get("type"), raw.get("name")
    if kind not in CHOICES:
        raise BadRequest(f"tool_choice.type must be one of {', '.join(CHOICES)}", param="tool_choice.type")
    parallel = flag(raw, "disable_parallel_tool_use", "tool_choice.") is not True
    if kind in {"auto", "none"}:
        return ToolChoice("none" if kind == "none" else "auto", parallel=parallel), ""
    if not tools and not has_search:
        raise BadRequest(f"tool_choice {kind} needs tools", param="tool_choice")
    if kind == "any":
        return ToolChoice("required", parallel=parallel), ""
    names = {each.name for each in tools} | ({SEARCH} if has_search else set())
    if not isinstance(name, str) or name not in names:
        raise BadRequest("tool_choice.name must be the name of one of the tools", param="tool_choice.name")
    return ToolChoice("required", (name,), parallel), name


def _check_names(tools: Sequence[Tool]) -> None:
    names: set[str] = set()
    for each in tools:
        if each.name in names:
            raise BadRequest(f"two tools are called {each.name[:64]}", param="tools")
        names.add(each.name)


def _domains(raw: Json, place: str) -> str:
    """Which web pages may be used: the service takes no such wish, the model may heed it."""
    told: list[str] = []
    for name, words in (("allowed_domains", "only"), ("blocked_domains", "no")):
        domains = raw.get(name)
        if domains is None:
            continue
        if not isinstance(domains, list) or not all(isinstance(domain, str) for domain in domains):
            raise BadRequest(f"{place}.{name} must be a list of domains", param=f"{place}.{name}")
        if domains:
            told.append(f"Use {words} web pages of {', '.join(domains)}.")
    return " ".join(told)


def _known(kind: str) -> tuple[str, Json] | None:
    """Description and schema of a tool that is Anthropic's by name and the client's by deed."""
    if kind.startswith("bash_"):
        return "Runs a command in a shell that stays open from call to call.", json.loads(BASH)
    if kind.startswith("text_editor_"):
        schema = json.loads(EDITOR)
        if kind in OLD_EDITORS:
            schema["properties"]["command"]["enum"].append("undo_edit")
            del schema["properties"]["insert_text"]
            schema["properties"]["new_str"]["description"] = "Of str_replace and of insert."
        return "Shows, makes and changes text files.", schema
    if kind.startswith("memory_"):
        return "Keeps notes as text files below /memories, for later conversations.", json.loads(MEMORY)
    return None
