"""What ends teach, whatever was known before; `test_pool.py` shows them at work."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from qwenproxy.accounts.account import Account
from qwenproxy.accounts.lessons import Ended, Lessons, consequence, lesson_of
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
from qwenproxy.errors import LimitReached, NeedsHuman, ParallelLimited, TokenRejected

NOW = datetime(2026, 10, 2, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ACCOUNT = Account("a", label="mine", signed_in_at=NOW - 24 * HOUR)


def taught(exc: Ended, account: Account = ACCOUNT, model: str = "max") -> Account:
    return lesson_of(exc, account, model, NOW)(account)


def limit(hours: float, *, model_only: bool = False) -> LimitReached:
    return LimitReached("limit", wait_s=hours * 3600, model_only=model_only)


def test_each_end_changes_only_what_it_is_about() -> None:
    for exc, changes in (
        (limit(3), {"wait_until", "why"}),
        (ParallelLimited("parallel", wait_s=10), {"wait_until", "why"}),
        (limit(3, model_only=True), {"model_waits"}),
        (NeedsHuman("check"), {"why"}),
        (TokenRejected("gone"), {"invalid"}),
    ):
        after = taught(exc)
        assert {
            name for name in Account.__dataclass_fields__ if getattr(after, name) != getattr(ACCOUNT, name)
        } == changes, exc


def test_the_longer_wait_counts() -> None:
    for hours in ((1, 5), (5, 1)):
        account = ACCOUNT
        for each in hours:
            account = taught(limit(each), account)
        assert (account.wait_until, account.why) == (NOW + 5 * HOUR, "limit")
        account = ACCOUNT
        for each in hours:
            account = taught(limit(each, model_only=True), account)
        assert account.model_waits == (("max", NOW + 5 * HOUR),)


def test_no_wait_is_longer_than_two_days() -> None:
    assert taught(limit(1e9)).wait_until == NOW + 48 * HOUR
    assert taught(LimitReached("limit", wait_s=float("inf"))).wait_until == NOW + 48 * HOUR


def test_a_person_is_waited_for_whatever_comes() -> None:
    waiting = taught(NeedsHuman("check"), taught(limit(3)))
    assert (waiting.why, waiting.wait_until) == ("human", None)
    assert taught(limit(3), waiting) == waiting
    assert taught(limit(3, model_only=True), waiting).why == "human"


def test_models_whose_wait_is_over_are_dropped() -> None:
    account = Account("a", model_waits=(("old", NOW - HOUR), ("plus", NOW + HOUR)))
    after = taught(limit(2, model_only=True), account)
    assert dict(after.model_waits) == {"plus": NOW + HOUR, "max": NOW + 2 * HOUR}


def test_a_lesson_is_no_news_of_a_later_sign_in() -> None:
    lesson = lesson_of(TokenRejected("gone"), ACCOUNT, "", NOW)
    later = Account("a", signed_in_at=NOW)
    assert lesson(later) == later


@pytest.mark.parametrize(
    ("exc", "said"),
    [
        (limit(3), "it rests until 2026-10-02 15:00:00 UTC"),
        (limit(3, model_only=True), "max rests there until 2026-10-02 15:00:00 UTC"),
        (
            NeedsHuman("check"),
            "it waits for you: open its window from the menu or with `accounts pass-check a`",
        ),
        (TokenRejected("gone"), "sign in again from the menu or with `accounts relogin a`"),
    ],
)
def test_the_consequence_is_said(exc: Ended, said: str) -> None:
    assert consequence(taught(exc), exc, "max") == said


def test_what_was_of_an_older_sign_in_has_no_consequence() -> None:
    assert consequence(ACCOUNT, limit(3), "max") == "it goes on"


@pytest.mark.anyio
async def test_lessons_that_come_while_the_disk_is_slow_are_stored_too(tmp_path: Path) -> None:
    class SlowRegistry(Registry):
        writes = 0
        go_on = threading.Event()

        def update(self, *args: object) -> Account | None:
            type(self).writes += 1
            assert self.go_on.wait(10)
            return super().update(*args)  # type: ignore[arg-type]

    (tmp_path / "tokens.json").write_text(json.dumps([{"id": i, "token": "t"} for i in "ab"]))
    registry = SlowRegistry(tmp_path, SystemClock())
    lessons = Lessons(registry, SystemClock())
    one, two = registry.accounts()
    now = datetime.now(UTC)
    lessons.add(lesson_of(limit(3), one, "", now))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lessons.save)
        while not registry.writes:
            await anyio.sleep(0.001)
        lessons.add(lesson_of(TokenRejected("gone"), two, "", now))
        assert lessons.laid_over(two, None).invalid
        tasks.start_soon(lessons.save)
        registry.go_on.set()
    assert [account.state(now) for account in registry.accounts()] == ["WAIT", "INVALID"]
    assert registry.writes == 2


@pytest.mark.anyio
async def test_what_is_on_disk_is_laid_over_older_readings_alone(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text(json.dumps([{"id": "a", "token": "t"}]))
    clock = SystemClock()
    registry = Registry(tmp_path, clock)
    lessons = Lessons(registry, clock)
    (before,) = registry.accounts()
    read_s = clock.monotonic_s()
    lessons.add(lesson_of(TokenRejected("gone"), before, "", NOW))
    assert lessons.laid_over(before, clock.monotonic_s()).invalid
    await lessons.save()
    assert lessons.laid_over(before, read_s).invalid
    assert not lessons.laid_over(before, clock.monotonic_s()).invalid
    assert not lessons.laid_over(before, None).invalid
    lessons.forget_all_but(())
    assert len(lessons) == 0


@pytest.mark.anyio
async def test_an_account_that_is_gone_needs_nothing_stored(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("[]")
    lessons = Lessons(Registry(tmp_path, SystemClock()), SystemClock())
    lessons.add(lesson_of(TokenRejected("gone"), ACCOUNT, "", NOW))
    await lessons.save()
    assert (tmp_path / "tokens.json").read_text() == "[]"
