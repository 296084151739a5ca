"""Private SQLite files that may be lost: what they hold can be made again, or is worth a day."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from qwenproxy import store
from qwenproxy.clock import Clock
from qwenproxy.errors import StoreError

log = logging.getLogger(__name__)

WAIT_S = 5.0
"""For another program that looks into the file."""
_NOT_THROUGH_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class Database:
    """One such file, opened when it is first needed, and anew when it was deleted meanwhile.

    It blocks, and may be used from any thread. Raises: sqlite3.Error.
    """

    def __init__(self, path: Path, tables: str, clock: Clock) -> None:
        self._path = path
        self._tables = tables
        self._clock = clock
        self._lock = threading.Lock()
        self._open: sqlite3.Connection | None = None

    @contextmanager
    def alone(self) -> Iterator[sqlite3.Connection]:
        """Nobody else uses it meanwhile; what is done in the block is kept, or none of it."""
        with self._lock:
            if self._open is None or not self._path.exists():
                self._let_go()
                self._open = opened(self._path, self._tables, self._clock.now())
            with self._open:
                yield self._open

    @contextmanager
    def used(self) -> Iterator[sqlite3.Connection]:
        """The same for who knows nothing of SQLite. Raises: StoreError."""
        try:
            with self.alone() as db:
                yield db
        except sqlite3.Error as exc:
            raise StoreError(f"{self._path.name} cannot be used: {exc}") from exc

    def close(self) -> None:
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def opened(path: Path, tables: str, now: datetime) -> sqlite3.Connection:
    """The database with these tables, readable by its owner alone; a damaged one is put aside for a new one.

    It may be used from any thread, by one at a time.

    Raises:
        sqlite3.Error: it cannot be opened or written.
    """
    try:
        return _connected(path, tables)
    except sqlite3.OperationalError:  # a full disk, a lock: nothing is known to be damaged
        raise
    except sqlite3.DatabaseError as exc:
        log.warning("%s is damaged (%s); a new one is begun", path.name, exc)
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            with suppress(StoreError):
                store.put_aside(path.with_name(name), now)
            path.with_name(name).unlink(missing_ok=True)
        return _connected(path, tables)


def _connected(path: Path, tables: str) -> sqlite3.Connection:
    try:
        store.make_folder(path.parent)
        # SQLite gives the files beside it the same rights.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | _NOT_THROUGH_LINKS, store.FILE_MODE))
        store.make_private(path)
    except OSError as exc:
        raise sqlite3.OperationalError(f"{path.name}: {exc.strerror}") from exc
    connection = sqlite3.connect(path, timeout=WAIT_S, check_same_thread=False)
    try:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        connection.execute("pragma secure_delete = on")  # what was deleted is not to be read from the file
        connection.executescript(tables)
    except BaseException:
        with closing(connection):
            raise
    return connection
