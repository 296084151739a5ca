"""Videos through the whole server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from qwenproxy.chat import Filming
from qwenproxy.errors import AllWaiting
from qwenproxy.video_tasks import VideoTask
from tests.serve import until_async
from tests.server.serving import FOREVER, Running, ScriptedGateway, ScriptedVideos, running

pytestmark = pytest.mark.anyio

RUNNING = VideoTask("video_1", "", 1_700_000_000)
DONE = replace(
    RUNNING,
    state="done",
    media_id="ab" * 16,
    cover="/v1/files/file-1/content",
    seconds=5.04,
    width=1920,
    height=1080,
)
FAILED = replace(RUNNING, state="failed", why="the service made no video: Too wild.")
CAT = {"prompt": "A cat", "video_style": "oil", "image_url": "https://example.com/a.png"}


@asynccontextmanager
async def given(videos: ScriptedVideos, **settings: Any) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    async with (
        running(ScriptedGateway(videos=videos), **settings) as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False) as client,
    ):
        yield proxy, client


@pytest.mark.parametrize("prefix", ["/v1", "/api", "/api/v1"])
async def test_a_video_is_waited_for(prefix: str) -> None:
    videos = ScriptedVideos(ends_as=DONE)
    async with given(videos) as (proxy, client):
        answer = await client.post(f"{prefix}/videos/generations", json=CAT)
    assert answer.status_code == 200
    assert answer.json() == {
        "created": 1_700_000_000,
        "data": [
            {
                "conversation_id": "video_1",
                "cover_url": f"{proxy.url}/v1/files/file-1/content",
                "video_url": f"{proxy.url}/api/media/{'ab' * 16}",
                "video_duration": "5s",
                "resolution": "1920 × 1080",
            }
        ],
        "task_id": "video_1",
    }
    assert videos.filmed == [Filming("A cat\n\nVideo style: oil.", "", "https://example.com/a.png")]
    assert videos.waits_s == [1200]


async def test_a_task_is_answered_at_once() -> None:
    videos = ScriptedVideos()
    async with given(videos) as (_, client):
        answer = await client.post("/v1/videos/generations", json={"prompt": "A cat", "wait": False})
    assert answer.status_code == 202
    assert (answer.json()["task_id"], answer.json()["status"]) == ("video_1", "running")
    assert videos.waits_s == []


async def test_a_video_that_takes_too_long_is_answered_as_a_task() -> None:
    async with given(ScriptedVideos(), video_timeout_s=5) as (_, client):
        answer = await client.post("/v1/videos/generations", json={"prompt": "A cat"})
    assert (answer.status_code, answer.json()["status"]) == (202, "running")


async def test_a_video_that_fails_is_an_error() -> None:
    async with given(ScriptedVideos(ends_as=FAILED)) as (_, client):
        answer = await client.post("/v1/videos/generations", json=CAT)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "generation_failed"
    assert "Too wild." in answer.json()["error"]["message"]


async def test_errors_have_openais_shape() -> None:
    videos = ScriptedVideos(failing=AllWaiting("every account waits", retry_after_s=60))
    async with given(videos) as (_, client):
        answer = await client.post("/v1/videos/generations", json=CAT)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
        for body, param in (({}, "prompt"), ({"prompt": "A cat", "size": "big"}, "size")):
            refused = await client.post("/v1/videos/generations", json=body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        assert (await client.post("/v1/videos/generations", content=b"{")).status_code in {400, 415}


async def test_a_status_that_comes_late_is_preceded_by_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenproxy.server.video_routes.SILENCE_S", 0.0)
    async with given(ScriptedVideos(ends_as=DONE, takes_s=0.3), heartbeat_s=0.05) as (_, client):
        answer = await client.post("/v1/videos/generations", json=CAT)
    assert answer.content.startswith(b"  ")
    assert answer.json()["task_id"] == "video_1"


async def test_who_leaves_ends_the_wait() -> None:
    videos = ScriptedVideos(takes_s=FOREVER)
    async with given(videos) as (proxy, _):
        connection = await proxy.connect()
        await connection.send(proxy.post(CAT, "/v1/videos/generations"))
        await until_async(lambda: videos.waits_s)
        assert proxy.admission.inside == 1
        await connection.aclose()
        await proxy.empty()


@pytest.mark.parametrize(("task", "status"), [(RUNNING, "running"), (DONE, "success"), (FAILED, "failed")])
async def test_what_has_become_of_it(task: VideoTask, status: str) -> None:
    async with given(ScriptedVideos(task=task)) as (proxy, client):
        for prefix in ("/v1", "/api"):
            answer = await client.get(f"{prefix}/tasks/status/video_1")
            assert (answer.status_code, answer.json()["status"]) == (200, status)
    if status == "success":
        assert answer.json()["content"] == f"{proxy.url}/api/media/{'ab' * 16}"
    if status == "failed":
        assert answer.json()["error"]["message"] == FAILED.why


async def test_a_status_can_be_waited_for() -> None:
    videos = ScriptedVideos(ends_as=DONE)
    async with given(videos) as (_, client):
        answer = await client.get("/api/tasks/status/video_1?wait=60")
        assert answer.json()["status"] == "success"
        assert videos.waits_s == [60]
        for wait in ("soon", "-1", "3601", "99999999", "²"):
            refused = await client.get("/api/tasks/status/video_1", params={"wait": wait})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "wait")


async def test_an_ended_task_is_not_waited_for() -> None:
    videos = ScriptedVideos(task=DONE)
    async with given(videos) as (_, client):
        assert (await client.get("/api/tasks/status/video_1?wait=60")).json()["status"] == "success"
    assert videos.waits_s == []


async def test_an_unknown_task() -> None:
    async with given(ScriptedVideos()) as (_, client):
        answer = await client.get("/api/tasks/status/video_2")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "task_not_found")
