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


LINE_SEPARATORS = (("\u2028", "\\u2028"), ("\u2029", "\\u2029"), ("\x85", "\\u0085"))
"""Legal raw inside JSON, but many SSE readers wrongly end a line there; as escapes they mean the same."""


def json_text(data: Any) -> str:
    """`data` as JSON on one line that is always valid UTF-8: half a surrogate pair becomes U+FFFD."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    if text.isascii():
        return text
    for separator, escape in LINE_SEPARATORS:
        text = text.replace(separator, escape)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def frame(data: Json | str, event: str | None = None) -> str:
    """One server-sent event."""
    text = data if isinstance(data, str) else json_text(data)
    return (f"event: {event}\n" if event else "") + f"data: {text}\n\n"
