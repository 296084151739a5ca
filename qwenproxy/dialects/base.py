"""What a dialect is. Pure: no I/O, no asyncio, no FastAPI."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from qwenproxy.chat import ChatRequest, Delta, Reply
from qwenproxy.errors import QwenProxyError

Json = dict[str, Any]


class Encoder(Protocol):
    """Turns the deltas of one answer, all its choices, into SSE frames. Owns what it emits."""

    def encode(self, delta: Delta, choice: int = 0) -> list[str]: ...

    def end(self) -> list[str]:
        """What closes the stream after every choice has finished."""

    def fail(self, error: QwenProxyError) -> list[str]:
        """The dialect's own error event, for a stream that has begun."""


class Dialect(Protocol):
    paths: ClassVar[tuple[str, ...]]
    """Routes, with `{name}` for path parameters."""

    def parse(self, body: Mapping[str, Any], params: Mapping[str, str]) -> ChatRequest:
        """Raises: BadRequest, UnsupportedParameter, with the field in `param`."""

    def encoder(self, request: ChatRequest) -> Encoder: ...

    def reply(self, request: ChatRequest, replies: Sequence[Reply]) -> Json:
        """The unstreamed answer; one reply a choice."""

    def error(self, error: QwenProxyError) -> Json: ...


def frame(data: Json | str, event: str | None = None) -> str:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return (f"event: {event}\n" if event else "") + f"data: {text}\n\n"
