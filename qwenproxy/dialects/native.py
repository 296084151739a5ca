"""FreeQwenApi's own chat, `POST /api/chat`: the proxy keeps the conversation, the client sends what is new.

Shapes: the seed's README 004, §4.3 to §5, and peers.md §2.1. What such a request says beside its message is
said as in OpenAI's Chat Completions, and read there. An answer is OpenAI's with `chatId`, `parentId` (the id
under which the answer is kept) and `account`; an error is `{"error": text, "code"}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any, ClassVar, Final

from qwenproxy.chat import (
    Attachment,
    ChatRequest,
    ConversationRef,
    Delta,
    Finished,
    Message,
    Reply,
    Role,
    Started,
    fold,
)
from qwenproxy.clock import Clock
from qwenproxy.dialects.base import Encoder, Json, frame, json_text
from qwenproxy.dialects.openai_chat import HUSHED, OpenAIChat
from qwenproxy.dialects.parts import part_of, text_and_attachments
from qwenproxy.errors import BadRequest, QwenProxyError, UnsupportedParameter

PARAMETERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "message": "a string, or a list of parts: text, and those of *Files and pictures*",
        "messages": "instead of `message`: the last one of a user counts, in a new chat the system's too",
        "chatId": "the chat to go on with, also `chat_id` or `conversation_id`; none: a new one",
        "parentId": "the answer to go on from, also `parent_id`; none: the last one",
        "messageId": "of `regenerate`: the answer, or its question; none: the last one",
        "model": "none: `qwen`, the default model; of `regenerate`: the model that answered",
        "stream": "OpenAI's chunks, each with `chatId`, `parentId` and `account`",
    }
)
"""Every parameter of its own; all others are those of completions."""

OWN_NAMES: Final = frozenset(
    {*PARAMETERS, "chat_id", "conversation_id", "parent_id", "message_id"} - {"model", "stream"}
)
ANY_MESSAGES: Final[tuple[Json, ...]] = ({"role": "user", "content": "in place of those read here"},)
SYSTEM_ROLES: Final = frozenset({"system", "developer"})


class NativeChat:
    paths: ClassVar[tuple[str, ...]] = ("/chat",)

    def __init__(self, clock: Clock | None = None) -> None:
        self._openai = OpenAIChat(clock)

    def parse(self, body: Mapping[str, Any], params: Mapping[str, str]) -> ChatRequest:
        chat_id = _id(body, "chatId", "chat_id", "conversation_id")
        parent_id = _id(body, "parentId", "parent_id")
        if parent_id and not chat_id:
            raise BadRequest("parentId says nothing without the chatId it belongs to", param="parentId")
        messages = _messages(body)
        return replace(
            self._said_as_openai_does(body),
            messages=messages[-1:] if chat_id else messages,
            conversation=ConversationRef(chat_id, parent_id),
        )

    def encoder(self, request: ChatRequest) -> NativeEncoder:
        return NativeEncoder(self._openai, request)

    def reply(self, request: ChatRequest, replies: Sequence[Reply]) -> Json:
        (reply,) = replies
        told = self._openai.reply(request, replies) | _kept_as(reply.started)
        if reply.thinking and not request.echo.get(HUSHED):
            told["reasoning"] = reply.thinking
        if reply.sources:
            told["sources"] = [asdict(source) for source in reply.sources]
        return told

    def error(self, error: QwenProxyError) -> Json:
        return error_body(error)

    def _said_as_openai_does(self, body: Mapping[str, Any]) -> ChatRequest:
        """All but the conversation."""
        for name in ("tools", "functions"):
            if body.get(name):
                told = f"{name}: a chat that is kept here has no place for calls and their results"
                raise UnsupportedParameter(told, param=name)
        shared = {name: value for name, value in body.items() if name not in OWN_NAMES}
        request = self._openai.parse({**shared, "messages": list(ANY_MESSAGES)}, {})
        if request.choices > 1:
            raise UnsupportedParameter("n: a chat goes on from one answer", param="n")
        # The end of a stream tells the usage anyway, in the chunk that ends it.
        return replace(request, include_usage=False)


class NativeRegenerate(NativeChat):
    """The last question, or that of `messageId`, answered anew; the answers it has are kept."""

    paths: ClassVar[tuple[str, ...]] = ("/chats/{chat_id}/regenerate",)

    def parse(self, body: Mapping[str, Any], params: Mapping[str, str]) -> ChatRequest:
        request = self._said_as_openai_does(body)
        message_id = _id(body, "messageId", "message_id")
        return replace(
            request,
            model="" if body.get("model") is None else request.model,
            messages=(),
            conversation=ConversationRef(params["chat_id"], message_id, regenerate=True),
        )


class NativeEncoder:
    """OpenAI's chunks, each with where the answer is kept."""

    def __init__(self, openai: OpenAIChat, request: ChatRequest) -> None:
        self._openai = openai
        self._request = request
        self._chunks: Encoder = openai.encoder(request)
        self._head = "data: {"
        self._started: Started | None = None

    def encode(self, delta: Delta, choice: int = 0) -> list[str]:
        if isinstance(delta, Started):
            self._started = delta
            self._head = "data: " + json_text(_kept_as(delta))[:-1] + ","
        more = ""
        if isinstance(delta, Finished) and self._started is not None:
            more = self._usage(self._started, delta)
        return [self._with(chunk, more) for chunk in self._chunks.encode(delta, choice)]

    def end(self) -> list[str]:
        return self._chunks.end()

    def fail(self, error: QwenProxyError) -> list[str]:
        chat_id = self._started.conversation_id if self._started else ""
        return [frame(error_body(error, chat_id))]

    def _with(self, chunk: str, more: str) -> str:
        return self._head + more + chunk.removeprefix("data: {")

    def _usage(self, started: Started, finished: Finished) -> str:
        whole = self._openai.reply(self._request, [fold((started, finished))])
        return f'"usage":{json_text(whole["usage"])},'


