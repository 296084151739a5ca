"""OpenAI's Chat Completions.

What is done with each request parameter stands in `chat_parameters.py`, tools in `chat_tools.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final

from qwenproxy.chat import (
    AnswerFormat,
    ChatRequest,
    ConversationRef,
    Delta,
    Finished,
    Media,
    Message,
    Reply,
    Role,
    Source,
    Started,
    Text,
    Thinking,
    ToolCall,
    Usage,
    cited,
    written,
)
from qwenproxy.clock import Clock, SystemClock
from qwenproxy.dialects.base import Dialect, Encoder, Json, frame, json_text
from qwenproxy.dialects.chat_parameters import MOST_CHOICES, refuse
from qwenproxy.dialects.chat_tools import CallForm, calls_of, offer, result_of
from qwenproxy.dialects.fields import answer_format, count, flag, mapping, model, stop, thinks_by_effort
from qwenproxy.dialects.parts import text_and_attachments
from qwenproxy.errors import BadRequest, QwenProxyError, UnsupportedParameter

DONE: Final = "data: [DONE]\n\n"

ROLES: Final[Mapping[str, Role]] = MappingProxyType(
    {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
)
TOOL_ROLES: Final = frozenset({"tool", "function"})
THINKING_TYPES: Final[Mapping[str, bool | None]] = MappingProxyType(
    {"enabled": True, "disabled": False, "adaptive": None, "auto": None}
)
HUSHED: Final = "hushed"
"""In a request's echo: the client does not want to see what the model thinks."""
TEXTS: Final = ("text", "refusal")
"""Parts of a message that are text."""
ERROR_TYPES: Final[Mapping[int, str]] = MappingProxyType(
    {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
)


class OpenAIChat:
    paths: ClassVar[tuple[str, ...]] = ("/chat/completions",)

    def __init__(self, clock: Clock | None = None, *, drawings: Dialect | None = None) -> None:
        """`drawings` speaks for a request with a `prompt` instead of messages, as seed 000 had it."""
        self._clock = clock or SystemClock()
        self._drawings = drawings

    def parse(self, body: Mapping[str, Any], params: Mapping[str, str]) -> ChatRequest:
        given = {name: value for name, value in body.items() if value is not None}
        if self._drawings is not None and "prompt" in given and "messages" not in given:
            return self._drawings.parse(body, params)
        refuse(given)
        offered = offer(given)
        return ChatRequest(
            model=model(given),
            messages=_messages(given),
            stream=flag(given, "stream") or False,
            thinking=_thinking(given),
            thinking_budget=_budget(given),
            max_tokens=count(given, "max_completion_tokens") or count(given, "max_tokens"),
            stop=stop(given),
            choices=count(given, "n", MOST_CHOICES) or 1,
            include_usage=flag(mapping(given, "stream_options"), "include_usage", "stream_options.") or False,
            conversation=_conversation(given),
            remember=flag(given, "store") is not False,
            tools=offered.tools,
            tool_choice=offered.choice,
            answer_format=_answer_format(given),
            search=_searches(given) or offered.searches,
            echo={**offered.echo, **({HUSHED: True} if _hides_thinking(given) else {})},
        )

    def encoder(self, request: ChatRequest) -> Encoder:
        if self._drawings is not None and request.drawing is not None:
            return self._drawings.encoder(request)
        return ChunkEncoder(self._created(), request)

    def reply(self, request: ChatRequest, replies: Sequence[Reply]) -> Json:
        if self._drawings is not None and request.drawing is not None:
            return self._drawings.reply(request, replies)
        return {
            "id": _answer_id(request, replies[0].started),
            "object": "chat.completion",
            "created": self._created(),
            "model": replies[0].started.model,
            "choices": [_choice(index, reply, request.echo) for index, reply in enumerate(replies)],
            "usage": _usage([reply.finished.usage for reply in replies]),
        }

    def error(self, error: QwenProxyError) -> Json:
        return envelope(error)

    def _created(self) -> int:
        return int(self._clock.now().timestamp())


class ChunkEncoder:
    """Deltas of one answer, all its choices, as `chat.completion.chunk` events.

    What is the same in every chunk is written once: some thousand chunks a second pass here.
    """

    def __init__(self, created: int, request: ChatRequest) -> None:
        self._created = created
        self._request = request
        self._form = CallForm(request.echo)
        self._hides_thinking = bool(request.echo.get(HUSHED))
        self._head = ""
        self._tail = "}]" + (',"usage":null' if request.include_usage else "") + "}\n\n"
        self._model = ""
        self._id = ""
        self._usages: list[Usage] = []
        self._spoken: set[int] = set()
        self._called: Counter[int] = Counter()

    def encode(self, delta: Delta, choice: int = 0) -> list[str]:
        match delta:
            case Text():
                self._spoken.add(choice)
                return [self._chunk(choice, '{"content":' + json_text(delta.text) + "}")]
            case Thinking():
                if self._hides_thinking:
                    return []
                return [self._chunk(choice, '{"reasoning_content":' + json_text(delta.text) + "}")]
            case Started():
                return [self._start(choice, delta)]
            case Source():
                return [self._chunk(choice, json_text({"annotations": [_citation(delta)]}))]
            case Media():
                text = ("\n\n" if choice in self._spoken else "") + written("", [delta])
                self._spoken.add(choice)
                return [self._chunk(choice, json_text({"content": text}))]
            case ToolCall():
                pieces = self._form.deltas(self._called[choice], delta)
                self._called[choice] += 1
                return [self._chunk(choice, piece) for piece in pieces]
            case Finished():
                self._usages.append(delta.usage)
                return [self._chunk(choice, "{}", self._form.finish_reason(delta.reason))]

    def end(self) -> list[str]:
        if not self._request.include_usage:
            return [DONE]
        chunk = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [],
            "usage": _usage(self._usages),
        }
        return [frame(chunk), DONE]

    def fail(self, error: QwenProxyError) -> list[str]:
        return [frame(envelope(error))]

    def _start(self, choice: int, started: Started) -> str:
        if not self._id:
            self._id = _answer_id(self._request, started)
            self._model = started.model
            self._head = (
                f'data: {{"id":{json_text(self._id)},"object":"chat.completion.chunk",'
                f'"created":{self._created},"model":{json_text(self._model)},"choices":[{{"index":'
            )
        return self._chunk(choice, '{"role":"assistant","content":"","refusal":null}')

    def _chunk(self, choice: int, delta: str, reason: str = "") -> str:
        end = f'"{reason}"' if reason else "null"
        return f'{self._head}{choice},"delta":{delta},"logprobs":null,"finish_reason":{end}{self._tail}'


