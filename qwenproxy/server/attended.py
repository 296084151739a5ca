"""Work for one client: it ends with its client, or with the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio
from starlette.types import Receive

from qwenproxy.errors import ShuttingDown
from qwenproxy.server.body import ClientGone

Result = TypeVar("Result")


async def attended(
    work: Callable[[], Awaitable[Result]],
    receive: Receive,
    stopped: anyio.Event,
    *beside: Callable[[], Coroutine[Any, Any, None]],
) -> Result:
    """What comes of the work; what is done beside it ends with it. The request's body must have been read.

    Raises:
        ClientGone: the client left before.
        ShuttingDown: `stopped` was set before: the time of running answers is over.
        …: whatever the work raises.
    """
    results: list[Result] = []
    wrong: list[Exception] = []

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        wrong.append(ClientGone())
        tasks.cancel_scope.cancel()

    async def stop() -> None:
        await stopped.wait()
        wrong.append(ShuttingDown("the proxy is stopping"))
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for each in (leave, stop, *beside):
            tasks.start_soon(each)
        try:
            results.append(await work())
        except Exception as exc:  # noqa: BLE001 - raised below, outside the group, which would wrap it
            wrong.insert(0, exc)
        tasks.cancel_scope.cancel()
    if results:
        return results[0]
    raise wrong[0]
