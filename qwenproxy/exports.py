"""Chats as files for people and other programs, and what such files bring back. Pure.

What leaves never says whose key made a chat, which account answered, or where it stands in the web; what
comes in is never believed about these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import NAMESPACE_OID, uuid5

from qwenproxy.addresses import own_file
from qwenproxy.dialects.native import content_of
from qwenproxy.errors import BadRequest
from qwenproxy.transcript import Content, Entry, Json, Transcript, transcript_of

OURS_OF_CHATS: Final = frozenset({"owner", "account", "twin", "untwinned"})
OURS_OF_MESSAGES: Final = frozenset({"account", "upstream"})
UPSTREAM_OF_CHATS: Final = frozenset({"owner", "twin"})
UPSTREAM_OF_MESSAGES: Final = frozenset({"upstream"})
ROLES: Final = ("system", "developer", "user", "assistant")
IMPORTED: Final = "imported"
MOST_MESSAGES: Final = 100_000
NAME_CHARACTERS: Final = 200
ID_CHARACTERS: Final = 100
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
LAST_S: Final = 253_402_300_799
"""The end of the year 9999."""


# ---- out ----


def told(chat: Transcript) -> Json:
    """For the chat's owner: the file's form without what only this program needs."""
    return _without(chat.to_json(), UPSTREAM_OF_CHATS, UPSTREAM_OF_MESSAGES)


def json_of(chat: Transcript) -> Json:
    """All branches, in the seed's form: what `imported` takes back."""
    return _without(chat.to_json(), OURS_OF_CHATS, OURS_OF_MESSAGES)


def openai(chat: Transcript) -> Json:
    """The current branch as OpenAI's `messages`."""
    return {
        "messages": [
            {"role": entry.role, "content": _openai_content(entry.content)} for entry in chat.branch()
        ]
    }


def markdown(chat: Transcript) -> str:
    """The current branch, to read."""
    blocks = [f"# {on_one_line(chat.name)}", *(_block(entry) for entry in chat.branch())]
    return "\n\n".join(blocks) + "\n"


def _without(chat: Json, of_chat: frozenset[str], of_messages: frozenset[str]) -> Json:
    rest = {name: value for name, value in chat.items() if name not in of_chat}
    for name in ("messages", "branches"):
        if name in rest:
            rest[name] = [
                {key: value for key, value in message.items() if key not in of_messages}
                for message in rest[name]
            ]
    return rest


def _openai_content(content: Content) -> Content:
    if isinstance(content, str):
        return content
    return [_openai_part(part) for part in content]


def _openai_part(part: Json) -> Json:
    kind = part.get("type")
    if kind == "image" and isinstance(part.get("image"), str):
        return {"type": "image_url", "image_url": {"url": part["image"]}}
    # A file at an address has no form of OpenAI's own: it stays as it is, which an import reads.
    ours = own_file(part["file"]) if kind == "file" and isinstance(part.get("file"), str) else ""
    return {"type": "file", "file": {"file_id": ours}} if ours else part


def _block(entry: Entry) -> str:
    who = entry.role.capitalize() + (f" ({entry.model})" if entry.model else "")
    lines = [f"## {on_one_line(who)}{_when(entry.timestamp)}", _written(entry.content)]
    if entry.sources:
        lines.append("\n".join(f"{place}. {_link(each)}" for place, each in _numbered(entry.sources)))
    if entry.partial:
        lines.append(f"*Cut short: {on_one_line(entry.partial)}*")
    return "\n\n".join(lines)


def _written(content: Content) -> str:
    if isinstance(content, str):
        return content
    return "\n\n".join(_part(part) for part in content)


def _part(part: Json) -> str:
    if isinstance(part.get("image"), str):
        return f"![image]({_address(part['image'])})"
    if isinstance(part.get("file"), str):
        return f"[file]({_address(part['file'])})"
    return str(part.get("text", ""))


def _numbered(sources: Sequence[Json]) -> list[tuple[Any, Json]]:
    """By the numbers that the text cites."""
    return [(each.get("number", place), each) for place, each in enumerate(sources, 1)]


def _link(source: Json) -> str:
    url = str(source.get("url", ""))
    return f"[{on_one_line(str(source.get('title') or url))}]({_address(url)})"


def _address(url: str) -> str:
    return url.replace(" ", "%20").replace("(", "%28").replace(")", "%29")


