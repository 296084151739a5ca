"""Speech on Qwen Chat: its voices, the account's choice of one, and a message read aloud (protocol §10.3).

Only what stands in a chat as an answer can be read. Which voice reads is a setting of the account (§11).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator, Awaitable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote

from qwenproxy.clock import Clock
from qwenproxy.errors import (
    EmptyAnswer,
    LimitReached,
    ParallelLimited,
    ProtocolChanged,
    QwenProxyError,
    TokenRejected,
    UpstreamError,
    UpstreamTimeout,
)
from qwenproxy.qwen import failures
from qwenproxy.qwen.sse import SseDecoder
from qwenproxy.qwen.transport import Fetch, Fetched, Transport

CONFIG: Final = "/api/v2/tts/config"
SETTINGS: Final = "/api/v2/users/user/settings"
LIMIT_S: Final = 60.0
"""A limit of speech that names no time is one of the minute (protocol §6.2)."""
REFUSAL_BYTES: Final = 1024 * 1024
T = TypeVar("T")


class Client(Protocol):
    async def call(self, account_id: str, call: Fetch) -> Any: ...

    async def post(self, account_id: str, path: str, body: dict[str, Any]) -> Any: ...


@dataclass(frozen=True, slots=True)
class Voice:
    id: str
    """The service's `speaker`."""
    name: str
    gender: str = ""
    description: str = ""


@dataclass(slots=True)
class _Refused:
    credential: str = ""


class SpeechService:
    def __init__(self, client: Client, transport: Transport, clock: Clock, *, idle_s: float) -> None:
        """`idle_s`: longest silence while a message is read."""
        self._client = client
        self._transport = transport
        self._clock = clock
        self._idle_s = idle_s

    async def voices(self, account_id: str) -> tuple[Voice, ...]:
        """Those that read messages, in the service's order.

        Raises:
            ProtocolChanged: there is none.
        """
        data = await self._client.call(account_id, Fetch("GET", CONFIG))
        rows = data.get("audio_tts_speakers") if isinstance(data, dict) else None
        voices = tuple(voice for row in (rows if isinstance(rows, list) else ()) if (voice := _voice(row)))
        if not voices:
            raise ProtocolChanged("the service names no voices", seen=type(data).__name__)
        return voices

    async def speaker(self, account_id: str) -> str:
        """The id of the account's voice; "" when it has chosen none."""
        data = await self._client.call(account_id, Fetch("GET", SETTINGS))
        chosen = data.get("tts_speaker_v2") if isinstance(data, dict) else None
        speaker = chosen.get("speaker") if isinstance(chosen, dict) else chosen
        return speaker if isinstance(speaker, str) else ""

    async def choose(self, account_id: str, speaker: str) -> None:
        """Makes it the account's voice, on the site's own pages too. One section of the settings (§11)."""
        body = {"tts_speaker_v2": {"speaker": speaker}}
        await self._client.post(account_id, f"{SETTINGS}/update", body)

    async def read_aloud(self, account_id: str, chat_id: str, message_id: str) -> AsyncGenerator[bytes]:
        """The sound of an answer as it comes: samples of 16 bits, low byte first, 24,000 a second, mono.

        Raises:
            BadRequest: the service has no voice for the text's language.
            LimitReached: the account may have nothing read for now; of speech alone.
            EmptyAnswer: no sound came.
        """
        body = {
            "chat_id": chat_id,
            "timestamp": int(self._clock.now().timestamp()),
            "messages": [{"id": message_id, "role": "assistant", "sub_chat_type": "tts"}],
        }
        path = f"/api/v2/tts/completions?chat_id={quote(chat_id, safe='')}"
        call = Fetch("POST", path, json.dumps(body), stream=True)
        refused = _Refused()
        for renewed in (False, True):
            given = False
            try:
                async with aclosing(self._sound(account_id, call, refused)) as sound:
                    async for piece in sound:
                        given = True
                        yield piece
                return
            except TokenRejected:
                if given or renewed or not await self._transport.renew(account_id, refused.credential):
                    raise

    async def _sound(self, account_id: str, call: Fetch, refused: _Refused) -> AsyncGenerator[bytes]:
        events = SseDecoder()
        some = False
        async with aclosing(self._pieces(account_id, call, refused)) as pieces:
            async for piece in pieces:
                for event in events.push(piece) if piece else events.flush():
                    if sound := _sound_in(event):
                        some = True
                        yield sound
        if not some:
            raise EmptyAnswer("the service read nothing aloud")

    async def _pieces(self, account_id: str, call: Fetch, refused: _Refused) -> AsyncGenerator[bytes]:
        """The body's bytes, and an empty piece at its end."""
        async with AsyncExitStack() as stack:
            coming = stack.enter_async_context(self._transport.fetch(account_id, call))
            fetched = await self._in_time(coming)
            refused.credential = fetched.credential
            if not failures.expects_stream(fetched.headers):
                raise await self._refusal(fetched)
            pieces = await stack.enter_async_context(aclosing(fetched.pieces()))
            while piece := await self._in_time(anext(pieces, b"")):
                yield piece
            yield b""

    async def _refusal(self, fetched: Fetched) -> QwenProxyError:
        text = bytearray()
        async with aclosing(fetched.pieces()) as pieces:
            while (piece := await self._in_time(anext(pieces, b""))) and len(text) < REFUSAL_BYTES:
                text += piece
        said = text.decode("utf-8", "replace")
        error = failures.judge(fetched.status, fetched.headers, said, self._clock.now())
        return _own_limit(error) if error else UpstreamError("the service read nothing aloud")

    async def _in_time(self, coming: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._idle_s):
                return await coming
        except TimeoutError:
            raise UpstreamTimeout(f"the service sent no sound for {self._idle_s:.0f} s") from None


def _voice(row: object) -> Voice | None:
    if not isinstance(row, dict) or not isinstance(row.get("speaker"), str) or not row["speaker"]:
        return None
    name, gender, description = (
        value if isinstance(value := row.get(key), str) else ""
        for key in ("spk_name", "gender", "description")
    )
    return Voice(row["speaker"], name or row["speaker"], gender, description)


def _sound_in(event: str) -> bytes:
    """Raises: ProtocolChanged, or the error that the event tells of."""
    if event == "[DONE]":
        return b""
    try:
        row = json.loads(event)
    except (ValueError, RecursionError):
        raise ProtocolChanged("the service's speech is not what we know", seen=event) from None
    if isinstance(row, dict) and row.get("error"):
        raise _own_limit(failures.in_stream(row["error"]))
    choices = row.get("choices") if isinstance(row, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    delta = first.get("delta") if isinstance(first, dict) else None
    sound = delta.get("tts") if isinstance(delta, dict) else None
    try:
        return base64.b64decode(sound, validate=True) if isinstance(sound, str) else b""
    except (binascii.Error, ValueError):
        raise ProtocolChanged("the service's speech is not base64", seen=sound or "") from None


def _own_limit(error: QwenProxyError) -> QwenProxyError:
    """A limit of speech is no limit of words."""
    if not isinstance(error, LimitReached) or isinstance(error, ParallelLimited):
        return error
    wait_s = LIMIT_S if error.wait_s == failures.DAILY_WAIT_S else error.wait_s
    message = "this account may have nothing more read aloud for now"
    return LimitReached(message, wait_s=wait_s, model_only=True)
