"""The input of OpenAI's Responses: items of many types, read as messages. Pure.

| item | becomes |
|---|---|
| a message, in its easy or its full form | a message; developers speak as the system |
| a call, of a shell and of a patch too | a call after the assistant's text before it |
| its output | the message of a tool |
| `mcp_call` | both |
| `additional_tools`, and what a `tool_search_output` found | tools of the request |
| `agent_message` of Codex's other agents | a message of the user |
| `reasoning`, and what hosted tools of another service did | nothing: what matters stands in the text |
| `compaction` | refused: only who wrote it can read it, and without it the conversation is lost |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from qwenproxy.chat import Attachment, Message, Role, ToolCall
from qwenproxy.dialects.base import Json, json_text
from qwenproxy.dialects.chat_tools import INPUT
from qwenproxy.dialects.parts import part_of
from qwenproxy.dialects.response_tools import flat_name
from qwenproxy.errors import BadRequest, UnsupportedParameter

ROLES: Final[Mapping[str, Role]] = MappingProxyType(
    {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
)
TEXT_PARTS: Final = frozenset({"input_text", "output_text", "text", "summary_text", "reasoning_text"})
"""Parts with their text under `text`."""
CALLS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "function_call": "arguments",
        "custom_tool_call": INPUT,
        "tool_search_call": "arguments",
        "local_shell_call": "action",
        "shell_call": "action",
        "apply_patch_call": "operation",
    }
)
"""Items that call, and where each says with what."""
OUTPUTS: Final = frozenset(
    {
        "function_call_output",
        "custom_tool_call_output",
        "local_shell_call_output",
        "shell_call_output",
        "apply_patch_call_output",
        "mcp_tool_call_output",
    }
)
LEFT_OUT: Final = frozenset(
    {
        "reasoning",
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "image_generation_call",
        "computer_call",
        "computer_call_output",
        "mcp_list_tools",
        "mcp_approval_request",
        "mcp_approval_response",
        "configuration_update",
        "program",
        "program_output",
    }
)
COMPACTIONS: Final = frozenset(
    {"compaction", "compaction_summary", "compaction_trigger", "context_compaction"}
)
ID_PREFIXES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "message": "msg",
        "function_call": "fc",
        "function_call_output": "fco",
        "custom_tool_call": "ctc",
        "custom_tool_call_output": "ctco",
        "tool_search_call": "tsc",
        "tool_search_output": "tso",
        "reasoning": "rs",
        "web_search_call": "ws",
    }
)
INLINE: Final = ("image_url", "file_data", "file_url")
"""Where a part may hold its content itself."""
ADDRESSES: Final = ("http://", "https://", "/")


@dataclass(frozen=True, slots=True)
class Input:
    messages: tuple[Message, ...]
    tools: tuple[tuple[Any, str], ...] = ()
    """That came as items, each with its place."""
    items: tuple[Json, ...] = ()
    """As they are sent, a string as a message."""


def read_input(given: Mapping[str, Any]) -> Input:
    """What a request says, after its `instructions`.

    Raises:
        BadRequest: it says nothing, or an item is not one.
        UnsupportedParameter, UnknownFile: an item or a part that cannot be told.
    """
    raw = given.get("input")
    items = [{"type": "message", "role": "user", "content": raw}] if isinstance(raw, str) else raw
    if not isinstance(items, list) or not items:
        raise BadRequest("input must be a string, or a list with at least one item", param="input")
    reader = _Reader()
    for index, item in enumerate(items):
        place = f"input[{index}]" if isinstance(raw, list) else "input"
        if not isinstance(item, dict):
            raise BadRequest(f"{place} must be an object", param=place)
        reader.take(item, place)
    if not any(_says_something(message) for message in reader.messages):
        raise BadRequest("input holds nothing that could be answered", param="input")
    return Input(tuple(reader.messages), tuple(reader.tools), tuple(items))


def _says_something(message: Message) -> bool:
    if message.role == "system":
        return False
    return message.role == "tool" or bool(message.text or message.attachments or message.calls)


def kind_of(item: Mapping[str, Any]) -> str:
    """An item's type, which may go without saying; "" where there is none."""
    kind = item.get("type")
    if kind is None:
        kind = "message" if "role" in item else "item_reference" if "id" in item else ""
    return kind if isinstance(kind, str) else ""


