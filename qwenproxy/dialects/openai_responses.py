"""OpenAI's Responses.

What is done with each request parameter stands in `PARAMETERS`; the README's table is held equal to it. The
input is read in `response_items.py`, tools in `response_tools.py`, the answer is written in
`response_events.py`. A whole answer is its stream's last event, so there is no second way to tell it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal

from qwenproxy.chat import AnswerFormat, ChatRequest, ConversationRef, Delta, Message, Reply
from qwenproxy.clock import Clock, SystemClock
from qwenproxy.dialects.base import Json
from qwenproxy.dialects.fields import count, flag, mapping, model, thinks_by_effort
from qwenproxy.dialects.openai_chat import envelope
from qwenproxy.dialects.response_events import ResponseEncoder, failure_of
from qwenproxy.dialects.response_items import listed, read_input
from qwenproxy.dialects.response_tools import MODES, offer
from qwenproxy.errors import BadRequest, QwenProxyError, UnsupportedParameter

Treatment = Literal["honoured", "ignored", "refused"]
Status = Literal["queued", "in_progress", "cancelled"]

ID_PREFIX: Final = "resp_"
MOST_METADATA: Final = 16
"""Pairs, as OpenAI takes them."""
SUMMARIES: Final = ("auto", "concise", "detailed")
VERBOSITIES: Final = ("low", "medium", "high")

PARAMETERS: Final[Mapping[str, tuple[Treatment, str]]] = MappingProxyType(
    {
        "input": ("honoured", "a string or items; the parts of *Files and pictures*"),
        "instructions": ("honoured", "a system message before the input"),
        "model": ("honoured", "none: `qwen`, the default model"),
        "stream": ("honoured", ""),
        "previous_response_id": ("honoured", "an answer of the last day; the whole input follows it"),
        "store": (
            "honoured",
            "`false`: the answer is not kept, and cannot be continued or fetched by its `id`",
        ),
        "background": ("honoured", "answered at once; fetch the answer by its `id`; needs `store`"),
        "max_output_tokens": ("honoured", "done by the proxy"),
        "tools": (
            "honoured",
            "`function`, `custom`, `namespace`, a client's `tool_search`, `web_search`; others are refused",
        ),
        "tool_choice": ("honoured", "with `web_search` in it the web is searched first"),
        "parallel_tool_calls": ("honoured", ""),
        "reasoning": ("honoured", "`effort`: `none` and `minimal` turn thinking off, the others on"),
        "enable_thinking": ("honoured", "wins over `reasoning`"),
        "thinking_budget": ("honoured", "tokens"),
        "text": ("honoured", "`format`: `text`, `json_object`, `json_schema`"),
        "metadata": ("honoured", "given back"),
        "user": ("ignored", "given back"),
        "safety_identifier": ("ignored", "given back"),
        "prompt_cache_key": ("ignored", "given back"),
        "prompt_cache_options": ("ignored", ""),
        "prompt_cache_retention": ("ignored", ""),
        "client_metadata": ("ignored", ""),
        "include": ("ignored", "there are no encrypted thoughts; sources are always told"),
        "stream_options": ("ignored", "nothing is obfuscated"),
        "temperature": ("ignored", "the web service has no such knob"),
        "top_p": ("ignored", "the web service has no such knob"),
        "max_tool_calls": ("ignored", "counts calls of hosted tools only"),
        "truncation": ("ignored", "nothing is truncated; what is too long is refused"),
        "context_management": ("ignored", "conversations are not compacted"),
        "service_tier": ("ignored", ""),
        "moderation": ("ignored", "the service moderates by itself"),
        "access_programs": ("ignored", ""),
        "image": ("ignored", ""),
        "top_logprobs": ("refused", "`0` is ignored"),
        "conversation": ("refused", "`previous_response_id` continues an answer"),
        "prompt": ("refused", "there are no stored prompts"),
    }
)
"""Every parameter with a meaning. One that is not listed is ignored; `null` is the same as absent."""


class OpenAIResponses:
    paths: ClassVar[tuple[str, ...]] = ("/responses",)

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()

    def parse(self, body: Mapping[str, Any], params: Mapping[str, str]) -> ChatRequest:
        given = {name: value for name, value in body.items() if value is not None}
        _refuse(given)
        said = read_input(given)
        offered = offer(given, said.tools)
        keeps = flag(given, "store") is not False
        if flag(given, "background") and not keeps:
            raise BadRequest("background needs store: the answer is fetched later", param="background")
        instructions = _instructions(given)
        return ChatRequest(
            model=model(given),
            messages=(*([Message("system", instructions)] if instructions else []), *said.messages),
            stream=flag(given, "stream") or False,
            thinking=_thinking(given),
            thinking_budget=count(given, "thinking_budget"),
            max_tokens=count(given, "max_output_tokens"),
            conversation=_conversation(given),
            remember=keeps,
            tools=offered.tools,
            tool_choice=offered.choice,
            answer_format=_answer_format(given),
            search=offered.search,
            echo={
                "settled": _settled(given, self._now_s()),
                "known": offered.known,
                "items": said.items,
                "ended": _Moment(self._now_s),
            },
        )

    def encoder(self, request: ChatRequest) -> ResponseEncoder:
        echo = request.echo
        return ResponseEncoder(request, echo["settled"], echo["known"], echo["ended"])

    def reply(self, request: ChatRequest, replies: Sequence[Reply]) -> Json:
        encoder = self.encoder(request)
        for delta in (replies[0].started, *replies[0].parts, replies[0].finished):
            encoder.encode(delta)
        return encoder.body

    def error(self, error: QwenProxyError) -> Json:
        return envelope(error)

    # ---- responses beyond their request ----

    def failed(self, request: ChatRequest, deltas: Sequence[Delta], error: QwenProxyError) -> Json:
        """The body of an answer that broke after `deltas`."""
        encoder = self.encoder(request)
        for delta in deltas:
            encoder.encode(delta)
        if not deltas:
            return ended_early(self.without_answer(request, "queued"), error)
        encoder.fail(error)
        return encoder.body

    def without_answer(self, request: ChatRequest, status: Status) -> Json:
        """The body of an answer that is not there yet, or never will be; the request has its id."""
        body = {**request.echo["settled"], "id": ID_PREFIX + request.answer_id, "model": request.model}
        return {**body, "status": status, "output": []}

    def items(self, request: ChatRequest, answer_id: str) -> list[Json]:
        """The input as it is listed."""
        return listed(request.echo["items"], answer_id)

    def _now_s(self) -> int:
        return int(self._clock.now().timestamp())


class _Moment:
    """When an answer ended: who asks first settles it, so that all who tell the answer tell the same."""

    def __init__(self, now_s: Callable[[], int]) -> None:
        self._now_s = now_s
        self._settled_s: int | None = None

    def __call__(self) -> int:
        if self._settled_s is None:
            self._settled_s = self._now_s()
        return self._settled_s


def ended_early(body: Json, error: QwenProxyError) -> Json:
    """The body of an answer that will not be finished any more."""
    return {**body, "status": "failed", "error": failure_of(error)}


def _refuse(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        treatment, why = PARAMETERS.get(name, ("ignored", ""))
        harmless = name == "top_logprobs" and value == 0 and not isinstance(value, bool)
        if treatment == "refused" and not harmless:
            raise UnsupportedParameter(f"{name} is not supported here: {why}", param=name)


def _instructions(given: Mapping[str, Any]) -> str:
    value = given.get("instructions", "")
    if not isinstance(value, str):
        raise BadRequest("instructions must be a string", param="instructions")
    return value


def _conversation(given: Mapping[str, Any]) -> ConversationRef | None:
    value = given.get("previous_response_id")
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise BadRequest("previous_response_id must be an id", param="previous_response_id")
    return ConversationRef(value.removeprefix(ID_PREFIX), is_chat=False, appends=True)


def _thinking(given: Mapping[str, Any]) -> bool | None:
    effort = thinks_by_effort(mapping(given, "reasoning").get("effort"), "reasoning.effort")
    wish = flag(given, "enable_thinking")
    return effort if wish is None else wish


def _answer_format(given: Mapping[str, Any]) -> AnswerFormat | None:
    form = mapping(given, "text").get("format")
    if form is None:
        return None
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return AnswerFormat({"type": "object"})
    if kind != "json_schema":
        told = "text.format.type must be text, json_object or json_schema"
        raise BadRequest(told, param="text.format.type")
    schema, name, description = form.get("schema"), form.get("name", ""), form.get("description") or ""
    if not isinstance(schema, dict):
        raise BadRequest("text.format.schema must be a JSON Schema", param="text.format.schema")
    if not isinstance(name, str) or not isinstance(description, str):
        raise BadRequest("text.format.name and description must be strings", param="text.format")
    return AnswerFormat(schema, name, description)


# ---- what a response says of its request ----


def _settled(given: Mapping[str, Any], now_s: int) -> Json:
    """The fields of a response that its request decides, and, until it ends, of its end."""
    return {
        "id": "",
        "object": "response",
        "created_at": now_s,
        "model": "",
        "status": "in_progress",
        "background": given.get("background", False),
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": given.get("instructions"),
        "max_output_tokens": given.get("max_output_tokens"),
        "max_tool_calls": _whole_number(given, "max_tool_calls"),
        "metadata": _metadata(given),
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "previous_response_id": given.get("previous_response_id"),
        "reasoning": _reasoning(given),
        "safety_identifier": _string(given, "safety_identifier"),
        "prompt_cache_key": _string(given, "prompt_cache_key"),
        "service_tier": "default",
        "store": given.get("store", True),
        "temperature": _number(given, "temperature", 1.0),
        "top_p": _number(given, "top_p", 1.0),
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "top_logprobs": 0,
        "text": _text(given),
        "tool_choice": _tool_choice(given.get("tool_choice", "auto")),
        "tools": [_tool(row) for row in given.get("tools", [])],
        "truncation": "disabled",
        "usage": None,
        "user": _string(given, "user"),
    }


def _tool(row: Json) -> Json:
    """With all the fields that OpenAI's functions have."""
    if row.get("type") != "function":
        return row
    return {"description": None, "parameters": None, "strict": None, **row}


