from __future__ import annotations

from typing import Any

import anyio
import pytest

from qwenproxy.errors import GenerationFailed, ShuttingDown
from qwenproxy.server.attended import attended
from qwenproxy.server.body import ClientGone

pytestmark = pytest.mark.anyio


class Client:
    """Leaves when it is told to."""

    def __init__(self) -> None:
        self.leaves = anyio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.leaves.wait()
        return {"type": "http.disconnect"}


async def test_what_comes_of_the_work_comes_back_and_what_is_beside_it_ends() -> None:
    ended = anyio.Event()

    async def beside() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async def work() -> int:
        await anyio.sleep(0.01)
        return 3

    assert await attended(work, Client().receive, anyio.Event(), beside) == 3
    assert ended.is_set()


async def test_what_the_work_raises_is_raised() -> None:
    async def work() -> int:
        raise GenerationFailed("nothing came of it")

    with pytest.raises(GenerationFailed, match="nothing came of it"):
        await attended(work, Client().receive, anyio.Event())


async def test_it_ends_with_its_client() -> None:
    client = Client()

    async def work() -> int:
        client.leaves.set()
        await anyio.sleep_forever()
        raise AssertionError

    with pytest.raises(ClientGone):
        await attended(work, client.receive, anyio.Event())


async def test_it_ends_with_the_server() -> None:
    stopped = anyio.Event()

    async def work() -> int:
        stopped.set()
        await anyio.sleep_forever()
        raise AssertionError

    with pytest.raises(ShuttingDown):
        await attended(work, Client().receive, stopped)


async def test_work_that_is_done_counts_although_its_client_leaves() -> None:
    client = Client()

    async def work() -> int:
        client.leaves.set()
        return 3

    assert await attended(work, client.receive, anyio.Event()) == 3


async def test_who_cancels_it_from_outside_cancels_it() -> None:
    with anyio.move_on_after(0.01) as scope:
        await attended(anyio.sleep_forever, Client().receive, anyio.Event())
    assert scope.cancelled_caught
