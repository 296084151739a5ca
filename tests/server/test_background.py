"""Answers that go on without their clients."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from qwenproxy.chat import Delta, Finished, Started, Text
from qwenproxy.errors import Cancelled, QueueFull, QwenProxyError, Severed, ShuttingDown
from qwenproxy.server.admission import Admission
from qwenproxy.server.background import STOPPED, Background, Run

pytestmark = pytest.mark.anyio

START, END = Started("c", "r", "m"), Finished("stop")


@dataclass
class Kept:
    """What became of answers."""

    ends: list[tuple[list[Delta], QwenProxyError | None]] = field(default_factory=list)
    closed: int = 0
    takes: anyio.Event | None = None

    async def keep(self, deltas: Sequence[Delta], error: QwenProxyError | None) -> None:
        if self.takes is not None:
            await self.takes.wait()
        self.ends.append((list(deltas), error))

    async def answer(self, *steps: Delta | anyio.Event | Exception) -> AsyncGenerator[Delta]:
        try:
            for step in steps:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, anyio.Event):
                    await step.wait()
                else:
                    yield step
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0)
            self.closed += 1


@asynccontextmanager
async def at_work(most: int = 10) -> AsyncIterator[tuple[Background, Admission]]:
    admission = Admission(most)
    background = Background(admission)
    async with background.at_work():
        yield background, admission


async def heard(run: Run) -> tuple[list[Delta], QwenProxyError | None]:
    deltas: list[Delta] = []
    try:
        async for delta in run.follow():
            deltas.append(delta)  # noqa: PERF401 - what came before an error counts
    except QwenProxyError as exc:
        return deltas, exc
    return deltas, None


async def settled(background: Background) -> None:
    with anyio.fail_after(5):
        while background.find("a") is not None:
            await anyio.sleep(0)


async def test_all_who_follow_hear_all_of_it() -> None:
    kept, on = Kept(), anyio.Event()
    async with at_work() as (background, admission):
        run = background.start("a", kept.answer(START, Text("a"), on, Text("b"), END), kept.keep)
        assert background.find("a") is run
        assert admission.inside == 1
        found: list[list[Delta]] = []

        async def follow() -> None:
            found.append((await heard(run))[0])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            assert run.started
            tasks.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            on.set()
        await settled(background)
        assert await heard(run) == (found[0], None)
    whole = [START, Text("a"), Text("b"), END]
    assert found == [whole, whole]
    assert kept.ends == [(whole, None)]
    assert (admission.inside, kept.closed) == (0, 1)


async def test_nobody_hears_the_end_before_it_is_kept() -> None:
    kept = Kept(takes=anyio.Event())
    async with at_work() as (background, _):
        run = background.start("a", kept.answer(START, END), kept.keep)
        follower = run.follow()
        assert await anext(follower) == START
        with anyio.move_on_after(0.05) as waiting:
            await anext(follower)
        assert waiting.cancelled_caught
        assert kept.takes is not None
        kept.takes.set()
        await settled(background)


async def test_a_follower_may_leave() -> None:
    kept, on = Kept(), anyio.Event()
    async with at_work() as (background, _):
        run = background.start("a", kept.answer(START, on, END), kept.keep)
        follower = run.follow()
        assert await anext(follower) == START
        await follower.aclose()
        on.set()
        assert await heard(run) == ([START, END], None)


@pytest.mark.parametrize("error", [Severed("it broke"), Cancelled("no more"), ShuttingDown("stop")])
async def test_an_answer_that_is_stopped_or_breaks(error: QwenProxyError) -> None:
    kept, on, broken = Kept(), anyio.Event(), isinstance(error, Severed)
    async with at_work() as (background, _):
        run = background.start("a", kept.answer(START, error if broken else on), kept.keep)
        await anyio.wait_all_tasks_blocked()
        if not broken:
            await run.stop(error)
        await settled(background)
        assert await heard(run) == ([START], error)
    assert kept.ends == [([START], error)]
    assert kept.closed == 1


async def test_stopping_twice_and_too_late_changes_nothing() -> None:
    kept = Kept()
    async with at_work() as (background, _):
        run = background.start("a", kept.answer(START, END), kept.keep)
        await settled(background)
        await run.stop(Cancelled("no more"))
        assert await heard(run) == ([START, END], None)
    assert len(kept.ends) == 1


async def test_a_stop_while_the_end_is_kept_comes_too_late() -> None:
    kept = Kept(takes=anyio.Event())
    async with at_work() as (background, _):
        run = background.start("a", kept.answer(START, END), kept.keep)
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run.stop, Cancelled("no more"))
            await anyio.wait_all_tasks_blocked()
            assert kept.takes is not None
            kept.takes.set()
        assert await heard(run) == ([START, END], None)
    assert [error for _, error in kept.ends] == [None]


async def test_an_answer_without_an_end_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept()
    async with at_work() as (background, _):
        background.start("a", kept.answer(START), kept.keep)
        await settled(background)
        background.start("a", kept.answer(ValueError("bug")), kept.keep)
        await settled(background)
    assert [type(error) for _, error in kept.ends] == [QwenProxyError, QwenProxyError]
    assert "an answer in the background broke" in caplog.text


async def test_the_end_of_the_proxy_ends_what_runs() -> None:
    kept = Kept()
    async with at_work() as (background, _):
        run = background.start("a", kept.answer(START, anyio.Event()), kept.keep)
        await anyio.wait_all_tasks_blocked()
    ((deltas, error),) = kept.ends
    assert (deltas, str(error)) == ([START], STOPPED)
    assert str((await heard(run))[1]) == STOPPED
    with pytest.raises(ShuttingDown):
        background.start("b", kept.answer(START, END), kept.keep)


async def test_the_end_of_the_drain_ends_what_runs() -> None:
    kept = Kept()
    async with at_work() as (background, admission):
        background.start("a", kept.answer(START, anyio.Event()), kept.keep)
        await anyio.wait_all_tasks_blocked()
        admission.draining = True
        admission.stopped.set()
        await settled(background)
        assert admission.inside == 0
        with pytest.raises(ShuttingDown):
            background.start("b", kept.answer(START, END), kept.keep)
    assert [str(error) for _, error in kept.ends] == [STOPPED]


async def test_no_more_than_may_be_inside() -> None:
    kept = Kept()
    async with at_work(most=1) as (background, _):
        background.start("a", kept.answer(START, anyio.Event()), kept.keep)
        with pytest.raises(QueueFull):
            background.start("b", kept.answer(START, END), kept.keep)
        assert background.find("b") is None
