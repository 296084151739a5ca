"""An answer in Anthropic's words: its content blocks, as the events that build them, and as what they build.

Both ways of answering come from the same events, so that they cannot differ. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from qwenproxy.chat import (
    Delta,
    Finished,
    FinishReason,
    Media,
    Part,
    Source,
    Started,
    Text,
    Thinking,
    ToolCall,
    Usage,
    written,
)
from qwenproxy.dialects.base import Json, frame
from qwenproxy.errors import QwenProxyError, ShuttingDown

SIGNATURE: Final = "cXdlbnByb3h5"
"""What stands where Anthropic signs its thoughts; not looked at when it comes back."""
PIECE_CHARACTERS: Final = 2048
"""Of a call's arguments in one event. Each event makes the SDKs read all so far, so they are few."""
ERROR_TYPES: Final[Mapping[int, str]] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        409: "conflict_error",
        413: "request_too_large",
        429: "rate_limit_error",
        504: "timeout_error",
    }
)
THREAD: Final = "thread"
"""The parameter by which a conversation is kept on Anthropic's servers."""
NO_THREADS: Final = "thread_unsupported_request"
"""Anthropic's own code; hearing it, its SDK's runner of tools sends the whole conversation instead."""
NO_USAGE: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "input_tokens": 0,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": None,
        "output_tokens": 0,
        "output_tokens_details": None,
        "server_tool_use": None,
        "service_tier": None,
        "inference_geo": None,
    }
)
"""Every figure that Anthropic's specification wants of a message, where there is none."""
STOP_REASONS: Final[Mapping[FinishReason, str]] = MappingProxyType(
    {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
)

Kind = Literal["", "text", "thinking"]


def error_body(error: QwenProxyError) -> Json:
    """Anthropic's error body; our code stands where its SDK reads `error_code`. A header names the request.

    Of what is 503, only the proxy's own end is `overloaded_error`: clients answer that with retries and hide
    the message, which of the others says what a person must do.
    """
    kind = "api_error" if error.status >= 500 else "invalid_request_error"
    kind = "overloaded_error" if isinstance(error, ShuttingDown) else ERROR_TYPES.get(error.status, kind)
    param = getattr(error, "param", None)
    code = NO_THREADS if param == THREAD else error.code
    told: Json = {"type": kind, "message": str(error) or error.code, "details": {"error_code": code}}
    if param is not None:
        told["param"] = param
    return {"type": "error", "error": told, "request_id": None}


class Blocks:
    """The content blocks of one answer, a part after the other.

    | part | block |
    |---|---|
    | thoughts | `thinking`, with an empty text or not at all where the request wants that |
    | text, pictures in Markdown | `text`; what follows each other is one |
    | a source | a citation of the text block that is open, or else of the next one |
    | the sources, where a search was asked for | also a `web_search` that was done, with its result |
    | a call | `tool_use` |
    """

    def __init__(self, answer_id: str, echo: Mapping[str, Any]) -> None:
        """`echo` is what the dialect's `parse` noted: `searches`, `hides_thinking`, `omits_thinking`."""
        self._id = "".join(c for c in answer_id if c.isascii() and c.isalnum())
        self._searches = echo.get("searches") is True
        self._hides_thinking = echo.get("hides_thinking") is True
        self._omits_thinking = echo.get("omits_thinking") is True
        self._index = -1
        self._open: Kind = ""
        self._spoken = False
        self._uncited: list[Source] = []
        self._found: list[Source] = []
        self.searches = 0
        """How many searches were told of."""

    def push(self, part: Part) -> Iterator[Json]:
        match part:
            case Text():
                return self._say(part.text)
            case Thinking():
                return self._think(part.text)
            case Media():
                return self._say(("\n\n" if self._spoken else "") + written("", [part]))
            case Source():
                return self._cite(part)
            case ToolCall():
                return self._call(part)

    def finish(self) -> Iterator[Json]:
        """What ends the last block. Sources are told even where no text is left that could cite them."""
        if self._uncited and not self._searches:
            yield from self._switch("text")
        yield from self.close()

    def close(self) -> Iterator[Json]:
        if self._open == "thinking":
            yield self._delta({"type": "signature_delta", "signature": SIGNATURE})
        if self._open:
            yield {"type": "content_block_stop", "index": self._index}
        self._open = ""
        found, self._found = self._found, []
        if found and self._searches:
            yield from self._search(found)

    def _say(self, text: str) -> Iterator[Json]:
        if not text:
            return
        yield from self._switch("text")
        self._spoken = True
        yield self._delta({"type": "text_delta", "text": text})

    def _think(self, text: str) -> Iterator[Json]:
        if not text or self._hides_thinking:
            return
        yield from self._switch("thinking")
        if not self._omits_thinking:
            yield self._delta({"type": "thinking_delta", "thinking": text})

    def _cite(self, source: Source) -> Iterator[Json]:
        self._found.append(source)
        if self._open == "text":
            yield self._delta({"type": "citations_delta", "citation": _citation(source)})
        else:
            self._uncited.append(source)

    def _switch(self, kind: Literal["text", "thinking"]) -> Iterator[Json]:
        if self._open == kind:
            return
        yield from self.close()
        if kind == "thinking":
            yield self._start({"type": "thinking", "thinking": "", "signature": ""})
        else:
            # The specification also takes null there, but Vercel's SDK wants a list (@ai-sdk/anthropic 3).
            yield self._start({"type": "text", "text": "", "citations": []})
            cited, self._uncited = self._uncited, []
            for source in cited:
                yield self._delta({"type": "citations_delta", "citation": _citation(source)})
        self._open = kind

    def _call(self, call: ToolCall) -> Iterator[Json]:
        yield from self.close()
        named = {"id": call.id, "name": call.name}
        yield self._start({"type": "tool_use", **named, "input": {}, "caller": {"type": "direct"}})
        yield from self._input(call.arguments)
        yield {"type": "content_block_stop", "index": self._index}

    def _search(self, found: list[Source]) -> Iterator[Json]:
        """A search as Anthropic's servers tell theirs; what was searched for, the service does not say."""
        self.searches += 1
        call_id = f"srvtoolu_{self._id}{self.searches}"
        named = {"id": call_id, "name": "web_search"}
        caller = {"caller": {"type": "direct"}}
        yield self._start({"type": "server_tool_use", **named, "input": {}, **caller})
        yield from self._input('{"query":""}')
        yield {"type": "content_block_stop", "index": self._index}
        pages = [_page(source) for source in found]
        result = {"tool_use_id": call_id, "content": pages}
        yield self._start({"type": "web_search_tool_result", **result, **caller})
        yield {"type": "content_block_stop", "index": self._index}

    def _input(self, arguments: str) -> Iterator[Json]:
        """The arguments in pieces, the first one empty, as the API sends them."""
        pieces = [arguments[at : at + PIECE_CHARACTERS] for at in range(0, len(arguments), PIECE_CHARACTERS)]
        for piece in ["", *pieces]:
            yield self._delta({"type": "input_json_delta", "partial_json": piece})

    def _start(self, block: Json) -> Json:
        self._index += 1
        return {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def content_of(events: Iterable[Json]) -> list[Json]:
    """The blocks that `events` build."""
    blocks: list[Json] = []
    inputs = ""
    for event in events:
        match event["type"], event.get("delta", {}).get("type"):
            case "content_block_start", _:
                blocks.append(event["content_block"])
                inputs = ""
            case _, "input_json_delta":
                inputs += event["delta"]["partial_json"]
            case _, "citations_delta":
                blocks[-1]["citations"].append(event["delta"]["citation"])
            case _, "text_delta":
                blocks[-1]["text"] += event["delta"]["text"]
            case _, "thinking_delta":
                blocks[-1]["thinking"] += event["delta"]["thinking"]
            case _, "signature_delta":
                blocks[-1]["signature"] = event["delta"]["signature"]
            case _ if inputs:
                blocks[-1]["input"] = json.loads(inputs)
    return blocks


class EventEncoder:
    """Deltas of one answer as Anthropic's events, each with its `event:` line."""

    def __init__(self, answer_id: str, echo: Mapping[str, Any]) -> None:
        """`answer_id`: "" is the service's own id of the answer."""
        self._answer_id = answer_id
        self._echo = echo
        self._blocks = Blocks(answer_id, echo)

    def encode(self, delta: Delta, choice: int = 0) -> list[str]:
        match delta:
            case Started():
                self._blocks = Blocks(self._answer_id or delta.response_id, self._echo)
                return [_frame(event) for event in _begun(delta, self._answer_id)]
            case Finished():
                ended = [*self._blocks.finish(), *_ended(delta, self._blocks.searches)]
                return [_frame(event) for event in ended]
            case _:
                return [_frame(event) for event in self._blocks.push(delta)]

    def end(self) -> list[str]:
        return []

    def fail(self, error: QwenProxyError) -> list[str]:
        return [_frame(error_body(error))]


def message(started: Started, answer_id: str, usage: Json) -> Json:
    """A message without content, as it begins."""
    return {
        "id": f"msg_{answer_id or started.response_id}",
        "type": "message",
        "role": "assistant",
        "model": started.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": {**NO_USAGE, **usage},
    }


def stopped(finished: Finished) -> Json:
    """Why an answer ended."""
    reason = STOP_REASONS[finished.reason]
    return {
        "stop_reason": "stop_sequence" if finished.stopped_by else reason,
        "stop_sequence": finished.stopped_by or None,
        "stop_details": None,
        "container": None,
    }


def usage_of(usage: Usage, searches: int) -> Json:
    """All of an answer's figures. Nothing is cached."""
    asked = {"web_search_requests": searches, "web_fetch_requests": 0}
    told: Json = {
        "input_tokens": usage.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        "server_tool_use": asked if searches else None,
    }
    return told | {"estimated": True} if usage.estimated else told


def _begun(started: Started, answer_id: str) -> list[Json]:
    begun = message(started, answer_id, {"input_tokens": started.input_tokens})
    return [{"type": "message_start", "message": begun}, {"type": "ping"}]


def _ended(finished: Finished, searches: int) -> list[Json]:
    delta = {"type": "message_delta", "delta": stopped(finished), "usage": usage_of(finished.usage, searches)}
    return [delta, {"type": "message_stop"}]


def _citation(source: Source) -> Json:
    """A page as a text cites it; the number is the one in the text, as `[[number]]` (protocol §5.5)."""
    return {
        "type": "web_search_result_location",
        "url": source.url,
        "title": source.title,
        "encrypted_index": str(source.number),
        "cited_text": "",
    }


def _page(source: Source) -> Json:
    return {
        "type": "web_search_result",
        "url": source.url,
        "title": source.title,
        "encrypted_content": "",
        "page_age": None,
    }


def _frame(event: Json) -> str:
    return frame(event, event["type"])
