"""In whose shape a request is refused that no dialect has read yet: by its path, and by its headers.

| request | shape |
|---|---|
| below `/messages`, or with `anthropic-version` to the models | Anthropic's |
| chats and the seed's own uploads | the seed's |
| any other | OpenAI's |
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Final

from starlette.responses import Response
from starlette.types import Message, Scope, Send

from qwenproxy.dialects import anthropic_events, native
from qwenproxy.dialects.base import Json
from qwenproxy.dialects.openai_chat import envelope
from qwenproxy.errors import QwenProxyError
from qwenproxy.server.responses import error_response

ANTHROPIC_PATH: Final = re.compile(r"/(?:v1|api)/messages(?:/.*)?", re.DOTALL)
SHARED_PATH: Final = re.compile(r"/(?:v1|api)/models(?:/.*)?", re.DOTALL)
"""Anthropic's as well as OpenAI's."""
ANTHROPIC_VERSION: Final = b"anthropic-version"
NATIVE_PATH: Final = re.compile(
    r"/api/chats?(?:/(?!completions/?$).*)?|/api/files/(?:upload|getstsToken)", re.DOTALL
)
REQUEST_ID: Final = "request-id"


def speaks_anthropic(scope: Scope) -> bool:
    path = scope["path"]
    if SHARED_PATH.fullmatch(path):
        return any(name == ANTHROPIC_VERSION for name, _ in scope["headers"])
    return ANTHROPIC_PATH.fullmatch(path) is not None


def error_body(scope: Scope, error: QwenProxyError) -> Json:
    """The error as the caller of such a request reads it."""
    if speaks_anthropic(scope):
        return anthropic_events.error_body(error)
    if NATIVE_PATH.fullmatch(scope["path"]):
        return native.error_body(error)
    return envelope(error)


def refusal(scope: Scope, error: QwenProxyError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that such a request gets instead of its own."""
    return error_response(error, error_body(scope, error), headers)


def with_request_id(send: Send) -> Send:
    """Names the answer in a header, as Anthropic does: its clients tell answers apart by it."""
    named = (REQUEST_ID.encode(), f"req_{secrets.token_hex(12)}".encode())

    async def send_named(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], named]}
        await send(message)

    return send_named
