"""What is done with a finished video: put on the shelf, and looked at once for its cover, length and size."""

from __future__ import annotations

import logging
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Final

from anyio.to_thread import run_sync

from qwenproxy import film
from qwenproxy.addresses import file_address
from qwenproxy.caller import Caller
from qwenproxy.errors import QwenProxyError
from qwenproxy.file_store import MESSAGE, FileStore
from qwenproxy.incoming import off_the_loop
from qwenproxy.shelf import Shelf
from qwenproxy.video_tasks import VideoTask

log = logging.getLogger(__name__)

MOST_BYTES: Final = 100_000_000
"""Larger videos are not looked at; the service's have 3 to 14 MB (protocol §10.2)."""
COVER: Final = "cover.jpg"


class Studio:
    def __init__(self, shelf: Shelf, store: FileStore) -> None:
        self._shelf = shelf
        self._store = store

    async def finished(self, task: VideoTask, url: str) -> VideoTask:
        """The task, done, with its video on the shelf under an id of ours.

        What cannot be read of the video is left open; its cover is then the first picture that was given.

        Raises:
            StoreError: the shelf cannot be written.
        """
        caller = Caller(task.owner)
        media_id = await self._shelf.note(url, task.account_id, caller)
        task = replace(task, state="done", media_id=media_id, cover=task.frame)
        try:
            seen, cover = await self._seen(media_id, caller)
        except QwenProxyError as exc:
            log.info("a video was made and could not be looked at: %s", exc)
            return task
        if seen is None:
            return task
        return replace(
            task, cover=cover or task.cover, seconds=seen.seconds, width=seen.width, height=seen.height
        )

    async def _seen(self, media_id: str, caller: Caller) -> tuple[film.Film | None, str]:
        """What the video says of itself, and the address of its first picture, which is kept."""
        async with off_the_loop(self._store.incoming(MOST_BYTES)) as incoming:
            async with self._shelf.open(media_id) as opened, aclosing(opened.pieces) as pieces:
                async for piece in pieces:
                    await run_sync(incoming.write, piece)
            seen = await run_sync(film.seen, incoming.path)
        if seen is None or not seen.cover:
            return seen, ""
        return seen, await run_sync(partial(self._kept, seen.cover, caller))

    def _kept(self, cover: bytes, caller: Caller) -> str:
        with self._store.incoming() as incoming:
            incoming.write(cover)
            file = self._store.keep(incoming, name=COVER, purpose=MESSAGE, caller=caller)
        return file_address(file.id)
