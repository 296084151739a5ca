"""The session folder in the older proxies' form, and every change of it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qwenproxy.accounts.account import Account, SignIn
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
from qwenproxy.errors import AccountGone, SessionDamaged, StoreError
from tests.accounts.old_sessions import IDS, ROWS, TOKENS, old_session, token

if os.name != "nt":
    import resource

NOW = datetime(2026, 11, 21, 9, tzinfo=UTC)


@dataclass
class TurnedClock(SystemClock):
    wall: datetime = NOW

    def now(self) -> datetime:
        return self.wall


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
def registry(tmp_path: Path, clock: TurnedClock) -> Registry:
    return Registry(tmp_path, clock)


def browser(token: str, name: str = "refresh_token", expires: float = 1_900_000_000) -> dict[str, Any]:
    """A browser's state with a sign-in in it."""
    cookie = {"name": name, "value": f"session of {token}", "expires": expires}
    stored = [{"name": "token", "value": token}]
    return {"cookies": [cookie], "origins": [{"origin": "https://x.example", "localStorage": stored}]}


def opened(registry: Registry) -> tuple[str, ...]:
    """What a start says; of modes apart, which the files of these tests do not have right."""
    return tuple(line for line in registry.open() if "was open to others" not in line)


def rows_in(folder: Path, name: str = "tokens.json") -> list[dict[str, Any]]:
    found = json.loads((folder / name).read_text("utf-8"))
    assert isinstance(found, list)
    return found


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_an_older_proxys_folder_is_read(tmp_path: Path) -> None:
    registry = Registry(old_session(tmp_path / "session"), TurnedClock())
    first, second, third = registry.accounts()
    assert [a.state(NOW) for a in (first, second, third)] == ["OK", "WAIT", "INVALID"]
    assert second.state(NOW + timedelta(hours=2)) == "OK"
    assert {a.holds_until for a in (first, second, third)} == {datetime.fromtimestamp(1_900_000_000, UTC)}
    assert [registry.token(account_id) for account_id in IDS] == list(TOKENS.values())


def test_a_new_state_is_stored_and_unknown_fields_stay(tmp_path: Path) -> None:
    folder = old_session(tmp_path / "session")
    registry = Registry(folder, TurnedClock())
    changed = registry.update(IDS[1], lambda known: replace(known, id="other", wait_until=None, why="human"))
    assert changed == registry.accounts()[1]
    assert (changed.id, changed.why, changed.wait_until) == (IDS[1], "human", None)
    assert rows_in(folder) == [ROWS[0], {**ROWS[1], "resetAt": None, "waitsFor": "human"}, ROWS[2]]
    assert rows_in(folder, "tokens.json.bak") == rows_in(folder)


def test_a_change_that_changes_nothing_is_not_written(tmp_path: Path) -> None:
    registry = Registry(old_session(tmp_path / "session"), TurnedClock())
    registry.open()
    stamp = registry.stamp()
    assert registry.update(IDS[0], lambda known: known) == registry.accounts()[0]
    assert registry.update("acc_0", lambda known: replace(known, invalid=True)) is None
    assert registry.stamp() == stamp


def test_every_change_has_a_stamp_of_its_own(registry: Registry) -> None:
    assert registry.stamp() is None
    account, _ = registry.add(SignIn("t", None))
    stamps = [registry.stamp()]
    for _ in range(20):
        registry.update(account.id, lambda known: replace(known, paused=not known.paused))
        stamps.append(registry.stamp())
    assert len(set(stamps)) == 21


@pytest.mark.parametrize("text", ['{"id": "a"}', '["a"]', '[{"id": 5}]', '[{"id": "../up"}]', "", "[{"])
def test_a_damaged_registry_is_never_overwritten_by_a_change(
    tmp_path: Path, registry: Registry, text: str
) -> None:
    (tmp_path / "tokens.json").write_text(text)
    tries: list[Callable[[], object]] = [
        registry.accounts,
        lambda: registry.add(SignIn("token", None)),
        lambda: registry.update("a", lambda known: replace(known, paused=True)),
        lambda: registry.keep_state("a", browser("t")),
        lambda: registry.remove("a"),
        lambda: registry.known("a"),
    ]
    for each in tries:
        with pytest.raises(SessionDamaged):
            each()
    assert files(tmp_path) <= {"tokens.json", "tokens.json.lock"}
    assert (tmp_path / "tokens.json").read_text() == text


