"""The last answers of completions, so that each can be continued by its id for a day.

`exchanges.sqlite3`: a row an answer, with the whole conversation that led to it and where it lives upstream;
or, of an answer kept in a chat, its place in that chat. Forgotten are those older than a day and all but the
newest of each key. Losing it costs nobody more than a 404: a damaged one is put aside.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenproxy.caller import Caller
from qwenproxy.chat import Attachment, Home, Message, Role, ToolCall, UpstreamChat
from qwenproxy.clock import Clock
from qwenproxy.database import Database

LASTS_S = 24 * 3600.0
NOWHERE = Home()
TABLES = """
create table if not exists exchanges (
    id text not null, mark text not null, at real not null, messages blob not null,
    account text not null, chat text not null, response text not null,
    kept_chat text not null, kept_message text not null,
    primary key (id, mark)
) without rowid;
create index if not exists by_age on exchanges (at);
create index if not exists newest on exchanges (mark, at);
create index if not exists by_twin on exchanges (chat) where chat <> '';
"""


@dataclass(frozen=True, slots=True)
class Exchange:
    id: str
    """The service's id of the answer."""
    messages: tuple[Message, ...] = ()
    """The conversation, the answer last; empty where it is kept in a chat."""
    home: Home = NOWHERE
    """Where the answer stands upstream, word for word."""
    kept_chat: str = ""
    kept_message: str = ""
    """The chat of ours, and the answer's id there."""


class Exchanges:
    """Blocks on the disk, and may be called from any thread. Raises: sqlite3.Error."""

    def __init__(self, session_dir: Path, clock: Clock, *, most: int) -> None:
        """`most` answers of each key are remembered."""
        self._most = most
        self._clock = clock
        self._database = Database(session_dir / "exchanges.sqlite3", TABLES, clock)

    def add(self, exchange: Exchange, caller: Caller) -> frozenset[UpstreamChat]:
        """Remembers it; gives the upstream chats that only forgotten exchanges lived in."""
        home = exchange.home
        row = (
            exchange.id,
            caller.mark,
            self._now_s(),
            _packed(exchange.messages),
            home.account_id if home.chat_id else "",
            home.chat_id,
            home.response_id,
            exchange.kept_chat,
            exchange.kept_message,
        )
        with self._database.alone() as db:
            if self._most:
                db.execute("insert or replace into exchanges values (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            return self._forget(db, caller.mark)

    def get(self, exchange_id: str, caller: Caller) -> Exchange | None:
        """What is remembered under the id, for this caller."""
        with self._database.alone() as db:
            rows = db.execute(
                "select mark, messages, account, chat, response, kept_chat, kept_message from exchanges "
                "where id = ? and at > ?",
                (exchange_id, self._now_s() - LASTS_S),
            ).fetchall()
        for mark, messages, account, chat, response, *kept in rows:
            if caller.sees(mark):
                return Exchange(exchange_id, _unpacked(messages), Home(account, chat, response), *kept)
        return None

    def delete(self, exchange_id: str, caller: Caller) -> frozenset[UpstreamChat]:
        """Forgets it; gives the upstream chats that only it lived in."""
        with self._database.alone() as db:
            rows = db.execute("select id, mark from exchanges where id = ?", (exchange_id,)).fetchall()
            return _drop(db, {row for row in rows if caller.sees(row[1])})

    def twins(self) -> frozenset[UpstreamChat]:
        """The upstream chats that exchanges live in; what is too old by now is forgotten first."""
        with self._database.alone() as db:
            for (mark,) in db.execute("select distinct mark from exchanges").fetchall():
                self._forget(db, mark)
            return frozenset(_twins(db.execute("select chat, account from exchanges where chat <> ''")))

    def close(self) -> None:
        self._database.close()

    def _forget(self, db: sqlite3.Connection, mark: str) -> frozenset[UpstreamChat]:
        # By indexes alone: this is done at the end of every answer, and the rows are large.
        now_s = self._now_s()
        # A clock that was set back must not keep for ever what it calls the future.
        aged = "select id, mark from exchanges where at <= ? or at > ?"
        beyond = "select id, mark from exchanges where mark = ? order by at desc limit -1 offset ?"
        old = {
            *db.execute(aged, (now_s - LASTS_S, now_s + LASTS_S)),
            *db.execute(beyond, (mark, self._most)),
        }
        return _drop(db, old)

    def _now_s(self) -> float:
        return self._clock.now().timestamp()


def _drop(db: sqlite3.Connection, rows: set[Any]) -> frozenset[UpstreamChat]:
    """Deletes rows by id and mark; gives the upstream chats that no other row lives in."""
    twins = "select chat, account from exchanges where id = ? and mark = ? and chat <> ''"
    left = {twin for row in rows for twin in _twins(db.execute(twins, row))}
    db.executemany("delete from exchanges where id = ? and mark = ?", rows)
    still = "select 1 from exchanges where chat = ? limit 1"
    return frozenset(twin for twin in left if db.execute(still, (twin.id,)).fetchone() is None)


def _twins(rows: Iterable[Any]) -> Iterator[UpstreamChat]:
    for chat, account in rows:
        yield UpstreamChat(chat, account)


def _packed(messages: Sequence[Message]) -> bytes:
    return zlib.compress(json.dumps([_row(message) for message in messages]).encode())


def _unpacked(raw: bytes) -> tuple[Message, ...]:
    return tuple(_message(*row) for row in json.loads(zlib.decompress(raw)))


def _row(message: Message) -> list[Any]:
    row: list[Any] = [message.role, message.text, [[a.kind, a.url, a.name] for a in message.attachments]]
    if message.calls or message.call_id:
        row += [[[call.id, call.name, call.arguments] for call in message.calls], message.call_id]
    return row


def _message(
    role: Role,
    text: str,
    attachments: Sequence[Sequence[Any]],
    calls: Sequence[Sequence[str]] = (),
    call_id: str = "",
) -> Message:
    attached = tuple(Attachment(*attachment) for attachment in attachments)
    return Message(role, text, attached, tuple(ToolCall(*call) for call in calls), call_id)
