"""uvicorn's HTTP/1.1 connection with what it lacks: a deadline and a cap for a request's head."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from qwenproxy.dialects.base import json_text
from qwenproxy.dialects.openai_chat import envelope
from qwenproxy.errors import BadRequest

HEAD_S: Final = 10.0
"""For a request's line and headers, from the connection or the request's first byte (reliability.md, T16)."""
HEAD_BYTES: Final = 65_536
"""Of a request's line and headers while they are still coming; uvicorn itself takes megabytes (W-13)."""
EXTENSION: Final = "qwenproxy.connection"
"""Key in the scope's `extensions`; its `abort` drops the connection with what is still unsent."""


class Connection(HttpToolsProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_has_come()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_timer is None:
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES:
            self.send_400_response(f"The request's head is larger than {HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: {"abort": self.transport.abort}}
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_has_come()
        if not self.url.startswith(b"/"):
            # A target with a host of its own would speak past the guard's look at the Host header.
            raise ValueError("the request's target is not a path")
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        if self._answering():
            # A second answer inside the first would be read as part of it.
            self.transport.abort()
            return
        body = json_text(envelope(BadRequest(msg))).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _answering(self) -> bool:
        cycle = self.cycle
        return cycle is not None and cycle.response_started and not cycle.response_complete

    def _expect_head(self) -> None:
        self._head_has_come()
        self._head_timer = self.loop.call_later(HEAD_S, self._head_is_late)

    def _head_has_come(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # The next request's first bytes came early; the one before is still being answered.
            self._expect_head()
        else:
            self.transport.close()
