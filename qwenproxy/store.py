"""Private files that survive their writer: replaced as a whole, under a lock, and never through a link.

Unreadable is not empty: what cannot be read is an error and stays, until somebody puts it aside knowingly.
All of it blocks (locks, fsync: 10 ms and more): callers on the event loop go through a thread.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from qwenproxy.errors import SessionDamaged, SessionLocked, StoreError

log = logging.getLogger(__name__)

LOCK_WAIT_S = 5.0
"""A writer holds the lock for a few replaces, some 50 ms; who waits longer waits for a stopped process."""
LOCK_LOOK_S = 0.01

REPLACE_PATIENCE_S = 3.0
"""On Windows a virus scanner or an indexer may hold a file for moments; nothing may replace it then."""

LARGEST_BYTES = 64 * 1024 * 1024
"""No file of ours comes near; a larger one is somebody's mistake: it is not taken into memory, nor made."""

FOLDER_MODE = 0o700
FILE_MODE = 0o600

ABANDONED_S = 3600.0
"""A temporary file lives for milliseconds; one of this age has no writer any more."""
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.tmp")
_NOT_THROUGH_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read(path: Path) -> Any:
    """What the JSON file holds, or None when there is no such file.

    Raises:
        SessionDamaged: it is there and cannot be read as JSON.
    """
    try:
        raw = read_bytes(path)
        return None if raw is None else parse(raw)
    except ValueError as exc:
        raise SessionDamaged(
            f"{path.name} in the session folder is damaged ({_reason(exc)}); it was left as it is"
        ) from exc


def read_bytes(path: Path, *, whole: bool = True) -> bytes | None:
    """The file, or None when there is no such file; with `whole=False` no more than `LARGEST_BYTES` of it.

    Raises:
        SessionDamaged: it may not be read, or is no plain file: nothing is known about what it holds.
        ValueError: it is larger than `LARGEST_BYTES`.
    """
    try:
        _refuse_odd(path)
        with os.fdopen(os.open(path, os.O_RDONLY | _NOT_THROUGH_LINKS), "rb") as file:
            raw = file.read(LARGEST_BYTES + whole)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise SessionDamaged(
            f"{path.name} in the session folder cannot be read ({_reason(exc)}); it was left as it is"
        ) from exc
    if whole and len(raw) > LARGEST_BYTES:
        raise ValueError(f"it is larger than {LARGEST_BYTES >> 20} MiB")
    return raw


def parse(raw: bytes) -> Any:
    """JSON in any UTF, with a byte order mark or without.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(raw, parse_constant=lambda _: None)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def write(path: Path, value: Any) -> None:
    """Replaces the file as a whole, readable by its owner alone. What was there stays whole if this fails.

    Raises:
        StoreError: it could not be written, or not for certain.
        SessionDamaged: there is something at its place that is no plain file.
    """
    text = json.dumps(value, ensure_ascii=False, indent=1)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair in somebody's label: fit for JSON, not for UTF-8
        text = json.dumps(value, indent=1)
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """The same for plain text."""
    if len(text) > LARGEST_BYTES // 4:  # a character takes at most four bytes
        raise StoreError(f"{path.name} cannot be written: it is too large")
    try:
        make_folder(path.parent)
        _refuse_odd(path)
        temporary = _write_temporary(path, text.encode())
        try:
            _replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as exc:
        raise StoreError(f"{path.name} cannot be written: {_reason(exc)}") from exc


def remove(path: Path) -> None:
    """Deletes the file for certain, if there is one.

    Raises:
        StoreError: it could not be deleted.
    """
    try:
        path.unlink()
        _sync_folder(path.parent)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise StoreError(f"{path.name} cannot be deleted: {_reason(exc)}") from exc


def remove_folder(path: Path) -> None:
    """Deletes the folder with all that is in it, if there is one; of a link only the link.

    Raises:
        StoreError: not all of it could be deleted.
    """
    try:
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
        if path.parent.is_dir():
            _sync_folder(path.parent)
    except OSError as exc:
        raise StoreError(f"the folder {path.name} cannot be deleted: {_reason(exc)}") from exc


@contextmanager
def locked(path: Path, *, wait_s: float | None = None) -> Iterator[None]:
    """Alone among all programs that take the lock at `path`, at most `LOCK_WAIT_S` or `wait_s` from now.

    The lock is the system's: it ends with its holder. Its file stays: a deleted one excludes nobody.

    Raises:
        SessionLocked: somebody else has held it for that long.
        StoreError: there can be no lock at that place.
    """
    lock = FileLock(
        path,
        timeout=LOCK_WAIT_S if wait_s is None else wait_s,
        mode=FILE_MODE,
        poll_interval=LOCK_LOOK_S,
        thread_local=False,
    )
    try:
        make_folder(path.parent)
        lock.acquire()
    except Timeout:
        raise SessionLocked(f"{path.stem} in the session folder is locked by another program") from None
    except OSError as exc:
        raise StoreError(f"{path.name} in the session folder cannot be locked: {_reason(exc)}") from exc
    try:
        yield
    finally:
        try:
            lock.release()
        except OSError:
            log.warning("%s could not be closed", path.name)


def make_folder(path: Path) -> None:
    """With those it stands in, where they are missing. Raises: OSError."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)


