"""What the service made, over HTTP: pictures and videos by their ids (`shelf.py`).

The address needs no API key: it stands in answers that are shown as pages, where no header can be added, and
its id, 128 random bits that only the answer told, is a key by itself. It opens nothing but that one picture
or video.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from types import MappingProxyType
from typing import Final, Protocol

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwenproxy.dialects.openai_chat import envelope
from qwenproxy.errors import QwenProxyError
from qwenproxy.server.access import KeyRoute
from qwenproxy.server.admission import Admission
from qwenproxy.server.attended import attended
from qwenproxy.server.body import ClientGone
from qwenproxy.server.connection import EXTENSION
from qwenproxy.server.relay import Bounds
from qwenproxy.server.responses import error_response
from qwenproxy.shelf import UNKNOWN_TYPE, Opened

log = logging.getLogger(__name__)

HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox",
        "Cache-Control": "private, max-age=3600",
    }
)
"""Whatever the service gives, no browser takes it for a page of ours."""


class Media(Protocol):
    def open(self, media_id: str, part: str = "") -> AbstractAsyncContextManager[Opened]:
        """What the id stands for, as it comes; `part` is a `Range` header. Raises our errors."""


class MediaRoutes:
    def __init__(self, admission: Admission, bounds: Bounds) -> None:
        self._admission = admission
        self._bounds = bounds

    def routes(self, prefix: str) -> list[KeyRoute]:
        return [KeyRoute(f"{prefix}/media/{{media_id}}", self.read, methods=["GET"], needs="nothing")]

    async def read(self, request: Request) -> Response:
        return _Given(request, self._admission, self._bounds.write_stall_s)


class _Given(Response):
    """The content, passed on as it comes; where it breaks off the connection does too."""

    def __init__(self, request: Request, admission: Admission, stall_s: float) -> None:
        self._media: Media = request.app.state.media
        self._media_id: str = request.path_params["media_id"]
        self._part = request.headers.get("range", "")
        self._admission = admission
        self._stall_s = stall_s
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole = False
        try:
            with self._admission.enter():
                async with self._media.open(self._media_id, self._part) as opened:
                    write = partial(self._write, opened, scope["method"] == "HEAD", send)
                    whole = await attended(write, receive, self._admission.stopped)
        except ClientGone:
            return
        except QwenProxyError as exc:
            if not self._begun:
                await error_response(exc, envelope(exc))(scope, receive, send)
                return
            log.info("a picture or video broke off: %s", exc)
        connection = scope.get("extensions", {}).get(EXTENSION)
        if not whole and connection is not None:
            connection["abort"]()

    async def _write(self, opened: Opened, head: bool, send: Send) -> bool:
        """Whether the client read all of it. Raises: Unreachable, UpstreamError."""
        headers = [(name.lower().encode(), value.encode()) for name, value in _headers(opened).items()]
        self._begun = True
        await send({"type": "http.response.start", "status": opened.status, "headers": headers})
        if not head:
            async with aclosing(opened.pieces) as pieces:
                async for piece in pieces:
                    with anyio.move_on_after(self._stall_s) as writing:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                    if writing.cancelled_caught:
                        return False
        await send({"type": "http.response.body", "body": b""})
        return True


def _headers(opened: Opened) -> dict[str, str]:
    kind = "attachment" if opened.type == UNKNOWN_TYPE else "inline"
    headers = {**HEADERS, "Content-Type": opened.type, "Content-Disposition": kind}
    if opened.length is not None:
        headers["Content-Length"] = str(opened.length)
    if opened.content_range:
        headers["Content-Range"] = opened.content_range
    return headers
