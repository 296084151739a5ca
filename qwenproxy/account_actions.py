"""What an owner does with accounts, and the one line that each ends in: for the menu and the live view."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from anyio.to_thread import run_sync

from qwenproxy.accounts.account import Account
from qwenproxy.accounts.registry import Registry

GONE = "that account is gone"

Say = Callable[[str], object]
Confirm = Callable[[str], Awaitable[bool]]


class Added(Protocol):
    @property
    def account(self) -> Account: ...

    @property
    def known(self) -> bool: ...


class Checked(Protocol):
    @property
    def account(self) -> Account: ...

    @property
    def live(self) -> bool | None: ...

    @property
    def note(self) -> str: ...


class Enrolling(Protocol):
    """What needs a person's window, or a free check."""

    async def add(self) -> Added: ...

    async def sign_in_again(self, account_id: str, confirm: Confirm) -> Account: ...

    async def pass_check(self, account_id: str) -> Account: ...

    async def check(self, account_ids: Sequence[str]) -> Sequence[Checked]: ...


class Actions:
    """Each may raise QwenProxyError or OSError, whose message is that line."""

    def __init__(self, registry: Registry, enrolment: Enrolling) -> None:
        self._registry = registry
        self._enrolment = enrolment

    async def add(self) -> str:
        added = await self._enrolment.add()
        if added.known:
            return f"{added.account.name} was known already and is signed in again"
        return f"{added.account.name} is added"

    async def sign_in_again(self, account_id: str, confirm: Confirm) -> str:
        return f"{(await self._enrolment.sign_in_again(account_id, confirm)).name} is signed in again"

    async def pass_check(self, account_id: str) -> str:
        return f"{(await self._enrolment.pass_check(account_id)).name} has passed the check"

    async def check(self, accounts: Sequence[Account]) -> str:
        found = await self._enrolment.check([account.id for account in accounts])
        works = sum(checked.live is True for checked in found)
        told = [f"{works} of {len(found)} sign-ins {'works' if works == 1 else 'work'}"]
        gone = [checked.account.name for checked in found if checked.live is False]
        if gone:
            told.append(f"signed out: {', '.join(gone)}")
        told += [f"{each.account.name}: {each.note}" for each in found if each.live is None]
        return "; ".join(told)

    async def clear_wait(self, account_id: str) -> str:
        changed = await run_sync(self._registry.update, account_id, _without_wait)
        return f"{changed.name} no longer waits" if changed else GONE

    async def pause_or_resume(self, account: Account) -> str:
        changed = await run_sync(
            self._registry.update, account.id, lambda known: replace(known, paused=not account.paused)
        )
        if changed is None:
            return GONE
        return (
            f"{changed.name} is paused: it gets no requests"
            if changed.paused
            else f"{changed.name} takes part again"
        )

    async def rename(self, account_id: str, label: str) -> str:
        changed = await run_sync(self._registry.update, account_id, lambda known: replace(known, label=label))
        return f"{account_id} is now called {changed.name}" if changed else GONE

    async def remove(self, account: Account) -> str:
        removed = await run_sync(self._registry.remove, account.id)
        return f"{account.name} is deleted; chats on this computer stay" if removed else GONE


def waiting(account: Account, now: datetime) -> bool:
    """Whether there is a wait to clear."""
    return account.state(now) == "WAIT" or any(until > now for _, until in account.model_waits)


def needs_person(account: Account) -> bool:
    """Whether the service asked for a human check that nobody has passed yet."""
    return account.why == "human" and not account.invalid


def _without_wait(account: Account) -> Account:
    return replace(account, wait_until=None, why="", model_waits=())
