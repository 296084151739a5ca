"""Every file that clients brought, in `session/files/`: what it holds once, a record for each name it has.

| what | where |
|---|---|
| the content | `content/<sha256>`; goes with the last record that has it |
| a record | `<file id>.json`, the truth; its time of change says when it was last used |
| what is still coming | `incoming/`; gone in the end unless it is kept |

A record that cannot be read stays where it is, and while there is one no content is taken for nobody's.
All of it blocks, and threads may share it.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final, get_args

from qwenproxy import store
from qwenproxy.addresses import FILE_ID
from qwenproxy.caller import Caller
from qwenproxy.chat import FileKind
from qwenproxy.clock import Clock
from qwenproxy.errors import BadRequest, SessionDamaged, StoreError, UnknownFile
from qwenproxy.incoming import Incoming as Incoming
from qwenproxy.media_types import extension_of, kind_of, media_type

log = logging.getLogger(__name__)

FOLDER: Final = "files"
MESSAGE: Final = "message"
"""The purpose of what came inside a message."""
NAME_CHARACTERS: Final = 200
ENDING_CHARACTERS: Final = 20
DAY_S: Final = 86_400

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_RECORD: Final = re.compile(rf"({FILE_ID})\.json")
_UNSHOWN: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, what turns a text around, halves of pairs."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    sha256: str
    name: str
    """For people; never a path."""
    type: str
    """Media type, by content."""
    kind: FileKind
    size: int
    """Bytes."""
    created: int
    """Seconds since 1970."""
    purpose: str
    """What its owner wants it for; `message`: it came inside one."""
    owner: str
    """The mark of who brought it."""


class FileStore:
    def __init__(self, session_dir: Path, clock: Clock, *, most_bytes: int) -> None:
        """Touches nothing. `most_bytes`: the largest file."""
        self._folder = session_dir / FOLDER
        self._clock = clock
        self._most_bytes = most_bytes
        self._lock = threading.RLock()
        self._files: dict[str, StoredFile] | None = None
        self._damaged: set[str] = set()
        self._coming: set[str] = set()
        self._last_us = 0

    @contextmanager
    def incoming(self, most_bytes: int | None = None) -> Iterator[Incoming]:
        """A private file to write to, of at most so many bytes or the largest there may be. It is gone in the
        end, unless `keep` took it.

        Raises:
            StoreError: there can be none.
        """
        name = secrets.token_hex(16)
        with self._lock:
            self._make(self._folder / "incoming")
            self._coming.add(name)
        try:
            least = self._most_bytes if most_bytes is None else min(most_bytes, self._most_bytes)
            incoming = Incoming(self._folder / "incoming" / name, least)
            try:
                yield incoming
            finally:
                incoming.drop()
        finally:
            with self._lock:
                self._coming.discard(name)

    def keep(self, incoming: Incoming, *, name: str, purpose: str, caller: Caller) -> StoredFile:
        """Stores what came. What came inside a message before and holds the same is that same file.

        Raises:
            BadRequest: it is empty.
            StoreError: it could not be stored; nothing of it is.
        """
        if not incoming.size:
            raise BadRequest("the file is empty", param="file")
        incoming.settle()
        type_ = media_type(incoming.head, name)
        with self._lock:
            known = self._same(incoming.sha256, caller.mark) if purpose == MESSAGE else None
            self._take(incoming)
            if known is not None:
                self.touch(known)
                return known
            file = StoredFile(
                self._new_id(),
                incoming.sha256,
                _shown(name, type_),
                type_,
                kind_of(type_),
                incoming.size,
                int(self._clock.now().timestamp()),
                purpose,
                caller.mark,
            )
            self._write(file)
            return file

    def get(self, file_id: str, caller: Caller) -> StoredFile:
        """Raises: UnknownFile, also for what another key brought."""
        file = self.find(file_id)
        if not caller.sees(file.owner):
            raise UnknownFile("there is no such file")
        return file

    def find(self, file_id: str) -> StoredFile:
        """The file whosever it is: for who was let in before. Raises: UnknownFile."""
        with self._lock:
            file = self._known().get(file_id)
            if file is None and file_id in self._damaged:
                raise UnknownFile("the record of this file cannot be read; it was left as it is")
        if file is None:
            raise UnknownFile("there is no such file")
        return file

    def rows(self, caller: Caller) -> tuple[StoredFile, ...]:
        """What exists for the caller, newest first."""
        with self._lock:
            seen = [file for file in self._known().values() if caller.sees(file.owner)]
        return tuple(sorted(seen, key=lambda file: (file.created, file.id), reverse=True))

    def path(self, file: StoredFile) -> Path:
        """Where its content is. Raises: UnknownFile, when that is gone."""
        path = self._content(file.sha256)
        if not _is_whole(path, file.size):
            raise UnknownFile("the content of this file is gone")
        return path

    def touch(self, file: StoredFile) -> None:
        """Says that it was used now."""
        now_s = self._clock.now().timestamp()
        with suppress(OSError):
            os.utime(self._record(file.id), (now_s, now_s))

    def remove(self, file_id: str, caller: Caller) -> StoredFile:
        """Deletes it, and gives what it was.

        Raises:
            UnknownFile: as `get`.
            StoreError: it could not be deleted.
        """
        with self._lock:
            file = self.get(file_id, caller)
            self._remove(file)
            return file

    def sweep(self, days: int) -> int:
        """Deletes what a killed proxy left, and what came inside messages and was not used for so many days
        (0: that is kept). How many files of messages went.

        Raises:
            StoreError: not all of it could be deleted.
        """
        with self._lock:
            store.sweep(self._folder, ())
            for left in _entries(self._folder / "incoming"):
                if left not in self._coming:
                    store.remove(self._folder / "incoming" / left)
            files = list(self._known().values()) if days else []
            had = {file.sha256 for file in self._known().values()}
            lost = {*_entries(self._folder / "content")} - had
        # One by one, for others wait for the lock.
        oldest_s = self._clock.now().timestamp() - days * DAY_S
        gone = sum(self._remove_unused(file, oldest_s) for file in files)
        for sha256 in lost:
            with self._lock:
                self._let_go(sha256)
        return gone

    def _remove_unused(self, file: StoredFile, since_s: float) -> bool:
        with self._lock:
            unused = file.id in self._known() and self._is_unused(file, since_s)
            if unused:
                self._remove(file)
            return unused

    # ---- under the lock ----

    def _known(self) -> dict[str, StoredFile]:
        if self._files is None:
            self._files = {}
            names = (_RECORD.fullmatch(name) for name in _entries(self._folder))
            for file_id in sorted(match[1] for match in names if match):
                self._read(self._files, file_id)
        return self._files

    def _read(self, files: dict[str, StoredFile], file_id: str) -> None:
        try:
            files[file_id] = _file_of(store.read(self._record(file_id)), file_id)
        except (SessionDamaged, ValueError) as exc:
            self._damaged.add(file_id)
            log.error("the record of %s cannot be read (%s); it was left as it is", file_id, exc)

    def _same(self, sha256: str, owner: str) -> StoredFile | None:
        wanted = (sha256, owner, MESSAGE)
        files = self._known().values()
        return next((file for file in files if (file.sha256, file.owner, file.purpose) == wanted), None)

    def _take(self, incoming: Incoming) -> None:
        """Moves the content to its place, where there is none. Raises: StoreError."""
        path = self._content(incoming.sha256)
        if _is_whole(path, incoming.size):
            return
        self._make(path.parent)
        try:
            incoming.path.replace(path)
        except OSError as exc:
            raise StoreError(f"a file cannot be stored: {exc.strerror}") from exc

    def _write(self, file: StoredFile) -> None:
        """Raises: StoreError; then the file is not there."""
        files = self._known()
        try:
            store.write(self._record(file.id), asdict(file))
        except StoreError:
            with suppress(StoreError):
                store.remove(self._record(file.id))
                self._let_go(file.sha256)
            raise
        files[file.id] = file
        self.touch(file)

    def _remove(self, file: StoredFile) -> None:
        """Raises: StoreError."""
        store.remove(self._record(file.id))
        del self._known()[file.id]
        self._let_go(file.sha256)

    def _let_go(self, sha256: str) -> None:
        """Deletes the content if no record has it. Raises: StoreError."""
        # One that cannot be read may have it.
        if not self._damaged and all(file.sha256 != sha256 for file in self._known().values()):
            store.remove(self._content(sha256))

    def _is_unused(self, file: StoredFile, since_s: float) -> bool:
        if file.purpose != MESSAGE:
            return False
        with suppress(OSError):
            return self._record(file.id).stat().st_mtime < since_s
        return False

    def _new_id(self) -> str:
        """Its beginning is the time, so that ids order what came in one second."""
        self._last_us = max(self._last_us + 1, int(self._clock.now().timestamp() * 1_000_000))
        return f"file-{self._last_us:014x}{secrets.token_hex(5)}"

    def _make(self, folder: Path) -> None:
        try:
            store.make_folder(folder)
        except OSError as exc:
            raise StoreError(f"the folder of the files cannot be made: {exc.strerror}") from exc

    def _record(self, file_id: str) -> Path:
        return self._folder / f"{file_id}.json"

    def _content(self, sha256: str) -> Path:
        return self._folder / "content" / sha256


def _entries(folder: Path) -> list[str]:
    """What is in the folder. Raises: StoreError."""
    try:
        return [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise StoreError(f"the folder of the files cannot be read: {exc.strerror}") from exc


def _is_whole(path: Path, size: int) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _file_of(value: Any, file_id: str) -> StoredFile:
    """Raises: ValueError."""
    if not isinstance(value, dict):
        raise ValueError("it is no record of a file")
    fields: dict[str, Any] = {name: value.get(name) for name in StoredFile.__slots__}
    texts = ("id", "sha256", "name", "type", "kind", "purpose", "owner")
    sound = (
        fields.get("id") == file_id
        and all(isinstance(fields[name], str) for name in texts)
        and all(type(fields[name]) is int for name in ("size", "created"))
        and fields["kind"] in get_args(FileKind)
        and _SHA256.fullmatch(fields["sha256"])
    )
    if not sound:
        raise ValueError("it is no record of a file")
    file = StoredFile(**fields)
    return replace(file, name=_shown(file.name, file.type))


def _shown(name: str, type_: str) -> str:
    """The last part of a path, fit to be shown, its ending kept when it is long."""
    last = _UNSHOWN.sub("", re.split(r"[/\\]", name)[-1]).strip()
    if not last.strip(". "):
        last = "file" + extension_of(type_)
    ending = PurePosixPath(last).suffix
    if len(ending) > ENDING_CHARACTERS:
        return last[:NAME_CHARACTERS]
    return last.removesuffix(ending)[: NAME_CHARACTERS - len(ending)] + ending
