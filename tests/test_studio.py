"""A finished video, fetched once and looked at; the shelf is a small one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from qwenproxy.addresses import own_file
from qwenproxy.caller import Caller
from qwenproxy.clock import SystemClock
from qwenproxy.errors import QwenProxyError, StoreError, Unreachable
from qwenproxy.file_store import FileStore
from qwenproxy.shelf import Opened, Shelf
from qwenproxy.studio import Studio
from qwenproxy.video_tasks import VideoTask
from tests.test_film import write_film

pytestmark = pytest.mark.anyio

URL = "https://cdn.qwenlm.ai/output/v.mp4?key=k"
TASK = VideoTask("video_1", "mark", 1, account_id="a", frame="/v1/files/given/content")


class SmallShelf:
    def __init__(self, content: bytes = b"", end: QwenProxyError | None = None) -> None:
        self.content = content
        self.end = end
        self.noted: list[tuple[str, str, str]] = []

    async def note(self, url: str, account_id: str, caller: Caller) -> str:
        self.noted.append((url, account_id, caller.mark))
        return "a" * 32

    @asynccontextmanager
    async def open(self, media_id: str, part: str = "") -> AsyncGenerator[Opened]:
        yield Opened(200, "video/mp4", None, "", self._pieces())

    async def _pieces(self) -> AsyncGenerator[bytes]:
        for at in range(0, len(self.content), 1000):
            yield self.content[at : at + 1000]
        if self.end is not None:
            raise self.end


def store(folder: Path) -> FileStore:
    return FileStore(folder / "session", SystemClock(), most_bytes=10_000_000)


def left(folder: Path) -> list[Path]:
    return [path for path in (folder / "session/files/incoming").rglob("*") if path.is_file()]


async def finished(shelf: SmallShelf, files: FileStore) -> VideoTask:
    return await Studio(cast(Shelf, shelf), files).finished(TASK, URL)


async def test_a_video_is_put_on_the_shelf_and_says_what_it_is(tmp_path: Path) -> None:
    files, shelf = store(tmp_path), SmallShelf(write_film(tmp_path / "v.mp4").read_bytes())
    task = await finished(shelf, files)
    assert shelf.noted == [(URL, "a", "mark")]
    assert (task.state, task.media_id) == ("done", "a" * 32)
    assert (round(task.seconds), task.width, task.height) == (2, 160, 90)
    cover = files.get(own_file(task.cover), Caller("mark"))
    assert (cover.type, cover.owner, cover.purpose) == ("image/jpeg", "mark", "message")
    assert files.path(cover).read_bytes().startswith(b"\xff\xd8\xff")
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "shelf", [SmallShelf(b"no video"), SmallShelf(), SmallShelf(b"half", end=Unreachable("net"))]
)
async def test_a_video_that_cannot_be_read_is_done_all_the_same(tmp_path: Path, shelf: SmallShelf) -> None:
    task = await finished(shelf, store(tmp_path))
    assert (task.state, task.media_id, task.cover) == ("done", "a" * 32, TASK.frame)
    assert (task.seconds, task.width, task.height) == (0, 0, 0)
    assert left(tmp_path) == []


async def test_a_video_too_large_to_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenproxy.studio.MOST_BYTES", 10)
    task = await finished(SmallShelf(bytes(5000)), store(tmp_path))
    assert (task.state, task.cover) == ("done", TASK.frame)
    assert left(tmp_path) == []


async def test_a_shelf_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    class FullShelf(SmallShelf):
        async def note(self, url: str, account_id: str, caller: Caller) -> str:
            raise StoreError("full")

    with pytest.raises(StoreError):
        await finished(FullShelf(), store(tmp_path))
