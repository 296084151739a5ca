"""Which pictures and videos the service has made for us, by an id that nobody can guess.

`media.sqlite3`: a row for each, with the service's own address of it. Losing it costs the addresses that
clients were given; a damaged one is put aside.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from qwenproxy.caller import Caller
from qwenproxy.clock import Clock
from qwenproxy.database import Database

TABLES = """
create table if not exists media (
    id text primary key, place text not null, mark text not null,
    url text not null, account text not null, at real not null
) without rowid;
create unique index if not exists by_place on media (place, mark);
"""
ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class MediaRow:
    url: str
    """The service's, with its key."""
    account_id: str
    """Who had it made there."""


class MediaRows:
    """Blocks on the disk, and may be called from any thread. Raises: sqlite3.Error."""

    def __init__(self, session_dir: Path, clock: Clock) -> None:
        self._clock = clock
        self._database = Database(session_dir / "media.sqlite3", TABLES, clock)

    def add(self, url: str, account_id: str, caller: Caller) -> str:
        """The id of what lies at `url`: the one it has already, whatever key the address carries now."""
        split = urlsplit(url)
        row = (
            secrets.token_hex(ID_BYTES),
            f"{split.scheme}://{split.netloc}{split.path}",
            caller.mark,
            url,
            account_id,
            self._clock.now().timestamp(),
        )
        with self._database.alone() as db:
            found = db.execute(
                "insert into media values (?, ?, ?, ?, ?, ?) on conflict (place, mark) do update set "
                "url = excluded.url, account = excluded.account, at = excluded.at returning id",
                row,
            ).fetchall()
        media_id: str = found[0][0]
        return media_id

    def get(self, media_id: str) -> MediaRow | None:
        with self._database.alone() as db:
            found = db.execute("select url, account from media where id = ?", (media_id,)).fetchone()
        return None if found is None else MediaRow(*found)

    def close(self) -> None:
        self._database.close()