def test_a_sign_in_is_added_with_its_browser_state(tmp_path: Path, registry: Registry) -> None:
    first, known_first = registry.add(SignIn("one", None))
    second, known_second = registry.add(SignIn("two", browser("two"), user_id="u", email="u@example.com"))
    assert (known_first, known_second) == (False, False)
    assert registry.accounts() == (first, second)
    made_ms = int(NOW.timestamp() * 1000)
    assert [first.id, second.id] == [f"acc_{made_ms}", f"acc_{made_ms + 1}"]
    assert second == Account(
        second.id,
        email="u@example.com",
        user_id="u",
        signed_in_at=NOW,
        holds_until=datetime.fromtimestamp(1_900_000_000, UTC),
    )
    assert (registry.browser_state(first.id), registry.token(first.id)) == (None, "one")
    assert (registry.browser_state(second.id), registry.token(second.id)) == (browser("two"), "two")
    assert files(tmp_path) == {
        "tokens.json",
        "tokens.json.bak",
        "tokens.json.lock",
        f"accounts/{first.id}/token.txt",
        f"accounts/{second.id}/token.txt",
        f"accounts/{second.id}/state.json",
    }
    assert (tmp_path / "accounts" / second.id / "token.txt").read_text() == "two"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_nobody_else_may_read_anything_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        registry = Registry(tmp_path / "deep" / "session", SystemClock())
        registry.add(SignIn("two", browser("two")))
        registry.add_served(date(2026, 11, 21), {"a": 1})
    finally:
        os.umask(before)
    for path in (tmp_path / "deep").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_an_older_proxy_can_read_what_we_wrote(tmp_path: Path, registry: Registry) -> None:
    account, _ = registry.add(SignIn("one", browser("one"), user_id="u", email="ä@example.com"))
    until = NOW + timedelta(hours=3)
    registry.update(account.id, lambda known: replace(known, wait_until=until, why="limit", invalid=True))
    row = rows_in(tmp_path)[0]
    assert {name: row[name] for name in ("id", "token", "resetAt", "invalid")} == {
        "id": account.id,
        "token": "one",
        "resetAt": "2026-11-21T12:00:00+00:00",
        "invalid": True,
    }
    assert (tmp_path / "accounts" / account.id / "token.txt").read_text() == row["token"]


def test_a_second_sign_in_of_a_person_is_the_same_account(registry: Registry, clock: TurnedClock) -> None:
    first, _ = registry.add(SignIn("one", browser("one"), user_id="u"))
    registry.add(SignIn("else", None, user_id="v"))
    registry.update(first.id, lambda known: replace(known, invalid=True, label="mine", why="human"))
    clock.wall += timedelta(days=1)
    again, known = registry.add(SignIn("later", browser("later"), user_id="u", email="u@example.com"))
    assert known
    assert (again.id, again.label, again.state(clock.wall)) == (first.id, "mine", "OK")
    assert (again.signed_in_at, again.email) == (clock.wall, "u@example.com")
    assert registry.browser_state(first.id) == browser("later")
    assert len(registry.accounts()) == 2


def test_without_user_ids_the_same_token_is_the_same_account(registry: Registry) -> None:
    first, _ = registry.add(SignIn("one", None))
    assert registry.add(SignIn("one", None))[0].id == first.id
    assert registry.add(SignIn("two", None))[0].id != first.id


def test_an_old_account_that_is_signed_in_again_is_known_by_its_token(tmp_path: Path) -> None:
    registry = Registry(old_session(tmp_path / "session"), TurnedClock())
    fresh = token(f"user-{IDS[2]}", 1_950_000_000)
    account, known = registry.add(SignIn(fresh, browser(fresh), user_id="an id of the service"))
    assert (known, account.id, account.invalid) == (True, IDS[2], False)


def test_a_bare_token_does_not_displace_a_browser_state_that_works(registry: Registry) -> None:
    account, _ = registry.add(SignIn("one", browser("one"), user_id="u"))
    again, _ = registry.add(SignIn("copied", None, user_id="u"))
    assert registry.browser_state(account.id) == browser("one")
    assert again.holds_until == account.holds_until

    registry.update(account.id, lambda known: replace(known, invalid=True))
    registry.add(SignIn("copied", None, user_id="u"))
    assert (registry.browser_state(account.id), registry.token(account.id)) == (None, "copied")


def test_signing_in_again_replaces_whoever_it_was(registry: Registry) -> None:
    account, _ = registry.add(SignIn("one", browser("one"), user_id="u", email="u@example.com"))
    registry.update(
        account.id, lambda known: replace(known, wait_until=NOW + timedelta(hours=1), why="limit")
    )
    other = registry.sign_in_again(account.id, SignIn("two", None, user_id="v"))
    assert (other.id, other.user_id, other.email, other.why) == (account.id, "v", "", "")
    assert other.signed_in_at is not None
    assert account.signed_in_at is not None
    assert other.signed_in_at > account.signed_in_at, "the clock stands still, and yet it is another sign-in"
    assert (registry.browser_state(account.id), registry.token(account.id)) == (None, "two")
    assert registry.accounts() == (other,)


