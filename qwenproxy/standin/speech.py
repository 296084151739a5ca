"""Answers read aloud, with the voice of the account's settings (protocol §10.3, §11)."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from .frames import line
from .memory import Records, Session
from .replies import enveloped, refused
from .talks import read_object

RATE = 24_000
"""Samples a second; each has two bytes, and there is one channel."""
SAMPLES_A_LETTER = 960
"""40 ms."""
FRAME_SAMPLES = RATE // 2
VOICES = (
    ("Cherry", "female", "Bright and friendly."),
    ("Ethan", "male", "Warm and calm."),
    ("Serena", "female", "Gentle."),
    ("Dylan", "male", "Young and quick."),
)
OMNI_VOICES = (("Tina", "female", "Lively."), ("Aiden", "male", "Even."))
PITCHES_HZ = dict(zip((name for name, *_ in VOICES), (440, 220, 330, 260), strict=True))
"""By voice, so that a test can hear which it is."""
SECTIONS: dict[str, Any] = {
    "ui": {"theme": "light", "language": "en-US", "largeTextAsFile": True},
    "memory": {"enable_memory": False, "enable_history_memory": False},
    "personalization": {"instruction": "", "enable_for_new_chat": False},
    "tools_enabled": {"web_search": True, "image_gen_tool": True},
    "tts_speaker_v2": {"speaker": "Cherry"},
}
"""An account's settings as long as nobody has changed them."""


class Speech:
    def __init__(self, records: Records) -> None:
        self._records = records

    async def config(self, request: Request) -> Response:
        data = {"audio_tts_speakers": [_voice(*each) for each in VOICES]}
        return enveloped(request, {**data, "omni_speakers": [_voice(*each) for each in OMNI_VOICES]})

    async def settings(self, request: Request, account: str) -> Response:
        return enveloped(request, self._settings(account))

    async def update(self, request: Request, session: Session) -> Response:
        """One section, of which some keys: whoever sends all of them is refused (protocol §11)."""
        asked = await read_object(request) or {}
        name, section = next(iter(asked.items()), ("", None))
        wrong = name == "tts_speaker_v2" and (section or {}).get("speaker") not in PITCHES_HZ
        if len(asked) != 1 or name not in SECTIONS or not isinstance(section, dict) or wrong:
            return refused(request, "RequestValidationError", ["Field '': Extra inputs are not permitted"])
        own = self._records.settings.setdefault(session.account, {})
        own[name] = {**own.get(name, {}), **section}
        return enveloped(request, self._settings(session.account))

    async def completions(self, request: Request, session: Session) -> Response:
        """`POST /api/v2/tts/completions`: only what stands in a chat can be read."""
        asked = await read_object(request) or {}
        messages = asked.get("messages")
        message = messages[0] if isinstance(messages, list) and len(messages) == 1 else None
        if not isinstance(message, dict) or message.get("sub_chat_type") != "tts":
            return refused(request, "RequestValidationError", "Field 'messages': Field required")
        chat_id = request.query_params.get("chat_id", "")
        chat = self._records.chats.get(chat_id)
        if chat is None or chat.account != session.account or asked.get("chat_id") != chat_id:
            return refused(request, "CHAT_NOT_FOUND", "This chat has been deleted.", 404)
        turn = chat.turns.get(str(message.get("id")))
        if turn is None or turn.ending is None or not turn.said:
            return refused(request, "Bad_Request", "Invalid input the message is not exist.")
        speaker = self._settings(session.account)["tts_speaker_v2"]["speaker"]
        spoken = _spoken(len("".join(turn.said)), PITCHES_HZ[speaker], turn.response_id)
        return StreamingResponse(spoken, media_type="text/event-stream")

    def _settings(self, account: str) -> dict[str, Any]:
        own = self._records.settings.get(account, {})
        return {name: {**section, **own.get(name, {})} for name, section in SECTIONS.items()}


def _voice(name: str, gender: str, description: str) -> dict[str, str]:
    return {"speaker": name, "spk_name": name, "gender": gender, "description": description}


async def _spoken(letters: int, pitch_hz: int, response_id: str) -> AsyncIterator[bytes]:
    second = _tone(pitch_hz)
    left = letters * SAMPLES_A_LETTER
    while left > 0:
        samples = min(left, FRAME_SAMPLES)
        piece = base64.b64encode(second[: 2 * samples]).decode()
        delta = {"role": "assistant", "content": "", "status": "typing", "tts": piece}
        yield line({"choices": [{"delta": delta}], "response_id": response_id})
        left -= samples
    end = {"role": "assistant", "content": "", "status": "finished", "tts": ""}
    yield line({"choices": [{"delta": end}], "response_id": response_id})


def _tone(pitch_hz: int) -> bytes:
    """Half a second, in which every pitch of ours ends where it began."""
    samples = (int(12_000 * math.sin(2 * math.pi * pitch_hz * n / RATE)) for n in range(FRAME_SAMPLES))
    return struct.pack(f"<{FRAME_SAMPLES}h", *samples)
