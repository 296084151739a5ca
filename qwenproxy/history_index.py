"""Which chats there are and which words are in them: SQLite, beside the files, which are the truth.

`history.sqlite3` holds one row a chat and, for the search, one a message (FTS5). It may be deleted at any
time, also under a running program: who asks is told by `IndexLost`, and compares it with the files again.

| At its place is                            | What becomes of it                                            |
|--------------------------------------------|---------------------------------------------------------------|
| nothing any more, or another file          | a new one is made                                             |
| a damaged one, or one of another version   | it is deleted and made anew; after a few times as below       |
| a link, a folder; or the disk takes nothing | it is left alone; SQLite keeps a temporary one until the end |

The number of a message tells its time first, so that the newest hits come first without sorting: a word that
stands in a million messages costs no more than the page that is shown.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from qwenproxy import store
from qwenproxy.chat import UpstreamChat
from qwenproxy.errors import StoreError
from qwenproxy.transcript import Entry, Transcript

log = logging.getLogger(__name__)

T = TypeVar("T")
Stamp: TypeAlias = tuple[int, int]
"""A file's time of change (ns) and its size, as they were before it was read."""
Stamps: TypeAlias = dict[str, Stamp]
"""By chat. Another object each time the index is opened, which is how one is told from the next."""

AGAIN: Final[Stamp] = (0, -1)
"""Of a file that is to be read again at the next look, whatever its stamp is then."""

VERSION: Final = 1
"""Of the tables and of what counts as a word; an index of another version is made anew."""
SUFFIXES: Final = ("", "-wal", "-shm", "-journal")
MENDED_AT_MOST: Final = 3
"""Who finds it damaged more often has a disk that cannot keep it."""
BUSY_S: Final = 1.0
WORDS_AT_MOST: Final = 40
QUERY_AT_MOST: Final = 1000
"""Characters of a query that are read."""
SNIPPET: Final = 160
BEFORE_HIT: Final = 60
LONGEST_CUT: Final = 20
"""What is left of a longer word is shown."""

_UNWRITABLE: Final = frozenset(
    {
        *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY),
        *(sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM),
    }
)
"""SQLite's codes that tell nothing against what the file holds."""

_TABLES: Final = (
    """CREATE TABLE chats(
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, mtime_ns INTEGER NOT NULL,
        size INTEGER NOT NULL, readable INTEGER NOT NULL, worded INTEGER NOT NULL, owner BLOB, name BLOB,
        created INTEGER, updated INTEGER, messages INTEGER, questions INTEGER, twin BLOB,
        twin_account BLOB)""",
    "CREATE INDEX listed ON chats(created DESC, number DESC)",
    "CREATE INDEX unworded ON chats(created) WHERE NOT worded",
    """CREATE TABLE messages(
        number INTEGER PRIMARY KEY, chat INTEGER NOT NULL, entry BLOB NOT NULL, role BLOB NOT NULL,
        timestamp INTEGER NOT NULL, digest INTEGER NOT NULL)""",
    "CREATE INDEX messages_of ON messages(chat)",
    "CREATE VIRTUAL TABLE words USING fts5("
    "text, owner, tokenize='unicode61 remove_diacritics 2', columnsize=0)",
    f"PRAGMA user_version = {VERSION}",
)

