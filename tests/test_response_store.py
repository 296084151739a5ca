"""Responses as they were answered, for a day."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.errors import StoreError
from qwenproxy.response_store import ResponseStore, StoredResponse

GUEST = Caller("key_2", "theirs", frozenset({"chat"}))
OTHER = Caller("key_3", "others", frozenset({"chat"}))


class TurnedClock:
    def __init__(self) -> None:
        self.time = datetime(2026, 11, 21, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic_s(self) -> float:
        return self.time.timestamp()


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
def store(tmp_path: Path, clock: TurnedClock) -> Iterator[ResponseStore]:
    opened = ResponseStore(tmp_path, clock, most=3)
    yield opened
    opened.close()


def response(name: str = "resp_1", status: str = "completed", **more: Any) -> StoredResponse:
    items = [{"id": "msg_1", "type": "message", "role": "user", "content": []}]
    return StoredResponse({"id": name, "status": status, "output": [], **more}, items)


def test_a_response_comes_back_whole_also_after_a_restart(
    store: ResponseStore, tmp_path: Path, clock: TurnedClock
) -> None:
    kept = response(text="\x00 Кот\u2028 \ud800")
    store.put(kept, GUEST)
    again = ResponseStore(tmp_path, clock, most=3)
    assert again.get("resp_1", GUEST) == kept
    assert again.get("resp_2", GUEST) is None
    again.close()


@pytest.mark.parametrize(
    ("status", "ended"),
    [
        ("queued", False),
        ("in_progress", False),
        ("completed", True),
        ("incomplete", True),
        ("failed", True),
        ("cancelled", True),
    ],
)
def test_what_is_over(status: str, ended: bool) -> None:
    assert response(status=status).ended is ended


def test_it_is_kept_as_it_is_now(store: ResponseStore) -> None:
    store.put(response(status="queued"), GUEST)
    store.put(response(status="completed"), GUEST)
    found = store.get("resp_1", GUEST)
    assert found is not None
    assert found.ended


def test_it_belongs_to_its_key(store: ResponseStore) -> None:
    store.put(response(), GUEST)
    assert store.get("resp_1", OTHER) is None
    assert store.get("resp_1", ANYBODY) is not None
    assert not store.delete("resp_1", OTHER)
    store.put(response(of="other"), OTHER)
    assert store.get("resp_1", GUEST) == response()


def test_what_is_deleted_is_gone(store: ResponseStore, tmp_path: Path) -> None:
    store.put(response(text="secret words"), GUEST)
    assert store.delete("resp_1", GUEST)
    assert store.get("resp_1", GUEST) is None
    assert not store.delete("resp_1", GUEST)


def test_it_lasts_a_day_whatever_the_clock_does(store: ResponseStore, clock: TurnedClock) -> None:
    store.put(response(), GUEST)
    clock.time += timedelta(hours=23)
    assert store.get("resp_1", GUEST)
    clock.time += timedelta(hours=1)
    assert store.get("resp_1", GUEST) is None
    store.put(response("resp_2"), OTHER)
    clock.time -= timedelta(days=400)
    store.put(response("resp_3"), GUEST)
    assert store.get("resp_2", OTHER) is None


def test_the_newest_of_each_key_stay(store: ResponseStore, clock: TurnedClock) -> None:
    store.put(response("resp_theirs"), OTHER)
    for number in range(5):
        clock.time += timedelta(seconds=1)
        store.put(response(f"resp_{number}"), GUEST)
    found = [number for number in range(5) if store.get(f"resp_{number}", GUEST)]
    assert found == [2, 3, 4]
    assert store.get("resp_theirs", OTHER)


def test_with_none_to_keep_nothing_is_kept(tmp_path: Path, clock: TurnedClock) -> None:
    store = ResponseStore(tmp_path, clock, most=0)
    assert not store.keeps
    store.put(response(), GUEST)
    assert store.get("resp_1", GUEST) is None
    store.close()


def test_a_place_that_is_taken_is_an_error(tmp_path: Path, clock: TurnedClock) -> None:
    (tmp_path / "responses.sqlite3").mkdir()
    store = ResponseStore(tmp_path, clock, most=3)
    with pytest.raises(StoreError):
        store.put(response(), GUEST)
    with pytest.raises(StoreError):
        store.get("resp_1", GUEST)


def test_a_file_that_goes_while_it_runs_is_made_anew(store: ResponseStore, tmp_path: Path) -> None:
    store.put(response(), GUEST)
    for path in tmp_path.glob("responses.sqlite3*"):
        path.unlink()
    assert store.get("resp_1", GUEST) is None
    store.put(response("resp_2"), GUEST)
    assert store.get("resp_2", GUEST)
