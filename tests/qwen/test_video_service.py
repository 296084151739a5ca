"""Videos over a scripted road: what is said, and what an answer means."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from qwenproxy.clock import SystemClock
from qwenproxy.errors import (
    BadRequest,
    LimitReached,
    ParallelLimited,
    ProtocolChanged,
    QwenProxyError,
    Unreachable,
)
from qwenproxy.qwen.client import QwenClient
from qwenproxy.qwen.files import HostedFile
from qwenproxy.qwen.models import BUILT_IN
from qwenproxy.qwen.video_service import LITTLE_S, VideoService, VideoState
from qwenproxy.settings import Settings
from tests.scripted import JSON, Answer, ScriptedTransport, said

pytestmark = pytest.mark.anyio

MODEL = BUILT_IN[0]
FRAME = HostedFile("f1", "u/f1_cat.png", "https://x/f1", "cat.png", "image/png", 9, "image", "u", 1)
NEWER, OLDER = "/api/v2/task/status/t1", "/api/v1/tasks/status/t1"


class StoodClock(SystemClock):
    def now(self) -> datetime:
        return datetime(2026, 11, 21, 22, 0, tzinfo=UTC)


def service(transport: ScriptedTransport) -> VideoService:
    clock = StoodClock()
    return VideoService(QwenClient(transport, Settings(), clock), clock)


def taken(extra: object) -> Answer:
    message = {"role": "assistant", "content": "", "chat_type": "t2v", "extra": extra, "done": False}
    return said({"success": True, "data": {"chat_id": "c1", "messages": [message]}})


def state(status: object, **more: Any) -> dict[str, Any]:
    return {"chat_type": "t2v", "task_status": status, "message": "", "content": "", **more}


def enveloped(row: object) -> Answer:
    return said({"success": True, "request_id": "r", "data": row})


def refused(code: str, details: str, **more: Any) -> Answer:
    return said({"success": False, "data": {"code": code, "details": details, **more}})


async def submit(transport: ScriptedTransport, *frames: HostedFile, size: str = "9:16") -> str:
    return await service(transport).submit("a", "c1", MODEL, "A cat", size, frames)


async def test_a_chat_of_its_own_kind() -> None:
    transport = ScriptedTransport(enveloped({"id": "c1"}))
    assert await service(transport).new_chat("a", MODEL) == "c1"
    assert json.loads(transport.calls[0].body or "")["chat_type"] == "t2v"


async def test_a_video_is_asked_for_as_the_site_does() -> None:
    transport = ScriptedTransport(taken({"wanx": {"task_id": "t1"}}))
    assert await submit(transport) == "t1"
    call = transport.calls[0]
    assert call.path == "/api/v2/chat/completions?chat_id=c1"
    body = json.loads(call.body or "")
    message = body["messages"][0]
    assert (body["stream"], body["size"], message["content"]) == (False, "9:16", "A cat")
    assert message["chat_type"] == message["sub_chat_type"] == "t2v"
    assert message["extra"]["meta"] == {"subChatType": "t2v", "size": "9:16"}
    assert message["feature_config"]["thinking_mode"] == "Fast"
    assert message["files"] == []


async def test_a_first_picture_makes_it_the_other_kind() -> None:
    transport = ScriptedTransport(taken({"wanx": {"task_id": "t1"}}))
    await submit(transport, FRAME, size="")
    body = json.loads(transport.calls[0].body or "")
    message = body["messages"][0]
    assert message["chat_type"] == message["sub_chat_type"] == "i2v"
    assert message["extra"]["meta"] == {"subChatType": "i2v", "size": "16:9"}
    assert message["files"][0]["id"] == "f1"


@pytest.mark.parametrize(
    "extra", [None, {}, {"wanx": None}, {"wanx": {"task_id": ""}}, {"wanx": {"task_id": 5}}]
)
async def test_an_answer_without_a_task(extra: object) -> None:
    with pytest.raises(ProtocolChanged):
        await submit(ScriptedTransport(taken(extra)))


@pytest.mark.parametrize(
    ("answer", "wait_s"),
    [
        (refused("RateLimited", "You've reached the upper limit for today's usage."), 7200 + LITTLE_S),
        (refused("RateLimited", "Wait {{num}} hours.", num=4), 4 * 3600),
        (refused("quotaLimited", "No more videos."), 7200 + LITTLE_S),
        (refused("Bad_Request", "Insufficient credits for this video."), 7200 + LITTLE_S),
        (refused("Too_Many_Requests", "Too many requests in the queue."), 120),
    ],
)
async def test_a_limit_is_one_of_videos_alone_and_ends_with_the_day(answer: Answer, wait_s: float) -> None:
    with pytest.raises(LimitReached) as limit:
        await submit(ScriptedTransport(answer))
    assert limit.value.model_only
    assert limit.value.wait_s == wait_s


async def test_too_much_at_once_is_no_limit_of_videos() -> None:
    with pytest.raises(ParallelLimited) as limit:
        await submit(ScriptedTransport(refused("ParallelLimited", "…")))
    assert not limit.value.model_only


async def test_other_refusals_stay_what_they_are() -> None:
    with pytest.raises(BadRequest):
        await submit(ScriptedTransport(refused("invalid_input", "Invalid input or attachment")))


@pytest.mark.parametrize(
    ("row", "becomes"),
    [
        (state("running"), VideoState("running")),
        (state("success", content="https://x/v.mp4"), VideoState("done", "https://x/v.mp4")),
        (state("failed", message=""), VideoState("failed")),
        (state("failed", message="No luck."), VideoState("failed", why="No luck.")),
        (state("cancelled", message=None), VideoState("failed")),
    ],
)
async def test_what_has_become_of_it(row: dict[str, Any], becomes: VideoState) -> None:
    transport = ScriptedTransport(enveloped(row))
    assert await service(transport).ask("a", "t1") == becomes
    assert transport.paths == [NEWER]


async def test_a_task_that_nobody_knows_has_failed() -> None:
    for answer in (refused("Not_Found", "Task not found"), said({"detail": "Task not found"}, 404)):
        found = await service(ScriptedTransport(answer)).ask("a", "t1")
        assert found.state == "failed"
        assert "does not know" in found.why


@pytest.mark.parametrize(
    "dead",
    [
        said({"detail": "Not Found"}, 404),
        Answer([b"<html><body>not here</body></html>"], {"content-type": "text/html"}),
        refused("Not_Found", "Not Found"),
    ],
)
async def test_an_older_site_is_asked_the_older_way_and_that_is_remembered(dead: Answer) -> None:
    bare = Answer([json.dumps(state("running")).encode()], JSON)
    transport = ScriptedTransport(dead, bare, bare)
    videos = service(transport)
    assert (await videos.ask("a", "t1")).state == "running"
    assert (await videos.ask("a", "t1")).state == "running"
    assert transport.paths == [NEWER, OLDER, OLDER]


async def test_a_site_that_fails_is_no_older_one() -> None:
    transport = ScriptedTransport(
        Answer(before_head=[Unreachable("net")]), enveloped(state("running")), enveloped(state("running"))
    )
    videos = service(transport)
    with pytest.raises(Unreachable):
        await videos.ask("a", "t1")
    await videos.ask("a", "t1")
    await videos.ask("a", "t1")
    assert transport.paths == [NEWER] * 3


@pytest.mark.parametrize(
    "row", [state(""), state(None), state("success"), state("success", content="javascript:0"), {}, []]
)
async def test_words_that_nobody_understands(row: object) -> None:
    videos = service(ScriptedTransport(enveloped(row), enveloped(row)))
    with pytest.raises(QwenProxyError):
        await videos.ask("a", "t1")


async def test_an_id_cannot_leave_its_place_in_the_path() -> None:
    transport = ScriptedTransport(enveloped(state("running")))
    await service(transport).ask("a", "../x?y")
    assert transport.paths == ["/api/v2/task/status/..%2Fx%3Fy"]
