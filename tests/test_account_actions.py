from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from qwenproxy.account_actions import GONE, Actions, needs_person, waiting
from qwenproxy.accounts.account import Account
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
from qwenproxy.errors import SignInFailed
from tests.owner import Persons, sign_in

pytestmark = pytest.mark.anyio

NOW = SystemClock().now()
LATER = NOW + timedelta(hours=3)


async def agree(_: str) -> bool:
    return True


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "session", SystemClock())


@pytest.fixture
def persons(registry: Registry) -> Persons:
    return Persons(registry)


@pytest.fixture
def actions(registry: Registry, persons: Persons) -> Actions:
    return Actions(registry, persons)


async def test_adding_tells_whether_the_account_was_known(actions: Actions, persons: Persons) -> None:
    persons.next = ["anna@example.com", "anna@example.com"]
    assert await actions.add() == "anna@example.com is added"
    assert await actions.add() == "anna@example.com was known already and is signed in again"


async def test_signing_in_again_and_passing_a_check_name_the_account(
    actions: Actions, persons: Persons, registry: Registry
) -> None:
    account, _ = registry.add(sign_in("anna@example.com"))
    persons.next = ["boris@example.com", "boris@example.com", SignInFailed("the window was closed")]
    assert await actions.sign_in_again(account.id, agree) == "boris@example.com is signed in again"
    assert await actions.pass_check(account.id) == "boris@example.com has passed the check"
    with pytest.raises(SignInFailed, match="the window was closed"):
        await actions.add()


async def test_a_check_of_all_is_told_in_one_line(
    actions: Actions, persons: Persons, registry: Registry
) -> None:
    for name in ("a@x.com", "b@x.com", "c@x.com"):
        registry.add(sign_in(name))
    persons.lives = {"b@x.com": False, "c@x.com": None}
    told = await actions.check(registry.accounts())
    assert told == "1 of 3 sign-ins works; signed out: b@x.com; c@x.com: not reached"


async def test_a_cleared_wait_is_gone_with_the_limits_of_models(actions: Actions, registry: Registry) -> None:
    account, _ = registry.add(sign_in("a@x.com"))
    registry.update(
        account.id, lambda known: replace(known, wait_until=LATER, why="limit", model_waits=(("m", LATER),))
    )
    assert waiting(registry.accounts()[0], NOW)
    assert await actions.clear_wait(account.id) == "a@x.com no longer waits"
    assert not waiting(registry.accounts()[0], NOW)


async def test_pausing_turns_round(actions: Actions, registry: Registry) -> None:
    registry.add(sign_in("a@x.com"))
    assert "is paused" in await actions.pause_or_resume(registry.accounts()[0])
    assert registry.accounts()[0].paused
    assert "takes part again" in await actions.pause_or_resume(registry.accounts()[0])
    assert not registry.accounts()[0].paused


async def test_a_name_is_given_and_taken_away(actions: Actions, registry: Registry) -> None:
    account, _ = registry.add(sign_in("a@x.com"))
    assert await actions.rename(account.id, "work") == f"{account.id} is now called work"
    assert await actions.rename(account.id, "") == f"{account.id} is now called a@x.com"


async def test_an_account_that_went_meanwhile_is_said_to_be_gone(
    actions: Actions, registry: Registry
) -> None:
    account, _ = registry.add(sign_in("a@x.com"))
    assert await actions.remove(account) == "a@x.com is deleted; chats on this computer stay"
    assert not registry.accounts()
    assert await actions.remove(account) == GONE
    assert await actions.clear_wait(account.id) == GONE
    assert await actions.pause_or_resume(account) == GONE
    assert await actions.rename(account.id, "x") == GONE


def test_what_waits_and_what_needs_a_person() -> None:
    assert waiting(Account("a", model_waits=(("m", LATER),)), NOW)
    assert not waiting(Account("a", wait_until=NOW, why="limit"), NOW)
    assert needs_person(Account("a", why="human"))
    assert not needs_person(Account("a", why="human", invalid=True))