def test_nobody_signs_in_to_a_deleted_account(tmp_path: Path, registry: Registry) -> None:
    account, _ = registry.add(SignIn("one", None))
    assert registry.remove(account.id)
    with pytest.raises(AccountGone):
        registry.sign_in_again(account.id, SignIn("two", None))
    assert not registry.keep_state(account.id, browser("two"))
    assert registry.update(account.id, lambda known: replace(known, label="x")) is None
    assert not registry.remove(account.id)
    assert not registry.known(account.id)
    assert (registry.browser_state(account.id), registry.token(account.id)) == (None, "")
    assert not list((tmp_path / "accounts").iterdir())


def test_a_deleted_account_leaves_no_secret_and_the_others_stay(tmp_path: Path) -> None:
    folder = old_session(tmp_path / "session")
    registry = Registry(folder, TurnedClock())
    registry.open()
    kept = registry.accounts()[1:]
    assert registry.remove(IDS[0])
    assert registry.accounts() == kept
    secret = TOKENS[IDS[0]].encode()
    assert not [path for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes()]
    (folder / "tokens.json").write_text("[{")
    registry.open()
    assert registry.accounts() == kept
    assert (folder / "history" / "1f2e.json").exists()


@pytest.mark.parametrize("steps", ["row", "row and half the folder", "row and folder"])
def test_a_deletion_begun_is_finished_at_the_next_start(tmp_path: Path, steps: str) -> None:
    folder = old_session(tmp_path / "session")
    registry = Registry(folder, TurnedClock())
    rows = [{**ROWS[0], "removed": True}, *ROWS[1:]]
    (folder / "tokens.json").write_text(json.dumps(rows))
    for path in (folder / "accounts" / IDS[0]).iterdir() if steps != "row" else ():
        if steps == "row and folder" or path.name == "token.txt":
            path.unlink()
    assert [account.id for account in registry.accounts()] == list(IDS[1:])
    assert not registry.known(IDS[0])
    assert opened(registry) == ()
    assert rows_in(folder) == rows_in(folder, "tokens.json.bak") == list(ROWS[1:])
    assert not (folder / "accounts" / IDS[0]).exists()


def test_a_link_in_place_of_a_deleted_folder_goes_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    folder = old_session(tmp_path / "session")
    (folder / "accounts" / IDS[0]).rename(tmp_path / "elsewhere")
    (folder / "accounts" / IDS[0]).symlink_to(tmp_path / "elsewhere")
    registry = Registry(folder, TurnedClock())
    for refused in (registry.browser_state, lambda name: registry.keep_state(name, browser("t"))):
        with pytest.raises(SessionDamaged, match="is not a plain folder"):
            refused(IDS[0])
    assert registry.remove(IDS[0])
    assert not (folder / "accounts" / IDS[0]).is_symlink()
    assert (tmp_path / "elsewhere" / "token.txt").read_text() == TOKENS[IDS[0]]


def test_a_renewal_is_kept_and_is_no_new_sign_in(tmp_path: Path, registry: Registry) -> None:
    account, _ = registry.add(SignIn("one", browser("one")))
    newer = browser("newer", expires=1_910_000_000)
    assert registry.keep_state(account.id, newer)
    assert registry.browser_state(account.id) == newer
    assert registry.token(account.id) == rows_in(tmp_path)[0]["token"] == "newer"
    assert (tmp_path / "accounts" / account.id / "token.txt").read_text() == "newer"
    kept = registry.accounts()[0]
    assert kept == replace(account, holds_until=datetime.fromtimestamp(1_910_000_000, UTC))

    stamp = registry.stamp()
    assert registry.keep_state(account.id, {**newer, "cookies": [*newer["cookies"], {"name": "cna"}]})
    assert registry.stamp() == stamp, "the record did not change"
    saved = registry.browser_state(account.id)
    assert saved is not None
    assert saved["cookies"][-1] == {"name": "cna"}


def test_a_page_without_a_sign_in_does_not_take_the_place_of_one_with(registry: Registry) -> None:
    account, _ = registry.add(SignIn("one", browser("one")))
    assert registry.keep_state(account.id, {"cookies": [], "origins": []})
    assert registry.browser_state(account.id) == browser("one")


