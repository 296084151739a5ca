"""Anthropic's Messages, as its API has them since 2023-06-01; newer versions ask for less (clients.md 1).

What is done with each request parameter stands in `PARAMETERS`; the README's table is held equal to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal

from qwenproxy.chat import AnswerFormat, ChatRequest, Message, Reply
from qwenproxy.dialects.anthropic_blocks import messages_of
from qwenproxy.dialects.anthropic_events import (
    Blocks,
    EventEncoder,
    content_of,
    error_body,
    message,
    stopped,
    usage_of,
)
from qwenproxy.dialects.anthropic_tools import offered
from qwenproxy.dialects.base import Encoder, Json
from qwenproxy.dialects.fields import (
    MOST_STOPS,
    answer_format,
    count,
    flag,
    mapping,
    model,
    stop,
    thinks_by_effort,
)
from qwenproxy.errors import BadRequest, QwenProxyError, UnsupportedParameter

Treatment = Literal["honoured", "ignored", "refused"]

NO_KNOB: Final = "the web service has no such knob"
PARAMETERS: Final[Mapping[str, tuple[Treatment, str]]] = MappingProxyType(
    {
        "messages": ("honoured", "blocks of text, pictures, documents, calls and their results"),
        "system": ("honoured", "text or blocks; a message with the role `system` may stand anywhere, too"),
        "model": ("honoured", "none: `qwen`, the default model"),
        "max_tokens": ("honoured", "done by the proxy; none: no limit"),
        "stream": ("honoured", ""),
        "stop_sequences": ("honoured", f"up to {MOST_STOPS}; done by the proxy"),
        "thinking": (
            "honoured",
            "`enabled` with `budget_tokens`, `between_tools`, `adaptive`: on, the last not with effort `low`;"
            " `disabled`: off, never shown; `display`",
        ),
        "output_config": (
            "honoured",
            "`format`: JSON that fits a schema; `effort`: with `adaptive` thinking",
        ),
        "output_format": ("honoured", "the same as `output_config.format`"),
        "tools": (
            "honoured",
            "the client's; of Anthropic's `bash`, `text_editor`, `memory`, and `web_search` if it is the "
            "only one or chosen",
        ),
        "tool_choice": ("honoured", ""),
        "temperature": ("ignored", NO_KNOB),
        "top_p": ("ignored", NO_KNOB),
        "top_k": ("ignored", NO_KNOB),
        "cache_control": ("ignored", "nothing is cached; also in blocks"),
        "context_management": ("ignored", "the whole conversation is told"),
        "container": ("ignored", "nothing runs in one here"),
        "metadata": ("ignored", ""),
        "service_tier": ("ignored", ""),
        "speed": ("ignored", ""),
        "inference_geo": ("ignored", ""),
        "mcp_servers": ("refused", "an empty list is ignored; the client can offer their tools itself"),
        "compaction": ("refused", ""),
        "thread": ("refused", "as Anthropic refuses it: its SDK then sends the whole conversation"),
    }
)
"""Every parameter with a meaning. One that is not listed is ignored; `null` is the same as absent."""
THINKING: Final = ("enabled", "disabled", "adaptive", "between_tools")


class AnthropicMessages:
    paths: ClassVar[tuple[str, ...]] = ("/messages",)

    def parse(self, body: Mapping[str, Any], params: Mapping[str, str]) -> ChatRequest:
        given = {name: value for name, value in body.items() if value is not None}
        for name, value in given.items():
            if PARAMETERS.get(name, ("ignored", ""))[0] == "refused" and value != []:
                raise UnsupportedParameter(f"{name} is not supported here", param=name)
        streams = flag(given, "stream") or False
        tools = offered(given)
        thinking = mapping(given, "thinking")
        thinks = _thinks(thinking, given)
        echo = {
            "searches": tools.search,
            "hides_thinking": thinks is False,
            "omits_thinking": thinking.get("display") == "omitted",
        }
        wish = (Message("system", tools.wish),) if tools.wish else ()
        return ChatRequest(
            model=model(given),
            messages=(*wish, *messages_of(given)),
            stream=streams,
            thinking=thinks,
            thinking_budget=count(thinking, "budget_tokens", within="thinking."),
            max_tokens=count(given, "max_tokens"),
            stop=stop(given, "stop_sequences"),
            tools=tools.tools,
            tool_choice=tools.choice,
            answer_format=_format(given),
            search=tools.search,
            counts_input=streams,
            remember=False,
            echo=echo,
        )

    def encoder(self, request: ChatRequest) -> Encoder:
        return EventEncoder(request.answer_id, request.echo)

    def reply(self, request: ChatRequest, replies: Sequence[Reply]) -> Json:
        (reply,) = replies
        blocks = Blocks(request.answer_id or reply.started.response_id, request.echo)
        events = [event for part in reply.parts for event in blocks.push(part)]
        content = content_of([*events, *blocks.finish()])
        usage = usage_of(reply.finished.usage, blocks.searches)
        begun = message(reply.started, request.answer_id, usage)
        return {**begun, "content": content, **stopped(reply.finished)}

    def error(self, error: QwenProxyError) -> Json:
        return error_body(error)


def _thinks(thinking: Mapping[str, Any], given: Mapping[str, Any]) -> bool | None:
    """Whether to think. `adaptive` leaves it to the model how much, but here there is only on and off.

    An effort alone turns nothing on: Claude Code sends one with every request, and no `thinking` where its
    user has turned that off (2.1.329, seen 2026-11-22).
    """
    effort = mapping(given, "output_config").get("effort")
    thinks_by_effort(effort, "output_config.effort")
    if not thinking:
        return None
    kind = thinking.get("type")
    if kind not in THINKING:
        raise BadRequest(f"thinking.type must be one of {', '.join(THINKING)}", param="thinking.type")
    if kind == "adaptive" and effort == "low":
        return None
    return bool(kind != "disabled")


def _format(given: Mapping[str, Any]) -> AnswerFormat | None:
    place, raw = "output_config.format", mapping(given, "output_config").get("format")
    if raw is None:
        place, raw = "output_format", given.get("output_format")
    if raw is None:
        return None
    if not isinstance(raw, dict) or raw.get("type") != "json_schema":
        raise BadRequest(f"{place}.type must be json_schema", param=f"{place}.type")
    return answer_format(raw, place)