def envelope(error: QwenProxyError) -> Json:
    """OpenAI's error body, the one of every route that has no dialect of its own."""
    kind = ERROR_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    param = getattr(error, "param", None)
    return {"error": {"message": str(error) or error.code, "type": kind, "param": param, "code": error.code}}


def _conversation(given: Mapping[str, Any]) -> ConversationRef | None:
    named = [name for name in ("conversation_id", "chat_id", "chatId") if given.get(name)]
    if not named:
        return None
    parent = next((name for name in ("parent_id", "parentId") if given.get(name)), "")
    for name in (*named, *([parent] if parent else [])):
        if not isinstance(given[name], str):
            raise BadRequest(f"{name} must be an id", param=name)
    return ConversationRef(given[named[0]], given[parent] if parent else "", is_chat=False)


def _thinking(given: Mapping[str, Any]) -> bool | None:
    template, own = mapping(given, "chat_template_kwargs"), mapping(given, "reasoning")
    wishes = (
        flag(given, "enable_thinking"),
        flag(template, "enable_thinking", "chat_template_kwargs."),
        _thinks_by_type(mapping(given, "thinking")),
        flag(own, "enabled", "reasoning."),
        thinks_by_effort(own.get("effort"), "reasoning.effort"),
        own.get("max_tokens") is not None or None,
        thinks_by_effort(given.get("reasoning_effort"), "reasoning_effort"),
    )
    return next((wish for wish in wishes if wish is not None), None)


def _thinks_by_type(thinking: Mapping[str, Any]) -> bool | None:
    """Anthropic's way to say it, which other services took over."""
    kind = thinking.get("type")
    if kind is None:
        return None
    if not isinstance(kind, str) or kind not in THINKING_TYPES:
        raise BadRequest(f"thinking.type must be one of {', '.join(THINKING_TYPES)}", param="thinking.type")
    return THINKING_TYPES[kind]


