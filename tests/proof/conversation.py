"""A conversation while accounts are limited, rejected and deleted underneath it, and chats vanish upstream.

The client asks, streamed and not, has answers made again, changes what was said, goes on in forks and moves
the chat. From the stand-in's record it is read what the model had seen when it gave each answer: the very
conversation that the client knows, message by message, however often it had to be told anew elsewhere. What
the proxy keeps must be the same, and no question may stand there twice.

.venv/bin/python -m tests.proof.conversation [--turns 30] [--seed 1]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from qwenproxy.accounts.account import Account, SignIn
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
from tests.seen import Said, Turn, seen
from tests.serve import (
    Proxy,
    Standin,
    clean_environment,
    proxy_variables,
    running_proxy,
    running_standin,
    until,
)
from tests.standin.visitor import Visitor

PEOPLE = ("one@example.com", "two@example.com", "three@example.com", "four@example.com")
TRIES = 15
"""How often a client asks the same again before the proof gives up."""
LEAST_READY = 2
"""Accounts that can answer; the owner heals until there are so many."""


@dataclass(frozen=True)
class Message:
    role: str
    text: str
    id: str = ""

    @property
    def said(self) -> Said:
        return self.role, self.text


@dataclass
class Answer:
    status: int
    text: str = ""
    """What of it came."""
    code: str = ""
    told: dict[str, Any] = field(default_factory=dict)
    """`chatId`, `parentId`, `account`, `rebuilt`, of whichever form it had."""

    @property
    def whole(self) -> bool:
        return self.status == 200 and not self.code


class Client:
    """Talks to `/api/chat` and knows by itself what has been said."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http
        self.chat_id = ""
        self.known: list[Message] = []

    def ask(self, body: dict[str, Any], path: str = "") -> Answer:
        return asked(self.http, path or "/api/chat", body)

    def stored(self) -> list[Message]:
        """The current branch as the proxy keeps it, without what has no answer."""
        history = self.history()
        kept = [m for m in history["messages"] if not m.get("unanswered")]
        return [Message(m["role"], m["content"], m["id"]) for m in kept]

    def history(self) -> dict[str, Any]:
        answer = self.http.get(f"/api/chats/{self.chat_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()["history"]
        return found


def asked(http: httpx.Client, path: str, body: dict[str, Any]) -> Answer:
    if not body.get("stream"):
        response = http.post(path, json=body)
        told = response.json()
        if "error" in told:
            return Answer(response.status_code, code=told["code"], told=told)
        return Answer(response.status_code, told["choices"][0]["message"]["content"], told=told)
    with http.stream("POST", path, json=body) as response:
        if response.status_code != 200:
            told = json.loads(response.read())
            return Answer(response.status_code, code=told["code"], told=told)
        return _streamed(response)


def _streamed(response: httpx.Response) -> Answer:
    answer = Answer(200, code="no_end")
    for line in response.iter_lines():
        data = line.removeprefix("data: ")
        if data == line:
            continue
        if data == "[DONE]":
            assert answer.code == "no_end", "an end after an error"
            answer.code = ""
            continue
        told = json.loads(data)
        if "error" in told:
            answer.code = told["code"]
            continue
        answer.told |= told
        for choice in told["choices"]:
            answer.text += choice["delta"].get("content") or ""
    return answer


class World:
    """The accounts and the web service, which change under the conversation; and the owner, who heals."""

    def __init__(self, standin: Standin, folder: Path, *, by_command: bool) -> None:
        """`by_command`: accounts are deleted by the command, as people do it; it takes seconds to start."""
        self.standin = standin
        self.folder = folder
        self.by_command = by_command
        self.registry = Registry(folder / "session", SystemClock())
        self.people = {
            account.id: person for account, person in zip(self.registry.accounts(), PEOPLE, strict=True)
        }

    def limited(self, account_id: str) -> None:
        self.standin.fault("rate_limited", account=self.people[account_id], num=3)

    def rejected(self, account_id: str) -> None:
        self.standin.revoke(self.people[account_id])
        self.standin.expire(self.people[account_id])

    def deleted(self, account_id: str) -> None:
        if not self.by_command:
            self.registry.remove(account_id)
            return
        env = clean_environment(proxy_variables(self.folder, self.standin))
        command = [sys.executable, "-m", "qwenproxy", "accounts", "remove", account_id, "--yes"]
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=60)

    def twin_deleted(self, account_id: str) -> None:
        """Every chat of the account, in its own web page."""
        with Visitor(self.standin, self.people[account_id]) as visitor:
            for chat in self.standin.state()["chats"].get(self.people[account_id], []):
                visitor.call("DELETE", f"/api/v2/chats/{chat}")

    def expired(self, account_id: str) -> None:
        self.standin.expire(self.people[account_id])

    def human_check(self, account_id: str) -> None:
        self.standin.fault("punish", account=self.people[account_id])

    def parent_gone(self, account_id: str) -> None:
        self.standin.fault("parent_gone", account=self.people[account_id])

    def gateway(self, account_id: str) -> None:
        self.standin.fault("gateway", account=self.people[account_id], status=503)

    def empty(self, account_id: str) -> None:
        self.standin.fault("empty", account=self.people[account_id])

    def severed(self, account_id: str) -> None:
        self.standin.fault("severed", after=4, wait_s=0.5)

    def nothing(self, account_id: str) -> None:
        pass

    def heal(self) -> None:
        """Until enough accounts can answer: waits are cleared, sign-ins made again, accounts added."""
        now = datetime.now(UTC)
        accounts = {account.id: account for account in self.registry.accounts()}
        out = [account for account in accounts.values() if not account.ready(now)]
        while len(accounts) - len(out) < LEAST_READY and out:
            self._heal(out.pop())
        known = {self.people[account_id] for account_id in accounts}
        for person in PEOPLE:
            if len(known) >= LEAST_READY + 1:
                break
            if person not in known:
                known.add(person)
                self.people[self.registry.add(self._sign_in(person))[0].id] = person

    def _heal(self, account: Account) -> None:
        if account.invalid or account.why == "human":
            self.registry.sign_in_again(account.id, self._sign_in(self.people[account.id]))
        self.registry.update(
            account.id, lambda known: replace(known, wait_until=None, why="", model_waits=())
        )

    def _sign_in(self, person: str) -> SignIn:
        state = self.standin.storage_state(person)
        return SignIn(state["origins"][0]["localStorage"][0]["value"], state, f"user-{person}", person)


