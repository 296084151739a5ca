"""OpenAI's Chat Completions.

What is done with each request parameter stands in `PARAMETERS`; the README's table is held equal to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal

from qwenproxy.chat import (
    ChatRequest,
    ConversationRef,
    Delta,
    Finished,
    FinishReason,
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
    written,
)
from qwenproxy.clock import Clock, SystemClock
from qwenproxy.dialects.base import Dialect, Encoder, Json, frame, json_text
from qwenproxy.dialects.fields import MOST_STOPS, count, flag, mapping, model, stop, thinks_by_effort
from qwenproxy.dialects.parts import text_and_attachments
from qwenproxy.errors import BadRequest, QwenProxyError, UnsupportedParameter

Treatment = Literal["honoured", "ignored", "refused"]

MOST_CHOICES: Final = 8
"""Each choice is a whole answer of the service, on a slot of its own."""
DONE: Final = "data: [DONE]\n\n"

PARAMETERS: Final[Mapping[str, tuple[Treatment, str]]] = MappingProxyType(
    {
        "messages": ("honoured", "text, and the parts of *Files and pictures*"),
        "prompt": ("honoured", "without `messages`: draws, as `/v1/images/generations` does"),
        "model": ("honoured", "none: `qwen`, the default model"),
        "stream": ("honoured", ""),
        "stream_options": ("honoured", "`include_usage`"),
        "n": ("honoured", f"1 to {MOST_CHOICES}; each choice is an answer of its own"),
        "stop": ("honoured", f"a string or up to {MOST_STOPS}; done by the proxy"),
        "max_tokens": ("honoured", "done by the proxy"),
        "max_completion_tokens": ("honoured", "wins over `max_tokens`"),
        "reasoning_effort": ("honoured", "`none` and `minimal` turn thinking off, the others on"),
        "enable_thinking": ("honoured", "wins over `reasoning_effort`"),
        "chat_template_kwargs": ("honoured", "`enable_thinking`"),
        "thinking_budget": ("honoured", "tokens"),
        "conversation_id": (
            "honoured",
            "the `id` of an answer of the last day, or a chat's; of `messages` the last question counts",
        ),
        "chat_id": ("honoured", "the same"),
        "chatId": ("honoured", "the same"),
        "parent_id": ("honoured", "with a chat: the stored message to continue from"),
        "parentId": ("honoured", "the same"),
        "store": ("honoured", "`false`: the answer cannot be continued by its `id`"),
        "temperature": ("ignored", "the web service has no such knob"),
        "top_p": ("ignored", "the web service has no such knob"),
        "seed": ("ignored", "the web service has no such knob"),
        "presence_penalty": ("ignored", "the web service has no such knob"),
        "frequency_penalty": ("ignored", "the web service has no such knob"),
        "logit_bias": ("ignored", "the web service has no such knob"),
        "verbosity": ("ignored", "the web service has no such knob"),
        "user": ("ignored", ""),
        "metadata": ("ignored", ""),
        "service_tier": ("ignored", ""),
        "safety_identifier": ("ignored", ""),
        "moderation": ("ignored", "the service moderates by itself"),
        "prompt_cache_key": ("ignored", ""),
        "prompt_cache_options": ("ignored", ""),
        "prompt_cache_retention": ("ignored", ""),
        "parallel_tool_calls": ("ignored", "says nothing without tools"),
        "tools": ("refused", "an empty list is ignored"),
        "tool_choice": ("refused", "`none` and `auto` are ignored"),
        "functions": ("refused", "an empty list is ignored"),
        "function_call": ("refused", "`none` and `auto` are ignored"),
        "response_format": ("refused", '`{"type": "text"}` is ignored'),
        "logprobs": ("refused", "`false` is ignored"),
        "top_logprobs": ("refused", "`0` is ignored"),
        "modalities": ("refused", '`["text"]` is ignored'),
        "audio": ("refused", ""),
        "prediction": ("refused", ""),
        "web_search_options": ("refused", ""),
        "enable_search": ("refused", "`false` is ignored"),
        "previous_response_id": ("refused", "`conversation_id` does it here"),
    }
)
"""Every parameter with a meaning. One that is not listed is ignored; `null` is the same as absent."""

HARMLESS: Final[Mapping[str, tuple[Any, ...]]] = MappingProxyType(
    {
        "tools": ([],),
        "functions": ([],),
        "tool_choice": ("none", "auto"),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "modalities": (["text"],),
        "enable_search": (False,),
    }
)
"""The values of refused parameters that ask for nothing."""

ROLES: Final[Mapping[str, Role]] = MappingProxyType(
    {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
)
TOOL_ROLES: Final = frozenset({"tool", "function"})
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
        _refuse(given)
        return ChatRequest(
            model=model(given),
            messages=_messages(given),
            stream=flag(given, "stream") or False,
            thinking=_thinking(given),
            thinking_budget=count(given, "thinking_budget"),
            max_tokens=count(given, "max_completion_tokens") or count(given, "max_tokens"),
            stop=stop(given),
            choices=count(given, "n", MOST_CHOICES) or 1,
            include_usage=flag(mapping(given, "stream_options"), "include_usage", "stream_options.") or False,
            conversation=_conversation(given),
            remember=flag(given, "store") is not False,
        )

    def encoder(self, request: ChatRequest) -> Encoder:
        if self._drawings is not None and request.drawing is not None:
            return self._drawings.encoder(request)
        return ChunkEncoder(self._created(), include_usage=request.include_usage)

    def reply(self, request: ChatRequest, replies: Sequence[Reply]) -> Json:
        if self._drawings is not None and request.drawing is not None:
            return self._drawings.reply(request, replies)
        return {
            "id": _answer_id(replies[0].started),
            "object": "chat.completion",
            "created": self._created(),
            "model": replies[0].started.model,
            "choices": [_choice(index, reply) for index, reply in enumerate(replies)],
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

    def __init__(self, created: int, *, include_usage: bool) -> None:
        self._created = created
        self._include_usage = include_usage
        self._head = ""
        self._tail = "}]" + (',"usage":null' if include_usage else "") + "}\n\n"
        self._model = ""
        self._id = ""
        self._usages: list[Usage] = []
        self._spoken: set[int] = set()

    def encode(self, delta: Delta, choice: int = 0) -> list[str]:
        match delta:
            case Text():
                self._spoken.add(choice)
                return [self._chunk(choice, '{"content":' + json_text(delta.text) + "}")]
            case Thinking():
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
                return []
            case Finished():
                self._usages.append(delta.usage)
                return [self._chunk(choice, "{}", delta.reason)]

    def end(self) -> list[str]:
        if not self._include_usage:
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
            self._id = _answer_id(started)
            self._model = started.model
            self._head = (
                f'data: {{"id":{json_text(self._id)},"object":"chat.completion.chunk",'
                f'"created":{self._created},"model":{json_text(self._model)},"choices":[{{"index":'
            )
        return self._chunk(choice, '{"role":"assistant","content":"","refusal":null}')

    def _chunk(self, choice: int, delta: str, reason: FinishReason | None = None) -> str:
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


def _refuse(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        treatment, _ = PARAMETERS.get(name, ("ignored", ""))
        if treatment == "refused" and not _harmless(name, value):
            raise UnsupportedParameter(f"{name} is not supported here", param=name)


def _harmless(name: str, value: Any) -> bool:
    # `0 == False` in Python: a number is no answer to a question for true or false.
    return any(value == least and type(value) is type(least) for least in HARMLESS.get(name, ()))


def _thinking(given: Mapping[str, Any]) -> bool | None:
    template = flag(mapping(given, "chat_template_kwargs"), "enable_thinking", within="chat_template_kwargs.")
    wishes = (
        flag(given, "enable_thinking"),
        template,
        thinks_by_effort(given.get("reasoning_effort"), "reasoning_effort"),
    )
    return next((wish for wish in wishes if wish is not None), None)


def _messages(given: Mapping[str, Any]) -> tuple[Message, ...]:
    raw = given.get("messages")
    if not isinstance(raw, list) or not raw:
        raise BadRequest("messages must be a list with at least one message", param="messages")
    messages = tuple(_message(message, f"messages[{place}]") for place, message in enumerate(raw))
    said = (message for message in messages if message.role != "system")
    if not any(message.text or message.attachments for message in said):
        raise BadRequest("messages hold no text of a user or an assistant", param="messages")
    return messages


def _message(raw: Any, place: str) -> Message:
    if not isinstance(raw, dict):
        raise BadRequest(f"{place} must be an object", param=place)
    role = raw["role"] if isinstance(raw.get("role"), str) else ""
    if role in TOOL_ROLES:
        raise UnsupportedParameter("messages of tools are not supported here", param=f"{place}.role")
    if role not in ROLES:
        raise BadRequest(f"{place}.role must be one of {', '.join(ROLES)}", param=f"{place}.role")
    for name in ("tool_calls", "function_call", "audio"):
        if raw.get(name):
            raise UnsupportedParameter(f"{place}.{name} is not supported here", param=f"{place}.{name}")
    content = raw.get("content")
    if content is None and role == "assistant":
        return Message("assistant", "")
    return Message(ROLES[role], *text_and_attachments(content, f"{place}.content", TEXTS))


def _answer_id(started: Started) -> str:
    return f"chatcmpl-{started.response_id}"


def _choice(index: int, reply: Reply) -> Json:
    message: Json = {"role": "assistant", "content": written(reply.text, reply.media), "refusal": None}
    if reply.thinking:
        message["reasoning_content"] = reply.thinking
    message["annotations"] = [_citation(source, reply.text) for source in reply.sources]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reply.finished.reason}


def _citation(source: Source, text: str = "") -> Json:
    """Where the text cites the page, or 0 to 0 where that cannot be said (a stream is not read twice)."""
    mark = f"[[{source.number}]]"
    start = text.find(mark)
    place = (start, start + len(mark)) if start >= 0 else (0, 0)
    return {
        "type": "url_citation",
        "url_citation": {
            "start_index": place[0],
            "end_index": place[1],
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
