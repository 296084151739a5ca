"""Speech over a scripted road."""

from __future__ import annotations

import base64
import json
from contextlib import aclosing
from typing import Any

import pytest

from qwenproxy.clock import SystemClock
from qwenproxy.errors import (
    BadRequest,
    ChatGone,
    EmptyAnswer,
    LimitReached,
    ParallelLimited,
    ProtocolChanged,
    QwenProxyError,
    Severed,
    TokenRejected,
    UpstreamError,
    UpstreamTimeout,
)
from qwenproxy.qwen.client import QwenClient
from qwenproxy.qwen.speech_service import SpeechService, Voice
from qwenproxy.settings import Settings
from tests.scripted import Answer, ScriptedTransport, frames, said

pytestmark = pytest.mark.anyio

REFUSED = said({"success": False, "data": {"code": "Unauthorized", "details": "401 Unauthorized"}}, 401)


def service(transport: ScriptedTransport, idle_s: float = 5.0) -> SpeechService:
    clock = SystemClock()
    return SpeechService(QwenClient(transport, Settings(), clock), transport, clock, idle_s=idle_s)


def says(pcm: bytes) -> dict[str, Any]:
    return {"choices": [{"delta": {"tts": base64.b64encode(pcm).decode()}}]}


def enveloped(row: object) -> Answer:
    return said({"success": True, "request_id": "r", "data": row})


def refused(code: str, details: str = "", **more: Any) -> Answer:
    return said({"success": False, "data": {"code": code, "details": details, **more}})


async def read(transport: ScriptedTransport, idle_s: float = 5.0) -> list[bytes]:
    async with aclosing(service(transport, idle_s).read_aloud("a", "c1", "m1")) as pieces:
        return [piece async for piece in pieces]


async def test_voices() -> None:
    rows: list[Any] = [
        {"speaker": "Cherry", "spk_name": "Cherry!", "gender": "female", "description": "Bright."},
        {"speaker": "Ethan", "gender": None},
        {"speaker": ""},
        "nobody",
    ]
    transport = ScriptedTransport(enveloped({"audio_tts_speakers": rows, "omni_speakers": []}))
    assert await service(transport).voices("a") == (
        Voice("Cherry", "Cherry!", "female", "Bright."),
        Voice("Ethan", "Ethan"),
    )
    assert transport.paths == ["/api/v2/tts/config"]


@pytest.mark.parametrize("data", [None, [], {}, {"audio_tts_speakers": None}, {"audio_tts_speakers": [{}]}])
async def test_a_service_without_voices(data: object) -> None:
    with pytest.raises(ProtocolChanged):
        await service(ScriptedTransport(enveloped(data))).voices("a")


@pytest.mark.parametrize(
    ("settings", "speaker"),
    [
        ({"tts_speaker_v2": {"speaker": "Cherry"}, "ui": {}}, "Cherry"),
        ({"tts_speaker_v2": "Cherry"}, "Cherry"),
        ({"tts_speaker_v2": None}, ""),
        ({}, ""),
    ],
)
async def test_the_accounts_voice(settings: dict[str, Any], speaker: str) -> None:
    transport = ScriptedTransport(enveloped(settings))
    assert await service(transport).speaker("a") == speaker
    assert transport.paths == ["/api/v2/users/user/settings"]


async def test_one_section_of_the_settings_is_changed() -> None:
    transport = ScriptedTransport(enveloped({}))
    await service(transport).choose("a", "Ethan")
    assert transport.paths == ["/api/v2/users/user/settings/update"]
    assert json.loads(transport.calls[0].body or "") == {"tts_speaker_v2": {"speaker": "Ethan"}}


async def test_a_message_is_read_as_it_comes() -> None:
    end = {"choices": [{"delta": {"tts": "", "status": "finished"}}]}
    transport = ScriptedTransport(Answer([frames(says(b"one"), says(b"two!")), frames(says(b"3"), end)]))
    assert await read(transport) == [b"one", b"two!", b"3"]
    call = transport.calls[0]
    assert call.path == "/api/v2/tts/completions?chat_id=c1"
    body = json.loads(call.body or "")
    assert body["chat_id"] == "c1"
    assert body["messages"] == [{"id": "m1", "role": "assistant", "sub_chat_type": "tts"}]
    assert transport.open == 0


async def test_the_last_event_needs_no_blank_line_and_the_end_no_mark() -> None:
    whole = frames(says(b"one"), says(b"two"))
    assert await read(ScriptedTransport(Answer([whole.rstrip()]))) == [b"one", b"two"]
    assert await read(ScriptedTransport(Answer([whole + b"data: [DONE]\n\n"]))) == [b"one", b"two"]


async def test_no_sound_is_no_speech() -> None:
    for pieces in ([], [frames({"choices": []}, {"choices": [{"delta": {"content": "x"}}]}, 5)]):
        with pytest.raises(EmptyAnswer):
            await read(ScriptedTransport(Answer(list(pieces))))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (refused("UnsupportedLanguage", "This language is not supported."), BadRequest),
        (refused("CHAT_NOT_FOUND", "This chat has been deleted."), ChatGone),
        (refused("ParallelLimited", "…"), ParallelLimited),
        (said({"success": True, "data": {}}), UpstreamError),
        (Answer([frames({"error": {"code": "UnsupportedLanguage"}})]), BadRequest),
        (Answer([frames(says(b"one")), Severed("cut")]), Severed),
        (Answer([b"data: {no json}\n\n"]), ProtocolChanged),
        (Answer([frames({"choices": [{"delta": {"tts": "%%%"}}]})]), ProtocolChanged),
    ],
)
async def test_every_way_to_fail(answer: Answer, error: type[QwenProxyError]) -> None:
    transport = ScriptedTransport(answer)
    with pytest.raises(error):
        await read(transport)
    assert transport.open == 0


async def test_a_language_without_a_voice_is_the_texts_affair() -> None:
    with pytest.raises(BadRequest) as refusal:
        await read(ScriptedTransport(refused("UnsupportedLanguage")))
    assert refusal.value.param == "input"


@pytest.mark.parametrize(
    ("answer", "wait_s"),
    [
        (refused("RateLimited", "Too fast."), 60.0),
        (refused("RateLimited", "Too fast.", num=2), 7200.0),
        (Answer([frames({"error": {"code": "RateLimited", "details": ""}})]), 60.0),
    ],
)
async def test_a_limit_is_one_of_speech_alone_and_of_the_minute(answer: Answer, wait_s: float) -> None:
    with pytest.raises(LimitReached) as limit:
        await read(ScriptedTransport(answer))
    assert limit.value.model_only
    assert limit.value.wait_s == wait_s


async def test_a_refused_token_is_renewed_once() -> None:
    transport = ScriptedTransport(REFUSED, Answer([frames(says(b"one"))]), renews=True)
    assert await read(transport) == [b"one"]
    assert transport.renewals == ["first"]
    for renews, answers in ((True, [REFUSED, REFUSED]), (False, [REFUSED])):
        with pytest.raises(TokenRejected):
            await read(ScriptedTransport(*answers, renews=renews))


@pytest.mark.parametrize(
    "answer", [Answer(before_head=[60.0]), Answer([frames(says(b"one")), 60.0]), Answer([60.0])]
)
async def test_every_silence_has_an_end(answer: Answer) -> None:
    transport = ScriptedTransport(answer)
    with pytest.raises(UpstreamTimeout):
        await read(transport, idle_s=0.05)
    assert transport.open == 0
