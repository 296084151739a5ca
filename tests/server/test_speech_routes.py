"""Speech through the whole server: sound that leaves as it comes, and every way to fail."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from qwenproxy.audio import FORMATS, MEDIA_TYPES, Format
from qwenproxy.errors import BadRequest, LimitReached, Severed
from qwenproxy.server.relay import Bounds
from tests.serve import until_async
from tests.server.serving import FOREVER, Running, ScriptedGateway, ScriptedSpeech, heard, running

pytestmark = pytest.mark.anyio

PATH = "/v1/audio/speech"
SECOND = bytes(48_000)
HELLO: dict[str, Any] = {"model": "tts-1", "input": "Hello", "voice": "Cherry"}


@asynccontextmanager
async def given(
    speech: ScriptedSpeech, bounds: Bounds | None = None, **settings: Any
) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    async with (
        running(ScriptedGateway(speech=speech), bounds, **settings) as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False) as client,
    ):
        yield proxy, client
        await proxy.empty()


@pytest.mark.parametrize("kind", FORMATS)
async def test_each_format_says_what_it_is(kind: Format) -> None:
    speech = ScriptedSpeech()
    async with given(speech) as (_, client):
        answer = await client.post(PATH, json={**HELLO, "response_format": kind})
    assert (answer.status_code, answer.headers["content-type"]) == (200, MEDIA_TYPES[kind])
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert len(answer.content) > 50
    assert (speech.read, speech.closed) == ([("Hello", "Cherry")], 1)


@pytest.mark.parametrize("prefix", ["/v1", "/api", "/api/v1"])
async def test_mp3_is_what_nobody_asks_for(prefix: str) -> None:
    async with given(ScriptedSpeech()) as (_, client):
        answer = await client.post(f"{prefix}/audio/speech", json={"input": "Hello"})
    assert answer.headers["content-type"] == "audio/mpeg"


async def test_sound_leaves_before_the_rest_is_there() -> None:
    speech = ScriptedSpeech(steps=[SECOND, FOREVER])
    async with given(speech) as (proxy, client):
        async with client.stream("POST", PATH, json={**HELLO, "response_format": "pcm"}) as answer:
            async for piece in answer.aiter_bytes():
                assert piece == SECOND[: len(piece)]
                break
            assert proxy.admission.inside == 1
        await proxy.empty()
    assert speech.closed == 1


async def test_sound_as_events() -> None:
    speech = ScriptedSpeech(steps=[b"\1\0", b"\2\0"])
    async with given(speech) as (_, client):
        answer = await client.post(PATH, json={**HELLO, "response_format": "pcm", "stream_format": "sse"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line]
    assert [event["type"] for event in events] == [*["speech.audio.delta"] * 2, "speech.audio.done"]
    assert b"".join(base64.b64decode(event.get("audio", "")) for event in events) == b"\1\0\2\0"
    assert set(events[-1]["usage"]) == {"input_tokens", "output_tokens", "total_tokens"}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BadRequest("no voice for it", param="input"), 400, "invalid_request"),
        (LimitReached("a minute", wait_s=60), 429, "all_accounts_waiting"),
        (RuntimeError("a bug"), 500, "internal_error"),
    ],
)
async def test_what_fails_before_the_first_sound_has_its_status(
    error: Exception, status: int, code: str
) -> None:
    speech = ScriptedSpeech(steps=[0.01, error])
    async with given(speech) as (_, client):
        answer = await client.post(PATH, json=HELLO)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert speech.closed == 1


async def test_a_sound_too_short_for_a_sample_is_a_whole_answer() -> None:
    async with given(ScriptedSpeech(steps=[b"\0"])) as (_, client):
        answer = await client.post(PATH, json={**HELLO, "response_format": "pcm"})
    assert (answer.status_code, answer.content) == (200, b"")


async def test_half_a_text_is_never_taken_for_the_whole() -> None:
    for error in (Severed("cut"), RuntimeError("a bug")):
        async with given(ScriptedSpeech(steps=[SECOND, error])) as (_, client):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post(PATH, json={**HELLO, "response_format": "wav"})


async def test_events_tell_of_a_failure() -> None:
    async with given(ScriptedSpeech(steps=[SECOND, Severed("cut")])) as (_, client):
        answer = await client.post(PATH, json={**HELLO, "response_format": "pcm", "stream_format": "sse"})
    last = json.loads(answer.text.split("\n\n")[-2][6:])
    assert (last["type"], last["error"]["code"]) == ("error", "upstream_error")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({**HELLO, "voice": "nobody"}, "voice"),
        ({**HELLO, "response_format": "midi"}, "response_format"),
    ],
)
async def test_what_cannot_be_understood_is_refused_by_its_name(body: dict[str, Any], param: str) -> None:
    speech = ScriptedSpeech()
    async with given(speech) as (_, client):
        answer = await client.post(PATH, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert speech.read == []


async def test_who_leaves_before_the_first_sound_ends_the_work() -> None:
    speech = ScriptedSpeech(steps=[FOREVER])
    async with given(speech) as (proxy, _):
        connection = await proxy.connect()
        await connection.send(proxy.post(HELLO, PATH))
        await until_async(lambda: speech.read)
        await connection.aclose()
        await proxy.empty()
    assert speech.closed == 1


async def test_who_does_not_read_is_dropped() -> None:
    speech = ScriptedSpeech(steps=[bytes(2_000_000)] * 20)
    async with given(speech, Bounds(write_stall_s=0.3)) as (proxy, _):
        connection = await proxy.connect()
        await connection.send(proxy.post({**HELLO, "response_format": "pcm"}, PATH))
        await until_async(lambda: speech.closed)
        await proxy.empty()
        await connection.aclose()


async def test_a_stop_ends_speech_with_its_error() -> None:
    speech = ScriptedSpeech(steps=[FOREVER])
    async with given(speech) as (proxy, _):
        connection = await proxy.connect()
        await connection.send(proxy.post(HELLO, PATH))
        await until_async(lambda: speech.read)
        proxy.admission.stopped.set()
        answer = await heard(connection)
        await connection.aclose()
    assert b"503" in answer.split(b"\r\n")[0]
    assert b"shutting_down" in answer


async def test_voices() -> None:
    async with given(ScriptedSpeech()) as (_, client):
        for prefix in ("/v1", "/api"):
            voices = (await client.get(f"{prefix}/audio/voices")).json()
            assert voices["data"] == voices["voices"]
            assert voices["data"] == [
                {"id": "Cherry", "name": "Cherry", "gender": "female", "description": "Bright."}
            ]
