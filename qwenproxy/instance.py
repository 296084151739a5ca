"""One proxy at a time per session folder, and who that is.

`proxy.lock` is held by the system as long as the process lives; `proxy.json` only tells about the holder, and
counts for nothing while nobody holds the lock.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qwenproxy import store
from qwenproxy.errors import SessionDamaged, SessionLocked, StoreError

LOOK_S = 0.5
"""Somebody who looks whether the lock is held, holds it for a moment."""


@dataclass(frozen=True, slots=True)
class Holder:
    pid: int
    """0 while it has not told yet."""
    url: str
    """Where it answers, or "" while it starts."""
    key: str = field(default="", repr=False)
    """What opens it to this computer's own commands, where it wants API keys."""

    def __str__(self) -> str:
        where = f" at {self.url}" if self.url else ""
        return f"process {self.pid}{where}" if self.pid else "a process that just starts"


class Held:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._since = datetime.now(UTC).isoformat()

    def tell(self, base_url: str, key: str = "") -> None:
        """Notes for others where this proxy answers, and to which key of this run.

        Raises:
            StoreError: the note cannot be written.
        """
        note = {"pid": os.getpid(), "url": base_url, "since": self._since}
        store.write(self._path, note | ({"key": key} if key else {}))


@contextmanager
def hold(session_dir: Path) -> Iterator[Held]:
    """Serves this session folder alone until the end of the block.

    Raises:
        SessionLocked: another proxy serves it; the message says which.
        StoreError: the session folder cannot be written.
    """
    note = session_dir / "proxy.json"
    with ExitStack() as lock:
        try:
            lock.enter_context(store.locked(session_dir / "proxy.lock", wait_s=LOOK_S))
        except SessionLocked:
            told = _told(session_dir)
            raise SessionLocked(f"another proxy serves this session folder: {told}") from None
        held = Held(note)
        held.tell("")
        try:
            yield held
        finally:
            with suppress(StoreError):
                store.remove(note)


def holder(session_dir: Path) -> Holder | None:
    """Who serves this session folder now, or None. Does not wait."""
    if not session_dir.is_dir():
        return None
    try:
        with store.locked(session_dir / "proxy.lock", wait_s=0):
            return None
    except SessionLocked:
        return _told(session_dir)
    except StoreError:
        return None


def _told(session_dir: Path) -> Holder:
    note: Any = None
    with suppress(SessionDamaged):
        note = store.read(session_dir / "proxy.json")
    if not isinstance(note, dict):
        return Holder(0, "")
    pid, url, key = note.get("pid"), note.get("url"), note.get("key")
    return Holder(
        pid if isinstance(pid, int) else 0,
        url if isinstance(url, str) else "",
        key if isinstance(key, str) and key.isascii() and key.isprintable() else "",
    )