def test_an_old_page_does_not_undo_a_sign_in_made_meanwhile(tmp_path: Path, clock: TurnedClock) -> None:
    serving, menu = Registry(tmp_path, clock), Registry(tmp_path, clock)
    account, _ = menu.add(SignIn("one", browser("one")))
    assert serving.browser_state(account.id) == browser("one")
    menu.sign_in_again(account.id, SignIn("two", browser("two")))
    assert not serving.keep_state(account.id, browser("one, renewed"))
    assert serving.browser_state(account.id) == browser("two")
    assert serving.keep_state(account.id, browser("two, renewed"))
    assert menu.token(account.id) == "two, renewed"


def test_a_page_of_somebody_else_is_not_kept(registry: Registry) -> None:
    mine, theirs = token("me"), token("them")
    account, _ = registry.add(SignIn(mine, browser(mine)))
    assert not registry.keep_state(account.id, browser(theirs))
    assert registry.browser_state(account.id) == browser(mine)
    assert registry.keep_state(account.id, browser(token("me", 1_950_000_000)))


def test_a_sign_in_made_by_an_older_proxy_counts_more_than_the_state_of_ours(tmp_path: Path) -> None:
    registry = Registry(tmp_path, TurnedClock())
    account, _ = registry.add(SignIn("one", browser("one")))
    row = rows_in(tmp_path)[0]
    for days, state in ((0.5, browser("one")), (2, None)):
        row["token"] = token("u", 1_900_000_000 + int(days * 86_400))
        (tmp_path / "tokens.json").write_text(json.dumps([row]))
        assert registry.browser_state(account.id) == state


def test_a_damaged_browser_state_falls_back_to_the_token(tmp_path: Path, registry: Registry) -> None:
    account, _ = registry.add(SignIn("one", browser("one")))
    (tmp_path / "accounts" / account.id / "state.json").write_text("{")
    assert registry.browser_state(account.id) is None
    assert registry.token(account.id) == "one"


def test_a_token_may_live_in_its_own_file_alone(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "tokens.json").write_text('[{"id": "a"}]')
    assert registry.token("a") == ""
    (tmp_path / "accounts" / "a").mkdir(parents=True)
    (tmp_path / "accounts" / "a" / "token.txt").write_text("lonely\r\n")
    assert registry.token("a") == "lonely"


def test_two_tokens_that_differ_are_told_by_id_and_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = old_session(tmp_path / "session")
    newer = token("u", 1_950_000_000)
    (folder / "accounts" / IDS[0] / "token.txt").write_text(newer)
    (folder / "accounts" / IDS[1] / "token.txt").write_text(token("u", 1_800_000_000))
    registry = Registry(folder, TurnedClock())
    with caplog.at_level(logging.INFO):
        registry.open()
    assert [record.getMessage() for record in caplog.records] == [
        f"account {IDS[0]}: token.txt and tokens.json differ; token.txt is used",
        f"account {IDS[1]}: token.txt and tokens.json differ; tokens.json is used",
    ]
    assert [registry.token(IDS[0]), registry.token(IDS[1])] == [newer, TOKENS[IDS[1]]]


def unfinished(folder: Path, account_id: str, sign_in: SignIn) -> Path:
    """What a kill in the middle of a sign-in leaves."""
    path = folder / "accounts" / account_id / "sign-in.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"token": sign_in.token, "state": sign_in.state}))
    return path


@pytest.mark.parametrize("state", [browser("two"), None])
def test_a_sign_in_counts_as_soon_as_its_row_is_written(
    tmp_path: Path, registry: Registry, state: dict[str, Any] | None
) -> None:
    account, _ = registry.add(SignIn("one", browser("one")))
    path = unfinished(tmp_path, account.id, SignIn("two", state))
    assert registry.browser_state(account.id) == browser("one"), "not yet"
    (tmp_path / "tokens.json").write_text(json.dumps([{**rows_in(tmp_path)[0], "token": "two"}]))
    assert (registry.browser_state(account.id), registry.token(account.id)) == (state, "two")
    assert opened(registry) == ()
    assert not path.exists()
    assert (registry.browser_state(account.id), registry.token(account.id)) == (state, "two")
    assert (path.parent / "token.txt").read_text() == "two"


def test_a_sign_in_that_never_counted_is_gone_after_the_next_start(
    tmp_path: Path, registry: Registry
) -> None:
    account, _ = registry.add(SignIn("one", browser("one")))
    path, orphan = (
        unfinished(tmp_path, name, SignIn("two", browser("two"))) for name in (account.id, "acc_5")
    )
    assert opened(registry) == ()
    assert not path.exists()
    assert not orphan.parent.exists()
    assert registry.browser_state(account.id) == browser("one")


