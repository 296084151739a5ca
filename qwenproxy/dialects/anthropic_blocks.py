"""What Anthropic's messages hold, in the words of ours: text, attachments, calls and what they gave. Pure.

| block | what becomes of it |
|---|---|
| `text` | text |
| `image`, `document` with base64, an address or a file's id | attached (`parts.py`) |
| `document` with text or blocks, `search_result` | text, below its title |
| `tool_use` | a call, with the assistant's message |
| `tool_result` | a message of the tool, before all else that the user's message holds; `is_error` is text |
| `web_search_tool_result` | text: the pages that the text after it cites |
| `tool_reference` | text: the tool's name |
| `thinking`, `redacted_thinking`, `server_tool_use`, `tool_search_tool_result` | left out |
| any other | refused |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from qwenproxy.chat import Attachment, Message, Role, ToolCall
from qwenproxy.dialects.base import json_text
from qwenproxy.dialects.parts import attachment_of
from qwenproxy.errors import BadRequest

ROLES: Final[tuple[Role, ...]] = ("user", "assistant", "system")
LEFT_OUT: Final = frozenset({"thinking", "redacted_thinking", "server_tool_use", "tool_search_tool_result"})
IN_RESULTS: Final = frozenset({"text", "image", "document", "search_result", "tool_reference"})
FAILED: Final = "The tool failed"


def messages_of(given: Mapping[str, Any]) -> tuple[Message, ...]:
    """What `system` and `messages` say, in order.

    Raises:
        BadRequest: they are none, say nothing, or hold a block that cannot be told.
        UnsupportedParameter, UnknownFile: as `attachment_of`.
    """
    raw = given.get("messages")
    if not isinstance(raw, list) or not raw:
        raise BadRequest("messages must be a list with at least one message", param="messages")
    said = [told for place, message in enumerate(raw) for told in _messages(message, f"messages[{place}]")]
    if not any(each.text or each.attachments or each.calls for each in said if each.role != "system"):
        raise BadRequest("messages hold nothing that a user or an assistant says", param="messages")
    return (*_system(given.get("system")), *said)


def text_of(content: Any, place: str) -> str:
    """The text of a string or of blocks of text, a line a block. Raises: BadRequest."""
    return _gathered(content, place, frozenset({"text"})).text


@dataclass(slots=True)
class _Gathered:
    """What the blocks of a message come to."""

    lines: list[str] = field(default_factory=list)
    attachments: list[Attachment] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def _system(raw: Any) -> Sequence[Message]:
    text = "" if raw is None else text_of(raw, "system")
    return [Message("system", text)] if text else []


def _messages(raw: Any, place: str) -> list[Message]:
    """A message, after those of the tools whose results it brings."""
    if not isinstance(raw, dict):
        raise BadRequest(f"{place} must be an object", param=place)
    role = raw.get("role")
    if role not in ROLES:
        raise BadRequest(f"{place}.role must be one of {', '.join(ROLES)}", param=f"{place}.role")
    found = _gathered(raw.get("content"), f"{place}.content")
    for there, kind, owner in (
        (found.calls, "tool_use", "assistant"),
        (found.results, "tool_result", "user"),
    ):
        if there and role != owner:
            raise BadRequest(f"{place}: a {kind} block belongs to the role {owner}", param=f"{place}.content")
    own = Message(role, found.text, tuple(found.attachments), tuple(found.calls))
    return [*found.results, *([] if found.results and own == Message(role, "") else [own])]


def _gathered(raw: Any, place: str, only: frozenset[str] | None = None) -> _Gathered:
    """What `raw`, a string or blocks, comes to; `only`: the types of blocks that may stand there."""
    found = _Gathered()
    if isinstance(raw, str):
        found.lines.append(raw)
        return found
    if not isinstance(raw, list):
        raise BadRequest(f"{place} must be a string or a list of blocks", param=place)
    for index, block in enumerate(raw):
        here = f"{place}[{index}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if not isinstance(kind, str):
            raise BadRequest(f"{here} must be a block with its type", param=here)
        if only is not None and kind not in only:
            raise BadRequest(f"{here} is of type {kind[:40]}, which cannot stand there", param=here)
        _take(block, kind, here, found)
    return found


def _take(block: Mapping[str, Any], kind: str, place: str, found: _Gathered) -> None:
    match kind:
        case "text":
            found.lines.append(_said(block, "text", place))
        case "image":
            _attach(block, place, found)
        case "document":
            _take_document(block, place, found)
        case "search_result":
            heading = f"{_said(block, 'title', place)} ({_said(block, 'source', place)})"
            found.lines += [heading, text_of(block.get("content"), f"{place}.content")]
        case "tool_use":
            found.calls.append(_call(block, place))
        case "tool_result":
            found.results.append(_result(block, place))
        case "web_search_tool_result":
            found.lines += _pages(block.get("content"))
        case "tool_reference":
            found.lines.append(f"The tool {_said(block, 'tool_name', place)} may be used.")
        case _ if kind not in LEFT_OUT:
            raise BadRequest(
                f"{place} is of type {kind[:40]}, which is no block that can be told", param=place
            )


def _attach(block: Mapping[str, Any], place: str, found: _Gathered) -> None:
    if (attachment := attachment_of(block, place)) is not None:
        found.attachments.append(attachment)


def _take_document(block: Mapping[str, Any], place: str, found: _Gathered) -> None:
    """Text goes into the message as it is; what has to be read first is attached."""
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    heads = [_said(block, name, place) for name in ("title", "context") if block.get(name) is not None]
    if isinstance(source, dict) and kind == "text":
        found.lines += [*heads, _said(source, "data", f"{place}.source")]
    elif isinstance(source, dict) and kind == "content":
        inner = _gathered(source.get("content"), f"{place}.source.content", frozenset({"text", "image"}))
        found.lines += [*heads, *inner.lines]
        found.attachments += inner.attachments
    else:
        found.lines += heads[1:] if block.get("title") is not None else heads
        _attach(block, place, found)


def _call(block: Mapping[str, Any], place: str) -> ToolCall:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise BadRequest(f"{place}.input must be an object", param=f"{place}.input")
    return ToolCall(_said(block, "id", place), _said(block, "name", place), json_text(arguments))


def _result(block: Mapping[str, Any], place: str) -> Message:
    call_id = _said(block, "tool_use_id", place)
    content = block.get("content")
    found = _Gathered() if content is None else _gathered(content, f"{place}.content", IN_RESULTS)
    text = found.text
    if block.get("is_error") is True:
        text = f"{FAILED}:\n{text}" if text else f"{FAILED}."
    return Message("tool", text, tuple(found.attachments), call_id=call_id)


def _pages(content: Any) -> list[str]:
    """The pages that a web search found, numbered as the text cites them; none when it failed."""
    pages = [page for page in content if isinstance(page, dict)] if isinstance(content, list) else []
    lines = [
        " ".join([f"[[{number}]]", *(page[name] for name in ("title", "url") if _is_text(page.get(name)))])
        for number, page in enumerate(pages, 1)
    ]
    return ["Found on the web:", *lines] if lines else []


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _said(block: Mapping[str, Any], name: str, place: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise BadRequest(f"{place}.{name} must be a string", param=f"{place}.{name}")
    return value
