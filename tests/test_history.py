"""Chats on the disk: files that are the truth, an index that follows them whatever becomes of either."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from qwenproxy import store
from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.chat import UpstreamChat
from qwenproxy.errors import ChatDamaged, StoreError, UnknownChat
from qwenproxy.history import History, fit_for_id
from qwenproxy.transcript import Entry, Transcript
from tests.bench import many_chats

ALICE = Caller("key_a", "alice", frozenset({"chat"}))
BOB = Caller("key_b", "bob", frozenset({"chat"}))
OWNER = Caller("key_o", "owner", frozenset({"chat", "accounts"}))


class HandClock:
    def __init__(self) -> None:
        self.s = 0.0

    def now(self) -> datetime:
        return datetime(2026, 10, 2, 12, tzinfo=UTC)

    def monotonic_s(self) -> float:
        return self.s


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def session(tmp_path: Path) -> Path:
    return tmp_path / "session"


@pytest.fixture
def history(session: Path, clock: HandClock) -> Iterator[History]:
    history = History(session, clock)
    yield history
    history.close()


def chat(chat_id: str, *texts: str, created: int = 1000, owner: str = "") -> Transcript:
    made = Transcript(chat_id, f"Name of {chat_id}", created, owner=owner)
    for number in range(0, len(texts), 2):
        made = turn(made, f"{chat_id}-{number}", *texts[number : number + 2])
    return made


def turn(made: Transcript, entry_id: str, question: str, answer: str = "") -> Transcript:
    made, asked = made.asked(question, parent_id="", new_id=entry_id, timestamp=made.created // 1000)
    if not answer:
        return made
    return made.answered(Entry(f"{entry_id}a", asked.id, "assistant", answer, made.created // 1000 + 1))


def renamed(name: str) -> Callable[[Transcript], Transcript]:
    return lambda found: replace(found, name=name)


def found(history: History, query: str, caller: Caller = ANYBODY) -> list[str]:
    return [hit.message_id for hit in history.search(caller, query, limit=100)]


def listed(history: History, caller: Caller = ANYBODY) -> list[str]:
    return [row.id for row in history.rows(caller)]


def by_hand(session: Path, chat_id: str, value: Any) -> Path:
    path = session / "history" / f"{chat_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def seed_chat(*texts: str, **more: Any) -> dict[str, Any]:
    said = [
        {
            "id": f"m{place}",
            "role": ("user", "assistant")[place % 2],
            "content": text,
            "timestamp": 50 + place,
        }
        for place, text in enumerate(texts)
    ]
    return {"name": "By hand", "created": 50_000, "messages": said, **more}


# ---- one chat ----


def test_a_chat_comes_back_from_its_file_as_it_was_given(history: History, session: Path) -> None:
    made = replace(
        chat("one", 'what is "this"?', "\ud83d half 🎉 你好 \0 Привет"),
        name="'\"; DROP TABLE chats; -- 🎉\ud800",
        twin=UpstreamChat("up", "acc"),
    )
    history.add(made)
    assert history.read("one", ANYBODY).to_json() == made.to_json()
    (row,) = history.rows(ANYBODY)
    assert (row.id, row.name, row.created, row.updated) == ("one", made.name, 1000, 2000)
    assert (row.message_count, row.user_message_count) == (2, 1)
    assert history.twins() == {UpstreamChat("up", "acc")}
    assert history.remove("one", ANYBODY).to_json() == made.to_json()
    assert (listed(history), found(history, "what"), history.twins()) == ([], [], frozenset())
    with pytest.raises(UnknownChat):
        history.read("one", ANYBODY)
    assert list((session / "history").iterdir()) == []


def test_a_changed_chat_is_stored_and_an_unchanged_one_is_not_touched(
    history: History, session: Path
) -> None:
    history.add(chat("one", "q", "a"))
    before = (session / "history" / "one.json").stat()
    same = history.change("one", ANYBODY, lambda made: made)
    assert (session / "history" / "one.json").stat() == before
    assert history.change("one", ANYBODY, lambda made: turn(made, "next", "more")) != same
    assert [entry.text for entry in history.read("one", ANYBODY).branch()] == ["q", "a", "more"]
    assert history.rows(ANYBODY)[0].message_count == 3


def test_a_change_that_fails_changes_nothing(history: History, session: Path) -> None:
    history.add(chat("one", "q", "a"))

    def fails(made: Transcript) -> Transcript:
        made.entry("none such")
        raise AssertionError

    with pytest.raises(UnknownChat, match="no such message"):
        history.change("one", ANYBODY, fails)
    history.change("one", ANYBODY, renamed("still free"))
    assert history.read("one", ANYBODY).name == "still free"


def test_there_is_one_chat_of_an_id(history: History) -> None:
    history.add(chat("one", "the first"))
    with pytest.raises(StoreError):
        history.add(chat("one", "the second"))
    assert found(history, "first") == ["one-0"]


ODD_IDS = (
    *(
        "",
        ".",
        "..",
        "../tokens",
        "a/b",
        "a\\b",
        "a.json",
        "%2e%2e",
        "-a",
        "_a",
        "a b",
        "a\n",
        "a\0",
        "é",
        "１",
    ),
    *("a" * 101, "con", "NUL", "Com1", "lpt9", "c:", "~", "\ud800"),
)


@pytest.mark.parametrize("chat_id", ODD_IDS)
def test_what_is_no_id_is_no_chat(history: History, session: Path, chat_id: str) -> None:
    session.mkdir()
    (session / "tokens.json").write_text(json.dumps(seed_chat("secret")))
    assert not fit_for_id(chat_id)
    for ask in (history.read, history.remove):
        with pytest.raises(UnknownChat):
            ask(chat_id, ANYBODY)
    with pytest.raises(UnknownChat):
        history.change(chat_id, ANYBODY, renamed("x"))
    with pytest.raises(StoreError):
        history.add(Transcript(chat_id, "n", 1))
    assert list(session.iterdir()) == [session / "tokens.json"]


def test_ids_that_others_gave_are_taken() -> None:
    assert all(
        map(fit_for_id, ["b7f0c5a8-92ab-4c11-8f5c-1f2b3c4d5e6f", "1", "chat_17", "console", "a" * 100])
    )


def test_what_another_key_made_does_not_exist(history: History) -> None:
    for made in (chat("a", "word of alice", owner="key_a"), chat("b", "word of bob", owner="key_b")):
        history.add(made)
    history.add(chat("n", "word of nobody"))
    seen = {
        caller: (sorted(listed(history, caller)), found(history, "word", caller)) for caller in (ALICE, OWNER)
    }
    assert seen[ALICE] == (["a"], ["a-0"])
    assert seen[OWNER] == (["n"], ["n-0"])
    assert sorted(listed(history)) == ["a", "b", "n"]
    for ask in (history.read, history.remove):
        with pytest.raises(UnknownChat):
            ask("b", ALICE)
    with pytest.raises(UnknownChat):
        history.change("n", BOB, renamed("mine"))
    assert history.read("n", OWNER).name == "Name of n"


def test_a_damaged_chat_does_not_exist_for_another_key_either(history: History, session: Path) -> None:
    history.add(chat("a", "q", owner="key_a"))
    by_hand(session, "a", "{")
    with pytest.raises(ChatDamaged):
        history.read("a", ALICE)
    with pytest.raises(UnknownChat):
        history.read("a", BOB)


# ---- files that somebody else writes ----


def test_a_folder_of_the_older_proxy_is_there_at_once_and_so_are_its_later_changes(
    history: History, session: Path, clock: HandClock
) -> None:
    by_hand(session, "old", seed_chat("How do I sort a list?", "With sorted()."))
    by_hand(session, "older", seed_chat("a bare array")["messages"])
    by_hand(session, "not an id", seed_chat("x"))
    (session / "history" / "notes.txt").write_text("mine")
    rows = {row.id: row for row in history.rows(ANYBODY)}
    assert set(rows) == {"old", "older"}
    assert (rows["old"].name, rows["old"].created, rows["old"].updated) == ("By hand", 50_000, 51_000)
    assert found(history, "sorted") == ["m1"]

    by_hand(session, "old", seed_chat("other words", "now")).touch()
    (session / "history" / "older.json").unlink()
    by_hand(session, "newer", seed_chat("other words too"))
    clock.s += 0.5
    assert sorted(listed(history)) == ["old", "older"], "the folder is looked at once a second"
    clock.s += 0.6
    assert sorted(listed(history)) == ["newer", "old"]
    assert found(history, "sorted") == []
    assert sorted(found(history, "other words")) == ["m0", "m0"]


def test_a_file_that_keeps_its_time_and_size_for_a_moment_is_seen_nevertheless(
    history: History, session: Path, clock: HandClock
) -> None:
    path = by_hand(session, "one", seed_chat("before"))
    path.touch()
    same = path.stat()
    assert listed(history) == ["one"]
    path.write_text(json.dumps(seed_chat("behind")))
    os.utime(path, ns=(same.st_atime_ns, same.st_mtime_ns))
    assert path.stat().st_size == same.st_size
    clock.s += 2
    assert found(history, "behind") == ["m0"]


DAMAGED: list[Any] = ["", "null", "{", "7", '"text"', '{"messages": 3}', '{"messages": [{}]}', "[" * 100_000]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_chat_is_nobody_elses_trouble(
    history: History, session: Path, clock: HandClock, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    history.add(replace(chat("whole", "word"), twin=UpstreamChat("w", "acc")))
    history.add(replace(chat("hurt", "word"), twin=UpstreamChat("h", "acc")))
    path = by_hand(session, "hurt", text)
    for _ in range(3):
        clock.s += 2
        assert (listed(history), found(history, "word")) == (["whole"], ["whole-0"])
    assert history.twins() == {UpstreamChat("w", "acc"), UpstreamChat("h", "acc")}, "not to be tidied away"
    for ask in (history.read, history.remove):
        with pytest.raises(ChatDamaged):
            ask("hurt", ANYBODY)
    with pytest.raises(ChatDamaged):
        history.change("hurt", ANYBODY, renamed("x"))
    assert path.read_text() == text
    assert sum("hurt" in record.getMessage() for record in caplog.records) == 1
    assert str(session) not in caplog.text

    by_hand(session, "hurt", seed_chat("healed"))
    clock.s += 2
    assert found(history, "healed") == ["m0"]


def _link(path: Path) -> None:
    path.with_name("elsewhere").write_text(json.dumps(seed_chat("planted")))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("plant", [_link, Path.mkdir, os.mkfifo])
def test_what_is_no_plain_file_is_neither_followed_nor_waited_for(
    history: History, session: Path, clock: HandClock, plant: Callable[[Path], None]
) -> None:
    history.add(chat("whole", "word"))
    plant(session / "history" / "odd.json")
    clock.s += 2
    assert listed(history) == ["whole"]
    assert found(history, "planted") == []
    with pytest.raises(ChatDamaged):
        history.read("odd", ANYBODY)
    with pytest.raises(StoreError):
        history.add(chat("odd"))


def test_a_file_that_may_be_read_again_is_listed_again(
    history: History, session: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.add(chat("one", "word"))
    path = by_hand(session, "one", seed_chat("changed"))
    really = os.open

    def refuse(name: Any, *args: Any, **more: Any) -> int:
        if name == path:
            raise PermissionError(13, "Permission denied")
        return really(name, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        clock.s += 2
        assert listed(history) == []
    clock.s += 2
    assert (listed(history), found(history, "changed")) == (["one"], ["m0"])


def test_a_folder_that_is_none_is_told(history: History, session: Path) -> None:
    assert history.rows(ANYBODY) == ()
    (session / "history").write_text("a file")
    with pytest.raises(StoreError, match="cannot"):
        history.add(chat("one"))
    history.close()
    with pytest.raises(StoreError, match="folder of the chats"):
        History(session, HandClock()).rows(ANYBODY)


def test_the_session_folder_may_vanish_under_it(history: History, session: Path, clock: HandClock) -> None:
    history.add(chat("one", "word"))
    assert found(history, "word") == ["one-0"]
    shutil.rmtree(session)
    clock.s += 2
    assert (listed(history), found(history, "word")) == ([], [])
    history.add(chat("two", "word"))
    assert found(history, "word") == ["two-0"]


# ---- many at once ----


def test_turns_from_many_threads_are_all_kept(history: History, session: Path, clock: HandClock) -> None:
    """Beside them lists, searches and an index that is deleted again and again."""
    ids = ["one", "two", "three"]
    for chat_id in ids:
        history.add(chat(chat_id))
    done = threading.Event()

    def write(number: int) -> None:
        def note(made: Transcript) -> Transcript:
            more = {**made.more, f"n{number}": number}
            return turn(replace(made, more=more), f"e{number}", f"question {number}", "answer")

        history.change(ids[number % 3], ANYBODY, note)

    def ask() -> None:
        while not done.is_set():
            clock.s += 0.3
            assert sorted(listed(history)) == sorted(ids)
            found(history, "answer")

    def spoil() -> None:
        while not done.wait(0.2):
            (session / "history.sqlite3").unlink(missing_ok=True)

    with ThreadPoolExecutor(12) as threads:
        others = [threads.submit(other) for other in (ask, ask, spoil)]
        list(threads.map(write, range(60)))
        done.set()
        assert [other.result() for other in others] == [None] * 3
    for place, chat_id in enumerate(ids):
        kept = history.read(chat_id, ANYBODY)
        assert {int(name[1:]) for name in kept.more} == set(range(place, 60, 3))
        assert len(kept.branch()) == 40
    assert len(history.search(ANYBODY, "answer", limit=100)) == 60
    assert {row.message_count for row in history.rows(ANYBODY)} == {40}


def test_a_chat_deleted_under_a_change_stays_deleted(history: History) -> None:
    history.add(chat("one", "q"))
    inside = threading.Event()

    def slow(made: Transcript) -> Transcript:
        inside.set()
        gone.wait(0.1)
        return replace(made, name="late")

    gone = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        changing = threads.submit(history.change, "one", ANYBODY, slow)
        assert inside.wait(5)
        removing = threads.submit(history.remove, "one", ANYBODY)
        assert changing.result().name == "late"
        assert removing.result().name == "late"
    assert listed(history) == []
    with pytest.raises(UnknownChat):
        history.change("one", ANYBODY, slow)


WRITER = """
import sys
from pathlib import Path
from qwenproxy.caller import ANYBODY
from qwenproxy.clock import SystemClock
from qwenproxy.history import History
from qwenproxy.transcript import Entry, Transcript

