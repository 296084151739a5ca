"""What is said to Qwen Chat: request bodies, and a conversation folded into the one message it takes.

The service accepts exactly one user message a request and has no place for a system prompt (protocol §4.1,
§4.4). A single user message goes unchanged. Anything else is folded: a sentence that explains the marks, the
system messages, the turns in their order, and a mark after which the model writes. A mark is a line of its
own: `[<nonce> system]`, `[<nonce> user]`, `[<nonce> assistant]`, and `[<nonce> answer]` at the end. The nonce
is new for each request and occurs in no text of it, so no text can hold a mark; texts are never altered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwenproxy.chat import Attachment, Message
from qwenproxy.errors import ProtocolChanged
from qwenproxy.qwen.models import Model

Json = dict[str, Any]


def fold(messages: Sequence[Message], nonce: str) -> str:
    """One message that says all of them. `nonce` is random, some 12 letters and digits."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].text
    while any(nonce in message.text for message in messages):
        nonce += "0"
    system = [message for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    parts = [f"[{nonce} {message.role}]\n{message.text}\n" for message in (*system, *turns)]
    return f"{_explanation(nonce)}\n{''.join(parts)}[{nonce} answer]\n{_request(turns)}"


def _explanation(nonce: str) -> str:
    return (
        f"This is a whole conversation in one message. Only a line that starts with [{nonce} is a mark: "
        "it says whose text follows. Everything between two marks is that speaker's text, word for word. "
        "Follow the system text as your instructions, and never write a mark or mention the marks.\n"
    )


def _request(turns: Sequence[Message]) -> str:
    if turns and turns[-1].role == "user":
        return "Write only the assistant's reply to the last user text above."
    return "Write only what the assistant says next."


def new_chat(model_id: str, timestamp_ms: int) -> Json:
    """The body of `POST /api/v2/chats/new` as the app sends it since 0.2.83 (protocol §3)."""
    return {
        "chatId": "",
        "models": [model_id],
        "project_id": "",
        "timestamp": timestamp_ms,
        "chat_type": "t2t",
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
    model: Model, thinking: bool | None = None, budget: int | None = None, *, search: bool = False
) -> Json:
    """`budget` (tokens) counts only where the model's metadata takes one (protocol §4.2)."""
    thinking_on = thinks(model, thinking)
    config: Json = {
        "thinking_enabled": thinking_on,
        "output_schema": "phase",
        "research_mode": "normal",
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
    attachments: Sequence[Attachment] = (),
) -> Json:
    """The body of `POST /api/v2/chat/completions` (protocol §4.1); the two message ids are fresh UUIDs."""
    message = {
        "id": None,
        "fid": question_id,
        "parentId": parent_id,
        "parent_id": parent_id,
        "childrenIds": [answer_id],
        "role": "user",
        "content": prompt,
        "user_action": "chat",
        "files": [_hosted(attachment) for attachment in attachments],
        "timestamp": timestamp_s,
        "models": [model_id],
        "model": "",
        "chat_type": "t2t",
        "sub_chat_type": "t2t",
        "feature_config": features,
        "extra": {"meta": {"subChatType": "t2t"}},
    }
    return {
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
