"""What an account's fields mean together."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from qwenproxy.accounts.account import Account, SignIn

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=3)
EARLIER = NOW - timedelta(hours=3)


@pytest.mark.parametrize(
    ("account", "state"),
    [
        (Account("a"), "OK"),
        (Account("a", wait_until=LATER, why="limit"), "WAIT"),
        (Account("a", wait_until=EARLIER, why="limit"), "OK"),
        (Account("a", why="human"), "WAIT"),
        (Account("a", invalid=True, why="human"), "INVALID"),
        (Account("a", paused=True), "OK"),
    ],
)
def test_the_state_is_one_of_the_three(account: Account, state: str) -> None:
    assert account.state(NOW) == state


def test_a_limit_of_one_model_leaves_the_others() -> None:
    account = Account("a", model_waits=(("qwen3-max", LATER), ("qwen3-coder", EARLIER)))
    assert account.ready(NOW)
    assert account.ready(NOW, "qwen3-coder")
    assert not account.ready(NOW, "qwen3-max")
    assert account.free_at(NOW, "qwen3-max") == LATER


def test_a_paused_account_is_out_of_turn_whatever_its_state() -> None:
    assert not Account("a", paused=True).ready(NOW)
    assert not Account("a", paused=True).usable
    assert Account("a", wait_until=LATER, why="limit").usable
    assert not Account("a", invalid=True).usable


def test_who_it_is_called_and_how_much_others_see_of_it() -> None:
    account = Account("acc_1", label="work", email="jane@example.com")
    assert account.name == "work"
    assert Account("acc_1", email="jane@example.com").name == "jane@example.com"
    assert Account("acc_1").name == "acc_1"
    assert account.masked_email == "j…@example.com"
    assert Account("acc_1").masked_email == ""


def test_the_end_of_a_sign_in_is_announced_ahead() -> None:
    assert Account("a", holds_until=NOW + timedelta(days=2)).ends_soon(NOW)
    assert not Account("a", holds_until=NOW + timedelta(days=20)).ends_soon(NOW)
    assert not Account("a").ends_soon(NOW)


def test_a_sign_in_shows_nothing_of_what_proves_it() -> None:
    shown = repr(SignIn("secret-token", {"cookies": [{"value": "secret-cookie"}]}, "u1", "j@example.com"))
    assert "secret" not in shown


def test_what_programs_are_told() -> None:
    berlin = timezone(timedelta(hours=1))
    account = Account(
        "a",
        label="work",
        email="jane@example.com",
        wait_until=LATER.astimezone(berlin),
        why="limit",
        model_waits=(("qwen3-max", LATER), ("qwq", EARLIER)),
    )
    told = account.told(NOW)
    assert told["status"] == "WAIT"
    assert told["resetAt"] == "2026-11-21T15:00:00Z"
    assert told["modelResetAt"] == {"qwen3-max": "2026-11-21T15:00:00Z"}
    assert told["waitsFor"] == "limit"
    assert (told["signedInAt"], told["holdsUntil"]) == (None, None)
    over = account.told(LATER + timedelta(hours=1))
    assert (over["status"], over["resetAt"], over["waitsFor"], over["modelResetAt"]) == ("OK", None, "", {})
    assert "jane" not in str(told)
