"""Why nobody can answer, in one line for a person: what is so, until when, and what helps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from qwenproxy.accounts.account import Account
from qwenproxy.errors import AllWaiting, NeedsHuman, NoAccount, QwenProxyError


def how_to_pass(account: Account) -> str:
    return f"open its window from the menu or with `accounts pass-check {account.id}`"


def utc(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC"


def no_account(accounts: Sequence[Account]) -> NoAccount:
    """None of these is usable."""
    paused = [account for account in accounts if account.paused and not account.invalid]
    if not accounts:
        return NoAccount("no account is signed in: add one from the menu or with `accounts add`")
    if not paused:
        return NoAccount(
            "every account's sign-in is gone: sign in again from the menu or with `accounts relogin`"
        )
    if len(paused) == len(accounts):
        return NoAccount("every account is paused: resume one from the menu or with `accounts resume`")
    return NoAccount(
        "every account is paused or its sign-in is gone: resume one with `accounts resume`, "
        "or sign in again with `accounts relogin`"
    )


def nobody(accounts: Sequence[Account], now: datetime, model: str) -> QwenProxyError:
    """None of these can answer now."""
    waiting = [account for account in accounts if account.usable]
    if not waiting:
        return no_account(accounts)
    people = [account for account in waiting if account.why == "human"]
    if len(people) == len(waiting):
        return NeedsHuman(
            f"the service asks for a human check on every account that could answer: account {people[0].id} "
            f"waits for you, {how_to_pass(people[0])}"
        )
    more = f"; account {people[0].id} waits for you, {how_to_pass(people[0])}" if people else ""
    return _all_waiting("every account that could answer", waiting, now, model, more)


def no_guest(accounts: Sequence[Account], now: datetime, model: str) -> QwenProxyError:
    waiting = [account for account in accounts if account.usable]
    if not waiting:
        return NoAccount("the service accepts no token of this request: get a new one from the browser")
    if all(account.why == "human" for account in waiting):
        return NeedsHuman(
            "the service asks for a human check for the tokens of this request: "
            "pass it in the browser that they come from"
        )
    return _all_waiting("every token of this request", waiting, now, model, "")


def _all_waiting(who: str, waiting: Iterable[Account], now: datetime, model: str, more: str) -> AllWaiting:
    ends = [account.free_at(now, model) for account in waiting if account.why != "human"]
    soonest = min(end for end in ends if end is not None)
    return AllWaiting(
        f"{who} waits out a limit; the first is free at {utc(soonest)}{more}",
        retry_after_s=max((soonest - now).total_seconds(), 1.0),
    )
