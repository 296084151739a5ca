"""OpenAI's speech from text over HTTP, and the voices there are.

The sound leaves as it comes. What fails before the first of it has its own status; what fails later drops the
connection, so that no half of a text is taken for the whole, or is an event where events are wanted.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final, Protocol, cast

import anyio
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwenproxy.audio import FASTEST, FORMATS, MEDIA_TYPES, SLOWEST, Encoder, Format, encoder
from qwenproxy.dialects.base import Json, frame
from qwenproxy.dialects.openai_chat import envelope
from qwenproxy.dialects.openai_speech import SpeechRequest, parse, voices_body
from qwenproxy.errors import QwenProxyError
from qwenproxy.qwen.speech_service import Voice
from qwenproxy.server.access import KeyRoute
from qwenproxy.server.admission import INTERNAL, Admission
from qwenproxy.server.attended import attended
from qwenproxy.server.body import ClientGone
from qwenproxy.server.connection import EXTENSION
from qwenproxy.server.relay import Bounds, read_object
from qwenproxy.server.responses import error_response, json_response

log = logging.getLogger(__name__)

EVENTS_TYPE: Final = "text/event-stream; charset=utf-8"


class Speech(Protocol):
    async def voices(self) -> Sequence[Voice]: ...

    async def voice(self, name: str) -> str:
        """Raises: BadRequest."""

    def sound(self, text: str, speaker: str) -> AsyncGenerator[bytes]: ...


class SpeechRoutes:
    def __init__(self, admission: Admission, bounds: Bounds) -> None:
        self._admission = admission
        self._bounds = bounds

    def routes(self, prefixes: Sequence[str]) -> list[KeyRoute]:
        speak = _Endpoint(self._admission, self._bounds)
        return [
            route
            for prefix in prefixes
            for route in (
                KeyRoute(prefix + "/audio/speech", speak, methods=["POST"], needs="chat"),
                KeyRoute(prefix + "/audio/voices", self._voices, methods=["GET"], needs="chat"),
            )
        ]

    async def _voices(self, request: Request) -> Response:
        speech: Speech = request.app.state.speech
        try:
            with self._admission.enter():
                voices = await speech.voices()
        except QwenProxyError as exc:
            return error_response(exc, envelope(exc))
        return json_response(voices_body([_voice(voice) for voice in voices]))


class _Endpoint:
    """A plain ASGI application: the sound goes to the client as it comes."""

    def __init__(self, admission: Admission, bounds: Bounds) -> None:
        self._admission = admission
        self._bounds = bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        speech: Speech = scope["app"].state.speech
        out = _Out(scope, send, self._bounds.write_stall_s)
        try:
            with self._admission.enter():
                body = await read_object(scope, receive, self._bounds)
                wanted = parse(body, FORMATS, SLOWEST, FASTEST)
                await attended(partial(_speak, speech, wanted, out), receive, self._admission.stopped)
        except ClientGone:
            return
        except QwenProxyError as exc:
            await _refuse(exc, out, scope, receive, send)
        except Exception:
            log.exception("a text could not be spoken")
            await _refuse(QwenProxyError(INTERNAL), out, scope, receive, send)


class _Out:
    """The client's end of one sound."""

    def __init__(self, scope: Scope, send: Send, stall_s: float) -> None:
        self._scope = scope
        self._send = send
        self._stall_s = stall_s
        self.events = False
        self.started = False
        self.ended = False

    async def start(self, form: Format) -> None:
        self.started = True
        media_type = EVENTS_TYPE if self.events else MEDIA_TYPES[form]
        headers = [
            (b"content-type", media_type.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            (b"x-content-type-options", b"nosniff"),
            # Compressed, small pieces would wait for the next ones in a buffer.
            (b"content-encoding", b"identity"),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Drops a client that does not read. Raises: ClientGone."""
        try:
            with anyio.fail_after(self._stall_s):
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            self.drop()
            raise ClientGone from None
        self.ended = not more

    def drop(self) -> None:
        connection = self._scope.get("extensions", {}).get(EXTENSION)
        if connection is not None:
            connection["abort"]()


async def _speak(speech: Speech, wanted: SpeechRequest, out: _Out) -> None:
    """Writes the whole sound; nothing before its first piece is there."""
    speaker = await speech.voice(wanted.voice)
    form = cast(Format, wanted.form)
    coder = await run_sync(encoder, form, wanted.speed)
    out.events = wanted.events
    try:
        async with aclosing(speech.sound(wanted.text, speaker)) as pieces:
            async for pcm in pieces:
                await _give(await run_sync(coder.push, pcm), form, out)
        await _give(await run_sync(coder.end), form, out)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await run_sync(_freed, coder)
        raise
    if not out.started:
        await out.start(form)
    last = frame({"type": "speech.audio.done", "usage": USAGE}) if wanted.events else ""
    await out.write(last.encode(), more=False)


async def _give(data: bytes, form: Format, out: _Out) -> None:
    if not data:
        return
    if not out.started:
        await out.start(form)
    if out.events:
        text = base64.b64encode(data).decode()
        data = frame({"type": "speech.audio.delta", "audio": text}).encode()
    await out.write(data)


USAGE: Final[Json] = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
"""The service counts none."""


def _freed(coder: Encoder) -> None:
    try:
        coder.end()
    except Exception:  # noqa: BLE001 - what led here is told, not this
        return


async def _refuse(error: QwenProxyError, out: _Out, scope: Scope, receive: Receive, send: Send) -> None:
    if not out.started:
        await error_response(error, envelope(error))(scope, receive, send)
    elif out.events and not out.ended:
        await out.write(frame({"type": "error", **envelope(error)}).encode(), more=False)
    elif not out.ended:
        log.warning("speech broke off: %s", error)
        out.drop()


def _voice(voice: Voice) -> Json:
    return {
        "id": voice.id,
        "name": voice.name,
        "gender": voice.gender,
        "description": voice.description,
    }