def _budget(given: Mapping[str, Any]) -> int | None:
    """Tokens to think with."""
    return (
        count(given, "thinking_budget")
        or count(mapping(given, "thinking"), "budget_tokens", within="thinking.")
        or count(mapping(given, "reasoning"), "max_tokens", within="reasoning.")
    )


def _hides_thinking(given: Mapping[str, Any]) -> bool:
    excluded = flag(mapping(given, "reasoning"), "exclude", "reasoning.")
    return bool(excluded) or flag(given, "include_reasoning") is False


def _searches(given: Mapping[str, Any]) -> bool:
    mapping(given, "web_search_options")
    return "web_search_options" in given or flag(given, "enable_search") or False


def _answer_format(given: Mapping[str, Any]) -> AnswerFormat | None:
    raw = mapping(given, "response_format")
    kind = raw.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return AnswerFormat({"type": "object"})
    if kind != "json_schema":
        told = "response_format.type must be text, json_object or json_schema"
        raise BadRequest(told, param="response_format.type")
    return answer_format(mapping(raw, "json_schema", "response_format."), "response_format.json_schema")


def _messages(given: Mapping[str, Any]) -> tuple[Message, ...]:
    raw = given.get("messages")
    if not isinstance(raw, list) or not raw:
        raise BadRequest("messages must be a list with at least one message", param="messages")
    messages: list[Message] = []
    for index, message in enumerate(raw):
        messages.append(_message(message, f"messages[{index}]", messages))
    said = (message for message in messages if message.role != "system")
    if not any(m.text or m.attachments or m.calls or m.role == "tool" for m in said):
        raise BadRequest("messages hold no text of a user or an assistant", param="messages")
    return tuple(messages)


def _message(raw: Any, place: str, before: Sequence[Message]) -> Message:
    if not isinstance(raw, dict):
        raise BadRequest(f"{place} must be an object", param=place)
    role = raw["role"] if isinstance(raw.get("role"), str) else ""
    if role in TOOL_ROLES:
        return result_of(raw, place, before)
    if role not in ROLES:
        raise BadRequest(f"{place}.role must be one of {', '.join(ROLES)}", param=f"{place}.role")
    if raw.get("audio"):
        raise UnsupportedParameter(f"{place}.audio is not supported here", param=f"{place}.audio")
    calls = calls_of(raw, place) if role == "assistant" else ()
    content = raw.get("content")
    if content is None and role == "assistant":
        return Message("assistant", "", calls=calls)
    return Message(ROLES[role], *text_and_attachments(content, f"{place}.content", TEXTS), calls=calls)


def _answer_id(request: ChatRequest, started: Started) -> str:
    return f"chatcmpl-{request.answer_id or started.response_id}"


def _choice(index: int, reply: Reply, echo: Mapping[str, Any]) -> Json:
    text, form = written(reply.text, reply.media), CallForm(echo)
    content = None if reply.calls and not text else text
    message: Json = {"role": "assistant", "content": content, "refusal": None}
    if reply.thinking and not echo.get(HUSHED):
        message["reasoning_content"] = reply.thinking
    message["annotations"] = [_citation(source, reply.text) for source in reply.sources]
    message |= form.whole(reply.calls)
    reason = form.finish_reason(reply.finished.reason)
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}


def _citation(source: Source, text: str = "") -> Json:
    """Where the text cites the page, or 0 to 0 where that cannot be said (a stream is not read twice)."""
    start, end = cited(text, source.number)
    return {
        "type": "url_citation",
        "url_citation": {
            "start_index": start,
            "end_index": end,
            "url": source.url,
            "title": source.title,
        },
    }


def _usage(usages: Sequence[Usage]) -> Json:
    def total(count: Callable[[Usage], int]) -> int:
        return sum(count(usage) for usage in usages)

    asked = total(lambda usage: usage.input_tokens)
    answered = total(lambda usage: usage.output_tokens)
    said: Json = {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": total(lambda usage: usage.reasoning_tokens),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    return {**said, "estimated": True} if any(usage.estimated for usage in usages) else said
