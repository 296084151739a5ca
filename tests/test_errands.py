"""Who is asked next, and when nobody is."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import TypeAlias

import pytest

from qwenproxy.errands import Errands
from qwenproxy.errors import (
    AllWaiting,
    BadRequest,
    GenerationFailed,
    LimitReached,
    NeedsHuman,
    QwenProxyError,
    Severed,
    TokenRejected,
    UpstreamError,
    UpstreamTimeout,
)
from tests.making import CountedChats, making

pytestmark = pytest.mark.anyio

Step: TypeAlias = QwenProxyError | str
LIMIT = LimitReached("no more videos", wait_s=3600, model_only=True)


class Work:
    """Each account asked plays the next script."""

    def __init__(self, *scripts: list[Step]) -> None:
        self.scripts = list(scripts)
        self.accounts: list[str] = []
        self.open = 0

    async def __call__(self, account_id: str) -> AsyncGenerator[str]:
        self.accounts.append(account_id)
        self.open += 1
        try:
            for step in self.scripts.pop(0):
                if isinstance(step, QwenProxyError):
                    raise step
                yield step
        finally:
            self.open -= 1


async def given(errands: Errands, work: Work, kind: str = "t2v") -> list[str]:
    async with aclosing(errands.run(kind, work)) as pieces:
        return [piece async for piece in pieces]


async def test_work_is_done_by_one_account_which_is_counted(tmp_path: Path) -> None:
    async with making(tmp_path, CountedChats()) as made:
        work = Work(["one", "two"])
        assert await given(made.errands, work) == ["one", "two"]
        assert made.activity.take_served() == {work.accounts[0]: 1}
        assert made.activity.in_flight() == ()
        assert all(seat.busy == 0 for seat in made.pool.view().seats)


@pytest.mark.parametrize("end", [LIMIT, TokenRejected("gone"), NeedsHuman("check"), Severed("cut")])
async def test_the_next_account_is_asked(tmp_path: Path, end: QwenProxyError) -> None:
    async with making(tmp_path, CountedChats()) as made:
        work = Work([end], ["done"])
        assert await given(made.errands, work) == ["done"]
        assert len(set(work.accounts)) == 2
        assert [failure.account_id for failure in made.activity.failures()] == work.accounts[:1]


async def test_a_limit_of_one_kind_rests_nothing_else(tmp_path: Path) -> None:
    async with making(tmp_path, CountedChats(), accounts=1) as made:
        with pytest.raises(AllWaiting):
            await given(made.errands, Work([LIMIT]))
        with pytest.raises(AllWaiting):
            await given(made.errands, Work())
        assert await given(made.errands, Work(["spoken"]), "tts") == ["spoken"]
        assert made.pool.usable() == ("a0",)


async def test_every_account_may_have_used_up_its_day(tmp_path: Path) -> None:
    async with making(tmp_path, CountedChats(), accounts=6) as made:
        refused: list[list[Step]] = [[LIMIT] for _ in range(5)]
        work = Work(*refused, ["done"])
        assert await given(made.errands, work) == ["done"]
        assert len(set(work.accounts)) == 6


async def test_an_accident_is_tried_on_one_other_account(tmp_path: Path) -> None:
    async with making(tmp_path, CountedChats()) as made:
        work = Work([Severed("cut")], [UpstreamError("internal")], ["never"])
        with pytest.raises(UpstreamError, match="internal"):
            await given(made.errands, work)
        assert len(work.accounts) == 2


async def test_an_accident_of_the_only_account_is_told(tmp_path: Path) -> None:
    async with making(tmp_path, CountedChats(), accounts=1) as made:
        with pytest.raises(Severed):
            await given(made.errands, Work([Severed("cut")]))


@pytest.mark.parametrize("end", [BadRequest("no"), GenerationFailed("no"), UpstreamTimeout("late")])
async def test_what_another_account_would_say_too_is_told_at_once(
    tmp_path: Path, end: QwenProxyError
) -> None:
    async with making(tmp_path, CountedChats()) as made:
        work = Work([end])
        with pytest.raises(type(end)):
            await given(made.errands, work)
        assert len(work.accounts) == 1


async def test_nothing_is_tried_again_once_something_was_given(tmp_path: Path) -> None:
    async with making(tmp_path, CountedChats()) as made:
        work = Work(["one", LIMIT])
        seen: list[str] = []

        async def take() -> None:
            async with aclosing(made.errands.run("t2v", work)) as pieces:
                async for piece in pieces:
                    seen.append(piece)  # noqa: PERF401 -- what came before the failure counts

        with pytest.raises(LimitReached):
            await take()
        assert (seen, len(work.accounts)) == (["one"], 1)


async def test_who_leaves_frees_the_account(tmp_path: Path) -> None:
    async with making(tmp_path, CountedChats()) as made:
        work = Work(["one", "two"])
        async with aclosing(made.errands.run("t2v", work)) as pieces:
            assert await anext(pieces) == "one"
            assert work.open == 1
        assert work.open == 0
        assert all(seat.busy == 0 for seat in made.pool.view().seats)
        assert made.activity.take_served() == {}
