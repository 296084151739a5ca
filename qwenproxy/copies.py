"""Which account has a copy of which content in the service's storage.

`copies.sqlite3`: a row an account and content hash. Losing it costs another upload; a damaged one is put
aside.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwenproxy.clock import Clock
from qwenproxy.database import Database
from qwenproxy.qwen.files import HostedFile

log = logging.getLogger(__name__)

TABLES = """
create table if not exists copies (
    sha256 text not null, account text not null, path text not null, file text not null,
    primary key (sha256, account)
) without rowid;
create index if not exists by_path on copies (path);
"""


class Copies:
    """Blocks on the disk, and may be called from any thread. A disk that fails knows of no copies."""

    def __init__(self, session_dir: Path, clock: Clock) -> None:
        self._database = Database(session_dir / "copies.sqlite3", TABLES, clock)

    def get(self, sha256: str, account_id: str) -> HostedFile | None:
        """The account's copy of this content."""
        rows = self._run("select file from copies where sha256 = ? and account = ?", (sha256, account_id))
        return _file_of(rows[0][0]) if rows else None

    def keep(self, sha256: str, account_id: str, hosted: HostedFile) -> None:
        row = (sha256, account_id, hosted.path, json.dumps(asdict(hosted)))
        self._run("insert or replace into copies values (?, ?, ?, ?)", row)

    def holders(self, sha256: str) -> frozenset[str]:
        """The accounts that have a copy of this content."""
        rows = self._run("select account from copies where sha256 = ?", (sha256,))
        return frozenset(account_id for (account_id,) in rows)

    def by_path(self, path: str) -> str:
        """The hash of the content at `<user id>/<file id>_<name>`; "" when it is not known."""
        rows = self._run("select sha256 from copies where path = ? limit 1", (path,))
        return str(rows[0][0]) if rows else ""

    def forget(self, sha256: str, account_id: str) -> None:
        """That the account has a copy of this content."""
        self._run("delete from copies where sha256 = ? and account = ?", (sha256, account_id))

    def forget_content(self, sha256: str) -> None:
        self._run("delete from copies where sha256 = ?", (sha256,))

    def forget_account(self, account_id: str) -> None:
        self._run("delete from copies where account = ?", (account_id,))

    def close(self) -> None:
        self._database.close()

    def _run(self, statement: str, values: Sequence[str]) -> list[Any]:
        try:
            with self._database.alone() as db:
                return db.execute(statement, values).fetchall()
        except sqlite3.Error as exc:
            log.warning("which accounts have which files is not known, or not kept: %s", exc)
            return []


def _file_of(text: str) -> HostedFile | None:
    """None of what another version wrote."""
    try:
        return HostedFile(**json.loads(text))
    except (ValueError, TypeError):
        return None
