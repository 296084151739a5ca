"""Private JSON on disk: one writer at a time, no torn file, no unreadable file taken for an empty one.

All of it blocks (locks, fsync: 10 ms and more): callers on the event loop go through a thread.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from qwenproxy.errors import SessionDamaged, SessionLocked

LOCK_WAIT_S = 5.0
"""A writer holds the lock for one replace, some 10 ms; who waits longer waits for a stopped process."""


def read(path: Path) -> Any:
    """What the JSON file holds, or None when there is no such file.

    Raises:
        SessionDamaged: it is there and cannot be read as JSON.
    """
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as exc:
        raise SessionDamaged(
            f"{path.name} in the session folder cannot be read; it was left as it is"
        ) from exc


def write(path: Path, value: Any) -> None:
    """Replaces the file as a whole, readable by its owner alone. What was there stays whole if this fails."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1))


def write_text(path: Path, text: str) -> None:
    """The same for plain text."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def change(path: Path, edit: Callable[[Any], Any]) -> Any:
    """Reads, edits and replaces the file under its lock; gives back what was written.

    `edit` gets the file's value, None when there is no file. The lock file stays: a deleted one excludes
    nobody.

    Raises:
        SessionDamaged: the file is there and cannot be read; it is not touched.
        SessionLocked: another process has held the lock for `LOCK_WAIT_S`.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(f"{path.name}.lock"), timeout=LOCK_WAIT_S):
            value = edit(read(path))
            write(path, value)
            return value
    except Timeout:
        raise SessionLocked(f"{path.name} is locked by another program") from None
