"""What is said to Qwen Chat: request bodies, and a conversation folded into the one message it takes.

The service accepts exactly one user message a request and has no place for a system prompt (protocol §4.1,
§4.4). A single user message goes unchanged. Anything else is folded: a sentence that explains the marks, the
system messages, the turns in their order, and a mark after which the model writes. A mark is a line of its
own: `[<nonce> system]`, `[<nonce> user]`, `[<nonce> assistant]`, `[<nonce> tool]`, and `[<nonce> answer]`
at the end. The nonce is new for each request and occurs in no text of it, so no text can hold a mark; texts
are never altered.

All files of a conversation hang on that one message. So the mark of a turn that came with some names them,
and those that are no longer to be had: `[<nonce> user, attached: cat.png, report.pdf, gone: old.txt]`. A name
is on one line there and has no bracket.

What is too large for a message goes as a text document that holds it word for word (protocol §13), and the
message is a pointer to it, which begins with `[attached prompt]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from qwenproxy.chat import Attachment, FileKind, Message
from qwenproxy.errors import ProtocolChanged
from qwenproxy.qwen.files import READ_KINDS, HostedFile
from qwenproxy.qwen.models import Model

Json = dict[str, Any]

SEARCH: Final = "search"
"""The type of a message whose answer follows a search of the web (protocol §4.3, §10.4).

A fresh chat is of that type too. Whether a message may be of it in a chat that is not, no source tells; where
the service takes it for an ordinary message, its model may still search by itself (`auto_search`).
"""
RESEARCH: Final = "deep_research"
"""The type of the chat and the messages of a deep research, and the sub-type of its second message, which the
report answers (protocol §10.5)."""
CLARIFYING: Final = "deep_thinking"
"""The sub-type of the first message of a deep research, which a question answers."""
DRAWINGS: Final = frozenset({"t2i", "image_edit"})
"""The types of messages that pictures answer (protocol §10.1)."""
MOST_CHARACTERS: Final = 131_072
"""Of one message (protocol §13)."""
NAME_CHARACTERS: Final = 100
"""How much of a file's name a mark tells."""
POINTER: Final = (
    "[attached prompt]\nThis message was too long to be sent as such. "
    "It is the attached text document {name}: read the whole document and do what it "
    "says, as if it stood here word for word. "
    "Do not mention the document or this note."
)
FOLLOW_MARKS: Final = " It is a whole conversation with marks, which it explains; follow them to its end."