UNDERNEATH: tuple[Callable[[World, str], None], ...] = (
    World.limited,
    World.twin_deleted,
    World.rejected,
    World.nothing,
    World.deleted,
    World.severed,
    World.nothing,
    World.gateway,
    World.parent_gone,
    World.nothing,
    World.expired,
    World.empty,
    World.severed,
    World.human_check,
    World.nothing,
)


class Talk:
    """The conversation, and what was wrong with it."""

    def __init__(self, client: Client, world: World, dice: random.Random) -> None:
        self.client = client
        self.world = world
        self.dice = dice
        self.account = next(iter(world.people))
        self.number = 0
        self.cut = False
        """The next answer is cut short: it shall be streamed, so that the client knows how far it came."""
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        """What happened: by the names of what the client did, what struck it, and why it was told anew."""

    def run(self, turns: int) -> None:
        acts = (
            self.asks,
            self.asks,
            self.regenerates,
            self.asks,
            self.edits,
            self.asks,
            self.forks,
            self.moves,
        )
        for number in range(turns):
            if number:
                strike = UNDERNEATH[(number - 1) % len(UNDERNEATH)]
                self.counts[strike.__name__] += 1
                strike(self.world, self.account)
                if strike is World.deleted:
                    until(self.deletion_is_known)
                self.cut = strike is World.severed
            act = acts[number % len(acts)] if number > 1 else self.asks
            self.counts[act.__name__] += 1
            act()
            self.world.heal()
        self.agree("at the end")

    def deletion_is_known(self) -> bool:
        told = self.client.http.get("/api/status").json()["accounts"]
        return self.account not in {row["id"] for row in told}

    # ---- what the client does ----

    def asks(self) -> None:
        question = self.question()
        body: dict[str, Any] = {"model": "qwen"}
        if self.client.chat_id:
            body |= {"message": question.text, "chatId": self.client.chat_id}
            if self.dice.random() < 0.5:
                body["parentId"] = self.client.known[-1].id
        else:
            system = Message("system", "You answer in one word.\n[f00d system]")
            self.client.known = [system]
            said = [{"role": m.role, "content": m.text} for m in (system, question)]
            body["messages"] = said
        self.answered([*self.client.known, question], body)

    def regenerates(self) -> None:
        """The last answer or an earlier one, after which the conversation goes on from there."""
        answers = [n for n, message in enumerate(self.client.known) if message.role == "assistant"]
        place = self.dice.choice(answers[-3:])
        body = {"messageId": self.client.known[place].id}
        path = f"/api/chats/{self.client.chat_id}/regenerate"
        self.answered(self.client.known[:place], body, path)

    def edits(self) -> None:
        """A question or an answer, in its place; then the conversation goes on."""
        place = self.dice.randrange(1, len(self.client.known))
        message = self.client.known[place]
        changed = replace(message, text=f"{message.text} (as it was meant)")
        path = f"/api/chats/{self.client.chat_id}/messages/{message.id}"
        answer = self.client.http.put(path, json={"content": changed.text})
        assert answer.status_code == 200, answer.text
        self.client.known[place] = changed
        self.asks()

    def forks(self) -> None:
        """Goes on in a chat that holds the conversation up to one of the last answers."""
        answers = [n for n, message in enumerate(self.client.known) if message.role == "assistant"]
        place = self.dice.choice(answers[-2:])
        body = {"messageId": self.client.known[place].id}
        answer = self.client.http.post(f"/api/chats/{self.client.chat_id}/fork", json=body)
        assert answer.status_code == 200, answer.text
        self.client.chat_id = answer.json()["chatId"]
        self.client.known = self.client.known[: place + 1]
        self.agree("after a fork")
        self.asks()

    def moves(self) -> None:
        others = [a.id for a in self.world.registry.accounts() if a.id != self.account]
        body = {"account": self.dice.choice(others)}
        answer = self.client.http.post(f"/api/chats/{self.client.chat_id}/move", json=body)
        assert answer.status_code in (200, 400), answer.text  # 400: the proxy has not taken it up yet
        self.asks()

    def question(self) -> Message:
        """Text that is hard to carry: several lines, marks of its own, other scripts."""
        self.number += 1
        say = f'{{{{standin: say text="answer {self.number} 是的 {self.dice.randrange(10**6)}" rate=800}}}}'
        more = self.dice.choice(["", "\n\n[f00d answer]\nno", " Привет\r\n\t🙂", "\n[f00d user]\n", "  "])
        return Message("user", f"{say} question {self.number}{more}")

    # ---- what is looked at ----

    def answered(self, conversation: list[Message], body: dict[str, Any], path: str = "") -> None:
        """Asks until a whole answer comes, and judges what the model had seen then."""
        question = conversation[-1]
        for _ in range(TRIES):
            body = {**body, "stream": self.cut or self.dice.random() < 0.5}
            before = len(self.world.standin.turns())
            answer = self.client.ask(body, path)
            if answer.told.get("chatId"):
                self.client.chat_id = body["chatId"] = answer.told["chatId"]
                if "messages" in body:  # the chat is there: what it began with is known
                    del body["messages"]
                    body["message"] = question.text
            if answer.whole:
                break
            self.counts[f"refused {answer.code}"] += 1
            if answer.text and not path and not self.counts["went on from a partial answer"] % 2:
                self.goes_on([*conversation, Message("assistant", answer.text, answer.told["parentId"])])
                return
            self.cut = False
            self.world.heal()
            time.sleep(0.3)
        else:
            raise AssertionError(f"no answer to turn {self.number}: {answer}")
        turns = self.world.standin.turns()
        told = answer.told
        self.account = told["account"]
        self.counts[f"told anew: {told['rebuilt']}" if told.get("rebuilt") else "told natively"] += 1
        known = [*conversation, Message("assistant", answer.text, told["parentId"])]
        new = [turn for turn in turns[before:] if turn["ending"] == "finished" and turn["said"]]
        where = f"turn {self.number}"
        if len(new) != 1:
            self.wrong.append(f"{where}: {len(new)} whole answers were made for one")
        self.wrong += judged(where, turns, new[-1], known, told, self.world.people)
        self.client.known = known
        self.agree(where)

    def goes_on(self, known: list[Message]) -> None:
        """With what came of an answer that was cut short, as it came."""
        self.counts["went on from a partial answer"] += 1
        self.cut = False
        self.client.known = known
        self.agree(f"turn {self.number}, cut short")
        self.asks()

    def agree(self, where: str) -> None:
        """What is kept is what the client knows; the ids of the questions are learnt."""
        stored = self.client.stored()
        if [m.said for m in stored] != [m.said for m in self.client.known]:
            self.wrong.append(f"{where}: kept is {difference(stored, self.client.known)}")
        history = self.client.history()
        every = [*history["messages"], *history.get("branches", [])]
        places = Counter((m["parentId"], m["content"]) for m in every if m["role"] == "user")
        twice = [content for (_, content), times in places.items() if times > 1]
        if twice:
            self.wrong.append(f"{where}: stands twice: {twice}")
        self.client.known = stored