history = History(Path(sys.argv[1]), SystemClock())
for number in range(int(sys.argv[2]), 10**6):
    chat = Transcript(f"c{number}", "n", number)
    chat, question = chat.asked(f"word{number}", parent_id="", new_id=f"q{number}", timestamp=number)
    history.add(chat)
    answer = Entry("a", question.id, "assistant", "yes", number)
    history.change(chat.id, ANYBODY, lambda chat: chat.answered(answer))
    if number % 3 == 0:
        history.remove(chat.id, ANYBODY)
    print(number, flush=True)
"""


@pytest.mark.timeout(60)
def test_what_was_acknowledged_before_a_kill_is_there_and_found(session: Path, clock: HandClock) -> None:
    last = -1
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(session), str(last + 1)]
        root = Path(__file__).parent.parent
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as writer:
            assert writer.stdout is not None
            for _ in range(random.randint(1, 8)):
                last = int(writer.stdout.readline())
            writer.kill()
            last = max([last, *map(int, writer.stdout.read().split())])
        history = History(session, clock)
        ids = set(listed(history))
        whole = {f"c{number}" for number in range(last + 1) if number % 3}
        assert ids - {f"c{last + 1}"} == whole
        for chat_id in whole:
            assert found(history, f"word{chat_id[1:]} ") == [f"q{chat_id[1:]}"]
        assert {row.message_count for row in history.rows(ANYBODY) if row.id in whole} <= {2}
        history.close()
        unfinished = session / "history" / f"c{last + 1}.json"
        unfinished.unlink(missing_ok=True)


# ---- how fast ----


def test_many_chats_are_listed_and_searched_as_a_plain_reading_would(tmp_path: Path) -> None:
    """The benchmark's own check that both answer the same, on few."""
    rows = many_chats.compare(tmp_path / "session", chats=60, messages=10, times=2)
    assert {row.what for row in rows} >= {"list", "a turn added, ours synced"}


def test_the_first_look_at_many_chats_keeps_memory_flat(
    history: History, session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9 MB of files; never are more than a few of them in memory."""
    monkeypatch.setattr(store, "LARGEST_BYTES", 1 << 20)  # so much room is asked for before a file is read
    for number in range(30):
        by_hand(session, f"c{number}", seed_chat(*("lorem ipsum dolor " * 2_000 for _ in range(8))))
    tracemalloc.start()
    try:
        assert len(history.rows(ANYBODY)) == 30
        assert len(found(history, "ipsum")) == 100
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