def make_private(path: Path) -> bool:
    """Closes a file or folder to all but its owner; whether it was open. Links are left alone.

    Raises:
        OSError: it cannot be closed, as it belongs to somebody else.
    """
    found = path.lstat()
    mode = FOLDER_MODE if stat.S_ISDIR(found.st_mode) else FILE_MODE
    shared = found.st_mode & stat.S_ISVTX  # /tmp and its like are no session folders
    if os.name == "nt" or path.is_symlink() or shared or not stat.S_IMODE(found.st_mode) & 0o077:
        return False
    path.chmod(mode)
    return True


def put_aside(path: Path, now: datetime) -> str:
    """Keeps what is at `path` under a second name beside it, once, and gives that name.

    The file stays at its place, to be replaced, where the file system can name a file twice; elsewhere it
    is moved.

    Raises:
        StoreError: neither could be done.
    """
    stamp = f"{path.name}.corrupt-{now:%Y%m%dT%H%M%SZ}"
    try:
        for old in path.parent.glob(f"{path.name}.corrupt-*"):
            if old.samefile(path):  # an earlier start came this far
                return old.name
        aside = path.with_name(stamp)
        for number in range(2, 1000):
            if not os.path.lexists(aside):
                break
            aside = path.with_name(f"{stamp}-{number}")
        try:
            aside.hardlink_to(path)
        except OSError:
            path.rename(aside)
        make_private(aside)
        _sync_folder(path.parent)
        return aside.name
    except OSError as exc:
        raise StoreError(f"{path.name} is damaged and cannot be put aside: {_reason(exc)}") from exc


def sweep(folder: Path, names: Collection[str]) -> None:
    """Deletes the temporary files that died writers left in the folder, secrets that they are.

    Those of `names` at once: the caller holds the lock that their writers take. Others when they are old.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None or not entry.is_file(follow_symlinks=False):
                continue
            age_s = time.time() - entry.stat(follow_symlinks=False).st_mtime
            if match["name"] in names or age_s > ABANDONED_S:
                with suppress(OSError):
                    Path(entry.path).unlink()


def _write_temporary(path: Path, raw: bytes) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        # The kernel's own stamp is some milliseconds coarse: two quick replaces could look like one.
        now_ns = time.time_ns()
        os.utime(temporary, ns=(now_ns, now_ns))
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return temporary


def _replace(temporary: Path, path: Path) -> None:
    deadline_s = time.monotonic() + REPLACE_PATIENCE_S
    while True:
        try:
            temporary.replace(path)
            return
        except PermissionError:
            if os.name != "nt" or time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)  # pragma: no cover - only Windows refuses for moments


def _sync_folder(folder: Path) -> None:
    """Makes a rename last. Windows opens no folders; some network drives sync none."""
    if os.name == "nt":  # pragma: no cover
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _refuse_odd(path: Path) -> None:
    """Raises: SessionDamaged. A link, a folder or a pipe at a file's place is somebody's trap or mistake."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise SessionDamaged(f"{path.name} in the session folder is not a plain file; move it away")


def _reason(exc: Exception) -> str:
    """Without the path that an OSError's own text holds."""
    if isinstance(exc, OSError):
        return exc.strerror or type(exc).__name__
    if isinstance(exc, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return "it is not JSON" if isinstance(exc, json.JSONDecodeError) else str(exc)
