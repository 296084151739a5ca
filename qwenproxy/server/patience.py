"""JSON answers that take minutes: while one is awaited, its body begins with spaces.

Clients and reverse proxies give up on a silent connection (undici after 300 s, nginx after 60 s), and JSON
allows white space before its value. So an answer that takes longer than `SILENCE_S` begins with status 200
and a space every `heartbeat_s`. What fails after that cannot have its own status any more: its body is the
error body of the dialect all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeAlias

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwenproxy.errors import QwenProxyError
from qwenproxy.server.admission import INTERNAL, Admission
from qwenproxy.server.attended import attended
from qwenproxy.server.body import ClientGone

log = logging.getLogger(__name__)

SILENCE_S: Final = 30.0
"""How long an answer may be silent before its status is sent."""
HEADERS: Final = (
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
    # Compressed, a space would wait for the next ones in a buffer.
    (b"content-encoding", b"identity"),
)

Work: TypeAlias = Callable[[], Awaitable[Response]]
Failed: TypeAlias = Callable[[QwenProxyError], Response]


class PaddedJson:
    """A JSON answer under way to its client."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self.begun = False
        """Whether the status has been sent."""

    async def pad(self) -> None:
        """Sends a space, before the first one the head with status 200."""
        if not self.begun:
            self.begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
        await self._send({"type": "http.response.body", "body": b" ", "more_body": True})

    async def keep_up(self, silence_s: float, heartbeat_s: float) -> None:
        """Pads for ever, from `silence_s` on."""
        await anyio.sleep(silence_s)
        while True:
            await self.pad()
            await anyio.sleep(heartbeat_s)

    async def end(self, answer: Response) -> None:
        """Sends the whole answer; of one that has begun, the body alone."""
        if not self.begun:
            await answer(self._scope, self._receive, self._send)
            return
        await self._send({"type": "http.response.body", "body": bytes(answer.body)})


class PatientAnswer(Response):
    """What a route gives back at once, and which does its work while the client is kept waiting.

    The request's body must have been read: what comes from the client now is only that it leaves, and then
    the work is cancelled. The work counts as a request inside.
    """

    def __init__(
        self,
        work: Work,
        failed: Failed,
        admission: Admission,
        *,
        heartbeat_s: float,
        silence_s: float = SILENCE_S,
    ) -> None:
        """`work` gives the whole answer in JSON, `failed` what an error of ours is to this client."""
        self._work = work
        self._failed = failed
        self._admission = admission
        self._heartbeat_s = heartbeat_s
        self._silence_s = silence_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        padded = PaddedJson(scope, receive, send)
        try:
            with self._admission.enter():
                keep_up = partial(padded.keep_up, self._silence_s, self._heartbeat_s)
                answer = await attended(self._work, receive, self._admission.stopped, keep_up)
        except ClientGone:
            return
        except QwenProxyError as exc:
            answer = self._failed(exc)
        except Exception:
            log.exception("a long request broke")
            answer = self._failed(QwenProxyError(INTERNAL))
        await padded.end(answer)
