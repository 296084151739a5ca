"""Turn, slots, queue, and what the end of an answer teaches."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from qwenproxy.accounts.pool import AllTried, Pool
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
from qwenproxy.errors import AllWaiting, LimitReached, NeedsHuman, NoAccount, QueueFull, TokenRejected

pytestmark = pytest.mark.anyio


class TurnedClock(SystemClock):
    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


def make(tmp_path: Path, *ids: str, slots: int = 1, pace_s: float = 0, queue_timeout_s: float = 5) -> Pool:
    (tmp_path / "tokens.json").write_text(json.dumps([{"id": i, "token": "t"} for i in ids]))
    clock = TurnedClock()
    registry = Registry(tmp_path, clock)
    return Pool(
        registry.accounts(), registry, clock, slots=slots, pace_s=pace_s, queue_timeout_s=queue_timeout_s
    )


async def used(pool: Pool, tried: frozenset[str] = frozenset()) -> str:
    async with pool.lease(tried) as account_id:
        return account_id


@asynccontextmanager
async def held(pool: Pool, count: int) -> AsyncGenerator[list[str]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(pool.lease()) for _ in range(count)]


async def end(pool: Pool, exc: Exception) -> None:
    with pytest.raises(type(exc)):
        async with pool.lease():
            raise exc


async def test_accounts_answer_in_turn(tmp_path: Path) -> None:
    pool = make(tmp_path, "a", "b", "c")
    assert [await used(pool) for _ in range(6)] == ["a", "b", "c"] * 2


async def test_a_full_account_is_passed_over(tmp_path: Path) -> None:
    pool = make(tmp_path, "a", "b", slots=2)
    async with held(pool, 4) as ids:
        assert sorted(ids) == ["a", "a", "b", "b"]
        assert "2/2" in repr(pool)
    assert "0/2" in repr(pool)


async def test_who_came_first_is_served_first(tmp_path: Path) -> None:
    pool = make(tmp_path, "a")
    served: list[int] = []

    async def wait(number: int) -> None:
        async with pool.lease():
            served.append(number)

    async with anyio.create_task_group() as tasks, held(pool, 1):
        for number in range(5):
            tasks.start_soon(wait, number)
            await anyio.wait_all_tasks_blocked()
        assert served == []
        assert "queue=5" in repr(pool)
    assert served == [0, 1, 2, 3, 4]


async def test_a_waiter_who_leaves_costs_nobody_a_slot(tmp_path: Path) -> None:
    pool = make(tmp_path, "a")
    async with held(pool, 1):
        with anyio.move_on_after(0.05):
            await used(pool)
    assert repr(pool) == "<Pool [a OK 0/1] queue=0>"
    assert await used(pool) == "a"


async def test_the_queue_has_an_end(tmp_path: Path) -> None:
    pool = make(tmp_path, "a", queue_timeout_s=0.1)
    async with held(pool, 1):
        with pytest.raises(QueueFull):
            await used(pool)
    assert "queue=0" in repr(pool)


async def test_a_pace_spaces_starts(tmp_path: Path) -> None:
    pool = make(tmp_path, "a", pace_s=0.15)
    began = anyio.current_time()
    for _ in range(3):
        await used(pool)
    assert anyio.current_time() - began >= 0.3


async def test_a_limit_rests_the_account_until_its_time_and_is_stored(tmp_path: Path) -> None:
    pool = make(tmp_path, "a", "b")
    await end(pool, LimitReached("limit", wait_s=3 * 3600))
    assert [await used(pool) for _ in range(3)] == ["b"] * 3
    stored = Registry(tmp_path, SystemClock()).accounts()[0]
    assert stored.wait_until is not None
    assert abs(stored.wait_until - datetime.now(UTC) - timedelta(hours=3)) < timedelta(minutes=1)
    assert stored.why == "limit"


async def test_a_limit_ends(tmp_path: Path) -> None:
    pool = make(tmp_path, "a")
    await end(pool, LimitReached("limit", wait_s=60))
    pool._clock.ahead = timedelta(seconds=61)  # type: ignore[attr-defined]
    assert await used(pool) == "a"


async def test_all_waiting_names_the_soonest(tmp_path: Path) -> None:
    pool = make(tmp_path, "a", "b")
    await end(pool, LimitReached("limit", wait_s=7200))
    await end(pool, LimitReached("limit", wait_s=600))
    with pytest.raises(AllWaiting) as caught:
        await used(pool)
    assert 590 < caught.value.retry_after_s <= 600  # type: ignore[operator]


async def test_a_wait_is_never_longer_than_two_days(tmp_path: Path) -> None:
    pool = make(tmp_path, "a")
    await end(pool, LimitReached("limit", wait_s=1e9))
    with pytest.raises(AllWaiting) as caught:
        await used(pool)
    assert caught.value.retry_after_s <= 48 * 3600  # type: ignore[operator]


async def test_a_human_check_is_told_from_a_limit(tmp_path: Path) -> None:
    pool = make(tmp_path, "a")
    await end(pool, NeedsHuman("check"))
    with pytest.raises(NeedsHuman):
        await used(pool)
    assert Registry(tmp_path, SystemClock()).accounts()[0].why == "human"


async def test_a_lost_sign_in_is_invalid_for_good(tmp_path: Path) -> None:
    pool = make(tmp_path, "a", "b")
    await end(pool, TokenRejected("gone"))
    await end(pool, TokenRejected("gone"))
    with pytest.raises(NoAccount):
        await used(pool)
    assert [a.invalid for a in Registry(tmp_path, SystemClock()).accounts()] == [True, True]


async def test_other_ends_teach_nothing(tmp_path: Path) -> None:
    pool = make(tmp_path, "a")
    await end(pool, ValueError("bug"))
    assert await used(pool) == "a"


async def test_without_accounts_there_is_nobody_to_ask(tmp_path: Path) -> None:
    with pytest.raises(NoAccount):
        await used(make(tmp_path))


async def test_an_account_is_tried_once_a_request(tmp_path: Path) -> None:
    pool = make(tmp_path, "a", "b")
    assert await used(pool, frozenset({"a"})) == "b"
    with pytest.raises(AllTried):
        await used(pool, frozenset({"a", "b"}))


async def test_waiters_hear_of_the_last_account_going(tmp_path: Path) -> None:
    pool = make(tmp_path, "a")

    async def wait() -> None:
        with pytest.raises(NoAccount):
            await used(pool)

    async with anyio.create_task_group() as tasks:
        lease = pool.lease()
        await lease.__aenter__()
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await lease.__aexit__(TokenRejected, TokenRejected("gone"), None)


async def test_a_disk_that_fails_keeps_the_limit_in_memory(tmp_path: Path) -> None:
    pool = make(tmp_path, "a", "b")
    (tmp_path / "tokens.json").write_text("damaged")
    await end(pool, LimitReached("limit", wait_s=60))
    assert [await used(pool) for _ in range(2)] == ["b", "b"]
    assert (tmp_path / "tokens.json").read_text() == "damaged"
