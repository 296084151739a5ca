"""Listing, searching and adding to many chats: ours, and a plain reading of the same files, in one run.

    .venv/bin/python -m tests.bench.many_chats [--chats 10000] [--messages 100] [--times 20]

The plain reading is what FreeQwenApi does: it reads every file for a list, would have to read every file for
a search (it has none), and reads and writes one file, unsynced, for a turn. Ours is asked as the server asks
it; its turns are synced to the disk. The answers of the two must be the same. The files are as FreeQwenApi
makes them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qwenproxy.caller import ANYBODY
from qwenproxy.clock import SystemClock
from qwenproxy.history import History
from qwenproxy.transcript import Entry, Transcript

LETTERS = "abcdefghijklmnoprstuvwyz"
WORDS_IN_A_MESSAGE = 50
COMMON, RARE = "common", "needleword"
FIRST_S = 1_700_000_000
PAGE = 20


@dataclass(frozen=True)
class Row:
    what: str
    ours_ms: tuple[float, ...]
    plain_ms: tuple[float, ...]


def make(folder: Path, chats: int, messages: int) -> None:
    """As FreeQwenApi writes them, words as often as in real text; `RARE` ends the middle chat."""
    chance = random.Random(4)
    vocabulary = ["".join(chance.choices(LETTERS, k=chance.randint(3, 10))) for _ in range(30_000)]
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(len(vocabulary))))
    texts = [
        " ".join([*chance.choices(vocabulary, cum_weights=weights, k=WORDS_IN_A_MESSAGE), COMMON])
        for _ in range(min(chats * messages, 20_000))
    ]
    folder.mkdir(parents=True)
    for number in range(chats):
        first_s = FIRST_S + number * messages * 10
        said = [
            {
                "id": f"{number}-{place}",
                "role": ("user", "assistant")[place % 2],
                "content": chance.choice(texts),
                "timestamp": first_s + place * 10,
                "chat_type": "t2t",
            }
            for place in range(messages)
        ]
        if number == chats // 2:
            said[-1]["content"] = f"{said[-1]['content']} {RARE}"
        value = {
            "id": f"chat-{number}",
            "name": f"Chat {number}",
            "created": first_s * 1000,
            "messages": said,
        }
        (folder / f"chat-{number}.json").write_text(json.dumps(value, indent=2, ensure_ascii=False))


class Plain:
    """Reads what it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _every(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in self._folder.glob("*.json")]

    def rows(self) -> list[tuple[str, int]]:
        found = sorted(self._every(), key=lambda chat: -chat["created"])
        return [(chat["id"], len(chat["messages"])) for chat in found]

    def search(self, *words: str) -> list[str]:
        hits = [
            message
            for chat in self._every()
            for message in chat["messages"]
            if all(f" {word}" in f" {message['content']} " for word in words)
        ]
        return [hit["id"] for hit in sorted(hits, key=lambda message: -message["timestamp"])[:PAGE]]

    def add(self, chat_id: str, number: int) -> None:
        path = self._folder / f"{chat_id}.json"
        chat = json.loads(path.read_text())
        for role in ("user", "assistant"):
            chat["messages"].append(
                {
                    "id": f"plain-{role}-{number}",
                    "role": role,
                    "content": f"{role} says {number}",
                    "timestamp": 1,
                }
            )
        path.write_text(json.dumps(chat, indent=2, ensure_ascii=False))


class SkippingClock(SystemClock):
    def __init__(self) -> None:
        self.skipped_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.skipped_s


class Ours:
    def __init__(self, session: Path) -> None:
        self.clock = SkippingClock()
        self.history = History(session, self.clock)

    def rows(self) -> list[tuple[str, int]]:
        return [(row.id, row.message_count) for row in self.history.rows(ANYBODY)]

    def search(self, *words: str) -> list[str]:
        return [hit.message_id for hit in self.history.search(ANYBODY, " ".join(words), limit=PAGE)]

    def add(self, chat_id: str, number: int) -> None:
        def turn(chat: Transcript) -> Transcript:
            asked, question = chat.asked(
                f"user says {number}", parent_id="", new_id=f"q-{number}", timestamp=2
            )
            return asked.answered(Entry(f"a-{number}", question.id, "assistant", f"says {number}", 2))

        self.history.change(chat_id, ANYBODY, turn)


def timed(action: Callable[[], object]) -> float:
    """Milliseconds."""
    began_s = time.perf_counter()
    action()
    return (time.perf_counter() - began_s) * 1000


def largest_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def both(what: str, ours: Callable[[], object], plain: Callable[[], object], times: int) -> Row:
    """Ours so many times, the plain reading once: it is the same each time. Both must answer the same."""
    said: list[object] = []
    plain_ms = timed(lambda: said.append(plain()))
    if [ours()] != said:
        raise SystemExit(f"{what}: the answers differ")
    return Row(what, tuple(timed(ours) for _ in range(times)), (plain_ms,))


def compare(session: Path, chats: int, messages: int, times: int) -> list[Row]:
    make(session / "history", chats, messages)
    plain, ours = Plain(session / "history"), Ours(session)
    listed_ms, worded_ms = timed(ours.rows), timed(lambda: ours.search(RARE))
    print(f"largest memory until the index was made: {largest_mib():.0f} MiB")
    rows = [
        Row("first list, no index yet", (listed_ms,), (timed(plain.rows),)),
        Row("first search, no index yet", (worded_ms,), ()),
        both("list", ours.rows, plain.rows, times),
    ]
    looked: list[float] = []
    for _ in range(times):
        ours.clock.skipped_s += 60  # the folder is looked at once a second
        looked.append(timed(ours.rows))
    rows.append(Row("list, folder looked at", tuple(looked), rows[-1].plain_ms))
    for what, words in (
        ("search: a word of one message", (RARE,)),
        ("search: a word of every message", (COMMON,)),
        ("search: two words, one in every message", (RARE, COMMON)),
        ("search: a beginning", (COMMON[:-1],)),
    ):
        rows.append(both(what, partial(ours.search, *words), partial(plain.search, *words), times))
    chance = random.Random(5)
    turns = [(f"chat-{chance.randrange(chats)}", number) for number in range(times)]
    mine = tuple(timed(partial(ours.add, *turn)) for turn in turns)
    theirs = tuple(timed(partial(plain.add, *turn)) for turn in turns)
    rows.append(Row("a turn added, ours synced", mine, theirs))
    listed: list[float] = []
    for chat_id, number in turns:
        ours.add(chat_id, times + number)
        listed.append(timed(ours.rows))
    rows.append(Row("list after a turn", tuple(listed), rows[2].plain_ms))
    if dict(ours.rows())[turns[0][0]] < messages + 2:
        raise SystemExit("the turn is not listed")
    ours.history.close()
    return rows


def report(rows: list[Row]) -> None:
    print("| | ours, median ms | slowest ms | plain reading ms | times faster |")
    print("|---|---|---|---|---|")
    for row in rows:
        ours = statistics.median(row.ours_ms)
        plain = statistics.median(row.plain_ms) if row.plain_ms else None
        told = ("", "") if plain is None else (f"{plain:.1f}", f"{plain / ours:.1f}")
        print(f"| {row.what} | {ours:.1f} | {max(row.ours_ms):.1f} | {told[0]} | {told[1]} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chats", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--times", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        session = Path(folder) / "session"
        report(compare(session, args.chats, args.messages, args.times))
        files = sum(path.stat().st_size for path in (session / "history").iterdir())
        index = sum(path.stat().st_size for path in session.glob("history.sqlite3*"))
        print(f"files {files / 1e6:.0f} MB, index {index / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
