"""Files of ours in the accounts: uploaded once per account and content, when a message there needs them.

What is attached is named by an address of ours (`/v1/files/{id}/content`). Any other is taken for one of the
service's own, of a file that we do not know, and said as it is; it means something to one account only.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakValueDictionary

import anyio
from anyio.to_thread import run_sync

from qwenproxy.accounts.pool import OUT_OF_TURN, Pool
from qwenproxy.addresses import file_address, own_file
from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.chat import Attachment, FileKind, Message
from qwenproxy.clock import Clock
from qwenproxy.copies import Copies
from qwenproxy.errors import (
    ContextTooLong,
    QwenProxyError,
    StoreError,
    UnknownFile,
)
from qwenproxy.file_rules import MIB, MOST_MIB
from qwenproxy.file_store import MESSAGE, FileStore, StoredFile
from qwenproxy.qwen.files import HostedFile, OnProgress, unseen

log = logging.getLogger(__name__)

T = TypeVar("T")

PROMPTS: Final = Caller("prompt", scopes=frozenset())
"""Whose the documents are that stand for prompts: nobody's who asks."""
ACCOUNTS: Final = 4
"""So many are tried for what any account can do."""


class Uploads(Protocol):
    async def ticket(self, account_id: str, name: str, size: int, kind: str) -> dict[str, Any]: ...

    async def upload(
        self,
        account_id: str,
        path: Path,
        name: str,
        media_type: str,
        kind: FileKind,
        size: int,
        on_progress: OnProgress = ...,
    ) -> HostedFile: ...

    async def fresh(self, account_id: str, hosted: HostedFile) -> HostedFile: ...


class _Turn:
    """For one copy at a time of the same content into the same account."""

    def __init__(self) -> None:
        self.lock = anyio.Lock()


