"""Videos and speech through the whole proxy, its browser and the stand-in, as clients ask for them."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import httpx
import openai
import pytest

from tests.serve import Proxy, Standin, running_proxy, running_proxy_of, running_standin, until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

ONE, TWO = "one@example.com", "two@example.com"
PITCHES = {"Cherry": 440, "Ethan": 220}
"""The stand-in's voices, by what they sing."""


def png() -> bytes:
    """A red picture of 8 by 8."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\xff\0\0" * 8) * 8
    head = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


DATA_URL = "data:image/png;base64," + base64.b64encode(png()).decode()


@dataclass(frozen=True)
class Serving:
    folder: Path
    standin: Standin
    proxy: Proxy

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(self.proxy.base + path, json=body, timeout=120)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.proxy.base + path, timeout=120)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("videos")
    with (
        running_standin(folder) as standin,
        running_proxy(folder, standin, (ONE, TWO), storage_endpoint=standin.site) as proxy,
    ):
        yield Serving(folder, standin, proxy)


@pytest.fixture
def serving(served: Serving) -> Serving:
    served.standin.reset(sessions=False)
    served.standin.options(video_s=0.0)
    return served


def film_of(serving: Serving, url: str) -> tuple[float, int, int]:
    """Seconds, width and height of a video that is fetched from us."""
    assert url.startswith(f"{serving.proxy.base}/api/media/")
    answer = httpx.get(url, timeout=60)
    assert answer.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(answer.content), "r") as container:
        stream = container.streams.video[0]
        return (container.duration or 0) / av.time_base, stream.width, stream.height


def test_the_seeds_video(serving: Serving) -> None:
    answer = serving.post(
        "/v1/videos/generations",
        model="cogvideox",
        prompt="一只可爱的猫走在花丛中",
        image_url=DATA_URL,
        video_style="油画",
        emotional_atmosphere="生动活泼",
        mirror_mode="水平",
    )
    assert answer.status_code == 200, answer.text
    (video,) = answer.json()["data"]
    seconds, width, height = film_of(serving, video["video_url"])
    assert video["video_duration"] == f"{round(seconds)}s"
    assert video["resolution"] == f"{width} × {height}"
    cover = httpx.get(video["cover_url"], timeout=60)
    assert cover.content.startswith(b"\xff\xd8\xff")
    (turn,) = [turn for turn in serving.standin.turns() if "花丛" in turn["prompt"]]
    assert "Video style: 油画. Mood: 生动活泼. Camera movement: 水平." in turn["prompt"]
    assert [file["kind"] for file in turn["files"]] == ["image"]


def test_a_video_as_a_task(serving: Serving) -> None:
    serving.standin.options(video_s=3600.0)
    started = serving.post("/v1/videos/generations", prompt="A lake", wait=False, size="1080x1920")
    assert started.status_code == 202, started.text
    task = started.json()
    assert task["status"] == "running"
    for path in ("/v1/tasks/status/", "/api/tasks/status/", "/api/v1/tasks/status/"):
        assert serving.get(path + task["task_id"]).json() == task
    assert serving.get("/api/tasks/status/video_unknown").status_code == 404


def test_a_video_that_fails(serving: Serving) -> None:
    prompt = '{{standin: video_failed error="Too wild."}} A lake'
    answer = serving.post("/v1/videos/generations", prompt=prompt, image_url=DATA_URL)
    assert answer.status_code == 502, answer.text
    assert answer.json()["error"]["code"] == "generation_failed"
    assert "Too wild." in answer.json()["error"]["message"]


def heard(sound: bytes) -> float:
    """The pitch, by the passes through zero."""
    with av.open(io.BytesIO(sound), "r") as container:
        resampler = av.AudioResampler("s16", "mono", 24_000)
        samples: list[int] = []
        for frame in container.decode(audio=0):
            for piece in resampler.resample(frame):
                samples += struct.unpack(f"<{piece.samples}h", bytes(piece.planes[0])[: piece.samples * 2])
    middle = samples[len(samples) // 4 : len(samples) * 3 // 4]
    ups = sum(one < 0 <= other for one, other in pairwise(middle))
    return ups / (len(middle) / 24_000)


@pytest.mark.parametrize(("voice", "speaker"), [("onyx", "Ethan"), ("Cherry", "Cherry")])
def test_openais_client_has_a_text_spoken(serving: Serving, tmp_path: Path, voice: str, speaker: str) -> None:
    with openai.OpenAI(base_url=f"{serving.proxy.base}/v1", api_key="none", max_retries=0) as client:
        target = tmp_path / "speech.mp3"
        with client.audio.speech.with_streaming_response.create(
            model="gpt-4o-mini-tts", voice=voice, input="The quick brown fox; it jumps."
        ) as answer:
            answer.stream_to_file(target)
    assert heard(target.read_bytes()) == pytest.approx(PITCHES[speaker], rel=0.1)


def test_voices(serving: Serving) -> None:
    voices = serving.get("/v1/audio/voices").json()["data"]
    assert {"Cherry", "Ethan"} <= {voice["id"] for voice in voices}
    refused = serving.post("/v1/audio/speech", input="Hi", voice="nobody")
    assert refused.status_code == 400
    assert "Cherry" in refused.json()["error"]["message"]


def test_speech_leaves_no_chats(serving: Serving) -> None:
    answer = serving.post("/v1/audio/speech", input="Hello there", response_format="wav", speed=2)
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.content.startswith(b"RIFF")
    until(lambda: not serving.standin.chats())


@pytest.mark.timeout(240)
def test_a_video_survives_a_restart_of_the_proxy(tmp_path: Path) -> None:
    with running_standin(tmp_path) as standin:
        standin.options(video_s=3600.0)
        with running_proxy(tmp_path, standin, (ONE,), storage_endpoint=standin.site) as proxy:
            first = Serving(tmp_path, standin, proxy)
            task = first.post("/v1/videos/generations", prompt="A lake", wait=False).json()
            (chat,) = standin.chats()
        with running_proxy_of(tmp_path, standin, storage_endpoint=standin.site) as proxy:
            again = Serving(tmp_path, standin, proxy)
            path = f"/api/tasks/status/{task['task_id']}"
            assert again.get(path).json()["status"] == "running"
            assert standin.chats() == [chat]
            standin.fault("video_failed", on="task", error="No luck.")
            until(lambda: again.get(path).json()["status"] == "failed")
            assert again.get(path).json()["error"]["message"].endswith("No luck.")
            until(lambda: not standin.chats())
            _limits_of_videos_and_of_speech_leave_words_alone(again)


def test_every_format_of_a_text_in_many_scripts(serving: Serving) -> None:
    text = "Grüße, 世界! **नमस्ते** — `x = 1`\n\n- Привет 🙂"
    for form in ("mp3", "opus", "aac", "flac", "wav"):
        answer = serving.post("/v1/audio/speech", input=text, voice="Ethan", response_format=form)
        assert answer.status_code == 200, answer.text
        assert heard(answer.content) == pytest.approx(PITCHES["Ethan"], rel=0.1)


def _limits_of_videos_and_of_speech_leave_words_alone(serving: Serving) -> None:
    serving.standin.fault("credits_exhausted", on="completions")
    refused = [serving.post("/v1/videos/generations", prompt="A lake", wait=False)]
    serving.standin.fault("tts_limited", on="tts")
    refused.append(serving.post("/v1/audio/speech", input="Hello there"))
    for answer in refused:
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "all_accounts_waiting")
    words = serving.post("/v1/chat/completions", messages=[{"role": "user", "content": "Hello"}])
    assert words.status_code == 200
