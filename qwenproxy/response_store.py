"""The last answers of Responses as they were given, so that each can be fetched by its id for a day.

`responses.sqlite3`: a row an answer, with its body and its request's input. What was said is kept apart, in
`exchanges.sqlite3`, where it is continued from. Forgotten are those older than a day and all but the newest
of each key. Losing it costs nobody more than a 404: a damaged one is put aside.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qwenproxy.caller import Caller
from qwenproxy.clock import Clock
from qwenproxy.database import Database
from qwenproxy.exchanges import LASTS_S

TABLES: Final = """
create table if not exists responses (
    id text not null, mark text not null, at real not null, status text not null,
    body blob not null, items blob not null,
    primary key (id, mark)
) without rowid;
create index if not exists by_age on responses (at);
create index if not exists newest on responses (mark, at);
"""
UNENDED: Final = frozenset({"queued", "in_progress"})


@dataclass(frozen=True, slots=True)
class StoredResponse:
    body: dict[str, Any]
    """As it was answered."""
    items: Sequence[dict[str, Any]] = ()
    """The request's input, each item with its id."""

    @property
    def id(self) -> str:
        return str(self.body["id"])

    @property
    def ended(self) -> bool:
        return self.body["status"] not in UNENDED


class ResponseStore:
    """Blocks on the disk, and may be called from any thread. Raises: StoreError."""

    def __init__(self, session_dir: Path, clock: Clock, *, most: int) -> None:
        """`most` answers of each key are kept."""
        self._most = most
        self._clock = clock
        self._database = Database(session_dir / "responses.sqlite3", TABLES, clock)

    @property
    def keeps(self) -> bool:
        """Whether anything is kept."""
        return self._most > 0

    def put(self, response: StoredResponse, caller: Caller) -> None:
        """Keeps it as it is now; forgets those that are too old or too many."""
        now_s = self._now_s()
        status = response.body["status"]
        row = (response.id, caller.mark, now_s, status, _packed(response.body), _packed(response.items))
        with self._database.used() as db:
            if self.keeps:
                db.execute("insert or replace into responses values (?, ?, ?, ?, ?, ?)", row)
            # A clock that was set back must not keep for ever what it calls the future.
            db.execute("delete from responses where at <= ? or at > ?", (now_s - LASTS_S, now_s + LASTS_S))
            beyond = "select id from responses where mark = ? order by at desc limit -1 offset ?"
            old = db.execute(beyond, (caller.mark, self._most)).fetchall()
            db.executemany(
                "delete from responses where id = ? and mark = ?", [(row[0], caller.mark) for row in old]
            )

    def get(self, response_id: str, caller: Caller) -> StoredResponse | None:
        """What is kept under the id, for this caller."""
        with self._database.used() as db:
            rows = self._rows(db, response_id)
        for mark, body, items in rows:
            if caller.sees(mark):
                return StoredResponse(_unpacked(body), _unpacked(items))
        return None

    def delete(self, response_id: str, caller: Caller) -> bool:
        """Whether there was one."""
        with self._database.used() as db:
            marks = [mark for mark, _, _ in self._rows(db, response_id) if caller.sees(mark)]
            db.executemany(
                "delete from responses where id = ? and mark = ?", [(response_id, mark) for mark in marks]
            )
        return bool(marks)

    def close(self) -> None:
        self._database.close()

    def _rows(self, db: sqlite3.Connection, response_id: str) -> list[tuple[str, bytes, bytes]]:
        return db.execute(
            "select mark, body, items from responses where id = ? and at > ?",
            (response_id, self._now_s() - LASTS_S),
        ).fetchall()

    def _now_s(self) -> float:
        return self._clock.now().timestamp()


def _packed(value: Any) -> bytes:
    return zlib.compress(json.dumps(value).encode())


def _unpacked(raw: bytes) -> Any:
    return json.loads(zlib.decompress(raw))
