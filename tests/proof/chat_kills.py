"""The proxy killed at random points of conversations: whatever was answered is there afterwards, once.

Some clients talk, each in a chat of its own; at a random moment the proxy's process group gets SIGKILL. Then
every file of a chat is whole; after a restart on the same folder every answer that a client has had whole
stands in its chat exactly once, in order, so does every change it was told was made, and the list agrees. A
question that got no answer stands there at most once, and asking it again does not change that.

.venv/bin/python -m tests.proof.chat_kills [--kills 200] [--seed 1]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil

from tests.proof.conversation import Answer, asked
from tests.serve import (
    Proxy,
    Standin,
    clean_environment,
    free_port,
    proxy_variables,
    running_standin,
    until,
    write_session,
)

PEOPLE = ("one@example.com",)
TALKS = 3
ANSWERS = 4
"""The kill comes after fewer answers than these,"""
LONGEST_S = 0.7
"""and at most so long after the last of them."""
TURNS_OF_A_CHAT = 25
"""After so many a talk begins a new chat: the model is told at most 100 messages."""
GONE_S = 10.0
"""By then everything that a killed proxy had started has ended by itself."""

Row = dict[str, Any]


@dataclass
class Turn:
    question: str
    answer: str = ""
    """As the client had it whole; "" when it had not."""
    id: str = ""
    meant: str = ""
    """What the question was to become when the kill came."""


@dataclass
class Talk:
    """One client, its chat, and what it was told is done."""

    number: int
    dice: random.Random
    chat_id: str = ""
    turns: list[Turn] = field(default_factory=list)
    asked: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def go_on(self, base: str, killed: threading.Event) -> None:
        """Talks until the proxy is gone."""
        with httpx.Client(base_url=base, timeout=60) as http:
            try:
                while True:
                    self.one_turn(http)
            except (httpx.TransportError, json.JSONDecodeError):
                until(killed.is_set)

    def one_turn(self, http: httpx.Client) -> None:
        if not self.chat_id or len(self.turns) >= TURNS_OF_A_CHAT:
            made = http.post("/api/chats", json={"name": f"talk {self.number}"})
            assert made.status_code == 200, made.text
            self.chat_id, self.turns = made.json()["chatId"], []
        if self.turns and self.dice.random() < 0.2:
            self.edit(http, self.turns[-1])
        self.turns.append(Turn(self.question()))
        self.ask(http, self.turns[-1])

    def question(self) -> str:
        self.asked += 1
        words = " ".join(["word"] * self.dice.randrange(1, 60))
        answer = f"answer {self.number}.{self.asked} {words}"
        return f'{{{{standin: say text="{answer}" rate=400}}}} question {self.number}.{self.asked}'

    def ask(self, http: httpx.Client, turn: Turn) -> None:
        body = {"message": turn.question, "chatId": self.chat_id, "stream": self.dice.random() < 0.5}
        before = self.turns[self.turns.index(turn) - 1] if len(self.turns) > 1 else None
        if before is not None and self.dice.random() < 0.7:
            body["parentId"] = before.id
        self.take(turn, asked(http, "/api/chat", body))

    def take(self, turn: Turn, answer: Answer) -> None:
        if answer.whole:
            turn.answer, turn.id = answer.text, answer.told["parentId"]
            self.counts["answered"] += 1
        else:
            self.counts[f"refused {answer.code}"] += 1
            raise httpx.ReadError(answer.code)

    def edit(self, http: httpx.Client, turn: Turn) -> None:
        rows = rows_of(http, self.chat_id)
        (row,) = [row for row in rows if row["content"] == turn.question]
        turn.meant = f"{turn.question} (changed {self.asked})"
        path = f"/api/chats/{self.chat_id}/messages/{row['id']}"
        answer = http.put(path, json={"content": turn.meant})
        assert answer.status_code == 200, answer.text
        turn.question, turn.meant = turn.meant, ""
        self.counts["changed"] += 1

    # ---- after the kill ----

    def judged(self, rows: Sequence[Row]) -> list[str]:
        """What is wrong with the chat as it is stored; afterwards its last turn is open, or done."""
        wrong = []
        if self.turns and self.turns[-1].meant:
            turn = self.turns[-1]
            if any(row["content"] == turn.meant for row in rows):
                turn.question = turn.meant
            turn.meant = ""
        questions = Counter(row["content"] for row in rows if row["role"] == "user")
        if twice := [question for question, times in questions.items() if times > 1]:
            wrong.append(f"asked twice: {twice}")
        done = [turn for turn in self.turns if turn.answer]
        branch = [(row["role"], row["content"]) for row in rows if row["current"]]
        expected = [said for turn in done for said in (("user", turn.question), ("assistant", turn.answer))]
        if branch[: len(expected)] != expected:
            wrong.append(f"of {len(done)} answered turns the chat has {branch[-4:]}")
        whole = Counter(row["content"] for row in rows if row["role"] == "assistant" and not row["partial"])
        if lost := [turn.answer for turn in done if whole[turn.answer] != 1]:
            wrong.append(f"not there once: {lost}")
        rest = rows[len(expected) :] if not wrong else []
        known = {turn.question for turn in self.turns}
        if any(row["role"] == "user" and row["content"] not in known for row in rest):
            wrong.append(f"nobody asked {rest}")
        return [f"talk {self.number}, {self.chat_id}: {each}" for each in wrong]

    def again(self, http: httpx.Client, rows: Sequence[Row]) -> None:
        """Asks anew what got no answer; where its answer is there whole, the client takes that."""
        if not self.turns or self.turns[-1].answer:
            return
        turn = self.turns[-1]
        question = next((row for row in rows if row["content"] == turn.question), None)
        answers = [row for row in rows if question and row["parentId"] == question["id"]]
        state = "not there" if question is None else "open" if not answers else "partial"
        whole = [row for row in answers if not row["partial"]]
        self.counts[f"killed with the question {'answered' if whole else state}"] += 1
        if whole and (len(self.turns) == 1 or self.dice.random() < 0.5):
            turn.answer, turn.id = whole[-1]["content"], whole[-1]["id"]
            return
        body = {"message": turn.question, "chatId": self.chat_id}
        if len(self.turns) > 1 and (whole or self.dice.random() < 0.5):
            body["parentId"] = self.turns[-2].id
        answer = asked(http, "/api/chat", body)
        assert answer.whole, f"asked again, it was refused: {answer}"
        turn.answer, turn.id = answer.text, answer.told["parentId"]
        if whole:
            self.counts["answered anew beside the answer that nobody had"] += 1
            turn.answer = ""  # two answers of the same words: which of them counts is not told apart
            self.turns.pop()
            self.chat_id = ""


def rows_of(http: httpx.Client, chat_id: str) -> list[Row]:
    """Every message that is kept, the current branch first."""
    answer = http.get(f"/api/chats/{chat_id}")
    assert answer.status_code == 200, answer.text
    history = answer.json()["history"]
    current = [{**row, "current": True} for row in history["messages"]]
    others = [{**row, "current": False} for row in history.get("branches", [])]
    return [{"partial": "", **row} for row in (*current, *others)]


@dataclass
class Proof:
    kills: int = 0
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    starts_s: list[float] = field(default_factory=list)

    def told(self) -> str:
        return "\n".join(
            [
                f"{self.kills} kills under {TALKS} conversations at once; wrong: {len(self.wrong)}",
                *(f"{times:6} {name}" for name, times in sorted(self.counts.items())),
                f"from a kill to ready again: {sum(self.starts_s) / max(len(self.starts_s), 1):.1f} s",
            ]
        )


def start(folder: Path, standin: Standin) -> Proxy:
    """A proxy in a process group of its own, as a terminal would start it, once it is ready."""
    port = free_port()
    env = proxy_variables(folder, standin, port=port, stay_up=1, slots_per_account=TALKS)
    command = [sys.executable, "-m", "qwenproxy", "serve"]
    started = subprocess.Popen(
        command,
        cwd=folder,
        env=clean_environment(env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    proxy = Proxy(port, started)
    try:
        until(lambda: started.poll() is not None or _ready(proxy), 60)
        assert started.poll() is None, "the proxy did not start again"
    except BaseException:
        if started.poll() is None:
            kill(proxy)
        raise
    return proxy


def _ready(proxy: Proxy) -> bool:
    try:
        return httpx.get(f"{proxy.base}/ready").status_code == 200
    except httpx.TransportError:
        return False


def kill(proxy: Proxy) -> int:
    """Kills the group at once; how many of the others that it had started outlived it for long."""
    others = psutil.Process(proxy.pid).children(recursive=True)
    os.killpg(proxy.pid, signal.SIGKILL)
    proxy.process.wait()
    _, left = psutil.wait_procs(others, GONE_S)
    for each in left:
        each.kill()
    return len(left)


def prove(folder: Path, standin: Standin, kills: int, seed: int) -> Proof:
    proof, dice = Proof(), random.Random(seed)
    talks = [Talk(number, random.Random(seed * 100 + number)) for number in range(TALKS)]
    write_session(folder / "session", standin, PEOPLE)
    proxy = start(folder, standin)
    try:
        while proof.kills < kills:
            killed = threading.Event()
            with ThreadPoolExecutor(TALKS) as pool:
                running = [pool.submit(talk.go_on, proxy.base, killed) for talk in talks]
                until(partial(answered, talks, answers(talks) + dice.randrange(ANSWERS)))
                time.sleep(dice.uniform(0, LONGEST_S))
                proof.counts["processes left behind"] += kill(proxy)
                killed.set()
                for each in running:
                    each.result()
            proof.kills += 1
            proof.wrong += torn(folder / "session" / "history")
            began_s = time.monotonic()
            proxy = start(folder, standin)
            proof.starts_s.append(time.monotonic() - began_s)
            look(proxy, talks, proof)
            if proof.wrong:
                break
    finally:
        kill(proxy)
    for talk in talks:
        proof.counts += talk.counts
    return proof


def answers(talks: Sequence[Talk]) -> int:
    return sum(talk.counts["answered"] for talk in talks)


def answered(talks: Sequence[Talk], enough: int) -> bool:
    return answers(talks) >= enough


def look(proxy: Proxy, talks: Sequence[Talk], proof: Proof) -> None:
    with httpx.Client(base_url=proxy.base, timeout=60) as http:
        listed = {row["id"]: row["messageCount"] for row in http.get("/api/chats").json()["chats"]}
        for talk in talks:
            if not talk.chat_id:
                continue
            rows = rows_of(http, talk.chat_id)
            current = sum(row["current"] for row in rows)
            if listed.get(talk.chat_id) != current:
                proof.wrong.append(f"{talk.chat_id} has {current} messages; the list tells {listed}")
            if wrong := talk.judged(rows):
                proof.wrong += wrong
                continue
            talk.again(http, rows)
            if talk.chat_id:
                proof.wrong += talk.judged(rows_of(http, talk.chat_id))


def torn(history: Path) -> list[str]:
    """The chats' files that cannot be read as they lie there."""
    wrong = []
    for file in history.glob("*.json"):
        try:
            json.loads(file.read_bytes())
        except ValueError:
            wrong.append(f"{file.name} is torn")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    # Whoever ends the proof does not leave its proxy behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with TemporaryDirectory() as name, running_standin(Path(name)) as standin:
        proof = prove(Path(name), standin, arguments.kills, arguments.seed)
    print(proof.told())
    if proof.wrong:
        raise SystemExit("\n".join(proof.wrong))


if __name__ == "__main__":
    main()
