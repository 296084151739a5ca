from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from qwenproxy.database import opened

NOW = datetime(2026, 11, 21, tzinfo=UTC)
TABLES = "create table if not exists things (name text)"


def test_it_is_private_with_all_that_stands_beside_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(opened(tmp_path / "new" / "a.sqlite3", TABLES, NOW)) as db:
            db.execute("insert into things values ('x')")
            db.commit()
            modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()}
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}
    assert "a.sqlite3-wal" in modes


@pytest.mark.parametrize(
    "damage", [b"not a database, really not" * 40, b"SQLite format 3\x00" + b"\xff" * 4096]
)
def test_a_damaged_one_is_put_aside(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.sqlite3"
    path.write_bytes(damage)
    with closing(opened(path, TABLES, NOW)) as db:
        assert db.execute("select * from things").fetchall() == []
    assert [aside.read_bytes() for aside in tmp_path.glob("a.sqlite3.corrupt-*")] == [damage]


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_what_is_no_file_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.sqlite3"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(sqlite3.OperationalError):
        opened(path, TABLES, NOW)
    assert elsewhere.read_text() == "precious"
