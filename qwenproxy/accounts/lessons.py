"""What the ends of answers teach about accounts, kept in memory until it is on disk.

| end (protocol §6.2, §6.3, §13) | lesson |
|---|---|
| limit | the account waits as long as the service named |
| limit of one model, where the service tells it apart | only this model waits on the account |
| too many answers at once | a short wait |
| human check | it waits for a person, without an end of its own |
| sign-in gone, and the page could not renew it | invalid |

A lesson is an edit of whatever is known then, so it never shortens a wait that another answer or another
program has put there; and it is no news of a sign-in that came after it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TypeAlias

import anyio
from anyio.to_thread import run_sync

from qwenproxy.accounts.account import Account
from qwenproxy.accounts.refusals import how_to_pass, utc
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import Clock
from qwenproxy.errors import LimitReached, NeedsHuman, StoreError, TokenRejected

log = logging.getLogger(__name__)

LONGEST_WAIT = timedelta(hours=48)
"""No answer of the service rests an account longer than this; 3 to 10 hours were seen (protocol §13)."""

KEPT_S = 60.0
"""A lesson on disk is remembered for so long, for readings of the disk that began before it was written."""

Edit: TypeAlias = Callable[[Account], Account]
Ended: TypeAlias = LimitReached | NeedsHuman | TokenRejected
TEACHING = (LimitReached, NeedsHuman, TokenRejected)
"""Anything else (network, browser, 5xx, the caller) is no account's fault."""


@dataclass(slots=True, eq=False)
class Lesson:
    account_id: str
    signed_in_at: datetime | None
    edit: Edit
    saved_s: float | None = None
    """When it was on disk, by the monotonic clock."""

    def __call__(self, account: Account) -> Account:
        return self.edit(account) if account.signed_in_at == self.signed_in_at else account


class Lessons:
    """Those that the disk has not taken yet, and the last that it has."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._lessons: list[Lesson] = []
        self._saving = anyio.Lock()
        self._disk_fails = False

    def __len__(self) -> int:
        return len(self._lessons)

    def add(self, lesson: Lesson) -> None:
        self._lessons.append(lesson)

    def forget_all_but(self, account_ids: Iterable[str]) -> None:
        known = set(account_ids)
        self._lessons = [lesson for lesson in self._lessons if lesson.account_id in known]

    def laid_over(self, account: Account, read_s: float | None) -> Account:
        """What is known of an account that was read from disk, at `read_s` or at a time nobody knows."""
        for lesson in self._lessons:
            on_disk = lesson.saved_s is not None and (read_s is None or lesson.saved_s < read_s)
            if lesson.account_id == account.id and not on_disk:
                account = lesson(account)
        return account

    async def save(self) -> None:
        """Stores what is not on disk yet; what the disk refuses waits for the next call."""
        if not self._lessons:
            return
        async with self._saving:
            due = [lesson for lesson in self._lessons if lesson.saved_s is None]
            try:
                for account_id in dict.fromkeys(lesson.account_id for lesson in due):
                    await self._store([lesson for lesson in due if lesson.account_id == account_id])
            except (StoreError, OSError) as exc:
                if not self._disk_fails:
                    log.error("what was learnt of the accounts stays in memory, it cannot be stored: %s", exc)
                self._disk_fails = True
                return
            if due and self._disk_fails:
                log.info("what was learnt of the accounts is stored again")
                self._disk_fails = False
            old_s = self._clock.monotonic_s() - KEPT_S
            self._lessons = [each for each in self._lessons if each.saved_s is None or each.saved_s > old_s]

    async def _store(self, lessons: Sequence[Lesson]) -> None:
        await run_sync(self._registry.update, lessons[0].account_id, partial(_taught, lessons))
        for lesson in lessons:
            lesson.saved_s = self._clock.monotonic_s()


def lesson_of(exc: Ended, account: Account, model: str, now: datetime) -> Lesson:
    """What an answer with `model` on `account` teaches by ending so."""
    return Lesson(account.id, account.signed_in_at, _edit_of(exc, model, now))


def consequence(account: Account, exc: Ended, model: str) -> str:
    """What becomes of the account, and what helps; for the log."""
    if account.invalid:
        return f"sign in again from the menu or with `accounts relogin {account.id}`"
    if account.why == "human":
        return f"it waits for you: {how_to_pass(account)}"
    rests = dict(account.model_waits).get(model) if isinstance(exc, LimitReached) and exc.model_only else None
    if rests is not None:
        return f"{model} rests there until {utc(rests)}"
    return f"it rests until {utc(account.wait_until)}" if account.wait_until else "it goes on"


def _taught(lessons: Iterable[Edit], account: Account) -> Account:
    for lesson in lessons:
        account = lesson(account)
    return account


def _edit_of(exc: Ended, model: str, now: datetime) -> Edit:
    match exc:
        case TokenRejected():
            return lambda account: replace(account, invalid=True)
        case NeedsHuman():
            return lambda account: replace(account, wait_until=None, why="human")
        case LimitReached(wait_s=wait_s, model_only=model_only):
            until = now + timedelta(seconds=min(wait_s, LONGEST_WAIT.total_seconds()))
            return partial(_rested, until=until, model=model if model_only else "", now=now)


def _rested(account: Account, *, until: datetime, model: str, now: datetime) -> Account:
    """Two answers may end at once: the longer wait counts, and a person's turn has no end at all."""
    if model:
        waits = {name: end for name, end in account.model_waits if end > now}
        waits[model] = max(until, waits.get(model, until))
        return replace(account, model_waits=tuple(waits.items()))
    if account.why == "human":
        return account
    longest = until if account.wait_until is None else max(until, account.wait_until)
    return replace(account, wait_until=longest, why="limit")