class _Reader:
    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.tools: list[tuple[Any, str]] = []

    def take(self, item: Json, place: str) -> None:
        kind = kind_of(item)
        if kind == "message":
            self.messages.append(_message(item, place))
        elif kind in CALLS:
            self._call(_call(item, kind, place))
        elif kind in OUTPUTS:
            self._answer(item, place)
        elif kind == "tool_search_output":
            self._found(item, place)
        elif kind == "mcp_call":
            self._mcp(item, place)
        elif kind == "additional_tools":
            self._more_tools(item, place)
        elif kind == "agent_message":
            text, attachments = _content(item.get("content"), f"{place}.content", readable_only=True)
            self.messages.append(Message("user", text, attachments))
        elif kind not in LEFT_OUT:
            raise _cannot_be_told(kind, item, place)

    def _call(self, call: ToolCall) -> None:
        """Belongs to the assistant's message that it follows."""
        if self.messages and self.messages[-1].role == "assistant":
            last = self.messages[-1]
            self.messages[-1] = replace(last, calls=(*last.calls, call))
        else:
            self.messages.append(Message("assistant", "", calls=(call,)))

    def _answer(self, item: Json, place: str) -> None:
        said = _output(item.get("output"), f"{place}.output")
        call_id = item.get("call_id") or item.get("id")
        self.messages.append(Message("tool", *said, call_id=call_id if isinstance(call_id, str) else ""))

    def _found(self, item: Json, place: str) -> None:
        names = self._more_tools(item, place)
        told = f"Found: {', '.join(names)}" if names else "Nothing was found."
        call_id = item.get("call_id")
        self.messages.append(Message("tool", told, call_id=call_id if isinstance(call_id, str) else ""))

    def _more_tools(self, item: Json, place: str) -> list[str]:
        """Their names."""
        rows = item.get("tools")
        if not isinstance(rows, list):
            raise BadRequest(f"{place}.tools must be a list", param=f"{place}.tools")
        self.tools += [(row, f"{place}.tools[{index}]") for index, row in enumerate(rows)]
        return [name for row in rows if isinstance(row, dict) for name in _names(row)]

    def _mcp(self, item: Json, place: str) -> None:
        called = {**item, "call_id": item.get("call_id") or item.get("id")}
        self._call(_call(called, "function_call", place))
        said = next((item[name] for name in ("output", "error") if item.get(name)), "")
        self._answer({**called, "output": said}, place)


def _names(row: Json) -> Iterator[str]:
    """What the model calls a tool, or those of a namespace."""
    namespace = row.get("type") == "namespace" and isinstance(row.get("tools"), list)
    for each in row["tools"] if namespace else [row]:
        if isinstance(each, dict) and each.get("name"):
            yield flat_name(str(each["name"]), str(row.get("name")) if namespace else "")


def _message(item: Mapping[str, Any], place: str) -> Message:
    role = item["role"] if isinstance(item.get("role"), str) else ""
    if role not in ROLES:
        raise BadRequest(f"{place}.role must be one of {', '.join(ROLES)}", param=f"{place}.role")
    content = item.get("content")
    if content is None and role == "assistant":
        return Message("assistant", "")
    return Message(ROLES[role], *_content(content, f"{place}.content"))


def _content(raw: Any, place: str, *, readable_only: bool = False) -> tuple[str, tuple[Attachment, ...]]:
    """A content's text, a line a part, and what it carries. Raises: as `text_and_attachments`.

    `readable_only`: a part of an unknown type is left out.
    """
    if isinstance(raw, str):
        return raw, ()
    if not isinstance(raw, list):
        raise BadRequest(f"{place} must be a string or a list of parts", param=place)
    lines: list[str] = []
    attachments: list[Attachment] = []
    for index, part in enumerate(raw):
        at = f"{place}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in TEXT_PARTS and isinstance(part.get("text"), str):
            lines.append(part["text"])
        elif not readable_only:
            found = part_of(part, at, ("text", "refusal"))
            if isinstance(found, str):
                lines.append(found)
            else:
                attachments.append(found)
    return "\n".join(lines), tuple(attachments)


