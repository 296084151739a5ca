"""Every chat that is kept, one file each: `session/history/<chatId>.json`, in the form of transcript.py.

The files are the truth, whoever writes them: what was changed, added or deleted by hand, or by FreeQwenApi,
shows at the next list or search. `history_index.py` makes these quick and is made good from the files; what
becomes of it never stands in the way of a chat.

All of it blocks (a change: two fsyncs), and threads may share it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from qwenproxy import store
from qwenproxy.caller import Caller
from qwenproxy.chat import UpstreamChat
from qwenproxy.clock import Clock
from qwenproxy.errors import ChatDamaged, SessionDamaged, StoreError, UnknownChat
from qwenproxy.history_index import AGAIN, HistoryIndex, IndexLost, Seen, Stamp, Stamps
from qwenproxy.history_index import ChatRow as ChatRow
from qwenproxy.history_index import Found as Found
from qwenproxy.transcript import Transcript, transcript_of

log = logging.getLogger(__name__)

T = TypeVar("T")

FOLDER: Final = "history"
INDEX: Final = "history.sqlite3"
LOOK_EVERY_S: Final = 1.0
LOOK_SHARE: Final = 10
"""A look at the folder is followed by at least so many times its own length without one."""
SETTLED_NS: Final = 50_000_000
"""A file that was changed this shortly before it was read may change again and keep its time: clocks are
coarse."""
BATCH_BYTES: Final = 512 * 1024
"""Of files read into the index at once: some 50 ms for which a list may have to wait."""
BATCH_CHATS: Final = 100
ANEW: Final = 20
"""How often an index that is lost under a question is made again for it."""
LOCKS: Final = 64

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", re.ASCII)
_RESERVED: Final = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]", re.IGNORECASE)
"""Devices, on Windows, whatever the ending."""
_ENDING: Final = ".json"


def fit_for_id(text: str) -> bool:
    """Whether a chat may have that id: no path, no device, nothing a shell or a file system takes amiss."""
    return _ID.fullmatch(text) is not None and _RESERVED.fullmatch(text) is None


class History:
    def __init__(self, session_dir: Path, clock: Clock) -> None:
        """Touches nothing."""
        self._folder = session_dir / FOLDER
        self._clock = clock
        self._index = HistoryIndex(session_dir / INDEX)
        # A few for all chats: two chats that share one wait for each other's disk, no more.
        self._locks = tuple(threading.Lock() for _ in range(LOCKS))
        self._looking = threading.Lock()
        self._wording = threading.Lock()
        self._view: Stamps | None = None
        self._next_look_s = 0.0
        self._swept = False
        self._told: set[tuple[str, Stamp | None]] = set()

    # ---- one chat ----

    def add(self, chat: Transcript) -> None:
        """A new file.

        Raises:
            StoreError: it could not be written, or there is one already.
        """
        if not fit_for_id(chat.id):
            raise StoreError("a chat cannot be kept under such an id")
        with self._alone(chat.id):
            path = self._path(chat.id)
            if os.path.lexists(path):
                raise StoreError("there is a chat of this id already")
            self._write(path, chat)

    def read(self, chat_id: str, caller: Caller) -> Transcript:
        """As it is in its file.

        Raises:
            UnknownChat: there is none, or it is another key's, or the id is none.
            ChatDamaged: its file cannot be read; it is left as it is.
        """
        if not fit_for_id(chat_id):
            raise UnknownChat("there is no such chat")
        try:
            chat = self._load(chat_id)
        except ChatDamaged:
            if caller.mark and not caller.sees(self._last_owner(chat_id)):
                raise UnknownChat("there is no such chat") from None
            raise
        if not caller.sees(chat.owner):
            raise UnknownChat("there is no such chat")
        return chat

    def change(self, chat_id: str, caller: Caller, change: Callable[[Transcript], Transcript]) -> Transcript:
        """What `change` makes of it, stored. Nobody else changes the chat meanwhile; `change` must be quick,
        and ask nothing of the history. The same object back means there is nothing to store.

        Raises:
            UnknownChat, ChatDamaged: as `read`.
            StoreError: it could not be written; the file is what it was.
            Whatever `change` raises; then too.
        """
        if not fit_for_id(chat_id):
            raise UnknownChat("there is no such chat")
        with self._alone(chat_id):
            chat = self.read(chat_id, caller)
            changed = change(chat)
            if changed is not chat:
                self._write(self._path(chat_id), changed)
            return changed

    def remove(self, chat_id: str, caller: Caller) -> Transcript:
        """Deletes it, and gives what it was.

        Raises:
            UnknownChat, ChatDamaged: as `read`.
            StoreError: it could not be deleted.
        """
        if not fit_for_id(chat_id):
            raise UnknownChat("there is no such chat")
        with self._alone(chat_id):
            chat = self.read(chat_id, caller)
            store.remove(self._path(chat_id))
            self._index.drop(chat_id)
            return chat

    # ---- all of them; each raises StoreError where the folder cannot be read ----

    def rows(self, caller: Caller) -> tuple[ChatRow, ...]:
        """The caller's chats, newest first. A file that cannot be read is left out, and logged once."""
        owners = _owners(caller)
        return self._ask(lambda view: self._index.rows(view, owners))

    def search(self, caller: Caller, query: str, *, limit: int, offset: int = 0) -> tuple[Found, ...]:
        """Messages, of any branch, that hold every word of the query, newest first.

        Words may come in any order, and the last one may be the beginning of one if it has two letters. Text
        in scripts without spaces is found by its characters. A query without a word finds nothing.
        """
        owners = _owners(caller)

        def ask(view: Stamps) -> tuple[Found, ...]:
            self._read_words(view)
            return self._index.search(view, owners, query, limit, offset)

        return self._ask(ask)

    def twins(self) -> frozenset[UpstreamChat]:
        """The upstream chats that mirror ours, whoever owns them, as far as the files can be read."""
        return self._ask(self._index.twins)

    def close(self) -> None:
        self._index.close()

    # ---- files ----

    def _path(self, chat_id: str) -> Path:
        return self._folder / f"{chat_id}{_ENDING}"

    def _alone(self, chat_id: str) -> threading.Lock:
        return self._locks[hash(chat_id) % LOCKS]

    def _load(self, chat_id: str) -> Transcript:
        """Raises: UnknownChat, ChatDamaged."""
        try:
            value = store.read(self._path(chat_id))
            if value is not None:
                return transcript_of(value, chat_id)
        except SessionDamaged as exc:
            raise ChatDamaged(f"the chat cannot be read: {exc}") from exc.__cause__
        except ValueError as exc:
            raise ChatDamaged(f"the chat cannot be read: {exc}; its file was left as it is") from exc
        if os.path.lexists(self._path(chat_id)):  # JSON's null
            raise ChatDamaged("the chat cannot be read: it is no chat; its file was left as it is")
        raise UnknownChat("there is no such chat")

    def _write(self, path: Path, chat: Transcript) -> None:
        store.write(path, chat.to_json())
        stamp = _stamp(path)
        if stamp is not None:
            self._index.put(chat, stamp)

    def _last_owner(self, chat_id: str) -> str:
        for _ in range(ANEW):
            try:
                return self._index.owner(chat_id)
            except IndexLost:
                continue
            except StoreError:
                break
        return ""

    # ---- the index ----

    def _ask(self, ask: Callable[[Stamps], T]) -> T:
        for _ in range(ANEW):
            try:
                return ask(self._look())
            except IndexLost:
                continue
        raise StoreError("the list of chats is damaged again and again")

    def _look(self) -> Stamps:
        """The index as it is after it was compared with the folder, not more than a moment ago."""
        with self._looking:
            known = self._index.stamps()
            began_s = self._clock.monotonic_s()
            if known is self._view and began_s < self._next_look_s:
                return known
            differing = self._differing(known)
            now_s = self._clock.monotonic_s()
            for batch in self._seen(differing, known):
                self._index.take(known, batch, words=False)
            self._view = known
            self._next_look_s = now_s + max(LOOK_EVERY_S, LOOK_SHARE * (now_s - began_s))
            return known

    def _differing(self, known: Stamps) -> list[str]:
        """The chats whose files are not what the index knows. Raises: StoreError."""
        missing = set(known)  # before the look: what is made meanwhile is not missing
        changed: list[str] = []
        try:
            if not self._swept:
                store.sweep(self._folder, ())
                self._swept = True
            with os.scandir(self._folder) as files:
                for file in files:
                    chat_id = file.name[: -len(_ENDING)]
                    if not file.name.endswith(_ENDING):
                        continue
                    try:
                        found = file.stat(follow_symlinks=False)
                    except FileNotFoundError:  # deleted a moment ago
                        continue
                    missing.discard(chat_id)
                    if known.get(chat_id) != (found.st_mtime_ns, found.st_size) and fit_for_id(chat_id):
                        changed.append(chat_id)
        except FileNotFoundError:
            pass  # no chat was ever kept
        except OSError as exc:
            raise StoreError(f"the folder of the chats cannot be read: {exc.strerror}") from exc
        return [*changed, *missing]

    def _read_words(self, view: Stamps) -> None:
        with self._wording:
            while chats := self._index.unworded(view, BATCH_CHATS):
                for batch in self._seen(chats, view):
                    self._index.take(view, batch, words=True)

    def _seen(self, chats: Iterable[str], known: Stamps) -> Iterator[list[Seen]]:
        """What the files hold now, so many at a time that memory stays flat and nobody waits long."""
        batch: list[Seen] = []
        size = 0
        for chat_id in chats:
            seen = self._see(chat_id, known.get(chat_id))
            batch.append(seen)
            size += max((seen.stamp or AGAIN)[1], 0)
            if size >= BATCH_BYTES or len(batch) >= BATCH_CHATS:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _see(self, chat_id: str, before: Stamp | None) -> Seen:
        stamp = _stamp(self._path(chat_id))  # before it is read: a later change shows as one
        settled = stamp is not None and abs(time.time_ns() - stamp[0]) >= SETTLED_NS
        kept = stamp if stamp is not None and settled else AGAIN
        try:
            return Seen(chat_id, kept, self._load(chat_id), before)
        except UnknownChat:
            return Seen(chat_id, None, None, before)
        except ChatDamaged as exc:
            if (chat_id, stamp) not in self._told:
                self._told.add((chat_id, stamp))
                log.warning("chat %s is left out of lists: %s", chat_id, exc)
            refused = not isinstance(exc.__cause__, ValueError)  # by the system, which may think better of it
            return Seen(chat_id, AGAIN if refused else kept, None, before)


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _owners(caller: Caller) -> frozenset[str] | None:
    """Whose chats the caller sees; None: everybody's."""
    if not caller.mark:
        return None
    return frozenset(mark for mark in ("", caller.mark) if caller.sees(mark))