def _metadata(given: Mapping[str, Any]) -> Mapping[str, Any]:
    value = mapping(given, "metadata")
    if len(value) > MOST_METADATA or not all(isinstance(each, str) for each in value.values()):
        raise BadRequest(f"metadata must be an object of at most {MOST_METADATA} strings", param="metadata")
    return value


def _reasoning(given: Mapping[str, Any]) -> Json:
    asked = mapping(given, "reasoning")
    summary = asked.get("summary")
    return {"effort": asked.get("effort"), "summary": summary if summary in SUMMARIES else None}


def _text(given: Mapping[str, Any]) -> Json:
    asked = mapping(given, "text")
    told: Json = {"format": asked.get("format") or {"type": "text"}}
    verbosity = asked.get("verbosity")
    return {**told, "verbosity": verbosity} if verbosity in VERBOSITIES else told


def _tool_choice(raw: Any) -> Any:
    """As Responses says it, where it is said as Chat Completions does."""
    if isinstance(raw, str):
        return MODES[raw]
    held = raw.get(raw["type"])
    return {"type": raw["type"], "name": held["name"]} if isinstance(held, dict) else raw


def _string(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    return value if isinstance(value, str) else None


def _whole_number(given: Mapping[str, Any], name: str) -> int | None:
    value = given.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(given: Mapping[str, Any], name: str, otherwise: float) -> float:
    value = given.get(name, otherwise)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else otherwise