def fold(messages: Sequence[Message], nonce: str) -> str:
    """One message that says all of them. `nonce` is random, some 12 letters and digits."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].text
    while any(nonce in message.text or nonce in _files(message) for message in messages):
        nonce += "0"
    system = [message for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    parts = [f"[{nonce} {each.role}{_files(each)}]\n{each.text}\n" for each in (*system, *turns)]
    return f"{_explanation(nonce)}\n{''.join(parts)}[{nonce} answer]\n{_request(turns)}"


def _explanation(nonce: str) -> str:
    return (
        f"This is a whole conversation in one message. Only a line that starts with [{nonce} is a mark: "
        "it says whose text follows. Everything between two marks is that speaker's text, word for word. "
        "Follow the system text as your instructions, and never write a mark or mention the marks.\n"
    )


def _files(message: Message) -> str:
    """What the mark of a message says of its files; an attachment without an address is gone."""
    there = ", ".join(_on_one_line(each) for each in message.attachments if each.url)
    gone = ", ".join(_on_one_line(each) for each in message.attachments if not each.url)
    return (f", attached: {there}" if there else "") + (f", gone: {gone}" if gone else "")


def _on_one_line(attachment: Attachment) -> str:
    kept = "".join(c if c.isprintable() and c not in "[]" else " " for c in attachment.name)
    return " ".join(kept.split())[:NAME_CHARACTERS] or attachment.kind


def pointer(name: str, *, folded: bool) -> str:
    """The message in whose place the document `name` goes; `folded`: it is a conversation with marks."""
    return POINTER.format(name=name) + (FOLLOW_MARKS if folded else "")


def _request(turns: Sequence[Message]) -> str:
    if turns and turns[-1].role == "user":
        return "Write only the assistant's reply to the last user text above."
    return "Write only what the assistant says next."


def new_chat(model_id: str, timestamp_ms: int, chat_type: str = "t2t") -> Json:
    """The body of `POST /api/v2/chats/new` as the app sends it since 0.2.83 (protocol §3, §10.1)."""
    return {
        "chatId": "",
        "models": [model_id],
        "project_id": "",
        "timestamp": timestamp_ms,
        "chat_type": chat_type,
        "chat_mode": "normal",
    }


def chat_id_of(data: object) -> str:
    """The id in what `chats/new` answered, in any of its known places (protocol §3).

    Raises:
        ProtocolChanged: there is none.
    """
    row = data if isinstance(data, dict) else {}
    chat = row.get("chat")
    inner = chat.get("id") if isinstance(chat, dict) else None
    for chat_id in (row.get("id"), row.get("chat_id"), inner):
        if isinstance(chat_id, str) and chat_id:
            return chat_id
    raise ProtocolChanged("the service made a chat without telling its id", seen=type(data).__name__)


def thinks(model: Model, thinking: bool | None) -> bool:
    """Whether the model will think: when asked, or when it has no Fast mode (protocol §4.2)."""
    return model.thinking == "always" or (model.thinking == "optional" and thinking is True)


def feature_config(
    model: Model,
    thinking: bool | None = None,
    budget: int | None = None,
    *,
    search: bool = False,
    deeper: bool = False,
) -> Json:
    """`budget` (tokens) counts only where the model's metadata takes one (protocol §4.2).

    `deeper` is a research's (protocol §10.5).
    """
    thinking_on = thinks(model, thinking)
    config: Json = {
        "thinking_enabled": thinking_on,
        "output_schema": "phase",
        "research_mode": "advance" if deeper else "normal",
        "auto_thinking": False,
        "thinking_mode": "Thinking" if thinking_on else "Fast",
    }
    if thinking_on:
        config["thinking_format"] = model.thinking_format
        if model.takes_budget and (tokens := budget or model.thinking_limit):
            config["thinking_budget"] = tokens
    return config | {"auto_search": search}


def completion(
    chat_id: str,
    model_id: str,
    prompt: str,
    features: Json,
    *,
    question_id: str,
    answer_id: str,
    timestamp_s: int,
    parent_id: str | None = None,
    attachments: Sequence[HostedFile | Attachment] = (),
    chat_type: str = "t2t",
    sub_chat_type: str = "",
    size: str = "",
    generator: str = "",
) -> Json:
    """The body of `POST /api/v2/chat/completions` (protocol §4.1); the two message ids are fresh UUIDs.

    `sub_chat_type` is a research's; "": the type itself. `size` and `generator` are a drawing's (§10.1).
    """
    sub_chat_type = sub_chat_type or chat_type
    meta = {"subChatType": sub_chat_type}
    meta |= {name: value for name, value in (("size", size), ("model", generator)) if value}
    message = {
        "id": None,
        "fid": question_id,
        "parentId": parent_id,
        "parent_id": parent_id,
        "childrenIds": [answer_id],
        "role": "user",
        "content": prompt,
        "user_action": "chat",
        "files": [_file(each) if isinstance(each, HostedFile) else _hosted(each) for each in attachments],
        "timestamp": timestamp_s,
        "models": [model_id],
        "model": "",
        "chat_type": chat_type,
        "sub_chat_type": sub_chat_type,
        "feature_config": features,
        "extra": {"meta": meta},
    }
    body = {
        "stream": True,
        "version": "2.1",
        "incremental_output": True,
        "chatId": chat_id,
        "parentId": parent_id or "",
        "chat_id": chat_id,
        "chat_mode": "normal",
        "model": model_id,
        "parent_id": parent_id,
        "messages": [message],
        "timestamp": timestamp_s,
    }
    return body | ({"size": size} if size else {})


_CLASSES: dict[FileKind, str] = {
    "image": "vision",
    "video": "video",
    "audio": "audio",
    "document": "document",
    "text": "default",
}


def _file(hosted: HostedFile) -> Json:
    """A file of the account in a message (protocol §9.4)."""
    shown = "file" if hosted.kind in READ_KINDS else hosted.kind
    whole = {"context": "full"} if hosted.kind == "text" else {}
    return {
        "type": shown,
        "file": _upload(hosted),
        "id": hosted.id,
        "url": hosted.url,
        "name": hosted.name,
        "collection_name": "",
        "progress": 0,
        "status": "uploaded",
        "greenNet": "greening" if hosted.kind == "video" else "success",
        "size": hosted.size,
        "error": "",
        "itemId": _id_of(hosted, "item"),
        "file_type": hosted.type,
        "showType": shown,
        "file_class": _CLASSES[hosted.kind],
        "uploadTaskId": _id_of(hosted, "task"),
        **whole,
    }


def _upload(hosted: HostedFile) -> Json:
    meta: Json = {"name": hosted.name, "size": hosted.size, "content_type": hosted.type}
    if hosted.kind in READ_KINDS:
        meta["parse_meta"] = {"parse_status": "success"}
    return {
        "created_at": hosted.created_ms,
        "data": {},
        "filename": hosted.name,
        "hash": None,
        "id": hosted.id,
        "user_id": hosted.user_id,
        "meta": meta,
        "update_at": hosted.created_ms,
        "lastModified": hosted.created_ms,
        "name": hosted.name,
        "webkitRelativePath": "",
        "size": hosted.size,
        "type": hosted.type,
    }


def _id_of(hosted: HostedFile, what: str) -> str:
    """A UUID of the site's own, which no later call refers to."""
    return str(uuid5(NAMESPACE_URL, f"{what}:{hosted.id}"))


def _hosted(attachment: Attachment) -> Json:
    """What is hosted already, in the least form that was seen to work (protocol §9.4)."""
    picture = attachment.kind == "image"
    return {
        "type": attachment.kind,
        "name": attachment.url.partition("?")[0].rpartition("/")[2] or attachment.kind,
        "file_type": attachment.kind,
        "showType": attachment.kind,
        "file_class": "vision" if picture else "document",
        "status": "uploaded",
        "url": attachment.url,
    }


def stop(chat_id: str, response_id: str) -> Json:
    """The body of `POST /api/v2/chat/completions/stop` (protocol §4.6)."""
    return {"chat_id": chat_id, "response_id": response_id}


def rename(title: str) -> Json:
    """The body of `POST /api/v2/chats/{id}` (protocol §8)."""
    return {"title": title}
