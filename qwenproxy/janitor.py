"""Takes the chats that we made out of the web accounts again, in the background."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from qwenproxy.chat import UpstreamChat
from qwenproxy.errors import AccountGone, ChatGone, QwenProxyError, ShuttingDown
from qwenproxy.ledger import Event, Ledger

log = logging.getLogger(__name__)

TITLE = "OpenAI API Chat"
"""What the older proxies called these chats; the name of those that are kept."""

PAUSES_S = (0.0, 1.0, 2.0, 4.0, 8.0, 30.0)
"""Before each try. A chat stays busy 2–4 s after its answer, more than 6 s at worst (protocol §13)."""

LEFT_OVER_PACE_S = 2.0
"""Between the deletions of chats that an earlier run left behind."""

FAREWELL_S = 5.0
"""How long the last deletions may hold up the end of the proxy."""


class Chats(Protocol):
    async def delete(self, account_id: str, chat_id: str) -> None: ...

    async def rename(self, account_id: str, chat_id: str, title: str) -> None: ...


@dataclass(slots=True)
class _Birth:
    over: anyio.Event = field(default_factory=anyio.Event)
    wanted: bool = True
    chat: UpstreamChat | None = None
    error: QwenProxyError | None = None


class Janitor:
    def __init__(self, ledger: Ledger, chats: Chats, *, keep: bool) -> None:
        self._ledger = ledger
        self._chats = chats
        self._keep = keep
        self._tasks: TaskGroup | None = None
        self._answering: set[UpstreamChat] = set()
        """Made, and neither done nor held: an answer runs in it."""
        self._open = 0
        self._idle = anyio.Event()

    @asynccontextmanager
    async def at_work(self) -> AsyncGenerator[None]:
        """While entered, chats are tidied; leaving gives the last ones a moment."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                yield
            finally:
                with anyio.move_on_after(FAREWELL_S, shield=True):
                    while self._open:
                        self._idle = anyio.Event()
                        await self._idle.wait()
                self._tasks = None
                tasks.cancel_scope.cancel()

    async def fresh(self, account_id: str, make: Callable[[], Awaitable[str]]) -> UpstreamChat:
        """A new upstream chat, written into the ledger.

        Who asked may leave while it is being made: the chat is then known all the same, and goes again.
        """
        if self._tasks is None:
            raise ShuttingDown("the proxy is stopping")
        birth = _Birth()
        self._open += 1
        self._tasks.start_soon(self._make, account_id, make, birth)
        try:
            await birth.over.wait()
        except BaseException:
            birth.wanted = False
            if birth.chat is not None:
                self.done(birth.chat)
            raise
        if birth.chat is None:
            raise birth.error or ShuttingDown("the proxy is stopping")
        return birth.chat

    def done(self, chat: UpstreamChat) -> None:
        """Its answer is over: it is deleted, or gets its name. If not now, later."""
        self._end(chat, keep=self._keep)

    def hold(self, chat: UpstreamChat) -> None:
        """A conversation lives in it from now on, until it is done or discarded."""
        self._answering.discard(chat)
        if self._ledger.event(chat) == "made":
            self._write(chat, "held")

    def holds(self, chat: UpstreamChat) -> bool:
        """Whether it is ours and, as far as we know, there."""
        return self._ledger.event(chat) in ("held", "kept")

    def discard(self, chat: UpstreamChat) -> None:
        """Nobody wants it any more: it is deleted. If not now, later."""
        self._end(chat, keep=False)

    def _end(self, chat: UpstreamChat, *, keep: bool) -> None:
        self._answering.discard(chat)
        event = self._ledger.event(chat)
        if event is None:  # not of our making
            return
        if event != "made":
            self._write(chat, "made")
        if self._tasks is not None:
            self._open += 1
            self._tasks.start_soon(partial(self._finish, chat, keep=keep))

    def held(self) -> tuple[UpstreamChat, ...]:
        return self._ledger.held()

    async def clear_left_over(self, account_id: str) -> None:
        """Deletes what an earlier run of the proxy left in this account, and what could not be before."""
        left_over = (chat for chat in self._ledger.left_over() if chat not in self._answering)
        for chat in [chat for chat in left_over if chat.account_id == account_id]:
            self.done(chat)
            await anyio.sleep(LEFT_OVER_PACE_S)

    async def _make(self, account_id: str, make: Callable[[], Awaitable[str]], birth: _Birth) -> None:
        try:
            chat = UpstreamChat(await make(), account_id)
            self._write(chat, "made")
            if birth.wanted:
                self._answering.add(chat)
                birth.chat = chat
            else:
                self.done(chat)
        except QwenProxyError as exc:
            birth.error = exc
        except Exception:  # a bug must fail its own request, not every task beside it
            log.exception("making a chat failed")
            birth.error = QwenProxyError("making a chat failed inside the proxy")
        finally:
            birth.over.set()
            self._close_one()

    def _write(self, chat: UpstreamChat, event: Event) -> None:
        """A disk that fails does not fail an answer."""
        try:
            self._ledger.record(chat, event)
        except OSError:
            log.exception("the ledger of chats cannot be written")

    async def _finish(self, chat: UpstreamChat, *, keep: bool) -> None:
        try:
            for pause_s in PAUSES_S:
                await anyio.sleep(pause_s)
                if await self._try(chat, keep=keep):
                    return
            log.warning("a chat of account %s stays until the next start", chat.account_id)
        finally:
            self._close_one()

    def _close_one(self) -> None:
        self._open -= 1
        if not self._open:
            self._idle.set()

    async def _try(self, chat: UpstreamChat, *, keep: bool) -> bool:
        try:
            if keep:
                await self._chats.rename(chat.account_id, chat.id, TITLE)
                self._write(chat, "kept")
            else:
                await self._chats.delete(chat.account_id, chat.id)
                self._write(chat, "gone")
        except (ChatGone, AccountGone):
            self._write(chat, "gone")
        except QwenProxyError as exc:
            log.debug("chat of account %s not tidied yet: %s", chat.account_id, exc)
            return False
        return True
