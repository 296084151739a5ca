"""Asking the service about the accounts, free of charge, and what is learnt from it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qwenproxy import checkup
from qwenproxy.accounts.account import Account
from qwenproxy.accounts.pool import Pool
from qwenproxy.accounts.registry import Registry
from qwenproxy.checkup import Checkup
from qwenproxy.clock import SystemClock
from qwenproxy.errors import NeedsHuman, TokenRejected, Unreachable

pytestmark = pytest.mark.anyio
LATER = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=3)


class Service:
    """Who is signed in, as the service says."""

    def __init__(self, **errors: Exception) -> None:
        self.errors = errors
        self.asked: list[str] = []

    async def who(self, account_id: str) -> dict[str, Any]:
        self.asked.append(account_id)
        if account_id in self.errors:
            raise self.errors[account_id]
        return {"id": account_id}


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "BETWEEN_S", 0)


def make(folder: Path, service: Service, *rows: Account) -> tuple[Checkup, Registry]:
    clock = SystemClock()
    (folder / "tokens.json").write_text(json.dumps([{"id": row.id, "token": "t"} for row in rows]))
    registry = Registry(folder, clock)
    for row in rows:
        registry.update(row.id, lambda known, row=row: replace(row, holds_until=known.holds_until))  # type: ignore[misc]
    pool = Pool(registry.accounts(), registry, clock, slots=2, pace_s=0, queue_timeout_s=5)
    return Checkup(pool, registry, service.who, clock), registry


async def test_what_the_service_says_becomes_the_state(tmp_path: Path) -> None:
    service = Service(gone=TokenRejected("x"), checked=NeedsHuman("a check"), away=Unreachable("no network"))
    accounts = [Account(name) for name in ("fine", "gone", "checked", "away")]
    back = Account("back", invalid=True)
    check, registry = make(tmp_path, service, *accounts, back)
    found = await check.run()
    assert found == {
        "fine": "live",
        "gone": "signed out",
        "checked": "a check",
        "away": "no network",
        "back": "live",
    }
    now = datetime.now(UTC)
    assert [account.state(now) for account in registry.accounts()] == ["OK", "INVALID", "WAIT", "OK", "OK"]
    assert registry.accounts()[2].why == "human"


async def test_a_limit_is_the_services_and_stays(tmp_path: Path) -> None:
    check, registry = make(tmp_path, Service(), Account("one", wait_until=LATER, why="limit"))
    assert await check.run() == {"one": "live"}
    assert registry.accounts()[0].wait_until == LATER


async def test_a_script_in_a_loop_is_no_load_on_the_service(tmp_path: Path) -> None:
    service = Service()
    check, _ = make(tmp_path, service, Account("one"))
    for _ in range(5):
        assert await check.run() == {"one": "live"}
    assert service.asked == ["one"]


async def test_what_is_shown_is_what_serves(tmp_path: Path) -> None:
    check, registry = make(tmp_path, Service(), Account("one"), Account("two"))
    assert [seat.account.id for seat in check.view().seats] == ["one", "two"]
    assert await check.served_today() == {}
    today = datetime.now().astimezone().date()
    registry.add_served(today, {"one": 3})
    assert await check.served_today() == {"one": 3}
    (tmp_path / "served.json").unlink()
    (tmp_path / "served.json").mkdir()
    assert await check.served_today() == {}
