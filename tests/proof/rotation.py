"""Three accounts, many requests at once, limits and rejections at random, an owner who heals what is out.

Every request must be answered with its own text or refused for a reason that was true, no account may be
called while it is out, and in the stand-in's records the token, the cookie and the chat of every call must be
one account's, and one sign-in's.

.venv/bin/python -m tests.proof.rotation [--count 200] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import httpx

from qwenproxy.accounts.account import Account, SignIn
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
from tests.serve import Proxy, Standin, running_proxy, running_standin

PEOPLE = ("one@example.com", "two@example.com", "three@example.com")
MODELS = ("qwen3.7-plus", "qwen3.7-max")
AT_ONCE = 9
"""Three accounts have six slots: the others queue."""

RETRIES = 3
"""After so many a request ends as it is, whatever else could be tried."""

LAG_S = 2.0
"""Until what a call met is learnt and on the disk, on a loaded machine."""

SOON_S = 0.5
"""Until what the proxy has learnt is told and noted here."""

HEALED_AFTER_S = (2.2, 3.0)
"""How long the owner leaves an account out."""

BREAKS = 0.12
"""How many of the requests find something broken as they start."""

BACK_OFF_S = (1.0, 3.0)
"""How long a client that was refused stays away; the owner heals sooner than `Retry-After` says."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What a fault of the stand-in does to whom it strikes."""

    name: str
    weight: int
    code: str
    """What a client reads when nothing else could be tried."""
    params: Mapping[str, Any] = field(default_factory=dict)
    on: tuple[str, ...] = ("completions",)
    rests_s: float = 0.0
    """Of the account; 0 when the account is not blamed."""
    model_only: bool = False
    human: bool = False
    given: bool = False
    """It comes after text, so the answer cannot be had elsewhere."""

    @property
    def blames(self) -> bool:
        return bool(self.rests_s) or self.human


WAITING, HUMAN, NOBODY = "all_accounts_waiting", "human_check_required", "no_account"
BOTH = ("new", "completions")
FAULTS = (
    Fault("rate_limited", 4, WAITING, {"num": 3}, BOTH, rests_s=3 * 3600),
    Fault("rate_limited_stream", 2, WAITING, {"num": 4}, rests_s=4 * 3600),
    Fault("quota_limited", 3, WAITING, {}, BOTH, rests_s=24 * 3600, model_only=True),
    Fault("too_many_requests", 2, WAITING, rests_s=120),
    Fault("http_429", 1, WAITING, {"retry_after": 30}, rests_s=30),
    Fault("parallel_limited", 1, WAITING, rests_s=10),
    Fault("punish", 1, HUMAN, {}, BOTH, human=True),
    # Twice, as the first time is made good by another chat of the same account.
    Fault("gateway", 3, "upstream_error", {"status": 503, "times": 2}, BOTH),
    Fault("empty", 3, "empty_upstream_reply", {"times": 2}),
    Fault("severed", 1, "upstream_error", given=True),
)
EXPIRES, REVOKES = 2, 1
"""How often, beside the faults: a token that the page can renew, and a sign-in that it cannot."""
COLD = Fault("cold", 0, HUMAN, human=True)
"""The service's own: a page that was called before it had booted (protocol §2)."""

KNOWN = MappingProxyType({fault.name: fault for fault in (*FAULTS, COLD)})


@dataclass
class Asked:
    number: int
    model: str
    stream: bool
    sent_s: float = 0.0
    answered_s: float = 0.0
    status: int = 0
    text: str = ""
    code: str = ""
    retry_after: str | None = None

    @property
    def sign(self) -> str:
        return f"[request {self.number:05}]"

    @property
    def expected(self) -> str:
        return f"answer {self.number:05} to nobody else"


@dataclass
class History:
    """What happened, by this machine's monotonic clock, which the stand-in reads too."""

    asked: list[Asked] = field(default_factory=list)
    records: dict[int, Record] = field(default_factory=dict)
    known: list[tuple[float, datetime, dict[str, Account]]] = field(default_factory=list)
    """The registry as it was, by person."""
    seen: list[tuple[float, datetime, dict[str, Account]]] = field(default_factory=list)
    """The accounts as the proxy itself said that they were, by person."""
    healed: list[tuple[float, str]] = field(default_factory=list)
    revoked: list[tuple[float, str]] = field(default_factory=list)
    removed: list[tuple[float, str]] = field(default_factory=list)


