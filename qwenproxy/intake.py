"""Takes in what messages carry: afterwards each attachment is a file of ours, whatever the client wrote.

| what a message holds | what becomes of it |
|---|---|
| the address of a file or a picture of ours, under any host | that file, if it exists for the caller |
| an address of the service, of a file that we uploaded | that file, though its signature is past |
| another address of the service | left as it is: only the service itself can read it |
| a data URL | its content is kept |
| any other web address | fetched by `remote_file.py`, and kept |

What is kept came inside a message, and goes when it was not used for `KEEP_FILES_DAYS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import anyio
from anyio.to_thread import run_sync

from qwenproxy.addresses import ServiceHosts, file_address, own_file, own_media
from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.chat import Attachment, ChatRequest, Message
from qwenproxy.data_url import decoded, is_data_url
from qwenproxy.dialects.parts import address_of
from qwenproxy.errors import (
    BadRequest,
    CallerError,
    NotFetched,
    QwenProxyError,
    StoreError,
    UnknownFile,
)
from qwenproxy.file_rules import check_number
from qwenproxy.file_store import MESSAGE, FileStore, StoredFile
from qwenproxy.media_types import extension_of, media_type
from qwenproxy.transcript import KINDS, Content, Json

AT_ONCE: Final = 8
"""Attachments of one request that are taken in side by side."""
MOST_FETCHED: Final = 50
"""Web addresses that are fetched for one request; of more, the last."""


class Settings(Protocol):
    @property
    def max_files(self) -> int: ...


class Remote(Protocol):
    async def fetch(
        self, url: str, store: FileStore, caller: Caller, *, param: str | None = None
    ) -> StoredFile: ...


class Media(Protocol):
    """What the service made, by our address of it."""

    async def into_store(self, media_id: str, caller: Caller) -> StoredFile: ...


class Uploaded(Protocol):
    def file_of_path(self, path: str, caller: Caller = ANYBODY) -> StoredFile | None:
        """What we uploaded there and the caller sees; None: nothing. Blocks."""


@dataclass(frozen=True, slots=True)
class Recalled:
    messages: tuple[Message, ...]
    addresses: Mapping[str, str]
    """What was taken in just now: the address in the messages so far, and ours."""


class Attachments:
    def __init__(
        self,
        store: FileStore,
        remote: Remote,
        media: Media,
        uploaded: Uploaded,
        hosts: ServiceHosts,
        settings: Settings,
    ) -> None:
        self._store = store
        self._remote = remote
        self._media = media
        self._uploaded = uploaded
        self._hosts = hosts
        self._most = settings.max_files

    async def taken(self, request: ChatRequest, caller: Caller) -> ChatRequest:
        """The request, with files of ours in its messages.

        Raises:
            UnsupportedFile: too many in one message.
            NotFetched: a web address that gives no file.
            UnknownFile: no such file of ours, or another key's.
            BadRequest: a data URL that cannot be read.
            TooLarge: a file above `MAX_FILE_BYTES`.
            StoreError: the session folder.
        """
        for message in request.messages:
            check_number(len(message.attachments), self._most, _place(message))
        found = await self._found(_every(request.messages), caller)
        for each in found.values():
            if isinstance(each, QwenProxyError):
                raise each
        return replace(request, messages=tuple(_with(message, found) for message in request.messages))

    async def recalled(self, messages: Sequence[Message], caller: Caller, *, fetch: bool = True) -> Recalled:
        """Messages of a kept conversation, ready to be told again. What is gone by now ends no conversation:
        the message says in its text that it is. With `fetch` off only what is here is had.

        Raises:
            StoreError: the session folder.
        """
        found = await self._found(_every(messages), caller, fetch=fetch)
        for each in found.values():
            if isinstance(each, StoreError):
                raise each
        moved = {url: now.url for url, now in found.items() if isinstance(now, Attachment)}
        return Recalled(
            tuple(_with(message, found) for message in messages),
            {url: now for url, now in moved.items() if url != now},
        )

    async def file(self, url: str, caller: Caller, param: str) -> Attachment:
        """What the field `param` of a request names. Raises: as `taken`, and UnsupportedParameter."""
        return await self._one(Attachment("image", address_of(url, param), place=param), caller)

    async def without_data(self, content: Content, caller: Caller, place: str) -> Content:
        """A message's content to keep: what it holds itself becomes a file, addresses stay. Raises: as
        `taken`.
        """
        if isinstance(content, str):
            return content
        kept: list[Json] = []
        for index, part in enumerate(content):
            kind = KINDS.get(str(part.get("type")))
            url = part.get(kind) if kind is not None else None
            if kind is not None and isinstance(url, str) and is_data_url(url):
                attachment = Attachment(kind, url, place=f"{place}[{index}]")
                found = await self._one(attachment, caller)
                kept.append({**part, kind: found.url})
            else:
                kept.append(part)
        return kept

    async def _found(
        self, attachments: Iterable[Attachment], caller: Caller, *, fetch: bool = True
    ) -> dict[str, Attachment | QwenProxyError]:
        """By address: the attachment it becomes, or why it becomes none. Each address once."""
        wanted = {attachment.url: attachment for attachment in attachments}
        remote = [url for url in wanted if self._is_remote(url)]
        left = frozenset(remote[:-MOST_FETCHED] if fetch else remote)
        found: dict[str, Attachment | QwenProxyError] = {}
        places = anyio.CapacityLimiter(AT_ONCE)

        async def take(attachment: Attachment) -> None:
            try:
                if attachment.url in left:
                    most = f"at most {MOST_FETCHED} addresses are fetched for one request"
                    raise NotFetched(most, param=attachment.place or None)
                async with places:
                    found[attachment.url] = await self._one(attachment, caller)
            except QwenProxyError as exc:
                found[attachment.url] = exc

        async with anyio.create_task_group() as group:
            for attachment in wanted.values():
                group.start_soon(take, attachment)
        return {url: found[url] for url in wanted}

    def _is_remote(self, url: str) -> bool:
        ours = own_file(url) or own_media(url) or is_data_url(url)
        return not ours and not self._hosts.own(url)

    async def _one(self, attachment: Attachment, caller: Caller) -> Attachment:
        """Raises: what `taken` does."""
        try:
            file = await self._file(attachment, caller)
        except CallerError as exc:
            exc.param = attachment.place or exc.param
            raise
        if file is None:
            return attachment
        return replace(attachment, url=file_address(file.id), name=attachment.name or file.name)

    async def _file(self, attachment: Attachment, caller: Caller) -> StoredFile | None:
        """None: the service has it, and nobody else."""
        url = attachment.url
        if own_file(url):
            return await run_sync(self._own, own_file(url), caller)
        if own_media(url):
            return await self._media.into_store(own_media(url), caller)
        if self._hosts.own(url):
            return await run_sync(self._already_uploaded, url, caller)
        if is_data_url(url):
            return await run_sync(self._keep, attachment, caller)
        return await self._remote.fetch(url, self._store, caller, param=attachment.place or None)

    # ---- blocking ----

    def _own(self, file_id: str, caller: Caller) -> StoredFile:
        file = self._store.get(file_id, caller)
        self._store.path(file)
        self._store.touch(file)
        return file

    def _already_uploaded(self, url: str, caller: Caller) -> StoredFile | None:
        path = self._hosts.file_path(url)
        if not path:
            return None
        file = self._uploaded.file_of_path(path, caller)
        # The account is shared by all keys: what another key put there is not read through its address.
        if file is None and self._uploaded.file_of_path(path) is not None:
            raise UnknownFile("there is no such file")
        return file

    def _keep(self, attachment: Attachment, caller: Caller) -> StoredFile:
        try:
            data = decoded(attachment.url)
        except ValueError as exc:
            raise BadRequest(f"a data URL cannot be read: {exc}") from None
        with self._store.incoming() as incoming:
            incoming.write(data)
            ending = extension_of(media_type(incoming.head))
            name = attachment.name or attachment.kind + ending
            return self._store.keep(incoming, name=name, purpose=MESSAGE, caller=caller)


def _place(message: Message) -> str | None:
    """Where the request has what holds the message's files."""
    return next((each.place.rpartition("[")[0] for each in message.attachments), "") or None


def _every(messages: Iterable[Message]) -> Iterable[Attachment]:
    return (attachment for message in messages for attachment in message.attachments)


def _with(message: Message, found: Mapping[str, Attachment | QwenProxyError]) -> Message:
    """The message with what was found, and a line for each that was not."""
    if not message.attachments:
        return message
    there: list[Attachment] = []
    lines = [message.text] if message.text else []
    for attachment in message.attachments:
        now = found[attachment.url]
        if isinstance(now, Attachment):
            told = replace(attachment, url=now.url, name=attachment.name or now.name)
            there.append(told)
        else:
            what = "picture" if attachment.kind == "image" else "file"
            lines.append(f"[A {what} that stood here is no longer to be had.]")
    return replace(message, text="\n".join(lines), attachments=tuple(there))