def test_a_sign_in_that_the_disk_refuses_leaves_nothing(tmp_path: Path, registry: Registry) -> None:
    account, _ = registry.add(SignIn("one", browser("one")))
    (tmp_path / "tokens.json").rename(tmp_path / "elsewhere")
    (tmp_path / "tokens.json").symlink_to("elsewhere")
    with pytest.raises(StoreError):
        registry.add(SignIn("two", browser("two")))
    with pytest.raises(StoreError):
        registry.sign_in_again(account.id, SignIn("three", browser("three")))
    (tmp_path / "tokens.json").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "tokens.json")
    assert registry.accounts() == (account,)
    assert not [name for name in files(tmp_path) if name.endswith("sign-in.json")]
    assert [path.name for path in (tmp_path / "accounts").iterdir()] == [account.id]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
@pytest.mark.parametrize("known", [False, True])
def test_a_sign_in_that_a_full_disk_refuses_leaves_nothing(
    tmp_path: Path, registry: Registry, known: bool
) -> None:
    account, _ = registry.add(SignIn("one", browser("one")))
    registry.update(account.id, lambda found: replace(found, label="x" * 3000))
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    sign_in = partial(registry.sign_in_again, account.id) if known else registry.add
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"^tokens\.json cannot be written: File too large$"):
            sign_in(SignIn("two", browser("two")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before
    assert [path.name for path in (tmp_path / "accounts").iterdir()] == [account.id]


def test_a_wait_written_with_a_wrong_clock_ends(tmp_path: Path) -> None:
    clock = TurnedClock(NOW + timedelta(days=365))
    registry = Registry(tmp_path, clock)
    account, _ = registry.add(SignIn("one", None))
    registry.update(
        account.id, lambda known: replace(known, wait_until=clock.now() + timedelta(hours=3), why="limit")
    )
    clock.wall = NOW
    registry.open()
    clock.wall += timedelta(hours=47)
    assert registry.accounts()[0].state(clock.wall) == "WAIT"
    clock.wall += timedelta(hours=2)
    assert registry.accounts()[0].state(clock.wall) == "OK"


def test_what_was_served_is_counted_for_seven_days(tmp_path: Path, registry: Registry) -> None:
    day = date(2026, 11, 21)
    assert registry.served(day) == {}
    for ago in range(9, -1, -1):
        registry.add_served(day - timedelta(days=ago), {"a": ago, "b": 1})
    registry.add_served(day, {"a": 2})
    assert registry.served(day) == {"a": 2, "b": 1}
    assert registry.served(day - timedelta(days=6)) == {"a": 6, "b": 1}
    assert registry.served(day - timedelta(days=7)) == {}
    assert len(json.loads((tmp_path / "served.json").read_text())) == 7


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\0\0"])
def test_damaged_counts_are_put_aside_and_start_anew(tmp_path: Path, registry: Registry, text: str) -> None:
    (tmp_path / "served.json").write_text(text)
    day = date(2026, 11, 21)
    assert registry.served(day) == {}
    registry.add_served(day, {"a": 2})
    assert registry.served(day) == {"a": 2}
    assert [path.read_text() for path in tmp_path.glob("served.json.corrupt-*")] == [text]


COUNTING = """
import sys
from dataclasses import replace
from pathlib import Path
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
registry = Registry(Path(sys.argv[1]), SystemClock())
for _ in range(int(sys.argv[3])):
    registry.update(sys.argv[2], lambda known: replace(known, label=str(int(known.label or "0") + 1)))
"""


def test_processes_that_change_at_once_lose_nothing(tmp_path: Path, registry: Registry) -> None:
    """`tests/proof/registry_writes.py` does it 1 200 times."""
    account, _ = registry.add(SignIn("one", None))
    command = [sys.executable, "-c", COUNTING, str(tmp_path), account.id, "20"]
    writers = [subprocess.Popen(command) for _ in range(3)]
    assert [writer.wait(20) for writer in writers] == [0, 0, 0]
    assert registry.accounts()[0].label == "60"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_kills_and_failing_calls_lose_nothing() -> None:
    """Small; the proof itself does all of it."""
    command = [sys.executable, "-m", "tests.proof.registry_writes", "--kills", "8", "--every", "300"]
    done = subprocess.run(
        [*command, "--writers", "0"], capture_output=True, text=True, timeout=19, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "kills: 8; changes told as done: " in done.stdout
    assert not shutil.which("strace") or "none torn, none lost" in done.stdout
