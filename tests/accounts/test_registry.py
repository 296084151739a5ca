"""The session folder in the older proxies' form."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from qwenproxy.accounts.account import Account, SignIn
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
from qwenproxy.errors import SessionDamaged

OLD_FOLDER = [
    {"id": "acc_1752745840684", "token": "aaa", "resetAt": None},
    {
        "id": "acc_1752745890062",
        "token": "bbb",
        "resetAt": "2026-11-21T10:00:00.000Z",
        "cookies": [{"name": "x"}],
    },
    {"id": "acc_3", "token": "ccc", "resetAt": None, "invalid": True},
]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path, SystemClock())


def test_an_older_proxys_folder_is_read(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "tokens.json").write_text(json.dumps(OLD_FOLDER))
    first, second, third = registry.accounts()
    before, after = datetime(2026, 11, 21, 9, 59, tzinfo=UTC), datetime(2026, 11, 21, 10, 1, tzinfo=UTC)
    assert [a.state(before) for a in (first, second, third)] == ["OK", "WAIT", "INVALID"]
    assert second.state(after) == "OK"


@pytest.mark.parametrize(
    "stamp",
    ["2026-11-21T10:00:00+00:00", "2026-11-21T10:00:00", "2026-11-21T12:00:00+02:00", "2026-11-21T10:00:00Z"],
)
def test_a_reset_time_is_the_same_instant_however_it_is_written(
    tmp_path: Path, registry: Registry, stamp: str
) -> None:
    (tmp_path / "tokens.json").write_text(json.dumps([{"id": "a", "token": "t", "resetAt": stamp}]))
    assert registry.accounts()[0].wait_until == datetime(2026, 11, 21, 10, tzinfo=UTC)


def test_a_new_state_is_stored_and_unknown_fields_stay(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "tokens.json").write_text(json.dumps(OLD_FOLDER))
    until = datetime(2026, 11, 22, tzinfo=UTC)
    registry.update("acc_1752745890062", lambda known: replace(known, wait_until=until, why="human"))
    rows = json.loads((tmp_path / "tokens.json").read_text())
    assert rows[1]["cookies"] == [{"name": "x"}]
    assert rows[0] == OLD_FOLDER[0]
    assert registry.accounts()[1] == Account("acc_1752745890062", wait_until=until, why="human")


@pytest.mark.parametrize("text", ['{"id": "a"}', '["a"]', '[{"id": 5}]', '[{"id": "../up"}]', "", "[{"])
def test_a_damaged_registry_is_said_and_never_overwritten(
    tmp_path: Path, registry: Registry, text: str
) -> None:
    (tmp_path / "tokens.json").write_text(text)
    with pytest.raises(SessionDamaged):
        registry.accounts()
    with pytest.raises(SessionDamaged):
        registry.add(SignIn("token", None))
    assert (tmp_path / "tokens.json").read_text() == text


def test_a_sign_in_is_added_with_its_browser_state(tmp_path: Path, registry: Registry) -> None:
    first, _ = registry.add(SignIn("one", None))
    second, _ = registry.add(SignIn("two", {"cookies": [], "origins": []}))
    assert [a.id for a in registry.accounts()] == [first.id, second.id]
    assert first.id != second.id
    assert first.id.startswith("acc_")
    assert registry.browser_state(first.id) is None
    assert registry.browser_state(second.id) == {"cookies": [], "origins": []}
    assert registry.token(second.id) == "two"
    assert (tmp_path / "accounts" / second.id / "token.txt").read_text() == "two"


def test_a_damaged_browser_state_falls_back_to_the_token(tmp_path: Path, registry: Registry) -> None:
    account, _ = registry.add(SignIn("one", {"cookies": [], "origins": []}))
    (tmp_path / "accounts" / account.id / "state.json").write_text("{")
    assert registry.browser_state(account.id) is None
    assert registry.token(account.id) == "one"


def test_a_token_may_live_in_its_own_file_alone(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "tokens.json").write_text('[{"id": "a"}]')
    assert registry.token("a") == ""
    (tmp_path / "accounts" / "a").mkdir(parents=True)
    (tmp_path / "accounts" / "a" / "token.txt").write_text("lonely\r\n")
    assert registry.token("a") == "lonely"
