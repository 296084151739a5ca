"""The list and the search, and what becomes of a damaged index."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenproxy.caller import ANYBODY
from qwenproxy.history import History
from qwenproxy.history_index import MENDED_AT_MOST, SNIPPET, HistoryIndex, IndexLost, Seen
from qwenproxy.transcript import Entry, Transcript
from tests.test_history import HandClock, chat, found, listed, turn


@pytest.fixture
def index(tmp_path: Path) -> Iterator[HistoryIndex]:
    index = HistoryIndex(tmp_path / "session" / "history.sqlite3")
    yield index
    index.close()


def told(chat_id: str, *said: tuple[int, str], owner: str = "", created: int = 0) -> Transcript:
    entries = {
        f"{chat_id}{place}": Entry(f"{chat_id}{place}", "", "user", text, timestamp)
        for place, (timestamp, text) in enumerate(said)
    }
    return Transcript(chat_id, chat_id, created, entries, owner=owner)


def search(index: HistoryIndex, query: str, **more: int) -> list[str]:
    asked = {"limit": 100, "offset": 0, **more}
    hits = index.search(index.stamps(), None, query, asked["limit"], asked["offset"])
    return [hit.message_id for hit in hits]


# ---- searching ----

SAID = (
    "Привет, как ДЕЛА сегодня?",
    "我想学习编程语言Python和数学",
    "Ein schönes Café in Köln🤖«там»",
    'don\'t "quote" C++ foo_bar snake.case',
    "サーバーを再起動する",
    "한국어를 배워요",
    "zero\0byte \ud83d half \x1f part \x02 hit",
    "NOT AND OR NEAR the wordless",
    "สวัสดีครับ",
)
QUERIES: dict[int, tuple[str, ...]] = {
    0: ("привет", "дела привет", "Дел"),
    1: ("编程", "编", "python", "Python和", "数学 编程", "学习编"),
    2: ("schones cafe", "KÖLN", "там"),
    3: ("don't", "quote", '"quote', "C++", "foo_bar", "case snake"),
    4: ("再起動",),
    5: ("한국",),
    6: ("byte zero", "half", "part hit"),
    7: ("NOT", "wordless AND", "NEAR OR"),
    8: ("สวัสดี",),
}
NOTHING = (
    *("", " ", "*", '"', "'", "\0", "\ud83d", "()", "-", "с:", "{text}:", "程编", "привет python", "ивет"),
    *("🎉", "a" * 5000, "text:привет:x", "'; DROP TABLE words;--", "%", "\x02", "\x1f"),
)


@pytest.fixture(scope="module")
def sayings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HistoryIndex]:
    index = HistoryIndex(tmp_path_factory.mktemp("sayings") / "history.sqlite3")
    index.put(told("s", *((number, text) for number, text in enumerate(SAID))), (1, 1))
    yield index
    index.close()


@pytest.mark.parametrize(
    ("place", "query"), [(place, query) for place in QUERIES for query in QUERIES[place]]
)
def test_a_search_finds(sayings: HistoryIndex, place: int, query: str) -> None:
    assert search(sayings, query) == [f"s{place}"]


@pytest.mark.parametrize("query", NOTHING)
def test_a_search_finds_nothing_and_breaks_nothing(sayings: HistoryIndex, query: str) -> None:
    assert search(sayings, query) == []


@pytest.mark.timeout(60)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=())))
def test_any_text_may_be_kept_and_asked_for(index: HistoryIndex, text: str) -> None:
    index.put(told("a", (1, text)), (1, 1))
    assert search(index, f"{text} ") in ([], ["a0"])
    assert search(index, text) in ([], ["a0"])
    if any(c.isalnum() for c in text):
        assert search(index, text) == search(index, f"{text} ") == ["a0"]


def test_only_the_last_word_may_be_a_beginning_of_two_letters(index: HistoryIndex) -> None:
    index.put(told("a", (1, "alpha beta"), (2, "a b")), (1, 1))
    assert search(index, "beta alp") == ["a0"]
    assert search(index, "alp beta") == []
    assert search(index, "alp ") == search(index, "alp,") == [], "the word is at its end"
    assert search(index, "a") == ["a1"]


def test_the_newest_messages_come_first_page_by_page(index: HistoryIndex) -> None:
    moments = [5, 3, 9, 3, 1_700_000_000_000, 1_600_000_000, -4, 10**400]
    index.put(told("b", *((moment, "word") for moment in moments[4:])), (1, 1))
    index.put(told("a", *((moment, "word") for moment in moments[:4])), (1, 1))
    newest = ["b3", "b0", "b1", "a2", "a0", "a3", "a1", "b2"]
    assert search(index, "word") == newest
    assert search(index, "word", limit=3, offset=2) == newest[2:5]
    assert search(index, "word", limit=0) == search(index, "word", limit=-1) == []
    assert search(index, "word", limit=10**30, offset=10**30) == []


def test_a_changed_message_is_found_by_its_new_words_alone(index: HistoryIndex) -> None:
    index.put(told("a", (1, "first"), (2, "second")), (1, 1))
    index.put(told("a", (1, "first"), (2, "other")), (2, 2))
    assert (search(index, "second"), search(index, "other"), search(index, "first")) == ([], ["a1"], ["a0"])
    index.drop("a")
    assert (search(index, "first"), index.stamps()) == ([], {})


def test_other_branches_are_found_and_not_counted(index: HistoryIndex) -> None:
    made = chat("a", "question", "old answer")
    made, asked = made.asked_again()
    made = made.answered(Entry("new", asked.id, "assistant", "new answer", 7))
    index.put(made, (1, 1))
    assert search(index, "old") == ["a-0a"]
    (row,) = index.rows(index.stamps(), None)
    assert (row.message_count, row.user_message_count) == (2, 1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a needle here", "a needle here"),
        ("a\n\n needle\t\there", "a needle here"),
        ("needle " + "x" * 500, "needle " + "x" * (SNIPPET - 7) + "…"),
        ("word " * 100 + "needle", "…" + "word " * 11 + "needle"),
        ("я" * 400 + " needle", "…" + "я" * 59 + " needle"),
        ("针" * 300 + " 好针 needle", "…" + "针" * 56 + " 好针 needle"),
    ],
)
def test_a_snippet_shows_the_first_hit(index: HistoryIndex, text: str, shown: str) -> None:
    index.put(told("a", (1, text)), (1, 1))
    (hit,) = index.search(index.stamps(), None, "needle", 1, 0)
    assert hit.snippet == shown
    assert len(hit.snippet) <= SNIPPET + 2


def test_owners_part_lists_and_searches(index: HistoryIndex) -> None:
    for owner in ("", "key_a", 'o" OR "x', "\ud800"):
        index.put(told(f"c{len(owner)}", (1, "word"), owner=owner), (1, 1))
    view = index.stamps()
    for owners in ({""}, {"key_a", ""}, {'o" OR "x'}, {"\ud800"}, {"none"}, set[str]()):
        wanted = {f"c{len(owner)}" for owner in owners - {"none"}}
        assert {row.id for row in index.rows(view, frozenset(owners))} == wanted
        assert {hit.chat_id for hit in index.search(view, frozenset(owners), "word", 9, 0)} == wanted


def test_the_rows_of_one_chat_are_found_without_reading_the_others(
    index: HistoryIndex, tmp_path: Path
) -> None:
    index.put(told("a", (1, "x")), (1, 1))
    index.close()
    asked = (
        "SELECT number, entry, digest FROM messages WHERE chat = 1",
        "DELETE FROM words WHERE rowid = 1",
        "SELECT ifnull(max(number), -1) FROM messages WHERE number < 9",
        "SELECT id FROM chats WHERE NOT worded ORDER BY created LIMIT 9",
        "SELECT id FROM chats WHERE readable ORDER BY created DESC, number DESC",
    )
    with sqlite3.connect(tmp_path / "session" / "history.sqlite3") as db:
        for statement in asked:
            plan = " ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}"))
            assert "INDEX" in plan or "PRIMARY KEY" in plan, plan
            assert "TEMP B-TREE" not in plan
    db.close()


def test_what_was_seen_before_a_newer_write_does_not_undo_it(index: HistoryIndex) -> None:
    view = index.stamps()
    late = Seen("a", (1, 1), told("a", (1, "old")), None)
    index.put(told("a", (1, "new")), (2, 2))
    index.take(view, [late], words=True)
    assert (search(index, "old"), search(index, "new"), view["a"]) == ([], ["a0"], (2, 2))


# ---- the file ----


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    history = History(tmp_path / "session", HandClock())
    history.add(chat("one", "word", "answer"))
    history.add(chat("two", "word", created=2000))
    yield history
    history.close()


def _whole(history: History) -> bool:
    return (listed(history), found(history, "word")) == (["two", "one"], ["two-0", "one-0"])


def test_it_is_private(history: History, tmp_path: Path) -> None:
    assert _whole(history)
    files = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "session").glob("*sqlite3*")
    }
    assert files == {"history.sqlite3": 0o600, "history.sqlite3-wal": 0o600}
    history.close()
    (tmp_path / "session" / "history.sqlite3").chmod(0o644)
    assert _whole(history)
    assert stat.S_IMODE((tmp_path / "session" / "history.sqlite3").stat().st_mode) == 0o600


def _replace(path: Path) -> None:
    path.with_name("other").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    path.with_name("other").replace(path)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _other_version(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()


def _other_tables(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE messages")
    db.close()


def _hurt_words(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE words_data SET block = x'ffffffffffffffffffffffff'")
    db.close()


SPOILED: list[Callable[[Path], object]] = [
    Path.unlink,
    _replace,
    _truncate,
    _other_version,
    _other_tables,
    _hurt_words,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"\0" * 50_000),
    lambda path: path.write_bytes(b"garbage" * 5_000),
]


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_damaged_index_is_made_anew(
    history: History, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    assert _whole(history)
    history.close()
    spoil(tmp_path / "session" / "history.sqlite3")
    assert _whole(history)
    history.close()
    assert _whole(history)


@pytest.mark.parametrize("spoil", [SPOILED[0], SPOILED[1], *SPOILED[6:]])
@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_also_while_it_is_in_use(
    history: History, tmp_path: Path, spoil: Callable[[Path], object], suffix: str
) -> None:
    assert _whole(history)
    spoil(tmp_path / "session" / f"history.sqlite3{suffix}")
    history.add(chat("three", "word", created=3000))
    for word in ("further", "later"):
        assert listed(history) == ["three", "two", "one"]
        assert found(history, "word") == ["three-0", "two-0", "one-0"]
        history.change("one", ANYBODY, partial(turn, entry_id=word, question=word, answer="answer"))
        assert found(history, word) == [word]
        history.close()


def _link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("plant", [_link, Path.mkdir, os.mkfifo])
@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_what_stands_in_its_place_is_left_alone(
    tmp_path: Path, plant: Callable[[Path], None], suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    session = tmp_path / "session"
    session.mkdir()
    plant(session / f"history.sqlite3{suffix}")
    history = History(session, HandClock())
    history.add(chat("one", "word"))
    history.add(chat("two", "word", created=2000))
    assert _whole(history)
    history.remove("two", ANYBODY)
    assert (listed(history), found(history, "word")) == (["one"], ["one-0"])
    assert not (session / "elsewhere").exists()
    assert sum("cannot be kept" in record.getMessage() for record in caplog.records) == 1
    assert str(tmp_path) not in caplog.text
    history.close()


def test_one_that_is_damaged_again_and_again_is_given_up(
    history: History, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(MENDED_AT_MOST + 2):
        assert _whole(history)
        history.close()
        (tmp_path / "session" / "history.sqlite3").write_bytes(b"garbage" * 1000)
    assert _whole(history)
    assert sum("cannot be kept" in record.getMessage() for record in caplog.records) == 1


def test_a_second_program_does_not_wait_for_the_first(history: History, tmp_path: Path) -> None:
    assert _whole(history)
    other = History(tmp_path / "session", HandClock())
    assert _whole(other)
    other.close()
    assert _whole(history)


def test_a_lost_index_is_told(index: HistoryIndex, tmp_path: Path) -> None:
    view = index.stamps()
    (tmp_path / "session" / "history.sqlite3").unlink()
    with pytest.raises(IndexLost):
        index.rows(view, None)
    with pytest.raises(IndexLost):
        index.take(view, [], words=False)
    assert index.rows(index.stamps(), None) == ()