def error_body(error: QwenProxyError, chat_id: str = "") -> Json:
    """The seed's error, the one of every route of chats: `{"error", "code"}`, with `param` and `chatId`."""
    told: Json = {"error": str(error) or error.code, "code": error.code}
    param = getattr(error, "param", None)
    if param is not None:
        told["param"] = param
    if error.conversation_id or chat_id:
        told["chatId"] = error.conversation_id or chat_id
    return told


def content_of(raw: Any, place: str) -> str | list[Json]:
    """A message's content as it is kept: text, or the seed's parts; others become those.

    Raises:
        BadRequest: it is neither.
        UnsupportedParameter: a part that cannot be sent, such as a picture that is no address.
        UnknownFile: an id that is none of ours.
    """
    if isinstance(raw, str):
        return raw
    if not isinstance(raw, list) or not raw:
        raise BadRequest(f"{place} must be a string or a list of parts", param=place)
    return [_kept(part_of(part, f"{place}[{index}]")) for index, part in enumerate(raw)]


def _kept(part: str | Attachment) -> Json:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": part.kind, part.kind: part.url}


def _messages(body: Mapping[str, Any]) -> tuple[Message, ...]:
    """The system's messages and, last, the user's new one."""
    raw = body.get("messages")
    if raw is None:
        return (_message("user", body.get("message"), "message"),)
    if not isinstance(raw, list) or not raw:
        raise BadRequest("messages must be a list with at least one message", param="messages")
    system: list[Message] = []
    last = -1
    for place, message in enumerate(raw):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str):
            raise BadRequest(f"messages[{place}] must be a message with its role", param=f"messages[{place}]")
        if role in SYSTEM_ROLES:
            system.append(_message("system", message.get("content"), f"messages[{place}].content"))
        last = place if role == "user" else last
    if last < 0:
        raise BadRequest("messages hold none of a user", param="messages")
    return (*system, _message("user", raw[last].get("content"), f"messages[{last}].content"))


def _message(role: Role, raw: Any, place: str) -> Message:
    message = Message(role, *text_and_attachments(raw, place))
    if role == "user" and not message.text.strip() and not message.attachments:
        raise BadRequest(f"{place} is empty", param=place)
    return message


def _kept_as(started: Started) -> Json:
    told = {
        "chatId": started.conversation_id,
        "parentId": started.message_id,
        "account": started.account_id,
    }
    return told | {"rebuilt": started.rebuilt} if started.rebuilt else told


def _id(body: Mapping[str, Any], *names: str) -> str:
    """The first of the fields that says something."""
    for name in names:
        value = body.get(name)
        if value is not None and not isinstance(value, str):
            raise BadRequest(f"{name} must be a string", param=name)
        if value:
            return value
    return ""