_CHARACTERS: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
"""Scripts that part no words, or glue endings to them: each of their characters counts as a word."""
_PART: Final = "\x1f"
_HIT: Final = "\x02"
_OTHER: Final = r"[^\w\x00-\x7f]"
"""SQLite takes signs that are younger than its tables, many emoji among them, for letters."""
_BETWEEN: Final = re.compile(
    rf"(?<=[{_CHARACTERS}])(?=\w)|(?<=\w)(?=[{_CHARACTERS}]|{_OTHER})|(?<={_OTHER})(?=\w)"
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_PLACES: Final = 1 << 24
"""Numbers for the messages of one second."""
_LATEST_S: Final = 1 << 38
_LARGEST: Final = (1 << 53) - 1


class IndexLost(Exception):
    """It is not what it was a moment ago; it opens again, and is to be compared with the files first."""


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A chat as a list shows it. The counts are those of the current branch."""

    id: str
    name: str
    created: int
    """Milliseconds, as the next."""
    updated: int
    message_count: int
    user_message_count: int


@dataclass(frozen=True, slots=True)
class Found:
    """A message that a search found."""

    chat_id: str
    name: str
    """The chat's."""
    message_id: str
    role: str
    timestamp: int
    """Seconds."""
    snippet: str
    """About `SNIPPET` characters around the first hit."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at a chat's file found."""

    chat_id: str
    stamp: Stamp | None
    """None: the file is gone."""
    chat: Transcript | None
    """None: it cannot be read."""
    before: Stamp | None
    """What the index knew then. Where it knows something else by now, somebody was faster, and right."""


class HistoryIndex:
    """Threads may share it."""

    def __init__(self, path: Path) -> None:
        """Touches nothing."""
        self._path = path
        self._lock = threading.Lock()
        self._door = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._files: tuple[object, ...] = ()
        self._stamps: Stamps = {}
        self._rows: dict[frozenset[str] | None, tuple[ChatRow, ...]] = {}
        self._mended = 0
        self._elsewhere = False

    # ---- asking; all of it raises IndexLost and StoreError ----

    def stamps(self) -> Stamps:
        """What is known of each file. It lives: own writes change it."""
        return self._run(None, lambda _: self._stamps)

    def rows(self, view: Stamps, owners: frozenset[str] | None) -> tuple[ChatRow, ...]:
        """Newest first; of all owners where `owners` is None."""

        def ask(db: sqlite3.Connection) -> tuple[ChatRow, ...]:
            if owners not in self._rows:
                self._rows[owners] = tuple(
                    ChatRow(chat_id, _told(name), *numbers)
                    for chat_id, owner, name, *numbers in db.execute(
                        "SELECT id, owner, name, created, updated, messages, questions FROM chats"
                        " WHERE readable ORDER BY created DESC, number DESC"
                    )
                    if owners is None or _told(owner) in owners
                )
            return self._rows[owners]

        return self._run(view, ask)

    def search(
        self, view: Stamps, owners: frozenset[str] | None, query: str, limit: int, offset: int
    ) -> tuple[Found, ...]:
        """Newest first."""
        wanted = _match(query, owners)
        if not wanted:
            return ()

        def ask(db: sqlite3.Connection) -> tuple[Found, ...]:
            found = db.execute(
                "SELECT chats.id, chats.name, entry, role, timestamp, highlight(words, 0, ?, '')"
                " FROM words CROSS JOIN messages ON messages.number = words.rowid"
                " CROSS JOIN chats ON chats.number = messages.chat"
                " WHERE words MATCH ? ORDER BY words.rowid DESC LIMIT ? OFFSET ?",
                (_HIT, wanted, _within(limit), _within(offset)),
            )
            return tuple(
                Found(chat_id, _told(name), _told(entry), _told(role), timestamp, _snippet(text))
                for chat_id, name, entry, role, timestamp, text in found
            )

        return self._run(view, ask)

    def twins(self, view: Stamps) -> frozenset[UpstreamChat]:
        """Of all chats, also of those whose files have become unreadable."""
        asked = "SELECT twin, twin_account FROM chats WHERE twin IS NOT NULL"
        return self._run(
            view,
            lambda db: frozenset(UpstreamChat(_told(chat), _told(by)) for chat, by in db.execute(asked)),
        )

    def owner(self, chat_id: str) -> str:
        """Of a chat whose file may have become unreadable; "" where nobody knows."""
        row = self._run(
            None, lambda db: db.execute("SELECT owner FROM chats WHERE id = ?", (chat_id,)).fetchone()
        )
        return _told(row[0]) if row else ""

    def unworded(self, view: Stamps, most: int) -> tuple[str, ...]:
        """Chats whose words are not in yet, oldest first: FTS5 takes growing numbers fastest."""
        asked = "SELECT id FROM chats WHERE NOT worded ORDER BY created LIMIT ?"
        return self._run(view, lambda db: tuple(row[0] for row in db.execute(asked, (most,))))

    # ---- telling ----

    def take(self, view: Stamps, looks: Sequence[Seen], *, words: bool) -> None:
        """What was seen of some files. Without `words`, what is in them waits for the next search.

        Raises: IndexLost, StoreError.
        """

        def tell(db: sqlite3.Connection) -> None:
            valid = [seen for seen in looks if self._stamps.get(seen.chat_id) == seen.before]
            self._store(db, valid, words=words)

        self._run(view, tell)

    def put(self, chat: Transcript, stamp: Stamp) -> None:
        """A chat that this program wrote into its file: what fails here is made good by the next look."""
        self._note(Seen(chat.id, stamp, chat, None))

    def drop(self, chat_id: str) -> None:
        """A chat whose file this program deleted."""
        self._note(Seen(chat_id, None, None, None))

    def close(self) -> None:
        with self._turn():
            self._shut()

    def _note(self, seen: Seen) -> None:
        for _ in range(2):
            try:
                self._run(None, lambda db: self._store(db, [seen], words=True))
                return
            except IndexLost:
                continue
            except StoreError as exc:
                log.warning("%s", exc)
                return

    # ---- the tables ----

    def _store(self, db: sqlite3.Connection, looks: Sequence[Seen], *, words: bool) -> None:
        db.execute("BEGIN IMMEDIATE")
        old: list[int] = []
        new: list[_Word] = []
        for seen in looks:
            number, gone, come = _row(db, seen, words=words)
            old += gone
            new += come
            if seen.stamp is None:
                db.execute("DELETE FROM chats WHERE number = ?", (number,))
        numbers = [(message,) for message in sorted(old)]
        db.executemany("DELETE FROM words WHERE rowid = ?", numbers)
        db.executemany("DELETE FROM messages WHERE number = ?", numbers)
        _insert(db, new)
        db.execute("COMMIT")
        self._rows.clear()
        for seen in looks:
            if seen.stamp is None:
                self._stamps.pop(seen.chat_id, None)
            else:
                self._stamps[seen.chat_id] = seen.stamp

    # ---- the file ----

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One thread at a time; who waits at the door comes before who comes again."""
        with self._door:
            self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def _run(self, view: Stamps | None, action: Callable[[sqlite3.Connection], T]) -> T:
        with self._turn():
            try:
                db = self._opened()
                if view is not None and view is not self._stamps:
                    raise IndexLost
                try:
                    return action(db)
                finally:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
            except (sqlite3.Error, OSError) as exc:
                self._forsake(exc)
                raise IndexLost from exc

    def _opened(self) -> sqlite3.Connection:
        if self._db is not None and not self._elsewhere and self._files != _identity(self._path):
            self._shut()
            log.warning("%s was deleted or replaced; it is made anew", self._path.name)
        if self._db is None:
            if not self._elsewhere:
                _make_private(self._path)
            place = "" if self._elsewhere else self._path
            self._db = sqlite3.connect(place, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            _prepare(self._db)
            known = self._db.execute("SELECT id, mtime_ns, size FROM chats")
            self._stamps = {chat_id: (mtime_ns, size) for chat_id, mtime_ns, size in known}
            self._rows.clear()
            self._files = () if self._elsewhere else _identity(self._path)
        return self._db

    def _shut(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()

    def _forsake(self, exc: sqlite3.Error | OSError) -> None:
        """After an error: away with what is damaged, or away from the place. Raises: StoreError."""
        self._shut()
        if self._elsewhere:
            raise StoreError(f"the list of chats cannot be made: {_reason(exc)}") from exc
        code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        unwritable = isinstance(exc, OSError) or code in _UNWRITABLE
        self._mended += not unwritable
        if unwritable or self._mended > MENDED_AT_MOST:
            self._elsewhere = True
            log.warning(
                "%s cannot be kept (%s); until the next start it is kept in memory",
                self._path.name,
                _reason(exc),
            )
            return
        log.warning("%s is damaged (%s); it is made anew", self._path.name, _reason(exc))
        for suffix in SUFFIXES:
            with suppress(OSError):
                self._path.with_name(self._path.name + suffix).unlink()


def _make_private(path: Path) -> None:
    """Makes an empty file where there is none. Raises: OSError, also for what is no plain file."""
    store.make_folder(path.parent)
    for suffix in SUFFIXES:
        part = path.with_name(path.name + suffix)
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(part.lstat().st_mode):
                raise OSError(0, "it is not a plain file")
            store.make_private(part)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), store.FILE_MODE))


def _identity(path: Path) -> tuple[object, ...]:
    """Which file it is, and which its log; another one after somebody deleted or replaced either."""
    found: list[object] = []
    for suffix in SUFFIXES[:2]:
        try:
            part = path.with_name(path.name + suffix).lstat()
        except OSError:
            found.append(None)
        else:
            found.append((part.st_dev, part.st_ino))
    return tuple(found)


def _prepare(db: sqlite3.Connection) -> None:
    # Alone: no -shm, whose truncation under a running program would be its end (a mapped file).
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA secure_delete = FAST")
    db.execute("PRAGMA trusted_schema = OFF")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, VERSION):
        raise sqlite3.DatabaseError(f"it is of version {version}")
    db.execute("BEGIN IMMEDIATE")  # also takes the lock, now and not in the middle
    if version == 0:
        for statement in _TABLES:
            db.execute(statement)
    db.execute("COMMIT")


# ---- chats ----


def _row(db: sqlite3.Connection, seen: Seen, *, words: bool) -> tuple[int, list[int], list[_Word]]:
    """Writes a chat's row: its number, the words' numbers that go and the words that come."""
    chat = seen.chat
    db.execute(
        "INSERT INTO chats(id, mtime_ns, size, readable, worded) VALUES(?, ?, ?, 0, 0)"
        " ON CONFLICT(id) DO UPDATE SET mtime_ns = excluded.mtime_ns, size = excluded.size,"
        " readable = 0, worded = 0",
        (seen.chat_id, *(seen.stamp or AGAIN)),
    )
    asked = db.execute("SELECT number FROM chats WHERE id = ?", (seen.chat_id,))
    number: int = asked.fetchone()[0]
    if chat is None:  # whose it was, and its twin, stay known
        db.execute("UPDATE chats SET worded = 1 WHERE number = ?", (number,))
        return number, [row[0] for row in _messages(db, number)], []
    branch = chat.branch()
    twin = chat.twin and (_kept(chat.twin.id), _kept(chat.twin.account_id))
    latest = max((entry.timestamp for entry in chat.entries.values()), default=0)
    db.execute(
        "UPDATE chats SET readable = 1, worded = ?, owner = ?, name = ?, created = ?, updated = ?,"
        " messages = ?, questions = ?, twin = ?, twin_account = ? WHERE number = ?",
        (
            words,
            _kept(chat.owner),
            _kept(chat.name),
            _within(chat.created),
            max(_within(chat.created), _within(_second(latest) * 1000)),
            len(branch),
            sum(entry.role == "user" for entry in branch),
            *(twin or (None, None)),
            number,
        ),
    )
    if not words:
        return number, [], []
    known = {(entry, digest): message for message, entry, digest in _messages(db, number)}
    come: list[_Word] = []
    owner = _owner_word(chat.owner)
    for entry in chat.entries.values():
        word = _Word(number, owner, entry, _kept(entry.id), _digest(entry, chat.owner))
        if known.pop((word.id, word.digest), None) is None:
            come.append(word)
    return number, list(known.values()), come


def _messages(db: sqlite3.Connection, number: int) -> list[tuple[int, bytes, int]]:
    return db.execute("SELECT number, entry, digest FROM messages WHERE chat = ?", (number,)).fetchall()


@dataclass(frozen=True, slots=True)
class _Word:
    """What of a message is searched."""

    chat: int
    owner: str
    entry: Entry
    id: bytes
    digest: int


def _insert(db: sqlite3.Connection, words: Iterable[_Word]) -> None:
    """Each gets the next free number of its second."""
    free: dict[int, int] = {}
    messages: list[tuple[object, ...]] = []
    texts: list[tuple[object, ...]] = []
    asked = "SELECT ifnull(max(number), -1) FROM messages WHERE number < ?"
    newest: int = db.execute(asked, (_LATEST_S * _PLACES,)).fetchone()[0]
    for word in sorted(words, key=lambda word: _second(word.entry.timestamp)):
        entry = word.entry
        first = _second(entry.timestamp) * _PLACES
        if first not in free:
            last = db.execute(asked, (first + _PLACES,)).fetchone()[0] if first <= newest else -1
            free[first] = max(first, last + 1)
        number = free[first]
        free[first] += 1
        role, timestamp = _kept(entry.role), _within(entry.timestamp)
        messages.append((number, word.chat, word.id, role, timestamp, word.digest))
        texts.append((number, _parted(entry.text), word.owner))
    db.executemany("INSERT INTO messages VALUES(?, ?, ?, ?, ?, ?)", messages)
    db.executemany("INSERT INTO words(rowid, text, owner) VALUES(?, ?, ?)", texts)


def _digest(entry: Entry, owner: str) -> int:
    """Of all that its words carry."""
    said = _kept(f"{owner}\0{entry.role}\0{entry.timestamp}\0{entry.text}")
    return int.from_bytes(blake2b(said, digest_size=8).digest(), "big", signed=True)


def _second(timestamp: int) -> int:
    """A moment of any file as seconds; some programs wrote milliseconds."""
    seconds = timestamp // 1000 if timestamp >= 100_000_000_000 else timestamp
    return min(max(seconds, 0), _LATEST_S - 1)


def _within(number: int) -> int:
    """Fit for SQLite and for JSON's readers."""
    return min(max(number, 0), _LARGEST)


def _kept(text: str) -> bytes:
    """Half a surrogate pair, fit for JSON, is none for SQLite's text."""
    return text.encode("utf-8", "surrogatepass")


def _told(kept: bytes | None) -> str:
    return (kept or b"").decode("utf-8", "surrogatepass")


# ---- words ----


def _parted(text: str) -> str:
    """As the index has it: with a mark wherever a word begins or ends that SQLite would not part."""
    text = _CONTROL.sub(" ", text)
    if text.isascii():
        return text
    text = unicodedata.normalize("NFC", text)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _BETWEEN.sub(_PART, text)


def _owner_word(owner: str) -> str:
    """One word, whatever the mark is."""
    return "k" + blake2b(_kept(owner), digest_size=8).hexdigest()


def _match(query: str, owners: frozenset[str] | None) -> str:
    """FTS5's words for what somebody typed; "" where that holds no word.

    Only letters and digits get in, in quotes, so nothing of it can be an operator. The last word, where it
    stands at the end and has two letters, may be the beginning of one.
    """
    parted = _parted(query[:QUERY_AT_MOST])
    kept = "".join(c if c == _PART or unicodedata.category(c)[0] in "LNM" else " " for c in parted)
    found = [word.strip(_PART) for word in kept.split(" ")]
    words = [word for word in found if any(c.isalnum() for c in word)]
    if not words or owners == frozenset():
        return ""
    last = words[-1]
    beginning = "*" if len(last) > 1 and kept.endswith(last) else ""
    others = [word for word in dict.fromkeys(words[:-1]) if word != last][: WORDS_AT_MOST - 1]
    said = " ".join(chain((f'"{word}"' for word in others), (f'"{last}"{beginning}',)))
    if owners is None:
        return f"text : ({said})"
    return f"text : ({said}) AND owner : ({' OR '.join(map(_owner_word, sorted(owners)))})"


def _snippet(text: str) -> str:
    """Around the first mark of a hit."""
    before, _, after = text.partition(_HIT)
    before = _one_line([before[-4 * SNIPPET :]])
    after = _one_line([after[: 4 * SNIPPET]])
    start = max(len(before) - BEFORE_HIT, 0)
    if start and (space := before.find(" ", start, start + LONGEST_CUT)) >= 0:
        start = space + 1
    shown = before[start:] + after[: SNIPPET - (len(before) - start)]
    cut = len(before) - start + len(after) > len(shown)
    return ("…" if start else "") + shown + ("…" if cut else "")


def _one_line(parts: Iterable[str]) -> str:
    return re.sub(r"\s+", " ", "".join(parts).replace(_PART, "").replace(_HIT, ""))


def _reason(exc: Exception) -> str:
    """Without a path."""
    return (exc.strerror or type(exc).__name__) if isinstance(exc, OSError) else str(exc)
