"""The lines that a person reads when nobody can answer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from qwenproxy.accounts.account import Account
from qwenproxy.accounts.refusals import no_account, no_guest, nobody
from qwenproxy.errors import AllWaiting, NeedsHuman, NoAccount, QwenProxyError

NOW = datetime(2026, 10, 2, 12, tzinfo=UTC)


def limited(name: str, hours: float) -> Account:
    return Account(name, wait_until=NOW + timedelta(hours=hours), why="limit")


HUMAN = Account("h", why="human")
PAUSED = Account("p", paused=True)
GONE = Account("g", invalid=True)


@pytest.mark.parametrize(
    ("accounts", "kind", "said"),
    [
        ([], NoAccount, ["no account is signed in", "`accounts add`"]),
        ([GONE], NoAccount, ["sign-in is gone", "`accounts relogin`"]),
        ([PAUSED], NoAccount, ["paused", "`accounts resume`"]),
        ([Account("x", paused=True, invalid=True)], NoAccount, ["sign-in is gone"]),
        ([GONE, PAUSED], NoAccount, ["`accounts resume`", "`accounts relogin`"]),
        ([HUMAN], NeedsHuman, ["account h", "`accounts pass-check h`"]),
        ([HUMAN, GONE, PAUSED], NeedsHuman, ["account h"]),
        ([limited("a", 3), limited("b", 2)], AllWaiting, ["2026-10-02 14:00:00 UTC"]),
        ([limited("a", 3), HUMAN, GONE], AllWaiting, ["15:00:00 UTC", "`accounts pass-check h`"]),
    ],
)
def test_each_says_what_is_so_and_what_helps(
    accounts: list[Account], kind: type[QwenProxyError], said: list[str]
) -> None:
    refusal = nobody(accounts, NOW, "")
    assert type(refusal) is kind
    assert "\n" not in str(refusal)
    for words in said:
        assert words in str(refusal)


def test_the_wait_is_that_of_the_soonest_for_this_model() -> None:
    max_waits = Account("m", model_waits=(("max", NOW + timedelta(hours=5)), ("plus", NOW)))
    refusal = nobody([max_waits, limited("a", 8)], NOW, "max")
    assert refusal.retry_after_s == 5 * 3600
    both = Account("b", wait_until=NOW + timedelta(hours=6), why="limit", model_waits=max_waits.model_waits)
    assert nobody([both], NOW, "max").retry_after_s == 6 * 3600
    assert nobody([limited("a", 1e-6)], NOW, "").retry_after_s == 1


def test_a_paused_or_lost_account_shortens_no_wait() -> None:
    paused = Account("p", paused=True, wait_until=NOW + timedelta(minutes=1), why="limit")
    assert nobody([paused, limited("a", 1)], NOW, "").retry_after_s == 3600


@pytest.mark.parametrize(
    ("guests", "kind"),
    [
        ([], NoAccount),
        ([GONE], NoAccount),
        ([HUMAN, GONE], NeedsHuman),
        ([limited("a", 1), HUMAN], AllWaiting),
    ],
)
def test_of_guests_it_speaks_as_of_tokens(guests: list[Account], kind: type[QwenProxyError]) -> None:
    refusal = no_guest(guests, NOW, "")
    assert type(refusal) is kind
    assert "token" in str(refusal)
    assert "accounts " not in str(refusal)


def test_the_end_of_all_is_said_without_a_moment() -> None:
    assert str(no_account([GONE])) == str(nobody([GONE], NOW, ""))
