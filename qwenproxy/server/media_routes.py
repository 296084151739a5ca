"""What the service made, over HTTP: pictures and videos by their ids (`shelf.py`).

The address needs no API key: it stands in answers that are shown as pages, where no header can be added, and
its id, 128 random bits that only the answer told, is a key by itself. It opens nothing but that one picture
or video.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, aclosing
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
        try:
            with self._admission.enter():
                async with self._media.open(self._media_id, self._part) as opened:
                    whole = await self._passed_on(opened, scope, receive, send)
        except QwenProxyError as exc:
            await error_response(exc, envelope(exc))(scope, receive, send)
            return
        connection = scope.get("extensions", {}).get(EXTENSION)
        if not whole and connection is not None:
            connection["abort"]()

    async def _passed_on(self, opened: Opened, scope: Scope, receive: Receive, send: Send) -> bool:
        """Whether all of it was; not where the client left or stopped reading, or the server stops."""
        whole = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_until_gone, receive, tasks.cancel_scope)
            tasks.start_soon(_until_stopped, self._admission.stopped, tasks.cancel_scope)
            try:
                await self._write(opened, scope["method"] == "HEAD", send)
                whole = True
            except QwenProxyError as exc:
                log.info("a picture or video broke off: %s", exc)
            except TimeoutError:
                log.info("a client stopped reading its picture or video")
            tasks.cancel_scope.cancel()
        return whole

    async def _write(self, opened: Opened, head: bool, send: Send) -> None:
        headers = [(name.lower().encode(), value.encode()) for name, value in _headers(opened).items()]
        await send({"type": "http.response.start", "status": opened.status, "headers": headers})
        if not head:
            async with aclosing(opened.pieces) as pieces:
                async for piece in pieces:
                    with anyio.fail_after(self._stall_s):
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _headers(opened: Opened) -> dict[str, str]:
    kind = "attachment" if opened.type == UNKNOWN_TYPE else "inline"
    headers = {**HEADERS, "Content-Type": opened.type, "Content-Disposition": kind}
    if opened.length is not None:
        headers["Content-Length"] = str(opened.length)
    if opened.content_range:
        headers["Content-Range"] = opened.content_range
    return headers


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _until_stopped(stopped: anyio.Event, scope: anyio.CancelScope) -> None:
    await stopped.wait()
    scope.cancel()
