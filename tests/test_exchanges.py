"""What completions answered, for a day."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.chat import Attachment, Home, Message, ToolCall, UpstreamChat
from qwenproxy.exchanges import Exchange, Exchanges

GUEST = Caller("key_2", "theirs", frozenset({"chat"}))
OTHER = Caller("key_3", "others", frozenset({"chat"}))
TALK = (
    Message("system", "Be brief"),
    Message("user", "Что это?", (Attachment("image", "https://x/a.png", "a.png"),)),
    Message("assistant", "\x00 A cat\u2028", calls=(ToolCall("call_1", "zoom", '{"to": "Ä"}'),)),
    Message("tool", "4x", call_id="call_1"),
    Message("tool", "unasked"),
)


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
def exchanges(tmp_path: Path, clock: TurnedClock) -> Iterator[Exchanges]:
    opened = Exchanges(tmp_path, clock, most=20)
    yield opened
    opened.close()


def test_an_exchange_comes_back_whole_also_after_a_restart(
    exchanges: Exchanges, tmp_path: Path, clock: TurnedClock
) -> None:
    exchange = Exchange("r1", TALK, Home("acc", "chat", "r1"))
    kept = Exchange("r2", kept_chat="c", kept_message="m")
    exchanges.add(exchange, GUEST)
    exchanges.add(kept, GUEST)
    again = Exchanges(tmp_path, clock, most=20)
    assert again.get("r1", GUEST) == exchange
    assert again.get("r2", GUEST) == kept
    assert again.get("r3", GUEST) is None
    assert again.twins() == {UpstreamChat("chat", "acc")}
    again.close()


def test_it_belongs_to_its_key(exchanges: Exchanges) -> None:
    exchanges.add(Exchange("r1", TALK), GUEST)
    assert exchanges.get("r1", OTHER) is None
    assert exchanges.get("r1", ANYBODY) is not None
    exchanges.add(Exchange("r1", TALK[1:]), OTHER)
    assert exchanges.get("r1", GUEST) == Exchange("r1", TALK)


def test_it_lasts_a_day_whatever_the_clock_does(exchanges: Exchanges, clock: TurnedClock) -> None:
    home = Home("acc", "chat", "r")
    exchanges.add(Exchange("old", TALK, home), GUEST)
    clock.time += timedelta(hours=23)
    assert exchanges.get("old", GUEST)
    clock.time += timedelta(hours=1)
    assert exchanges.get("old", GUEST) is None
    assert exchanges.add(Exchange("new", TALK), OTHER) == {UpstreamChat("chat", "acc")}
    clock.time -= timedelta(days=400)
    exchanges.add(Exchange("newer", TALK), GUEST)
    assert exchanges.get("new", OTHER) is None


def test_the_newest_of_each_key_stay_and_shared_chats_with_them(
    exchanges: Exchanges, clock: TurnedClock
) -> None:
    exchanges.add(Exchange("theirs", TALK), OTHER)
    exchanges.add(Exchange("first", TALK, Home("acc", "shared", "first")), GUEST)
    exchanges.add(Exchange("second", TALK, Home("acc", "lone", "second")), GUEST)
    gone: set[UpstreamChat] = set()
    for number in range(20):
        clock.time += timedelta(seconds=1)
        home = Home("acc", "shared", "x") if number == 0 else Home()
        gone |= exchanges.add(Exchange(f"r{number}", (), home), GUEST)
    assert gone == {UpstreamChat("lone", "acc")}
    assert exchanges.get("first", GUEST) is None
    assert exchanges.get("r0", GUEST)
    assert exchanges.get("theirs", OTHER)


def test_a_file_that_goes_while_it_runs_is_made_anew(exchanges: Exchanges, tmp_path: Path) -> None:
    exchanges.add(Exchange("r1", TALK), GUEST)
    for path in tmp_path.glob("exchanges.sqlite3*"):
        path.unlink()
    exchanges.add(Exchange("r2", TALK), GUEST)
    assert exchanges.get("r1", GUEST) is None
    assert exchanges.get("r2", GUEST)


def test_a_place_that_is_taken_is_an_error(tmp_path: Path, clock: TurnedClock) -> None:
    (tmp_path / "exchanges.sqlite3").mkdir()
    with pytest.raises(sqlite3.Error):
        Exchanges(tmp_path, clock, most=20).add(Exchange("r1", TALK), GUEST)


def test_with_none_to_remember_nothing_is_on_disk(
    exchanges: Exchanges, tmp_path: Path, clock: TurnedClock
) -> None:
    exchanges.add(Exchange("r1", TALK), GUEST)
    exchanges.close()
    none = Exchanges(tmp_path, clock, most=0)
    assert none.twins() == frozenset()
    none.add(Exchange("r2", TALK), GUEST)
    assert none.get("r1", GUEST) is none.get("r2", GUEST) is None
    none.close()


def test_what_was_forgotten_cannot_be_read_from_the_file(
    exchanges: Exchanges, tmp_path: Path, clock: TurnedClock
) -> None:
    exchanges.add(Exchange("answer-to-forget", TALK), GUEST)
    clock.time += timedelta(days=2)
    exchanges.twins()
    exchanges.close()
    assert not any(b"answer-to-forget" in path.read_bytes() for path in tmp_path.glob("exchanges.*"))


def test_what_is_deleted_is_gone_and_its_chat_with_it(exchanges: Exchanges) -> None:
    exchanges.add(Exchange("first", TALK, Home("acc", "shared", "first")), GUEST)
    exchanges.add(Exchange("second", TALK, Home("acc", "shared", "second")), GUEST)
    assert exchanges.delete("first", OTHER) == frozenset()
    assert exchanges.get("first", GUEST)
    assert exchanges.delete("first", GUEST) == frozenset()
    assert exchanges.get("first", GUEST) is None
    assert exchanges.delete("second", GUEST) == {UpstreamChat("shared", "acc")}
    assert exchanges.delete("second", GUEST) == frozenset()
