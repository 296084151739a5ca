"""Videos that were asked for, and what became of them, so that a restart forgets none.

`tasks.sqlite3`: a row a video. No prompt is in it. Rows go after `LASTS_DAYS`; a damaged file is put aside:
what it costs is the ids of the videos in it.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final, Literal

from qwenproxy.clock import Clock
from qwenproxy.database import Database

LASTS_DAYS: Final = 30
TABLES: Final = """
create table if not exists tasks (
    id text primary key, owner text not null, created integer not null, state text not null,
    account_id text not null, chat_id text not null, upstream_id text not null, frame text not null,
    why text not null, media_id text not null, cover text not null,
    seconds real not null, width integer not null, height integer not null
) without rowid;
create index if not exists by_state on tasks (state);
create index if not exists by_age on tasks (created);
"""

State = Literal["running", "done", "failed"]


@dataclass(frozen=True, slots=True)
class VideoTask:
    """The fields stand in the order of the table's columns."""

    id: str
    owner: str
    """`Caller.mark` of who asked."""
    created: int
    """Seconds since 1970."""
    state: State = "running"
    account_id: str = ""
    chat_id: str = ""
    upstream_id: str = ""
    """The service's id of the task."""
    frame: str = ""
    """The address of the first picture that was given."""
    why: str = ""
    """Of a failure."""
    media_id: str = ""
    """Under which the finished video is fetched."""
    cover: str = ""
    """The address of its first picture, without a host."""
    seconds: float = 0.0
    width: int = 0
    height: int = 0

    @property
    def ended(self) -> bool:
        return self.state != "running"


class VideoTasks:
    """Blocks on the disk, and may be called from any thread."""

    def __init__(self, session_dir: Path, clock: Clock) -> None:
        self._clock = clock
        self._database = Database(session_dir / "tasks.sqlite3", TABLES, clock)

    def put(self, task: VideoTask) -> None:
        """Keeps the task as it is now; forgets those that are too old. Raises: StoreError."""
        oldest = int(self._clock.now().timestamp()) - LASTS_DAYS * 86_400
        with self._database.used() as db:
            db.execute("delete from tasks where created < ?", (oldest,))
            db.execute(
                "insert or replace into tasks values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                astuple(task),
            )

    def get(self, task_id: str) -> VideoTask | None:
        """Raises: StoreError."""
        with self._database.used() as db:
            row = db.execute("select * from tasks where id = ?", (task_id,)).fetchone()
        return VideoTask(*row) if row else None

    def open_ones(self) -> tuple[VideoTask, ...]:
        """Those that have not ended, oldest first. Raises: StoreError."""
        with self._database.used() as db:
            rows = db.execute("select * from tasks where state = 'running' order by created, id").fetchall()
        return tuple(VideoTask(*row) for row in rows)

    def close(self) -> None:
        self._database.close()
