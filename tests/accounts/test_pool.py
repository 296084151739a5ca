"""Turn, slots, queue, what the end of an answer teaches, and accounts that come and go meanwhile."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskGroup

from qwenproxy.accounts.account import Account
from qwenproxy.accounts.pool import CARE_PACE_S, CARE_S, AllTried, Pool
from qwenproxy.accounts.registry import Registry
from qwenproxy.activity import Activity, InFlight
from qwenproxy.clock import SystemClock
from qwenproxy.errors import (
    AllWaiting,
    BrowserLost,
    LimitReached,
    NeedsHuman,
    NoAccount,
    ParallelLimited,
    QueueFull,
    Severed,
    TokenRejected,
    Unreachable,
    UpstreamError,
)

pytestmark = pytest.mark.anyio

HOUR = 3600.0
SIGNED_IN = datetime(2026, 10, 1, tzinfo=UTC)


class TurnedClock(SystemClock):
    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.ahead_s)

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


class Bench:
    """A pool, its registry and its clock."""

    def __init__(
        self,
        folder: Path,
        *ids: str,
        slots: int = 1,
        pace_s: float = 0,
        queue_timeout_s: float = 5,
        **more: float,
    ) -> None:
        folder.mkdir(exist_ok=True)
        rows = [{"id": i, "token": "t", "signedInAt": SIGNED_IN.isoformat()} for i in ids]
        self.file = folder / "tokens.json"
        self.file.write_text(json.dumps(rows))
        self.clock = TurnedClock()
        self.registry = Registry(folder, self.clock)
        self.pool = Pool(
            self.registry.accounts(),
            self.registry,
            self.clock,
            slots=slots,
            pace_s=pace_s,
            queue_timeout_s=queue_timeout_s,
            **more,
        )
        self.activity = Activity(self.clock)

    def stored(self, account_id: str = "a") -> Account:
        return next(account for account in self.registry.accounts() if account.id == account_id)

    def seat(self, account_id: str = "a") -> Account:
        return next(s.account for s in self.pool.view().seats if s.account.id == account_id)

    def change(self, account_id: str, edit: Callable[[Account], Account]) -> None:
        """As another program does it, taken up at once."""
        self.registry.update(account_id, edit)
        self.pool.take_up(self.registry.accounts())

    async def used(
        self,
        *tried: str,
        model: str = "",
        only: frozenset[str] | None = None,
        request: InFlight | None = None,
    ) -> str:
        async with self.pool.lease(frozenset(tried), model=model, only=only, request=request) as account_id:
            return account_id

    async def end(
        self, exc: Exception, *, model: str = "", tried: str = "", only: frozenset[str] | None = None
    ) -> str:
        """One answer that ends so; which account gave it."""
        used = ""
        with pytest.raises(type(exc)):
            async with self.pool.lease(frozenset(tried), model=model, only=only) as used:
                raise exc
        return used

    @asynccontextmanager
    async def held(self, count: int = 1) -> AsyncGenerator[list[str]]:
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self.pool.lease()) for _ in range(count)]

    async def refused(self, *, model: str = "", only: frozenset[str] | None = None) -> Exception:
        with pytest.raises((AllWaiting, NoAccount, NeedsHuman)) as caught:
            await self.used(model=model, only=only)
        message = str(caught.value)
        assert message == message.strip()
        assert "\n" not in message
        return caught.value


class Client:
    """An answer in a task of its own, ended by hand."""

    def __init__(self, bench: Bench, **wish: object) -> None:
        self.bench = bench
        self.wish = wish
        self.tried: frozenset[str] = wish.get("tried", frozenset())  # type: ignore[assignment]
        self.model = str(wish.get("model", ""))
        self.account_id = ""
        self.error: Exception | None = None
        self.over = anyio.Event()
        self.end_with: Exception | None = None
        self.scope = anyio.CancelScope()
        self.gone = anyio.Event()

    async def run(self) -> None:
        try:
            with self.scope:
                async with self.bench.pool.lease(**self.wish) as self.account_id:  # type: ignore[arg-type]
                    await self.over.wait()
                    if self.end_with is not None:
                        raise self.end_with
        except (AllTried, AllWaiting, NoAccount, NeedsHuman, QueueFull, TokenRejected, LimitReached) as exc:
            self.error = exc
        finally:
            self.gone.set()

    async def finish(self, error: Exception | None = None) -> None:
        self.end_with = error
        self.over.set()
        await self.gone.wait()
        await settled()


async def settled() -> None:
    """Everybody who can go on without a clock or a disk has done so."""
    for _ in range(10):
        await anyio.sleep(0)


async def start(tasks: TaskGroup, bench: Bench, **wish: object) -> Client:
    client = Client(bench, **wish)
    tasks.start_soon(client.run)
    await settled()
    return client


# ---- turn, slots, queue ----


async def test_accounts_answer_in_turn(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b", "c")
    assert [await bench.used() for _ in range(6)] == ["a", "b", "c"] * 2


async def test_who_rested_the_longest_is_next(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b", "c")
    async with bench.held():
        assert [await bench.used() for _ in range(3)] == ["b", "c", "b"]
    assert [await bench.used() for _ in range(3)] == ["a", "c", "b"]


async def test_a_full_account_is_passed_over(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b", slots=2)
    async with bench.held(4) as ids:
        assert sorted(ids) == ["a", "a", "b", "b"]
        assert "2/2" in repr(bench.pool)
    assert "0/2" in repr(bench.pool)


async def test_who_came_first_is_served_first_and_knows_its_place(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    served: list[int] = []
    requests: list[InFlight] = []

    async def wait(number: int) -> None:
        with bench.activity.begin("qwen") as request:
            requests.append(request)
            async with bench.pool.lease(request=request):
                assert request.place == 0
                served.append(number)

    async with anyio.create_task_group() as tasks, bench.held():
        for number in range(5):
            tasks.start_soon(wait, number)
            await settled()
        assert served == []
        assert [request.place for request in requests] == [1, 2, 3, 4, 5]
        assert bench.pool.view().queue == 5
    assert served == [0, 1, 2, 3, 4]


async def test_places_move_up_as_the_queue_does(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    with ExitStack() as stack:
        requests = [stack.enter_context(bench.activity.begin("q")) for _ in range(3)]
        async with anyio.create_task_group() as tasks:
            holder = await start(tasks, bench)
            first, second, third = [await start(tasks, bench, request=request) for request in requests]
            assert [request.place for request in requests] == [1, 2, 3]
            second.scope.cancel()
            await second.gone.wait()
            assert [request.place for request in requests] == [1, 0, 2]
            await holder.finish()
            assert [request.place for request in requests] == [0, 0, 1]
            await first.finish()
            await third.finish()


async def test_a_request_that_is_tried_again_keeps_its_right_of_way(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b")
    with bench.activity.begin("q") as older:
        bench.clock.ahead_s += 1
        with bench.activity.begin("q") as younger:
            async with anyio.create_task_group() as tasks:
                holders = [await start(tasks, bench) for _ in range(2)]
                late = await start(tasks, bench, request=younger)
                again = await start(tasks, bench, request=older, tried=frozenset({"a"}))
                assert (older.place, younger.place) == (1, 2)
                await holders[1].finish()
                assert (again.account_id, late.account_id) == ("b", "")
                await holders[0].finish()
                assert late.account_id == "a"
                await again.finish()
                await late.finish()


async def test_who_can_use_a_free_seat_does_not_wait_for_those_who_cannot(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b")
    async with anyio.create_task_group() as tasks:
        one, two = await start(tasks, bench), await start(tasks, bench)
        not_b = await start(tasks, bench, tried=frozenset({"b"}))
        anyone = await start(tasks, bench)
        await two.finish()
        assert (not_b.account_id, anyone.account_id) == ("", "b")
        await one.finish()
        assert not_b.account_id == "a"
        await not_b.finish()
        await anyone.finish()


async def test_a_waiter_who_leaves_costs_nobody_a_slot(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    async with bench.held():
        with anyio.move_on_after(0.05):
            await bench.used()
    assert repr(bench.pool) == "<Pool [a OK 0/1] queue=0>"
    assert await bench.used() == "a"


async def test_a_waiter_who_leaves_as_it_is_served_gives_the_slot_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    async with anyio.create_task_group() as tasks:
        holder = await start(tasks, bench)
        waiter = asyncio.create_task(bench.used())
        await settled()
        holder.over.set()
        while bench.pool.view().queue:
            await anyio.sleep(0)
        assert repr(bench.pool) == "<Pool [a OK 1/1] queue=0>"
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    assert repr(bench.pool) == "<Pool [a OK 0/1] queue=0>"


async def test_the_queue_has_an_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", queue_timeout_s=0.1)
    with bench.activity.begin("qwen") as request:
        async with bench.held():
            with pytest.raises(QueueFull):
                await bench.used(request=request)
        assert request.place == 0
    assert "queue=0" in repr(bench.pool)


async def test_a_pace_spaces_starts(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", pace_s=0.15)
    began = anyio.current_time()
    for _ in range(3):
        await bench.used()
    assert anyio.current_time() - began >= 0.29


async def test_waiters_are_served_when_a_limit_ends_by_itself(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b")
    await bench.end(LimitReached("limit", wait_s=0.3))
    async with anyio.create_task_group() as tasks:
        holder = await start(tasks, bench)
        assert holder.account_id == "b"
        assert await bench.used() == "a"
        holder.over.set()


async def test_the_bookkeeping_of_a_long_queue_is_short(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b")
    served: list[int] = []

    async def wait(number: int) -> None:
        with bench.activity.begin("q") as request:
            async with bench.pool.lease(model="m", request=request):
                served.append(number)

    async with anyio.create_task_group() as tasks, bench.held(2):
        for number in range(100):
            tasks.start_soon(wait, number)
            await anyio.lowlevel.checkpoint()
        await settled()
        took_s = []
        for _ in range(20):
            began_s = bench.clock.monotonic_s()
            bench.pool._serve_queue()
            took_s.append(bench.clock.monotonic_s() - began_s)
        assert sorted(took_s)[10] < 0.05  # a tenth of a millisecond each on a quiet machine
    assert served == list(range(100))


# ---- limits ----


async def test_a_limit_rests_the_account_until_its_time_and_is_stored(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b")
    await bench.end(LimitReached("limit", wait_s=3 * HOUR))
    assert [await bench.used() for _ in range(3)] == ["b"] * 3
    stored = bench.stored()
    assert stored.wait_until is not None
    assert abs(stored.wait_until - datetime.now(UTC) - timedelta(hours=3)) < timedelta(minutes=1)
    assert stored.why == "limit"
    assert json.loads(bench.file.read_text())[0]["resetAt"] == stored.wait_until.isoformat()
    assert stored.wait_until.utcoffset() == timedelta()


async def test_a_limit_ends(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    await bench.end(LimitReached("limit", wait_s=60))
    bench.clock.ahead_s = 59
    await bench.refused()
    bench.clock.ahead_s = 61
    assert await bench.used() == "a"


async def test_all_waiting_names_the_soonest(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b")
    await bench.end(LimitReached("limit", wait_s=7200))
    await bench.end(LimitReached("limit", wait_s=600))
    refused = await bench.refused()
    assert isinstance(refused, AllWaiting)
    assert refused.retry_after_s is not None
    assert 590 < refused.retry_after_s <= 600
    assert bench.seat("b").wait_until is not None
    assert f"{bench.seat('b').wait_until:%H:%M:%S} UTC" in str(refused)


async def test_a_wait_is_never_longer_than_two_days(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    await bench.end(LimitReached("limit", wait_s=1e12))
    refused = await bench.refused()
    assert isinstance(refused, AllWaiting)
    assert refused.retry_after_s is not None
    assert refused.retry_after_s <= 48 * HOUR


async def test_of_two_limits_at_once_the_longer_counts_in_either_order(tmp_path: Path) -> None:
    for first_s, second_s in ((4 * HOUR, 120.0), (120.0, 4 * HOUR)):
        bench = Bench(tmp_path / str(first_s), "a", slots=2)
        async with anyio.create_task_group() as tasks:
            one, two = await start(tasks, bench), await start(tasks, bench)
            await one.finish(LimitReached("limit", wait_s=first_s))
            await two.finish(LimitReached("limit", wait_s=second_s))
        for account in (bench.seat(), bench.stored()):
            assert account.wait_until is not None
            assert account.wait_until - bench.clock.now() > timedelta(hours=3)


async def test_a_limit_does_not_end_the_wait_for_a_person(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", slots=2)
    async with anyio.create_task_group() as tasks:
        one, two = await start(tasks, bench), await start(tasks, bench)
        await one.finish(NeedsHuman("check"))
        await two.finish(LimitReached("limit", wait_s=60))
    assert bench.seat() == bench.stored()
    assert (bench.stored().why, bench.stored().wait_until) == ("human", None)
    bench.clock.ahead_s = 120
    assert isinstance(await bench.refused(), NeedsHuman)


async def test_a_models_limit_rests_that_model_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b")
    await bench.end(LimitReached("quota", wait_s=HOUR, model_only=True), model="max")
    assert [await bench.used(model="max") for _ in range(2)] == ["b", "b"]
    assert {await bench.used(model="plus") for _ in range(2)} == {"a", "b"}
    assert bench.pool.usable() == ("a", "b")
    assert bench.pool.usable("max") == ("b",)
    assert not bench.pool.has_other_than(frozenset("b"), "max")
    assert bench.pool.has_other_than(frozenset("b"), "plus")
    assert dict(bench.stored().model_waits).keys() == {"max"}
    assert bench.stored().wait_until is None
    bench.clock.ahead_s = HOUR + 1
    assert {await bench.used(model="max") for _ in range(2)} == {"a", "b"}


async def test_the_soonest_reset_is_that_of_the_model_asked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b")
    await bench.end(LimitReached("quota", wait_s=2 * HOUR, model_only=True), model="max")
    await bench.end(LimitReached("quota", wait_s=3 * HOUR, model_only=True), model="max", tried="a")
    await bench.end(LimitReached("quota", wait_s=60, model_only=True), model="plus")
    refused = await bench.refused(model="max")
    assert isinstance(refused, AllWaiting)
    assert refused.retry_after_s is not None
    assert 1.9 * HOUR < refused.retry_after_s <= 2 * HOUR
    await bench.end(LimitReached("limit", wait_s=4 * HOUR))
    await bench.end(LimitReached("limit", wait_s=5 * HOUR))
    refused = await bench.refused(model="max")
    assert isinstance(refused, AllWaiting)
    assert refused.retry_after_s is not None
    assert 3.9 * HOUR < refused.retry_after_s <= 4 * HOUR


async def test_a_models_limit_of_no_model_is_the_accounts(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    await bench.end(LimitReached("quota", wait_s=HOUR, model_only=True))
    assert bench.stored().why == "limit"


async def test_limits_of_models_that_are_over_are_forgotten(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    await bench.end(LimitReached("quota", wait_s=60, model_only=True), model="max")
    bench.clock.ahead_s = 61
    await bench.end(LimitReached("quota", wait_s=60, model_only=True), model="plus")
    assert dict(bench.stored().model_waits).keys() == {"plus"}


# ---- care ----


async def test_too_many_at_once_is_a_short_wait_and_an_hour_of_care(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b", slots=3)
    await bench.end(ParallelLimited("parallel", wait_s=10))
    assert bench.stored().why == "limit"
    bench.clock.ahead_s = 11
    careful, other = bench.pool.view().seats
    assert (careful.slots, other.slots) == (1, 3)
    assert careful.careful_until is not None
    assert abs(careful.careful_until - datetime.now(UTC) - timedelta(seconds=CARE_S)) < timedelta(seconds=9)
    assert other.careful_until is None
    async with bench.held(4) as ids:
        assert sorted(ids) == ["a", "b", "b", "b"]
        with anyio.move_on_after(0.05) as moved:
            await bench.used()
        assert moved.cancelled_caught
    bench.clock.ahead_s = CARE_S + 1
    assert [seat.slots for seat in bench.pool.view().seats] == [3, 3]


async def test_care_spaces_the_starts(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", slots=2, queue_timeout_s=0.05)
    await bench.end(ParallelLimited("parallel", wait_s=10))
    bench.clock.ahead_s = 11
    assert await bench.used() == "a"
    with pytest.raises(QueueFull):
        await bench.used()
    bench.clock.ahead_s += CARE_PACE_S
    assert await bench.used() == "a"


async def test_answers_beyond_the_one_slot_go_on_and_the_hours_end_serves_waiters(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", slots=2)
    async with anyio.create_task_group() as tasks:
        one, two = await start(tasks, bench), await start(tasks, bench)
        await two.finish(ParallelLimited("parallel", wait_s=0.01))
        bench.clock.ahead_s = CARE_S - 0.2
        waiter = await start(tasks, bench)
        assert waiter.account_id == ""
        with anyio.fail_after(5):
            while not waiter.account_id:
                await anyio.sleep(0.01)
        assert bench.pool.view().seats[0].busy == 2
        await one.finish()
        await waiter.finish()


async def test_a_human_check_waits_for_a_person_and_care_follows(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", slots=2)
    await bench.end(NeedsHuman("check"))
    bench.clock.ahead_s = 49 * HOUR
    refused = await bench.refused()
    assert isinstance(refused, NeedsHuman)
    assert "accounts pass-check a" in str(refused)
    assert (bench.stored().why, bench.stored().wait_until) == ("human", None)
    bench.change("a", lambda account: replace(account, why=""))
    (seat,) = bench.pool.view().seats
    assert (seat.slots, seat.careful_until is not None) == (1, True)
    assert await bench.used() == "a"


# ---- other ends ----


async def test_a_lost_sign_in_is_invalid_for_good(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b")
    await bench.end(TokenRejected("gone"))
    assert bench.pool.ended() is None
    await bench.end(TokenRejected("gone"))
    refused = await bench.refused()
    assert isinstance(refused, NoAccount)
    assert "accounts relogin" in str(refused)
    assert [account.invalid for account in bench.registry.accounts()] == [True, True]
    ended = bench.pool.ended()
    assert ended is not None
    assert str(ended) == str(refused)


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("bug"),
        Unreachable("net"),
        Severed("cut"),
        BrowserLost("crash"),
        UpstreamError("the service answered with status 503"),
    ],
    ids=lambda exc: type(exc).__name__,
)
async def test_other_ends_teach_nothing(tmp_path: Path, exc: Exception) -> None:
    bench = Bench(tmp_path, "a")
    before = bench.file.read_bytes()
    await bench.end(exc)
    assert await bench.used() == "a"
    assert bench.file.read_bytes() == before


async def test_an_account_is_tried_once_a_request(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b")
    assert await bench.used("a") == "b"
    with pytest.raises(AllTried):
        await bench.used("a", "b")


async def test_waiters_hear_of_the_last_account_going(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    async with anyio.create_task_group() as tasks:
        holder = await start(tasks, bench)
        waiters = [await start(tasks, bench) for _ in range(3)]
        await holder.finish(TokenRejected("gone"))
    assert [type(waiter.error) for waiter in waiters] == [NoAccount] * 3


# ---- what is said when nobody can answer ----


async def test_without_accounts_there_is_nobody_to_ask(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert "accounts add" in str(await bench.refused())
    ended = bench.pool.ended()
    assert ended is not None
    assert "accounts add" in str(ended)


async def test_paused_accounts_are_no_hope_for_a_request_but_no_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b")
    for account_id in ("a", "b"):
        bench.change(account_id, lambda account: replace(account, paused=True))
    refused = await bench.refused()
    assert isinstance(refused, NoAccount)
    assert "paused" in str(refused)
    assert "accounts resume" in str(refused)
    assert bench.pool.ended() is None
    bench.change("a", lambda account: replace(account, invalid=True))
    refused = await bench.refused()
    assert "accounts resume" in str(refused)
    assert "accounts relogin" in str(refused)
    assert bench.pool.ended() is None
    bench.change("b", lambda account: replace(account, invalid=True))
    assert bench.pool.ended() is not None


async def test_persons_and_limits_together_are_a_wait(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b", "c")
    await bench.end(NeedsHuman("check"))
    await bench.end(LimitReached("limit", wait_s=600))
    await bench.end(TokenRejected("gone"))
    refused = await bench.refused()
    assert isinstance(refused, AllWaiting)
    assert "accounts pass-check a" in str(refused)
    bench.clock.ahead_s = 601
    bench.change("b", lambda account: replace(account, paused=True))
    assert isinstance(await bench.refused(), NeedsHuman)


@pytest.mark.parametrize(
    ("exc", "said"),
    [
        (LimitReached("reached a limit", wait_s=HOUR), "account a: reached a limit; it rests until 20"),
        (LimitReached("reached a quota", wait_s=HOUR, model_only=True), "quota; max rests there until 20"),
        (ParallelLimited("too many", wait_s=10), "too many; it rests until 20"),
        (NeedsHuman("asked"), "asked; it waits for you: open its window"),
        (NeedsHuman("asked"), "`accounts pass-check a`"),
        (TokenRejected("gone"), "gone; sign in again from the menu or with `accounts relogin a`"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_the_log_says_what_was_met_and_what_helps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, exc: Exception, said: str
) -> None:
    bench = Bench(tmp_path, "a")
    await bench.end(exc, model="max")
    assert said in caplog.text


# ---- accounts that come and go ----


async def test_a_removed_account_is_out_of_turn_at_once_and_its_answers_end_in_order(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b", slots=2)
    async with anyio.create_task_group() as tasks:
        leases = [await start(tasks, bench) for _ in range(4)]
        waiter = await start(tasks, bench)
        bench.registry.remove("a")
        changes = bench.pool.take_up(bench.registry.accounts())
        assert (changes.gone, changes.signed_in, changes.woken) == (("a",), (), ())
        assert not bench.pool.knows("a")
        assert bench.pool.usable() == ("b",)
        assert repr(bench.pool) == "<Pool [b OK 2/2] queue=1>"
        first, second = [lease for lease in leases if lease.account_id == "a"]
        await first.finish()
        await second.finish(LimitReached("limit", wait_s=60))
        assert waiter.account_id == ""
        for lease in leases:
            await lease.finish()
        assert waiter.account_id == "b"
        await waiter.finish()
    assert repr(bench.pool) == "<Pool [b OK 0/2] queue=0>"
    assert not bench.pool._leaving


async def test_waiters_for_the_last_account_hear_that_it_was_removed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    async with anyio.create_task_group() as tasks:
        holder = await start(tasks, bench)
        waiter = await start(tasks, bench)
        bench.pool.take_up(())
        await settled()
        assert isinstance(waiter.error, NoAccount)
        assert not holder.over.is_set()
        holder.over.set()


@pytest.mark.parametrize(
    "out", [Account("a", paused=True), Account("a", invalid=True)], ids=["paused", "invalid"]
)
async def test_an_account_that_is_enabled_again_serves_waiters_at_once(tmp_path: Path, out: Account) -> None:
    bench = Bench(tmp_path, "a", "b")
    bench.change("a", lambda account: replace(account, paused=out.paused, invalid=out.invalid))
    async with anyio.create_task_group() as tasks:
        holder = await start(tasks, bench)
        waiter = await start(tasks, bench)
        bench.registry.update("a", lambda account: replace(account, paused=False, invalid=False))
        assert bench.pool.take_up(bench.registry.accounts()).woken == ("a",)
        await settled()
        assert (holder.account_id, waiter.account_id) == ("b", "a")
        await holder.finish()
        await waiter.finish()


async def test_a_new_account_serves_waiters_at_once_and_the_files_order_counts(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    async with anyio.create_task_group() as tasks:
        holder = await start(tasks, bench)
        waiter = await start(tasks, bench)
        new = Account("new")
        changes = bench.pool.take_up((new, bench.seat()))
        assert (changes.gone, changes.signed_in, changes.woken) == ((), (), ("new",))
        assert [seat.account.id for seat in bench.pool.view().seats] == ["new", "a"]
        await settled()
        assert waiter.account_id == "new"
        await holder.finish()
        await waiter.finish()


async def test_an_account_that_comes_back_finds_its_running_answers_counted(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", slots=2)
    async with anyio.create_task_group() as tasks:
        holder = await start(tasks, bench)
        account = bench.seat()
        bench.pool.take_up(())
        assert bench.pool.take_up((account,)).woken == ("a",)
        assert bench.pool.view().seats[0].busy == 1
        other, waiter = await start(tasks, bench), await start(tasks, bench)
        assert (other.account_id, waiter.account_id) == ("a", "")
        await holder.finish()
        assert waiter.account_id == "a"
        await other.finish()
        await waiter.finish()
    assert bench.pool.view().seats[0].busy == 0


async def test_nothing_new_changes_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b")
    changes = bench.pool.take_up(bench.registry.accounts())
    assert (changes.gone, changes.signed_in, changes.woken) == ((), (), ())


async def test_what_an_old_sign_in_ends_with_says_nothing_of_the_new_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", slots=3)
    async with anyio.create_task_group() as tasks:
        leases = [await start(tasks, bench) for _ in range(3)]
        again = datetime(2026, 10, 2, tzinfo=UTC)
        bench.registry.update("a", lambda account: replace(account, signed_in_at=again))
        assert bench.pool.take_up(bench.registry.accounts()).signed_in == ("a",)
        await leases[0].finish(TokenRejected("gone"))
        await leases[1].finish(LimitReached("limit", wait_s=600))
        await leases[2].finish(NeedsHuman("check"))
    for account in (bench.seat(), bench.stored()):
        assert account.state(bench.clock.now()) == "OK"
    assert await bench.end(TokenRejected("gone")) == "a"
    assert bench.stored().invalid


async def test_a_sign_in_that_nobody_has_taken_up_yet_is_not_spoilt_on_disk(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    async with anyio.create_task_group() as tasks:
        lease = await start(tasks, bench)
        again = datetime(2026, 10, 2, tzinfo=UTC)
        bench.registry.update("a", lambda account: replace(account, signed_in_at=again))
        await lease.finish(TokenRejected("gone"))
    assert not bench.stored().invalid
    assert bench.pool.take_up(bench.registry.accounts()).woken == ("a",)
    assert await bench.used() == "a"


async def test_a_check_that_was_passed_meanwhile_is_not_asked_for_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", slots=2)
    async with anyio.create_task_group() as tasks:
        one, two = await start(tasks, bench), await start(tasks, bench)
        await one.finish(NeedsHuman("check"))
        bench.change("a", lambda account: replace(account, why=""))
        await two.finish(NeedsHuman("check"))
    assert bench.stored().why == ""
    bench.clock.ahead_s = CARE_PACE_S
    assert await bench.used() == "a"


# ---- the disk ----


async def test_a_disk_that_fails_keeps_the_limit_in_memory_until_it_can_be_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, "a", "b")
    whole = bench.file.read_bytes()
    bench.file.write_text("damaged")
    await bench.end(LimitReached("limit", wait_s=60))
    assert [await bench.used() for _ in range(2)] == ["b", "b"]
    for _ in range(3):
        await bench.pool.save()
    assert bench.file.read_text() == "damaged"
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    bench.file.write_bytes(whole)
    assert bench.pool.take_up(bench.registry.accounts()).woken == ()
    assert bench.pool.usable() == ("b",)
    await bench.pool.save()
    assert bench.stored() == bench.seat()
    assert bench.stored().why == "limit"


async def test_what_others_changed_meanwhile_stays_beside_what_was_learnt(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b")
    bench.registry.update("a", lambda account: replace(account, label="mine", paused=True))
    await bench.end(LimitReached("limit", wait_s=60))
    stored = bench.stored()
    assert (stored.label, stored.paused, stored.why) == ("mine", True, "limit")


async def test_a_wait_that_the_owner_cleared_stays_cleared(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    await bench.end(LimitReached("limit", wait_s=600))
    bench.registry.update("a", lambda account: replace(account, wait_until=None, why=""))
    read_s = bench.clock.monotonic_s()
    assert bench.pool.take_up(bench.registry.accounts(), read_s=read_s).woken == ("a",)
    await bench.pool.save()
    assert bench.stored().why == ""
    assert await bench.used() == "a"


async def test_a_reading_from_before_a_lesson_does_not_undo_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b")
    read_s, before = bench.clock.monotonic_s(), bench.registry.accounts()
    await bench.end(LimitReached("limit", wait_s=600))
    assert bench.pool.take_up(before, read_s=read_s).woken == ()
    assert bench.pool.usable() == ("b",)


async def test_lessons_are_not_kept_for_ever(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    for _ in range(3):
        bench.clock.ahead_s += 120
        await bench.end(LimitReached("limit", wait_s=60))
    assert len(bench.pool._lessons) == 1
    bench.clock.ahead_s += 120
    await bench.pool.save()
    assert len(bench.pool._lessons) == 0


# ---- guests ----


async def test_guests_answer_only_for_those_who_bring_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    for guest in ("g1", "g2"):
        bench.pool.invite(guest)
    both = frozenset({"g1", "g2"})
    assert sorted([await bench.used(only=both) for _ in range(2)]) == ["g1", "g2"]
    assert [await bench.used(only=frozenset({"g2"})) for _ in range(2)] == ["g2", "g2"]
    assert [await bench.used() for _ in range(2)] == ["a", "a"]
    assert bench.pool.usable() == ("a",)
    assert [seat.account.id for seat in bench.pool.view().seats] == ["a"]
    assert bench.pool.knows("g1")
    assert bench.pool.has_other_than(frozenset({"g1"}), only=both)
    bench.pool.dismiss("g1")
    assert not bench.pool.knows("g1")
    assert not bench.pool.has_other_than(frozenset({"g2"}), only=both)


async def test_what_guests_meet_is_never_written(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    before = bench.file.read_bytes()
    only = frozenset({"g"})
    for exc, kind in (
        (LimitReached("limit", wait_s=60), AllWaiting),
        (NeedsHuman("check"), NeedsHuman),
        (TokenRejected("gone"), NoAccount),
    ):
        bench.pool.dismiss("g")
        bench.pool.invite("g")
        await bench.end(exc, only=only)
        refused = await bench.refused(only=only)
        assert type(refused) is kind
        assert "token" in str(refused)
        await bench.pool.save()
    assert bench.file.read_bytes() == before
    assert bench.pool.ended() is not None


async def test_guests_outlive_what_the_registry_says(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    bench.pool.invite("g")
    bench.pool.take_up(())
    assert await bench.used(only=frozenset({"g"})) == "g"
    bench.pool.invite("g")
    assert await bench.used(only=frozenset({"g"})) == "g"


async def test_who_waits_for_a_guest_that_goes_is_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.pool.invite("g")
    only = frozenset({"g"})
    async with anyio.create_task_group() as tasks:
        holder = await start(tasks, bench, only=only)
        waiter = await start(tasks, bench, only=only)
        bench.pool.dismiss("g")
        await settled()
        assert isinstance(waiter.error, NoAccount)
        await holder.finish()


# ---- anything at all ----


class Model:
    """Does random things to a pool, and knows what must be true after each."""

    def __init__(self, bench: Bench, tasks: TaskGroup, dice: random.Random) -> None:
        self.bench = bench
        self.tasks = tasks
        self.dice = dice
        self.clients: list[Client] = []
        self.served: list[Client] = []

    @property
    def running(self) -> list[Client]:
        return [client for client in self.clients if client.account_id]

    @property
    def waiting(self) -> list[Client]:
        return [client for client in self.clients if not client.account_id]

    async def step(self) -> None:
        kinds = [self.ask, self.finish, self.leave, self.turn, self.owner]
        await self.dice.choices(kinds, [8, 6, 1, 2, 1])[0]()
        await settled()
        self.clients = [client for client in self.clients if not client.gone.is_set()]
        self.look()

    async def ask(self) -> None:
        tried = frozenset(self.dice.sample("abcd", self.dice.choice([0, 0, 0, 1, 2])))
        client = Client(self.bench, tried=tried, model=self.dice.choice(["", "max", "plus"]))
        self.clients.append(client)
        self.tasks.start_soon(client.run)

    async def finish(self) -> None:
        if not self.running:
            return
        wait_s = self.dice.choice([1.0, 5.0, HOUR])
        ends = [
            None,
            LimitReached("limit", wait_s=wait_s),
            LimitReached("quota", wait_s=wait_s, model_only=True),
            ParallelLimited("parallel", wait_s=1),
            NeedsHuman("check"),
            TokenRejected("gone"),
        ]
        await self.dice.choice(self.running).finish(self.dice.choices(ends, [20, 3, 3, 1, 1, 1])[0])

    async def leave(self) -> None:
        if self.clients:
            client = self.dice.choice(self.clients)
            client.scope.cancel()
            await client.gone.wait()

    async def turn(self) -> None:
        """Time passes; the alarm, which goes by the real clock, would ring."""
        self.bench.clock.ahead_s += self.dice.choice([0.5, 4.0, 60.0, HOUR])
        self.bench.pool._serve_queue()

    async def owner(self) -> None:
        """Somebody adds, removes, pauses and heals accounts."""
        known = {seat.account.id: seat.account for seat in self.bench.pool.view().seats}
        now = self.bench.clock.now()
        self.bench.pool.take_up(
            Account(account_id, paused=self.dice.random() < 0.1, signed_in_at=now)
            if self.dice.random() < 0.7 or account_id not in known
            else known[account_id]
            for account_id in self.dice.sample("abcd", self.dice.choice([0, 2, 3, 4, 4]))
        )

    def look(self) -> None:
        view = self.bench.pool.view()
        now, now_s = self.bench.clock.now(), self.bench.clock.monotonic_s()
        assert view.queue == len(self.waiting)
        for seat in view.seats:
            assert seat.busy == sum(client.account_id == seat.account.id for client in self.running)
            assert 0 <= seat.busy <= 2
        starts = {name: seat.next_start_s for name, seat in self.bench.pool._seats.items()}
        for client in self.waiting:
            fit = [
                seat
                for seat in view.seats
                if seat.account.id not in client.tried and seat.account.ready(now, client.model)
            ]
            assert fit, "somebody waits for nobody"
            free = [s for s in fit if s.busy < s.slots and starts[s.account.id] <= now_s]
            assert not free, "somebody waits while a slot is free"
        for client in self.running:
            if client not in self.served:
                self.served.append(client)
                older = self.clients[: self.clients.index(client)]
                assert all(each.account_id or each.wish != client.wish for each in older), "overtaken"


@pytest.mark.parametrize("seed", range(10))
async def test_whatever_happens_slots_are_counted_and_nobody_is_forgotten(tmp_path: Path, seed: int) -> None:
    bench = Bench(tmp_path, "a", "b", "c", slots=2, queue_timeout_s=60)
    async with anyio.create_task_group() as tasks:
        model = Model(bench, tasks, random.Random(seed))
        for _ in range(150):
            await model.step()
        assert len(model.served) > 20
        for client in model.clients:
            client.scope.cancel()
    view = bench.pool.view()
    assert (sum(seat.busy for seat in view.seats), view.queue, bench.pool._leaving) == (0, 0, {})


# ---- the account that knows a conversation ----


async def test_a_preferred_account_is_waited_for_while_others_are_free(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b")
    async with bench.pool.lease(prefer="b") as first, anyio.create_task_group() as tasks:
        assert first == "b"
        got: list[str] = []

        async def ask() -> None:
            async with bench.pool.lease(prefer="b") as account_id:
                got.append(account_id)

        tasks.start_soon(ask)
        await anyio.sleep(0.02)
        assert got == []
        assert await bench.used() == "a"
        bench.change("b", lambda account: replace(account, paused=True))
        await anyio.sleep(0.02)
        assert got == ["a"]


async def test_a_preferred_account_is_not_waited_for_without_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a", "b", preferred_s=0.05)
    async with bench.pool.lease(prefer="b"):
        assert bench.pool.why_away("b") == "account_busy"
        async with bench.pool.lease(prefer="b") as account_id:
            assert account_id == "a"
        async with bench.pool.lease(frozenset({"b"}), prefer="b") as account_id:
            assert account_id == "a"
    assert bench.pool.why_away("b") == ""


async def test_why_an_account_is_away(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a")
    assert bench.pool.why_away("nobody") == "account_deleted"
    for change, why in (
        ({"wait_until": bench.clock.now() + timedelta(hours=1), "why": "limit"}, "account_waiting"),
        ({"paused": True}, "account_paused"),
        ({"invalid": True}, "account_invalid"),
    ):
        bench.change("a", lambda account, change=change: replace(account, **change))  # type: ignore[misc]
        assert bench.pool.why_away("a") == why