class Owner:
    """Breaks accounts as the service does, and heals them as a person does, from outside of the proxy."""

    def __init__(self, standin: Standin, registry: Registry, history: History, dice: random.Random) -> None:
        self.standin = standin
        self.registry = registry
        self.history = history
        self.dice = dice
        self.people = {
            account.id: person for account, person in zip(registry.accounts(), PEOPLE, strict=True)
        }
        self.due_s: dict[str, float] = {}
        self.queueing = threading.Lock()

    def break_one(self) -> None:
        person = self.dice.choice(PEOPLE)
        acts: list[Fault | Callable[[str], None]] = [*FAULTS, self.standin.expire, self.revoke]
        act = self.dice.choices(acts, [*(fault.weight for fault in FAULTS), EXPIRES, REVOKES])[0]
        if isinstance(act, Fault):
            self.queue(act, person)
        else:
            act(person)

    def break_all(self) -> None:
        for person in PEOPLE:
            self.queue(FAULTS[0], person)

    def queue(self, fault: Fault, person: str) -> None:
        """One at a time for each person: two that strike one call would be told as one."""
        with self.queueing:
            if all(queued["account"] != person for queued in self.standin.state()["faults"]):
                on = self.dice.choice(fault.on)
                self.standin.fault(fault.name, account=person, on=on, **fault.params)

    def revoke(self, person: str) -> None:
        self.history.revoked.append((time.monotonic(), person))
        self.standin.revoke(person)

    def look(self) -> None:
        """Notes what the registry says, and heals whoever has been out for long enough."""
        now_s, now = time.monotonic(), datetime.now(UTC)
        for person, account in self.note(now_s, now).items():
            if account.ready(now) and not any(until > now for _, until in account.model_waits):
                self.due_s.pop(person, None)
            elif now_s > self.due_s.setdefault(person, now_s + self.dice.uniform(*HEALED_AFTER_S)):
                at_s = time.monotonic()
                self.heal(person, account)
                self.note(at_s, now)
                self.history.healed += [(at_s, person), (time.monotonic(), person)]

    def note(self, at_s: float, now: datetime) -> dict[str, Account]:
        accounts = self.registry.accounts()
        by_person = {self.people[account.id]: account for account in accounts if account.id in self.people}
        if not self.history.known or self.history.known[-1][2] != by_person:
            self.history.known.append((at_s, now, by_person))
        return by_person

    def heal(self, person: str, account: Account) -> None:
        self.due_s.pop(person)
        if account.invalid:
            self.registry.sign_in_again(account.id, self.sign_in(person))
        elif account.why == "human" or self.dice.random() < 0.15:
            # Deleted and added anew, which also ends its hour of care.
            self.history.removed.append((time.monotonic(), person))
            self.registry.remove(account.id)
            added, known = self.registry.add(self.sign_in(person))
            assert not known
            self.people[added.id] = person
        else:
            self.registry.update(
                account.id, lambda known: replace(known, wait_until=None, why="", model_waits=())
            )

    def sign_in(self, person: str) -> SignIn:
        state = self.standin.storage_state(person)
        return SignIn(state["origins"][0]["localStorage"][0]["value"], state, f"user-{person}", person)

    def collect(self) -> None:
        """The stand-in remembers only so many requests: taken before it forgets."""
        self.history.records |= {record["number"]: record for record in self.standin.received()}


