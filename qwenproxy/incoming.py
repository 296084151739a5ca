"""A file while it comes in: to disk in pieces, counted and hashed on the way, never whole in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from qwenproxy import store
from qwenproxy.errors import StoreError, TooLarge
from qwenproxy.media_types import HEAD_BYTES


class Incoming:
    """A file that comes in pieces. Used by one at a time, from any thread."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        """Raises: StoreError."""
        self.path = path
        self.size = 0
        self.head = b""
        self._most_bytes = most_bytes
        self._digest = hashlib.sha256()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            self._file = os.fdopen(os.open(path, flags, store.FILE_MODE), "wb", buffering=0)
        except OSError as exc:
            raise StoreError(f"a file cannot be taken in: {exc.strerror}") from exc

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes | memoryview) -> None:
        """Raises:
        TooLarge: with it the file is larger than it may be.
        StoreError: it cannot be stored, for instance on a full disk.
        """
        if self.size + len(data) > self._most_bytes:
            raise TooLarge(f"the file is larger than {self._most_bytes} bytes")
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as exc:
            raise StoreError(f"a file cannot be taken in: {exc.strerror}") from exc
        self._digest.update(data)
        self.size += len(data)
        if len(self.head) < HEAD_BYTES:
            self.head += data[: HEAD_BYTES - len(self.head)]

    def settle(self) -> None:
        """Makes it last and ends it. Raises: StoreError."""
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as exc:
            raise StoreError(f"a file cannot be taken in: {exc.strerror}") from exc

    def drop(self) -> None:
        """Ends it; there is no file any more, unless it was kept."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


@asynccontextmanager
async def off_the_loop(door: AbstractContextManager[Incoming]) -> AsyncGenerator[Incoming]:
    """What the door gives, made and removed in threads, where that holds up no answer."""
    incoming = await run_sync(door.__enter__)
    try:
        yield incoming
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(door.__exit__, None, None, None)
