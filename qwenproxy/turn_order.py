"""Requests on one chat, one after the other in the order they came."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from qwenproxy.errors import ChatBusy


@dataclass(slots=True)
class _Line:
    place: anyio.Semaphore = field(default_factory=lambda: anyio.Semaphore(1))
    """Not a lock: an abandoned generator is closed by another task than its own."""
    inside: int = 0
    """Who holds it and who waits."""


class TurnOrder:
    def __init__(self, wait_s: float) -> None:
        """`wait_s`: the longest wait for those that came before."""
        self._wait_s = wait_s
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def alone(self, chat_id: str) -> AsyncGenerator[None]:
        """The chat is nobody else's until the end of the block.

        Raises:
            ChatBusy: an earlier request on the chat goes on for too long.
        """
        line = self._lines.setdefault(chat_id, _Line())
        line.inside += 1
        try:
            try:
                with anyio.fail_after(self._wait_s):
                    await line.place.acquire()
            except TimeoutError:
                raise ChatBusy("an earlier request on this chat is still being answered") from None
            try:
                yield
            finally:
                line.place.release()
        finally:
            line.inside -= 1
            if not line.inside:
                del self._lines[chat_id]
