"""Rows that outlive the proxy, on a real disk."""

from __future__ import annotations

import stat
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qwenproxy.clock import SystemClock
from qwenproxy.errors import StoreError
from qwenproxy.video_tasks import LASTS_DAYS, VideoTask, VideoTasks

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
TASK = VideoTask(
    "video_1", "mark", int(NOW.timestamp()), "running", "a", "chat-1", "t1", "/v1/files/f/content"
)


class StoodClock(SystemClock):
    def __init__(self) -> None:
        self.at = NOW

    def now(self) -> datetime:
        return self.at


def test_a_task_is_there_after_a_restart_with_all_that_was_known(tmp_path: Path) -> None:
    done = replace(TASK, state="done", media_id="m", cover="c", seconds=5.04, width=1920, height=1080)
    with closing(VideoTasks(tmp_path, StoodClock())) as tasks:
        tasks.put(TASK)
        tasks.put(done)
        tasks.put(replace(TASK, id="video_2", why="none"))
    with closing(VideoTasks(tmp_path, StoodClock())) as tasks:
        assert tasks.get("video_1") == done
        assert tasks.get("video_3") is None
        assert [task.id for task in tasks.open_ones()] == ["video_2"]


def test_old_tasks_are_forgotten(tmp_path: Path) -> None:
    clock = StoodClock()
    with closing(VideoTasks(tmp_path, clock)) as tasks:
        tasks.put(TASK)
        clock.at = NOW + timedelta(days=LASTS_DAYS, seconds=1)
        tasks.put(replace(TASK, id="video_2", created=int(clock.at.timestamp())))
        assert tasks.get("video_1") is None
        assert tasks.get("video_2") is not None


def test_what_has_ended() -> None:
    assert not TASK.ended
    assert replace(TASK, state="done").ended
    assert replace(TASK, state="failed").ended


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "tasks.sqlite3").write_bytes(b"no database" * 100)
    with closing(VideoTasks(tmp_path, StoodClock())) as tasks:
        assert tasks.get("video_1") is None
        tasks.put(TASK)
        assert tasks.get("video_1") == TASK


def test_a_file_that_is_taken_away_is_begun_anew(tmp_path: Path) -> None:
    with closing(VideoTasks(tmp_path, StoodClock())) as tasks:
        tasks.put(TASK)
        for path in tmp_path.glob("tasks.sqlite3*"):
            path.unlink()
        assert tasks.open_ones() == ()


def test_a_disk_that_fails_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "session").write_text("a file where a folder belongs")
    with closing(VideoTasks(tmp_path / "session", StoodClock())) as tasks, pytest.raises(StoreError):
        tasks.put(TASK)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such rights")
def test_it_is_its_owners_alone(tmp_path: Path) -> None:
    with closing(VideoTasks(tmp_path, StoodClock())) as tasks:
        tasks.put(TASK)
    assert stat.S_IMODE((tmp_path / "tasks.sqlite3").stat().st_mode) == 0o600
