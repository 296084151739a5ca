from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.clock import SystemClock
from qwenproxy.media_rows import MediaRow, MediaRows

URL = "https://cdn.qwenlm.ai/output/u/t2i/r/1.png?key=one"
NEWER = "https://cdn.qwenlm.ai/output/u/t2i/r/1.png?key=two"


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[MediaRows]:
    with closing(MediaRows(tmp_path, SystemClock())) as opened:
        yield opened


def test_what_is_added_is_found_by_its_id(rows: MediaRows) -> None:
    media_id = rows.add(URL, "acc_1", ANYBODY)
    assert len(media_id) == 32
    assert rows.get(media_id) == MediaRow(URL, "acc_1")
    assert rows.get("0" * 32) is None


def test_the_same_place_keeps_its_id_and_takes_the_newer_key(rows: MediaRows) -> None:
    media_id = rows.add(URL, "acc_1", ANYBODY)
    assert rows.add(NEWER, "acc_1", ANYBODY) == media_id
    assert rows.get(media_id) == MediaRow(NEWER, "acc_1")


def test_each_key_has_an_id_of_its_own_and_so_has_each_place(rows: MediaRows) -> None:
    ids = {
        rows.add(URL, "acc_1", ANYBODY),
        rows.add(URL, "acc_1", Caller("key_other")),
        rows.add(URL.replace("/1.png", "/2.png"), "acc_1", ANYBODY),
        rows.add(URL.replace("cdn.", "other."), "acc_1", ANYBODY),
    }
    assert len(ids) == 4


def test_it_outlives_a_restart_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    with closing(MediaRows(tmp_path, SystemClock())) as before:
        media_id = before.add(URL, "acc_1", ANYBODY)
    with closing(MediaRows(tmp_path, SystemClock())) as after:
        assert after.get(media_id) == MediaRow(URL, "acc_1")
    assert (tmp_path / "media.sqlite3").stat().st_mode & 0o077 == 0


def test_a_lost_file_is_begun_anew(rows: MediaRows, tmp_path: Path) -> None:
    media_id = rows.add(URL, "acc_1", ANYBODY)
    for path in tmp_path.glob("media.sqlite3*"):
        path.unlink()
    assert rows.get(media_id) is None
    assert rows.get(rows.add(URL, "acc_1", ANYBODY)) is not None