class Hosting:
    def __init__(self, store: FileStore, copies: Copies, uploads: Uploads, pool: Pool, clock: Clock) -> None:
        self._store = store
        self._copies = copies
        self._uploads = uploads
        self._pool = pool
        self._clock = clock
        self._turns: WeakValueDictionary[tuple[str, str], _Turn] = WeakValueDictionary()
        self._prompts: Counter[str] = Counter()
        """How many requests need each of the documents that stand for prompts."""
        self._writing = anyio.Lock()

    # ---- what messages name ----

    async def files(self, messages: Iterable[Message]) -> Mapping[str, StoredFile]:
        """The files of ours that are attached to the messages, by address; without those that are gone."""
        urls = {each.url for message in messages for each in message.attachments if own_file(each.url)}
        return await run_sync(self._found, sorted(urls)) if urls else {}

    async def hosted(
        self,
        account_id: str,
        attachments: Sequence[HostedFile | Attachment],
        on_progress: OnProgress = unseen,
    ) -> tuple[HostedFile | Attachment, ...]:
        """What is attached, as this account has it; what it does not have yet is uploaded, all at once.

        Raises:
            UnknownFile: a file is gone.
            UploadFailed, UnsupportedFile, UpstreamTimeout: it could not be brought there.
        """
        found = list(attachments)
        failures: list[QwenProxyError] = []

        async def host(place: int, attachment: Attachment, file_id: str) -> None:
            try:
                file = await run_sync(self._store.find, file_id)
                found[place] = await self._copy(account_id, file, attachment.name, on_progress)
            except QwenProxyError as exc:
                failures.append(exc)
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for place, attachment in enumerate(attachments):
                if isinstance(attachment, Attachment) and (file_id := own_file(attachment.url)):
                    tasks.start_soon(host, place, attachment, file_id)
        if failures:
            raise failures[0]
        return tuple(found)

    async def holder(self, attachments: Sequence[HostedFile | Attachment]) -> str:
        """An account that has all of them and may answer now; "" when there is none."""
        ids = [own_file(each.url) for each in attachments]
        if not any(ids):
            return ""
        holders = await run_sync(self._holders, [file_id for file_id in ids if file_id])
        free = (each for each in self._pool.usable() if each in holders)
        return next((each for each in free if not self._pool.why_away(each)), "")

    async def forget(self, account_id: str, attachments: Sequence[HostedFile | Attachment]) -> bool:
        """That this account has what is attached, for it says that it does not; whether we thought so."""
        ids = [file_id for each in attachments if (file_id := own_file(each.url))]
        for file in (await run_sync(self._found, [file_address(each) for each in ids])).values():
            await run_sync(self._copies.forget, file.sha256, account_id)
        return bool(ids)

    async def forget_account(self, account_id: str) -> None:
        await run_sync(self._copies.forget_account, account_id)

    @asynccontextmanager
    async def document(self, text: str) -> AsyncGenerator[Attachment]:
        """A text too large for a message as a document, which is there until this is left (protocol §13).

        Raises:
            ContextTooLong: it is too large for a document, too.
            StoreError: it cannot be stored.
        """
        async with self._writing:
            file = await run_sync(self._write, text)
            self._prompts[file.id] += 1
        try:
            yield Attachment("file", file_address(file.id), file.name)
        finally:
            with anyio.CancelScope(shield=True):
                await self._let_go(file)

    async def clear_left_over(self) -> None:
        """Removes the documents of prompts that a killed proxy left."""
        async with self._writing:
            try:
                for file in await run_sync(self._store.rows, PROMPTS):
                    if not self._prompts[file.id]:
                        await run_sync(self._drop, file)
            except StoreError as exc:
                log.warning("what an earlier run left cannot be removed: %s", exc)

    # ---- what any account can do ----

    async def place(self, file: StoredFile) -> HostedFile:
        """The file as one account has it: the one that has it already, or whose turn it is."""
        prefer = await self.holder((Attachment("file", file_address(file.id)),))
        return await self._anywhere(lambda account_id: self._copy(account_id, file), prefer)

    async def ticket(self, name: str, size: int, kind: str) -> dict[str, Any]:
        """The service's leave to upload a file of `size` bytes, as it says it: it holds credentials."""
        return await self._anywhere(lambda account_id: self._uploads.ticket(account_id, name, size, kind))

    def file_of_path(self, path: str, caller: Caller = ANYBODY) -> StoredFile | None:
        """A file that the caller sees, whose copy in some account has this path (protocol §9.1). Blocks."""
        sha256 = self._copies.by_path(path)
        files = self._store.rows(caller) if sha256 else ()
        return next((file for file in files if file.sha256 == sha256), None)

    async def _anywhere(self, work: Callable[[str], Awaitable[T]], prefer: str = "") -> T:
        for left in reversed(range(ACCOUNTS)):
            try:
                async with self._pool.lease(prefer=prefer) as account_id:
                    return await work(account_id)
            except OUT_OF_TURN:
                if not left:
                    raise
        raise AssertionError("the last try ends in a value or an error")

    # ---- one copy ----

    async def _copy(
        self, account_id: str, file: StoredFile, name: str = "", on_progress: OnProgress = unseen
    ) -> HostedFile:
        turn = self._turns.setdefault((account_id, file.sha256), _Turn())
        async with turn.lock:
            known = await run_sync(self._copies.get, file.sha256, account_id)
            if known is not None:
                hosted = await self._uploads.fresh(account_id, known)
            else:
                path = await run_sync(self._store.path, file)
                hosted = await self._uploads.upload(
                    account_id, path, file.name, file.type, file.kind, file.size, on_progress
                )
                log.info("a file of %d bytes was uploaded to account %s", file.size, account_id)
            if hosted != known:
                await run_sync(self._copies.keep, file.sha256, account_id, hosted)
        await run_sync(self._store.touch, file)
        return replace(hosted, name=name or file.name)

    async def _let_go(self, file: StoredFile) -> None:
        # Two requests may say the same, and the second begin while the first ends.
        async with self._writing:
            self._prompts[file.id] -= 1
            if not self._prompts[file.id]:
                del self._prompts[file.id]
                await run_sync(self._drop, file)

    # ---- in threads ----

    def _found(self, urls: Iterable[str]) -> dict[str, StoredFile]:
        found = {}
        for url in urls:
            with suppress(UnknownFile):
                file = self._store.find(own_file(url))
                self._store.path(file)
                found[url] = file
        return found

    def _holders(self, ids: Iterable[str]) -> frozenset[str]:
        holders: frozenset[str] | None = None
        for file in self._found(map(file_address, ids)).values():
            mine = self._copies.holders(file.sha256)
            holders = mine if holders is None else holders & mine
        return holders or frozenset()

    def _write(self, text: str) -> StoredFile:
        content = text.encode("utf-8", "replace")
        if len(content) > MOST_MIB["text"] * MIB:
            raise ContextTooLong(
                f"the conversation has {len(content)} bytes; {MOST_MIB['text']} MiB is the most",
                param="messages",
            )
        with self._store.incoming() as incoming:
            incoming.write(content)
            name = f"Pasted_Text_{int(self._clock.now().timestamp() * 1000)}.txt"
            return self._store.keep(incoming, name=name, purpose=MESSAGE, caller=PROMPTS)

    def _drop(self, file: StoredFile) -> None:
        """What it said is told anew at the next request, in other words; nobody needs it again."""
        self._copies.forget_content(file.sha256)
        try:
            self._store.remove(file.id, PROMPTS)
        except QwenProxyError as exc:
            log.warning("a document that stood for a prompt could not be removed: %s", exc)
