"""Videos are asked for once and looked after to their end, whoever waits and whatever stops meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from qwenproxy.caller import Caller
from qwenproxy.chat import Attachment, FileKind, Filming
from qwenproxy.clock import SystemClock
from qwenproxy.errors import (
    AllWaiting,
    FileGone,
    LimitReached,
    NotFetched,
    QwenProxyError,
    Severed,
    StoreError,
    UnknownTask,
    Unreachable,
    UnsupportedFile,
)
from qwenproxy.filming import LONGEST_S, Pace, Videos
from qwenproxy.qwen.files import HostedFile
from qwenproxy.qwen.models import Model
from qwenproxy.qwen.video_service import VideoState
from qwenproxy.video_tasks import VideoTask, VideoTasks
from tests.making import CountedChats, Making, built_in, making
from tests.serve import until_async

pytestmark = pytest.mark.anyio

URL = "https://cdn.qwenlm.ai/output/v.mp4?key=k"
RUNNING, DONE = VideoState("running"), VideoState("done", URL)
LAKE = Filming("A lake", "16:9")
FRAMED = Filming("A lake", frame="https://example.com/a.png")
ME, OTHER = Caller("me", scopes=frozenset({"chat"})), Caller("other", scopes=frozenset({"chat"}))
QUICK = Pace(ask_s=0.0, video_s=0.0, framed_s=0.0, unwatched_s=0.01, failures=3, framed_failures=2)


class TurnedClock(SystemClock):
    ahead_s = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.ahead_s)


@dataclass
class Site(CountedChats):
    """The service; what it says about a video is scripted, and its last word is repeated."""

    ends: list[QwenProxyError] = field(default_factory=list)
    says: list[VideoState | QwenProxyError] = field(default_factory=lambda: [DONE])
    submitted: list[tuple[str, str, str, str, tuple[str, ...]]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    kind: FileKind = "image"
    brought: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    go_on: anyio.Event = field(default_factory=anyio.Event)
    finishes: int = 0

    def __post_init__(self) -> None:
        self.go_on.set()

    async def new_chat(self, account_id: str, model: Model) -> str:
        return self.new(account_id)

    async def submit(
        self,
        account_id: str,
        chat_id: str,
        model: Model,
        prompt: str,
        size: str,
        frames: Sequence[HostedFile | Attachment] = (),
    ) -> str:
        names = tuple(each.id for each in frames if isinstance(each, HostedFile))
        self.submitted.append((account_id, chat_id, prompt, size, names))
        await self.go_on.wait()
        if self.ends:
            raise self.ends.pop(0)
        return f"t{len(self.submitted)}"

    async def ask(self, account_id: str, task_id: str) -> VideoState:
        self.asked.append((account_id, task_id))
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if isinstance(said, QwenProxyError):
            raise said
        return said

    async def file(self, url: str, caller: Caller, param: str) -> Attachment:
        if "missing" in url:
            raise NotFetched("nothing is there", param=param)
        return Attachment("image", "/v1/files/frame/content")

    async def hosted(
        self, account_id: str, attachments: Sequence[HostedFile | Attachment]
    ) -> tuple[HostedFile | Attachment, ...]:
        self.brought += [account_id for _ in attachments]
        return tuple(
            HostedFile(f"f-{account_id}", "p", "u", "a.png", "image/png", 1, self.kind, "u", 1)
            for _ in attachments
        )

    async def forget(self, account_id: str, attachments: Sequence[HostedFile | Attachment]) -> bool:
        self.forgotten.append(account_id)
        return len(self.forgotten) == 1

    async def finished(self, task: VideoTask, url: str) -> VideoTask:
        assert url == URL
        self.finishes += 1
        return replace(task, state="done", media_id="m" * 32)


@asynccontextmanager
async def filming(
    folder: Path,
    site: Site,
    *,
    accounts: int = 2,
    pace: Pace = QUICK,
    clock: SystemClock | None = None,
) -> AsyncIterator[tuple[Videos, Making]]:
    clock = clock or SystemClock()
    with closing(VideoTasks(folder, clock)) as tasks:
        async with making(folder, site, accounts=accounts) as made:
            yield (
                Videos(
                    tasks,
                    made.pool,
                    made.errands,
                    site,
                    made.janitor,
                    site,
                    site,
                    site,
                    built_in,
                    clock,
                    model="qwen3.7-plus",
                    pace=pace,
                ),
                made,
            )


async def test_a_video_is_asked_for_waited_for_and_tidied_away(tmp_path: Path) -> None:
    site = Site(says=[RUNNING, RUNNING, DONE])
    async with filming(tmp_path, site) as (videos, made):
        task = await videos.start(LAKE, ME)
        assert (task.state, task.owner, task.frame) == ("running", "me", "")
        assert made.janitor.held() == tuple(videos.chats())
        assert all(seat.busy == 0 for seat in made.pool.view().seats)
        done = await videos.wait(task, 30)
        assert (done.state, done.media_id) == ("done", "m" * 32)
        assert await videos.status(task.id, ME) == done
        assert videos.chats() == frozenset()
        assert made.activity.take_served() == {task.account_id: 1}
    assert site.submitted == [(task.account_id, task.chat_id, "A lake", "16:9", ())]
    assert site.asked == [(task.account_id, "t1")] * 3
    assert site.made == site.deleted


async def test_the_first_picture_is_taken_in_and_brought_to_the_account(tmp_path: Path) -> None:
    site = Site()
    async with filming(tmp_path, site) as (videos, _):
        task = await videos.start(FRAMED, ME)
        assert task.frame == "/v1/files/frame/content"
        assert site.submitted[0][4] == (f"f-{task.account_id}",)
        with pytest.raises(NotFetched) as refusal:
            await videos.start(Filming("A lake", frame="https://example.com/missing"), ME)
    assert refusal.value.param == "image_url"


async def test_only_a_picture_can_be_the_first_picture(tmp_path: Path) -> None:
    site = Site(kind="document")
    async with filming(tmp_path, site) as (videos, _):
        with pytest.raises(UnsupportedFile):
            await videos.start(FRAMED, ME)
    assert (site.made, site.submitted) == ([], [])


async def test_a_picture_that_the_account_has_no_more_is_brought_again_once(tmp_path: Path) -> None:
    site = Site(ends=[FileGone("gone")])
    async with filming(tmp_path, site) as (videos, _):
        assert (await videos.start(FRAMED, ME)).state == "running"
        assert len(site.brought) == len(site.submitted) == 2
        site.ends = [FileGone("gone")]
        with pytest.raises(FileGone):
            await videos.start(FRAMED, ME)
    assert len(site.forgotten) == 2


async def test_a_limit_leads_to_the_next_account_and_rests_only_videos(tmp_path: Path) -> None:
    site = Site(ends=[LimitReached("no more", wait_s=3600, model_only=True)])
    async with filming(tmp_path, site) as (videos, made):
        task = await videos.start(LAKE, ME)
        assert len({row[0] for row in site.submitted}) == 2
        assert made.pool.usable("t2v") == (task.account_id,)
        assert len(made.pool.usable()) == 2
        await until_async(lambda: site.deleted == [site.submitted[0][1]])
        site.ends = [LimitReached("no more", wait_s=3600, model_only=True)]
        with pytest.raises(AllWaiting):
            await videos.start(LAKE, ME)


async def test_who_leaves_while_it_is_asked_for_loses_no_video(tmp_path: Path) -> None:
    site = Site(says=[RUNNING])
    site.go_on = anyio.Event()
    async with filming(tmp_path, site) as (videos, _):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(videos.start, LAKE, ME)
            await until_async(lambda: site.submitted)
            tasks.cancel_scope.cancel()
            site.go_on.set()
        (chat,) = videos.chats()
        assert chat.id == site.made[0]


async def test_a_task_belongs_to_who_asked(tmp_path: Path) -> None:
    async with filming(tmp_path, Site(says=[RUNNING])) as (videos, _):
        task = await videos.start(LAKE, ME)
        for caller, task_id in ((OTHER, task.id), (ME, "video_unknown")):
            with pytest.raises(UnknownTask):
                await videos.status(task_id, caller)
        assert (await videos.status(task.id, Caller())).id == task.id


async def test_a_video_survives_a_restart_and_stays_with_its_account(tmp_path: Path) -> None:
    site = Site(says=[RUNNING])
    async with filming(tmp_path, site) as (videos, _):
        task = await videos.start(LAKE, ME)
    async with filming(tmp_path, site) as (videos, made):
        assert made.janitor.held() == tuple(videos.chats())
        assert (await videos.status(task.id, ME)).state == "running"
        site.says = [DONE]
        assert (await videos.status(task.id, ME)).state == "done"
    async with filming(tmp_path, site) as (videos, _):
        assert (await videos.status(task.id, ME)).media_id == "m" * 32
    assert {account for account, _ in site.asked} == {task.account_id}
    assert site.deleted == [task.chat_id]


async def test_a_video_that_nobody_waits_for_is_looked_after(tmp_path: Path) -> None:
    site = Site(says=[RUNNING, Unreachable("net"), RUNNING, DONE])
    async with filming(tmp_path, site) as (videos, _), anyio.create_task_group() as tasks:
        await videos.start(LAKE, ME)
        tasks.start_soon(videos.follow)
        await until_async(lambda: site.deleted == site.made)
        tasks.cancel_scope.cancel()
    assert site.finishes == 1


async def test_a_bug_does_not_end_looking_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    async with filming(tmp_path, site) as (videos, _), anyio.create_task_group() as tasks:
        await videos.start(LAKE, ME)
        failures = [RuntimeError("bug"), StoreError("disk")]
        ask = site.ask

        async def fails_first(account_id: str, task_id: str) -> VideoState:
            if failures:
                raise failures.pop(0)
            return await ask(account_id, task_id)

        monkeypatch.setattr(site, "ask", fails_first)
        tasks.start_soon(videos.follow)
        await until_async(lambda: site.deleted == site.made)
        tasks.cancel_scope.cancel()


async def test_several_wait_for_one_video(tmp_path: Path) -> None:
    site = Site(says=[RUNNING, RUNNING, DONE])
    states: list[str] = []
    async with filming(tmp_path, site) as (videos, _):
        task = await videos.start(LAKE, ME)

        async def wait() -> None:
            states.append((await videos.wait(task, 30)).state)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(wait)
    assert states == ["done"] * 5
    assert site.finishes == 1


async def test_the_service_is_not_asked_more_often_than_it_may(tmp_path: Path) -> None:
    site = Site(says=[RUNNING])
    async with filming(tmp_path, site, pace=replace(QUICK, ask_s=3600)) as (videos, _):
        task = await videos.start(LAKE, ME)
        for _ in range(3):
            await videos.status(task.id, ME)
    assert len(site.asked) == 1


@pytest.mark.parametrize(("wish", "most"), [(LAKE, QUICK.failures), (FRAMED, QUICK.framed_failures)])
async def test_a_wait_ends_when_the_service_cannot_be_asked_and_the_task_goes_on(
    tmp_path: Path, wish: Filming, most: int
) -> None:
    site = Site(says=[Unreachable("net")])
    async with filming(tmp_path, site) as (videos, _):
        task = await videos.start(wish, ME)
        assert (await videos.wait(task, 30)).state == "running"
        assert len(site.asked) == most
        site.says = [DONE]
        assert (await videos.wait(task, 30)).state == "done"


async def test_a_wait_has_an_end(tmp_path: Path) -> None:
    site = Site(says=[RUNNING])
    async with filming(tmp_path, site, pace=replace(QUICK, video_s=3600)) as (videos, _):
        task = await videos.start(LAKE, ME)
        assert (await videos.wait(task, 0.05)).state == "running"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (VideoState("failed"), "the service made no video"),
        (VideoState("failed", why="Too\nwild."), "the service made no video: Too wild."),
    ],
)
async def test_a_video_that_fails_says_why(tmp_path: Path, said: VideoState, why: str) -> None:
    site = Site(says=[said])
    async with filming(tmp_path, site) as (videos, _):
        task = await videos.start(LAKE, ME)
        failed = await videos.wait(task, 30)
        assert (failed.state, failed.why) == ("failed", why)
    assert site.made == site.deleted


async def test_a_video_of_a_deleted_account_has_failed(tmp_path: Path) -> None:
    async with filming(tmp_path, Site(says=[RUNNING])) as (videos, made):
        task = await videos.start(LAKE, ME)
        made.pool.take_up([])
        failed = await videos.status(task.id, ME)
    assert failed.state == "failed"
    assert "deleted" in failed.why


@pytest.mark.parametrize("change", [{"paused": True}, {"invalid": True}])
async def test_an_account_that_may_not_be_used_is_not_asked(tmp_path: Path, change: dict[str, Any]) -> None:
    site = Site()
    async with filming(tmp_path, site) as (videos, made):
        task = await videos.start(LAKE, ME)
        read = [seat.account for seat in made.pool.view().seats]
        made.pool.take_up([replace(account, **change) for account in read])
        assert (await videos.status(task.id, ME)).state == "running"
        assert site.asked == []
        made.pool.take_up(read)
        assert (await videos.status(task.id, ME)).state == "done"


async def test_a_video_that_never_comes_is_given_up_after_a_day(tmp_path: Path) -> None:
    clock = TurnedClock()
    async with filming(tmp_path, Site(says=[RUNNING]), clock=clock) as (videos, _):
        task = await videos.start(LAKE, ME)
        clock.ahead_s = LONGEST_S + 1
        failed = await videos.status(task.id, ME)
    assert failed.state == "failed"
    assert "a day" in failed.why


@pytest.mark.parametrize("begun", [False, True])
async def test_a_disk_that_fails_costs_no_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, begun: bool
) -> None:
    def fails(tasks: VideoTasks, task: VideoTask) -> None:
        raise StoreError("full")

    site = Site()
    async with filming(tmp_path, site) as (videos, _):
        if not begun:
            monkeypatch.setattr(VideoTasks, "put", fails)
        task = await videos.start(LAKE, ME)
        monkeypatch.setattr(VideoTasks, "put", fails)
        assert (await videos.wait(task, 30)).state == "done"


async def test_an_accident_while_it_is_asked_for(tmp_path: Path) -> None:
    site = Site(ends=[Severed("cut")])
    async with filming(tmp_path, site) as (videos, _):
        assert (await videos.start(LAKE, ME)).state == "running"
    assert len(site.submitted) == 2