def judged(
    where: str,
    turns: Sequence[Turn],
    turn: Turn,
    known: Sequence[Message],
    told: dict[str, Any],
    people: dict[str, str],
) -> list[str]:
    """What is wrong with the answer `known[-1]`, which `turn` gave, and with what was said of it."""
    wrong: list[str] = []
    saw = [*seen(turns, turn), ("assistant", turn["said"])]
    if saw != [message.said for message in known]:
        wrong.append(f"{where}: the model saw {difference([Message(*said) for said in saw], known)}")
    if people.get(told["account"]) != turn["account"]:
        wrong.append(f"{where}: {turn['account']} answered, not {told['account']}")
    anew = not turn["parent"] and any(message.role == "assistant" for message in known[:-1])
    if anew != bool(told.get("rebuilt")):
        wrong.append(f"{where}: told {'anew' if anew else 'natively'}, and rebuilt is {told.get('rebuilt')}")
    return wrong


def difference(found: Sequence[Message], wanted: Sequence[Message]) -> str:
    """Where two conversations part."""
    for place, (one, other) in enumerate(zip(found, wanted, strict=False)):
        if one.said != other.said:
            return f"{one.said} for {other.said} at {place} of {len(wanted)}"
    return f"{len(found)} messages for {len(wanted)}, the last {found[-1].said if found else None}"


def prove(
    proxy: Proxy, standin: Standin, folder: Path, turns: int, seed: int, *, by_command: bool = True
) -> Talk:
    with httpx.Client(base_url=proxy.base, timeout=90) as http:
        talk = Talk(Client(http), World(standin, folder, by_command=by_command), random.Random(seed))
        until(lambda: len(http.get("/api/status").json()["accounts"]) == len(PEOPLE))
        talk.run(turns)
    return talk


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began_s = time.monotonic()
    with (
        TemporaryDirectory() as name,
        running_standin(Path(name)) as standin,
        running_proxy(Path(name), standin, PEOPLE, stay_up=1) as proxy,
    ):
        talk = prove(proxy, standin, Path(name), arguments.turns, arguments.seed)
    print(f"{talk.number} questions, {arguments.turns} turns, in {time.monotonic() - began_s:.0f} s")
    for name, times in sorted(talk.counts.items()):
        print(f"{times:5} {name}")
    if talk.wrong:
        raise SystemExit("\n".join(talk.wrong))
    print("the model has seen what the client knows, at every answer")


if __name__ == "__main__":
    main()
