"""What the client is shown of the pictures in an answer: addresses of ours, and the picture itself if wanted.

Stands before the conversations, so that what they keep has the service's own addresses.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from qwenproxy.addresses import media_address
from qwenproxy.caller import Caller
from qwenproxy.chat import ChatRequest, Delta, Finished, Media, Started
from qwenproxy.errors import GenerationFailed, QwenProxyError, StoreError

log = logging.getLogger(__name__)


class Conversations(Protocol):
    def stream(
        self, request: ChatRequest, caller: Caller, *, only: frozenset[str] | None = None
    ) -> AsyncGenerator[Delta]:
        """The deltas that answer `request`."""

    async def forget(self, answer_id: str, caller: Caller) -> None: ...


class Shelf(Protocol):
    def takes(self, url: str) -> bool: ...

    async def note(self, url: str, account_id: str, caller: Caller) -> str: ...

    async def inline(self, url: str, account_id: str) -> str: ...


class Showing:
    def __init__(self, conversations: Conversations, shelf: Shelf) -> None:
        self._conversations = conversations
        self._shelf = shelf

    async def stream(
        self, request: ChatRequest, caller: Caller, *, only: frozenset[str] | None = None
    ) -> AsyncGenerator[Delta]:
        """The deltas that answer `request`, as the client sees them.

        Where the picture itself is wanted, only the last one comes, with its content: the ones before are
        drafts (protocol §10.1).

        Raises:
            GenerationFailed: the picture itself is wanted, and cannot be had.
            …: whatever the conversations raise.
        """
        account_id, last = "", None
        inline = request.drawing is not None and request.drawing.inline
        async with aclosing(self._conversations.stream(request, caller, only=only)) as deltas:
            async for delta in deltas:
                if isinstance(delta, Started):
                    account_id = delta.account_id
                if isinstance(delta, Media) and inline:
                    last = delta
                    continue
                if isinstance(delta, Finished) and last is not None:
                    content = await self._content(last, account_id)
                    yield replace(await self._shown(last, account_id, request, caller), content=content)
                if isinstance(delta, Media):
                    yield await self._shown(delta, account_id, request, caller)
                else:
                    yield delta

    async def forget(self, answer_id: str, caller: Caller) -> None:
        """Raises: StoreError."""
        await self._conversations.forget(answer_id, caller)

    async def _shown(self, media: Media, account_id: str, request: ChatRequest, caller: Caller) -> Media:
        if not request.base_url or not self._shelf.takes(media.url):
            return media
        try:
            media_id = await self._shelf.note(media.url, account_id, caller)
        except StoreError as exc:  # the answer is worth no less for it
            log.warning("%s; the client is given the service's own address", exc)
            return media
        return replace(media, url=request.base_url + media_address(media_id))

    async def _content(self, media: Media, account_id: str) -> str:
        try:
            return await self._shelf.inline(media.url, account_id)
        except QwenProxyError as exc:
            raise GenerationFailed(f"the picture was drawn, but cannot be fetched: {exc}") from exc