async def ask(http: httpx.AsyncClient, asked: Asked) -> None:
    messages = [
        {"role": "system", "content": f"{asked.sign} You answer this one and no other."},
        {"role": "user", "content": f'{asked.sign} {{{{standin: say text="{asked.expected}" rate=400}}}}'},
    ]
    body = {"model": asked.model, "stream": asked.stream, "messages": messages}
    asked.sent_s = time.monotonic()
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        text = (await answer.aread()).decode()
    asked.answered_s = time.monotonic()
    asked.status = answer.status_code
    asked.retry_after = answer.headers.get("retry-after")
    values = (
        [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        if answer.status_code == 200 and asked.stream
        else [json.loads(text)]
    )
    for value in values:
        asked.code = value["error"]["code"] if "error" in value else asked.code
        for choice in value.get("choices", ()):
            asked.text += choice.get("delta", choice.get("message")).get("content") or ""
    if asked.stream and not asked.code and "data: [DONE]" not in text:
        asked.code = "no end"


@dataclass
class Drive:
    """All requests, some at a time, while the owner breaks and heals."""

    owner: Owner
    history: History
    dice: random.Random
    http: httpx.AsyncClient
    left: Iterator[int]
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for act, every_s in ((self.owner.look, 0.02), (self.owner.collect, 0.5)):
                tasks.create_task(self.repeat(partial(asyncio.to_thread, act), every_s))
            tasks.create_task(self.repeat(self.see, 0.05))
            async with asyncio.TaskGroup() as clients:
                for _ in range(AT_ONCE):
                    clients.create_task(self.client())
            self.over.set()

    async def repeat(self, act: Callable[[], Awaitable[object]], every_s: float) -> None:
        """Once more when it is over."""
        while not self.over.is_set():
            await act()
            await asyncio.sleep(every_s)
        await act()

    async def client(self) -> None:
        for number in self.left:
            if self.dice.random() < BREAKS:
                await asyncio.to_thread(self.owner.break_one)
            if number % 50 == 25:
                await asyncio.to_thread(self.owner.break_all)
            asked = Asked(number, self.dice.choice(MODELS), self.dice.random() < 0.5)
            self.history.asked.append(asked)
            await ask(self.http, asked)
            if asked.code:
                await asyncio.sleep(self.dice.uniform(*BACK_OFF_S))

    async def see(self) -> None:
        people = self.owner.people
        told = (await self.http.get("/api/status")).json()["accounts"]
        seen = {people[row["id"]]: _account(row) for row in told if row["id"] in people}
        self.history.seen.append((time.monotonic(), datetime.now(UTC), seen))


async def drive(proxy: Proxy, owner: Owner, history: History, count: int, dice: random.Random) -> None:
    async with httpx.AsyncClient(base_url=proxy.base, timeout=120, trust_env=False) as http:
        await Drive(owner, history, dice, http, iter(range(1, count + 1))).run()


def _account(row: dict[str, Any]) -> Account:
    """As the status route tells it."""
    waits = {model: datetime.fromisoformat(until) for model, until in row["modelResetAt"].items()}
    return Account(
        row["id"],
        invalid=row["invalid"],
        paused=row["paused"],
        wait_until=datetime.fromisoformat(row["resetAt"]) if row["resetAt"] else None,
        why=row["waitsFor"],
        model_waits=tuple(waits.items()),
    )


# ---- what must be true of it ----


class Judge:
    """Reads the history; every line it gives is something that must not be."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.records = [history.records[number] for number in sorted(history.records)]
        self.attempts: dict[int, list[Record]] = {asked.number: [] for asked in history.asked}
        self.wrong: list[str] = []
        for record in self.calls("/api/v2/chat/completions?"):
            content = record["body"]["messages"][0]["content"]
            owners = [asked.number for asked in history.asked if asked.sign in content]
            if len(owners) == 1:
                self.attempts[owners[0]].append(record)
            else:
                self.wrong.append(f"call {record['number']} carries the text of {len(owners)} requests")

    def calls(self, path: str) -> list[Record]:
        return [r for r in self.records if r["method"] == "POST" and r["path"].startswith(path)]

    def judge(self) -> list[str]:
        self.nothing_is_missing()
        self.nothing_is_mixed_up()
        for asked in self.history.asked:
            self.one_request(asked, self.attempts[asked.number])
        self.nobody_is_called_while_out()
        self.blame_is_where_it_belongs()
        return self.wrong

    def nothing_is_missing(self) -> None:
        numbers = sorted(self.history.records)
        if numbers != list(range(numbers[0], numbers[-1] + 1)):
            self.wrong.append("the stand-in forgot requests before they were collected")

    def nothing_is_mixed_up(self) -> None:
        users: dict[str, int] = {}
        for record in self.records:
            told = f"{record['method']} {record['path']} (call {record['number']})"
            ours = record["method"] != "GET" and record["path"].startswith("/api/v2/chat")
            if not ours and not record["bearer_of"]:
                continue  # the page's own, before it has a token
            if record["bearer_of"] != record["cookie_of"]:
                self.wrong.append(f"token and cookie of two accounts: {told}")
            elif not record["one_sign_in"]:
                self.wrong.append(f"token and cookie of two sign-ins: {told}")
            if record["chat_of"] not in (None, record["bearer_of"]):
                self.wrong.append(f"the chat is another account's: {told}")
        for number, attempts in self.attempts.items():
            for record in attempts:
                if users.setdefault(record["chat"], number) != number:
                    self.wrong.append(f"chat {record['chat']} has served two requests")
                if record["chat_of"] != record["bearer_of"]:
                    self.wrong.append(f"call {record['number']} is in a chat of {record['chat_of']}")

    def one_request(self, asked: Asked, attempts: list[Record]) -> None:
        if len({json.dumps(_said(record), sort_keys=True) for record in attempts}) > 1:
            self.wrong.append(f"{asked.sign} was not repeated whole")
        if any(record["body"]["parent_id"] for record in attempts):
            self.wrong.append(f"{asked.sign} went on in a chat that was not fresh")
        if asked.code:
            reason = self.why_refused(asked, attempts)
            if reason:
                self.wrong.append(f"{asked.sign} {asked.model} refused with {asked.code}: {reason}")
        elif asked.text != asked.expected:
            self.wrong.append(f"{asked.sign} was answered {asked.text!r}")
        elif not attempts or attempts[-1]["struck"]:
            self.wrong.append(f"{asked.sign} was answered, but not by its last call")

    def why_refused(self, asked: Asked, attempts: list[Record]) -> str:
        """What is wrong with the refusal; "" when it was right."""
        if asked.status == 429 and not int(asked.retry_after or 0) > 0:
            return "it does not say when to come back"
        during = _between(self.history.seen, asked.answered_s - SOON_S, asked.answered_s + SOON_S)
        if asked.code in _reasons(during, asked.model):
            return ""
        person = attempts[-1]["bearer_of"] if attempts else ""
        if asked.code == NOBODY and self.acted(self.history.removed, person, asked.sent_s, asked.answered_s):
            return ""
        met = [KNOWN[name] for record in attempts[-1:] for name in record["struck"]]
        by_new_chats = self.met_by_new_chats(asked)
        if not any(fault.blames for fault in met) and len(attempts) + len(by_new_chats) > RETRIES:
            met += by_new_chats
        # What a call for a new chat met is nobody's by the records; blameless failures may be its end.
        met += [fault for fault in by_new_chats if not fault.blames]
        if not any(fault.code == asked.code for fault in met):
            told = f"calls met {[record['struck'] for record in attempts]}, and for new chats "
            return f"an account could answer; its {told}{[fault.name for fault in by_new_chats]}"
        if any(fault.given for fault in met) or len(attempts) + len(by_new_chats) >= RETRIES:
            return ""
        others = {other for _, known in during for other in known if other != person}
        ready = [
            all(other in known and known[other].ready(now, asked.model) for now, known in during)
            for other in others
        ]
        tried = {record["bearer_of"] for record in attempts}
        return "another account could answer" if any(ready) and len(tried) == 1 else ""

    def met_by_new_chats(self, asked: Asked) -> list[Fault]:
        calls = self.calls("/api/v2/chats/new")
        mine = [record for record in calls if asked.sent_s <= record["at"] <= asked.answered_s]
        return [KNOWN[name] for record in mine for name in record["struck"]]

    def nobody_is_called_while_out(self) -> None:
        for record in self.calls("/api/v2/chats/new"):
            person, model = record["bearer_of"], record["body"]["models"][0]
            during = _between(self.history.known, record["at"] - LAG_S, record["at"])
            if all(person not in known or not known[person].ready(now, model) for now, known in during):
                self.wrong.append(
                    f"{person} was called for {model} while it was out (call {record['number']})"
                )

    def blame_is_where_it_belongs(self) -> None:
        strikes = [(r, KNOWN[name]) for r in self.records for name in r["struck"] if KNOWN[name].blames]
        for record, fault in strikes:
            person, at_s = record["bearer_of"], record["at"]
            meddled = self.acted(self.history.healed, person, at_s - LAG_S, at_s + LAG_S)
            after = [known.get(person) for _, known in _between(self.history.known, at_s, at_s + LAG_S)]
            if not meddled and not any(_learnt(account, fault, record, at_s) for account in after):
                self.wrong.append(
                    f"{person} met {fault.name} (call {record['number']}), and nobody learnt it"
                )
        for (_, _, before), (at_s, _, after_) in zip(
            self.history.known, self.history.known[1:], strict=False
        ):
            for person, account in after_.items():
                if person not in before or _blame(account) <= _blame(before[person]):
                    continue
                struck = any(
                    r["bearer_of"] == person and at_s - LAG_S < r["at"] < at_s + SOON_S for r, _ in strikes
                )
                revoked = self.acted(self.history.revoked, person, 0, at_s + SOON_S)
                if not struck and not (account.invalid and revoked):
                    self.wrong.append(f"{person} was put out for nothing: {account}")

    def acted(self, acts: Iterable[tuple[float, str]], person: str, from_s: float, to_s: float) -> bool:
        return any(who == person and from_s <= at_s <= to_s for at_s, who in acts)


def _between(
    history: list[tuple[float, datetime, dict[str, Account]]], from_s: float, to_s: float
) -> list[tuple[datetime, dict[str, Account]]]:
    """What was so then, from the last known before to the first known after."""
    times_s = [at_s for at_s, _, _ in history]
    first, last = max(bisect_right(times_s, from_s) - 1, 0), bisect_right(times_s, to_s) + 1
    return [(now, known) for _, now, known in history[first:last]]


def _said(record: Record) -> Record:
    """What a call asks, without what is fresh in each."""
    message = record["body"]["messages"][0]
    fresh = ("fid", "childrenIds", "timestamp")
    return {
        "model": record["body"]["model"],
        "message": {name: value for name, value in message.items() if name not in fresh},
    }


def _reasons(during: list[tuple[datetime, dict[str, Account]]], model: str) -> set[str]:
    """The codes with which a request may be refused then: of each account, the proxy knows one of its states.

    None may be: somebody could answer all the time.
    """
    people = {person for _, known in during for person in known}
    out = [
        {known[person] for now, known in during if person in known and not known[person].ready(now, model)}
        for person in people
    ]
    return {_reason(accounts) for accounts in product(*out)}


def _reason(accounts: Iterable[Account]) -> str:
    """Why nobody can answer, when these are all accounts and none of them is ready."""
    usable = [account for account in accounts if account.usable]
    if not usable:
        return NOBODY
    return HUMAN if all(account.why == "human" for account in usable) else WAITING


def _learnt(account: Account | None, fault: Fault, record: Record, at_s: float) -> bool:
    if account is None or account.invalid or account.why == "human":
        return True
    if fault.human:
        return False
    body = record["body"]
    until = (
        dict(account.model_waits).get(body.get("model") or body["models"][0])
        if fault.model_only
        else account.wait_until
    )
    struck_at = datetime.now(UTC).timestamp() - (time.monotonic() - at_s)
    return until is not None and until.timestamp() - struck_at > fault.rests_s - 1


def _blame(account: Account) -> int:
    """How much is held against an account."""
    waits = len(account.model_waits) + (account.wait_until is not None)
    return 100 * account.invalid + 10 * (account.why == "human") + waits


@dataclass
class Proof:
    history: History
    wrong: list[str]

    def take_ups_s(self) -> list[float]:
        """How long each of the owner's changes took to be known to the proxy, shortest first."""
        seen = self.history.seen
        found = []
        for healed_s, person in self.history.healed[1::2]:
            at = bisect_right(seen, healed_s, key=lambda each: each[0])
            before = seen[max(at - 1, 0)][2].get(person)
            news = (at_s for at_s, _, known in seen[at:] if person in known and known[person] != before)
            found.append(next(news, healed_s) - healed_s)
        return sorted(found)

    def told(self) -> str:
        history = self.history
        codes = Counter(asked.code or "answered" for asked in history.asked)
        struck = Counter(name for record in history.records.values() for name in record["struck"])
        calls = [record for record in history.records.values() if record["path"].startswith("/api/v2/chat")]
        return "\n".join(
            [
                f"requests: {len(history.asked)}: {dict(codes.most_common())}",
                f"calls of accounts checked: {len(calls)}; mix-ups and wrong ends: {len(self.wrong)}",
                f"struck: {dict(struck.most_common())}; sign-ins revoked: {len(history.revoked)}",
                f"healed: {len(history.healed) // 2}, {len(history.removed)} by deleting and adding; "
                f"taken up after {median(self.take_ups_s()):.2f} s, at worst {self.take_ups_s()[-1]:.2f}",
            ]
        )


def prove(proxy: Proxy, standin: Standin, session: Path, count: int, seed: int) -> Proof:
    history = History()
    owner = Owner(standin, Registry(session, SystemClock()), history, random.Random(seed))
    asyncio.run(drive(proxy, owner, history, count, random.Random(seed + 1)))
    return Proof(history, Judge(history).judge())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200, help="requests per account")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began_s = time.monotonic()
    with (
        TemporaryDirectory() as folder,
        running_standin(Path(folder), era="C") as standin,
        running_proxy(Path(folder), standin, PEOPLE, stay_up=1) as proxy,
    ):
        count = arguments.count * len(PEOPLE)
        proof = prove(proxy, standin, Path(folder) / "session", count, arguments.seed)
    print(proof.told())
    print(f"took {time.monotonic() - began_s:.0f} s")
    if proof.wrong:
        raise SystemExit("\n".join(proof.wrong))


if __name__ == "__main__":
    main()
