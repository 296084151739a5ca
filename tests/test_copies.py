from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qwenproxy.clock import SystemClock
from qwenproxy.copies import Copies
from qwenproxy.qwen.files import HostedFile

A, B = "a" * 64, "b" * 64


def hosted(number: int = 1) -> HostedFile:
    path = f"u/{number}_cat.png"
    return HostedFile(f"f{number}", path, f"https://x/{path}", "cat.png", "image/png", 9, "image", "u", 1, 2)


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[Copies]:
    with closing(Copies(tmp_path, SystemClock())) as found:
        yield found


def test_a_copy_is_an_accounts_and_outlives_a_restart(copies: Copies, tmp_path: Path) -> None:
    copies.keep(A, "one", hosted(1))
    copies.keep(A, "two", hosted(2))
    with closing(Copies(tmp_path, SystemClock())) as later:
        assert (later.get(A, "one"), later.get(A, "two")) == (hosted(1), hosted(2))
        assert later.get(A, "three") is None
        assert later.holders(A) == {"one", "two"}
        assert later.by_path("u/2_cat.png") == A
        assert later.by_path("u/3_cat.png") == ""


def test_what_is_forgotten(copies: Copies) -> None:
    for number, (sha256, account) in enumerate([(A, "one"), (A, "two"), (B, "one"), (B, "two")]):
        copies.keep(sha256, account, hosted(number))
    copies.forget(A, "one")
    assert copies.holders(A) == {"two"}
    copies.forget_account("two")
    assert copies.holders(A) == frozenset()
    assert copies.holders(B) == {"one"}
    copies.forget_content(B)
    assert copies.holders(B) == frozenset()


def test_a_newer_copy_takes_the_place_of_the_older(copies: Copies) -> None:
    copies.keep(A, "one", hosted(1))
    copies.keep(A, "one", hosted(2))
    assert copies.get(A, "one") == hosted(2)
    assert copies.by_path("u/1_cat.png") == ""


@pytest.mark.parametrize("text", ["no json", "[]", json.dumps({"id": "f"}), json.dumps({"odd": 1})])
def test_what_another_version_wrote_is_no_copy(copies: Copies, tmp_path: Path, text: str) -> None:
    copies.keep(A, "one", hosted())
    with closing(sqlite3.connect(tmp_path / "copies.sqlite3")) as db:
        db.execute("update copies set file = ?", (text,))
        db.commit()
    assert copies.get(A, "one") is None


def test_a_lost_file_costs_only_what_it_held(copies: Copies, tmp_path: Path) -> None:
    copies.keep(A, "one", hosted())
    for path in tmp_path.glob("copies.sqlite3*"):
        path.unlink()
    assert copies.get(A, "one") is None
    copies.keep(A, "one", hosted())
    assert copies.get(A, "one") == hosted()


def test_a_disk_that_fails_knows_of_no_copies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "copies.sqlite3").mkdir()
    with closing(Copies(tmp_path, SystemClock())) as copies:
        copies.keep(A, "one", hosted())
        assert copies.get(A, "one") is None
        assert copies.by_path("u/1_cat.png") == ""
    assert "which accounts have which files is not known" in caplog.text