def _when(timestamp: int) -> str:
    if not 0 < timestamp <= LAST_S:
        return ""
    return f" · {datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M} UTC"


def on_one_line(text: str) -> str:
    """Without line breaks and other control characters."""
    return " ".join(CONTROL.sub(" ", text).split())


# ---- in ----


def imported(value: Any, *, new_id: str, name: str, created: int, owner: str) -> Transcript:
    """The chat that a file brings: our JSON, the seed's file, a bare list, or OpenAI's messages.

    `name` and `created` (milliseconds) are for files that have none.

    Raises:
        BadRequest: it is no chat; tells the place.
        UnsupportedParameter: a part of a message that cannot be sent.
    """
    chat: Json = {"messages": value} if isinstance(value, list) else value
    if not isinstance(chat, dict) or not isinstance(chat.get("messages"), list):
        raise BadRequest("a chat is an object with messages, or a list of them", param="messages")
    branches = chat.get("branches", [])
    if not isinstance(branches, list):
        raise BadRequest("branches must be a list of messages", param="branches")
    if len(chat["messages"]) + len(branches) > MOST_MESSAGES:
        raise BadRequest(f"a chat is at most {MOST_MESSAGES} messages here", param="messages")
    made = _moment(chat, "created", "created", LAST_S * 1000)
    otherwise_s = (made or created) // 1000
    messages = [_message(m, f"messages[{n}]", otherwise_s) for n, m in enumerate(chat["messages"])]
    others = [_message(m, f"branches[{n}]", otherwise_s) for n, m in enumerate(branches)]
    _refuse_twice([*messages, *others])
    rest = {key: each for key, each in chat.items() if key not in OURS_OF_CHATS}
    read = transcript_of(
        {
            **rest,
            "name": _name(chat.get("name"), name),
            "created": made,
            "messages": messages,
            "branches": others,
        },
        new_id,
    )
    return replace(read, created=read.created or created, owner=owner, untwinned=IMPORTED)


def _name(raw: Any, otherwise: str) -> str:
    if raw is not None and not isinstance(raw, str):
        raise BadRequest("name must be a string", param="name")
    return on_one_line(raw or "")[:NAME_CHARACTERS] or otherwise


def _message(raw: Any, place: str, otherwise_s: int) -> Json:
    if not isinstance(raw, dict):
        raise BadRequest(f"{place} must be a message", param=place)
    if raw.get("role") not in ROLES:
        raise BadRequest(f"{place}.role must be one of {', '.join(ROLES)}", param=f"{place}.role")
    message = {key: each for key, each in raw.items() if key not in OURS_OF_MESSAGES}
    message["content"] = _content(raw, place)
    if raw.get("timestamp") is None:
        message["timestamp"] = otherwise_s
    else:
        message["timestamp"] = _moment(raw, "timestamp", f"{place}.timestamp", LAST_S)
    for key in ("id", "parentId"):
        value = message.pop(key, None)
        if isinstance(value, str):  # whatever else it is names nothing
            message[key] = _id(value)
    return message


def _content(raw: Mapping[str, Any], place: str) -> Content:
    content = raw.get("content")
    if raw["role"] == "assistant":
        if content is None or content == []:
            return ""
        if isinstance(content, list):
            content = [_refusal_as_text(part) for part in content]
    return content_of(content, f"{place}.content")


def _refusal_as_text(part: Any) -> Any:
    if isinstance(part, dict) and part.get("type") == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    return part


def _moment(raw: Mapping[str, Any], name: str, place: str, last: int) -> int:
    value = raw.get(name)
    if value is None:
        return 0
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= last:
        raise BadRequest(f"{place} must be a time", param=place)
    return int(value)


def _id(raw: str) -> str:
    """The same id, or for one that cannot stand in an address a name made of it."""
    fits = len(raw) <= ID_CHARACTERS and raw.isascii() and raw.replace("-", "").replace("_", "").isalnum()
    return raw if fits or not raw else str(uuid5(NAMESPACE_OID, raw))


def _refuse_twice(messages: list[Json]) -> None:
    seen: set[str] = set()
    for message in messages:
        if message.get("id") and message["id"] in seen:
            raise BadRequest("two messages have the same id", param="messages")
        seen.add(message.get("id", ""))
