"""What people do with kept chats apart from talking in them: list, read, rename, delete, fork, edit, move.

What changes the words of a chat, or who answers in it, waits for the answer that is being written there.
Deleting does not: that answer is then kept nowhere. With a chat goes its twin in the web account, in the
background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final
from uuid import uuid4

from anyio.to_thread import run_sync

from qwenproxy.caller import Caller
from qwenproxy.chat import UpstreamChat
from qwenproxy.clock import Clock
from qwenproxy.errors import BadRequest, ChatDamaged, UnknownChat
from qwenproxy.exports import NAME_CHARACTERS, imported, on_one_line
from qwenproxy.history import ChatRow, Found, History
from qwenproxy.intake import Attachments
from qwenproxy.transcript import UNNAMED, Content, Entry, Json, Transcript
from qwenproxy.turn_order import TurnOrder

IMPORTED_NAME: Final = "Imported chat"


@dataclass(frozen=True, slots=True)
class Criteria:
    """Which chats to delete: those that meet every limit given, then the oldest above `max_chats`."""

    older_than_ms: float | None = None
    """Made longer ago."""
    user_message_count_less_than: int | None = None
    message_count_less_than: int | None = None
    max_chats: int | None = None

    def chosen(self, rows: Sequence[ChatRow], now_ms: int) -> list[ChatRow]:
        """Of `rows`, which are newest first, the ones to delete."""
        limits = (self.older_than_ms, self.user_message_count_less_than, self.message_count_less_than)
        met = [row for row in rows if self._meets(row, now_ms)] if limits != (None, None, None) else []
        if self.max_chats is None:
            return met
        gone = {row.id for row in met}
        return met + [row for row in rows if row.id not in gone][self.max_chats :]

    def _meets(self, row: ChatRow, now_ms: int) -> bool:
        users, all_ = self.user_message_count_less_than, self.message_count_less_than
        return (
            (self.older_than_ms is None or now_ms - row.created > self.older_than_ms)
            and (users is None or row.user_message_count < users)
            and (all_ is None or row.message_count < all_)
        )


class Library:
    def __init__(
        self,
        history: History,
        turns: TurnOrder,
        discard: Callable[[UpstreamChat], None],
        knows_account: Callable[[str], bool],
        clock: Clock,
        attachments: Attachments,
    ) -> None:
        """`discard` has an upstream chat deleted, some time, if this program made it."""
        self._history = history
        self._turns = turns
        self._discard = discard
        self._knows_account = knows_account
        self._clock = clock
        self._attachments = attachments

    # All of these raise UnknownChat, also for another key's chat, ChatDamaged and StoreError.

    async def create(self, caller: Caller, name: str = "") -> str:
        """A new chat's id."""
        chat = Transcript(str(uuid4()), _sound(name) or UNNAMED, self._now_ms(), owner=caller.mark)
        await run_sync(self._history.add, chat)
        return chat.id

    async def rows(self, caller: Caller) -> tuple[ChatRow, ...]:
        """The caller's chats, newest first."""
        return await run_sync(self._history.rows, caller)

    async def read(self, caller: Caller, chat_id: str) -> Transcript:
        return await run_sync(self._history.read, chat_id, caller)

    async def rename(self, caller: Caller, chat_id: str, name: str) -> str:
        """The name it has now. Raises: BadRequest."""
        sound = _sound(name)
        if not sound:
            raise BadRequest("name must not be empty", param="name")
        await run_sync(self._history.change, chat_id, caller, lambda chat: replace(chat, name=sound))
        return sound

    async def delete(self, caller: Caller, chat_id: str) -> None:
        removed = await run_sync(self._history.remove, chat_id, caller)
        if removed.twin is not None:
            self._discard(removed.twin)

    async def cleanup(self, caller: Caller, criteria: Criteria, *, dry_run: bool) -> tuple[str, ...]:
        """The ids of the deleted chats; with `dry_run` of those that would be."""
        chosen = [row.id for row in criteria.chosen(await self.rows(caller), self._now_ms())]
        if dry_run:
            return tuple(chosen)
        deleted: list[str] = []
        for chat_id in chosen:
            try:
                await self.delete(caller, chat_id)
            except (UnknownChat, ChatDamaged):  # somebody else was at it meanwhile
                continue
            deleted.append(chat_id)
        return tuple(deleted)

    async def fork(self, caller: Caller, chat_id: str, message_id: str) -> str:
        """A new chat's id, that ends with the message."""
        chat = await self.read(caller, chat_id)
        forked = chat.forked(message_id, new_id=str(uuid4()), created=self._now_ms())
        await run_sync(self._history.add, replace(forked, owner=caller.mark))
        return forked.id

    async def edit(self, caller: Caller, chat_id: str, message_id: str, content: Content) -> None:
        """What the content holds itself becomes a file. Raises: BadRequest, TooLarge, ChatBusy."""
        kept = await self._attachments.without_data(content, caller, "content")
        async with self._turns.alone(chat_id):
            await run_sync(self._history.change, chat_id, caller, lambda chat: chat.edited(message_id, kept))

    async def move(self, caller: Caller, chat_id: str, account_id: str) -> None:
        """Raises: BadRequest, ChatBusy."""
        async with self._turns.alone(chat_id):
            # Only who has the chat learns which accounts there are.
            before = await self.read(caller, chat_id)
            if not self._knows_account(account_id):
                raise BadRequest("there is no such account", param="account")
            after = await run_sync(self._history.change, chat_id, caller, lambda chat: chat.moved(account_id))
        if before.twin is not None and before.twin != after.twin:
            self._discard(before.twin)

    async def search(self, caller: Caller, query: str, *, limit: int, offset: int = 0) -> tuple[Found, ...]:
        """Messages in which every word occurs, newest first."""

        def found() -> tuple[Found, ...]:
            return self._history.search(caller, query, limit=limit, offset=offset)

        return await run_sync(found)

    async def add_imported(self, caller: Caller, value: Json) -> str:
        """A new chat's id; what its messages hold themselves becomes files.

        Raises: BadRequest, UnsupportedParameter, UnknownFile, TooLarge.
        """

        def read() -> Transcript:
            return imported(
                value,
                new_id=str(uuid4()),
                name=IMPORTED_NAME,
                created=self._now_ms(),
                owner=caller.mark,
            )

        chat = await run_sync(read)
        entries: dict[str, Entry] = {}
        for entry in chat.entries.values():
            content = await self._attachments.without_data(entry.content, caller, "messages")
            entries[entry.id] = replace(entry, content=content)
        await run_sync(self._history.add, replace(chat, entries=MappingProxyType(entries)))
        return chat.id

    def _now_ms(self) -> int:
        return int(self._clock.now().timestamp() * 1000)


def _sound(name: str) -> str:
    """The name on one line. Raises: BadRequest."""
    sound = on_one_line(name)
    if len(sound) > NAME_CHARACTERS:
        raise BadRequest(f"name must be at most {NAME_CHARACTERS} characters", param="name")
    return sound