def _output(raw: Any, place: str) -> tuple[str, tuple[Attachment, ...]]:
    """What a tool answered: text, parts, or (a shell's) any JSON, which is told as it is."""
    if raw is None:
        return "", ()
    parts = isinstance(raw, list) and all(isinstance(part, dict) and "type" in part for part in raw)
    return _content(raw, place) if isinstance(raw, str) or parts else (json_text(raw), ())


def _call(item: Mapping[str, Any], kind: str, place: str) -> ToolCall:
    call_id = item.get("call_id") or item.get("id") or ""
    if not isinstance(call_id, str):
        raise BadRequest(f"{place}.call_id must be an id", param=f"{place}.call_id")
    said = item.get(CALLS[kind])
    if kind == "custom_tool_call":
        if not isinstance(said, str):
            raise BadRequest(f"{place}.input must be a string", param=f"{place}.input")
        return ToolCall(call_id, _called(item, place), json_text({INPUT: said}))
    name = _called(item, place) if kind == "function_call" else kind.removesuffix("_call")
    return ToolCall(call_id, name, _arguments(said, f"{place}.{CALLS[kind]}"))


def _called(item: Mapping[str, Any], place: str) -> str:
    name, namespace = item.get("name"), item.get("namespace")
    if not isinstance(name, str) or not name:
        raise BadRequest(f"{place}.name must be the name of what was called", param=f"{place}.name")
    return flat_name(name, namespace if isinstance(namespace, str) else "")


def _arguments(raw: Any, place: str) -> str:
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return "{}"
    if isinstance(raw, dict):
        return json_text(raw)
    if not isinstance(raw, str):
        raise BadRequest(f"{place} must be JSON text", param=place)
    return raw


def _cannot_be_told(kind: str, item: Mapping[str, Any], place: str) -> Exception:
    if kind == "item_reference":
        told = str(item.get("id"))[:80]
        return BadRequest(f"{place}: no item with the id {told} is stored here", param=place)
    if kind in COMPACTIONS:
        return UnsupportedParameter(f"{place}: conversations are not compacted here", param=place)
    named = f"type {kind[:40]}, which cannot be sent" if kind else "no type"
    return BadRequest(f"{place} is an item of {named}", param=place)


# ---- how the input of a stored response is listed ----


def listed(items: tuple[Json, ...], answer_id: str) -> list[Json]:
    """The items with ids and in their full form; content that stood in them is left out, as OpenAI does."""
    return [_full(item, f"{answer_id}_in{index}") for index, item in enumerate(items)]


def _full(item: Json, number: str) -> Json:
    kind = kind_of(item)
    full = {**item, "type": kind}
    if not isinstance(full.get("id"), str) or not full["id"]:
        full["id"] = f"{ID_PREFIXES.get(kind, 'item')}_{number}"
    if kind == "message":
        text_part = "output_text" if item.get("role") == "assistant" else "input_text"
        content = item.get("content")
        parts = [{"type": text_part, "text": content or ""}] if not isinstance(content, list) else content
        full["content"] = [_part(part) for part in parts]
    if kind == "message" or kind in CALLS or kind in OUTPUTS:
        full.setdefault("status", "completed")
    if isinstance(full.get("output"), list):
        full["output"] = [_part(part) for part in full["output"]]
    return full


def _part(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    shown = {**part}
    for name in INLINE:
        if isinstance(part.get(name), str) and not part[name].startswith(ADDRESSES):
            shown[name] = None
    if part.get("type") == "input_image":
        shown.setdefault("detail", "auto")
    if part.get("type") == "output_text":
        shown.setdefault("annotations", [])
    return shown
