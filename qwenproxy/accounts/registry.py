"""The accounts on disk, in the older proxies' own form, so that their session folders keep working.

`tokens.json` is the list of accounts (`rows.py`), `tokens.json.bak` its mirror; `accounts/<id>/token.txt`
holds the bare token and `accounts/<id>/state.json` the browser's storage state, which is the credential
(protocol §1.2: the token alone lives 15 minutes today). Everything else in the folder is left alone.

Every change is made under one lock, and is there once `tokens.json` is replaced; a kill before that leaves
the old. What takes more than one file is written so that `open()` can finish or undo it:

- a sign-in or a renewal: first `accounts/<id>/sign-in.json`, which counts only while the row has the same
  token; then the row; then `state.json` and `token.txt`, and `sign-in.json` goes;
- a removal: first `removed` in the row, which hides the account; then the folder; then the row.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from qwenproxy import store
from qwenproxy.accounts import healing, rows
from qwenproxy.accounts.account import Account, SignIn
from qwenproxy.accounts.rows import Row
from qwenproxy.clock import Clock
from qwenproxy.errors import AccountGone, SessionDamaged, SessionLocked, StoreError

log = logging.getLogger(__name__)

PENDING = "sign-in.json"
DAYS_SERVED = 7


class Registry:
    """`tokens.json` and the folders beside it. Every method blocks on the disk, and may be called anywhere.

    Any may raise SessionDamaged (a file is there and cannot be read; it was not touched), those that change
    something also SessionLocked and StoreError (it is not certain that the change is on disk).
    """

    def __init__(self, session_dir: Path, clock: Clock) -> None:
        self._dir = session_dir
        self._path = session_dir / "tokens.json"
        self._mirror = session_dir / "tokens.json.bak"
        self._lock = session_dir / "tokens.json.lock"
        self._folders = session_dir / "accounts"
        self._clock = clock
        self._given: dict[str, Any] = {}
        """Which sign-in of an account this process last gave away, by its `signedInAt`."""

    def open(self) -> tuple[str, ...]:
        """Puts the session folder in order, once at a process's start; gives what a person should read of it.

        Raises:
            SessionDamaged, SessionLocked: nothing can be done.
        """
        if not self._dir.is_dir():
            if os.path.lexists(self._dir):
                raise SessionDamaged("the session folder's place is taken by something that is no folder")
            return ()
        try:
            with self._locked():
                return tuple(self._put_in_order())
        except (SessionDamaged, SessionLocked):
            raise
        except StoreError as exc:
            self._rows()
            return (f"the session folder cannot be written, so nothing new will be kept: {exc}",)

    def _put_in_order(self) -> Iterator[str]:
        yield from healing.tidy(self._dir)
        now = self._clock.now()
        known, line = healing.healed(self._dir, now)
        if line:
            yield line
        left: list[Row] = []
        for row in known:
            if row.get("removed"):
                try:
                    store.remove_folder(self._folders / row["id"])
                    continue
                except StoreError as exc:
                    yield f"deleting account {row['id']} could not be finished: {exc}"
            left.append(rows.clamped(row, now))
        if left or self.there():
            self._write(left)
        for row in left:
            self._finish(row)
            self._compare_tokens(row)
            try:
                aside = healing.put_state_aside(self._file(row["id"], "state.json"), now)
            except SessionDamaged as exc:
                yield f"account {row['id']}: {exc}"
            else:
                if aside:
                    yield (
                        f"account {row['id']}: its browser state was damaged and put aside as {aside}; "
                        "its last token is left, and signing in again is the lasting way"
                    )
        self._drop_pending({row["id"] for row in left})

    def _compare_tokens(self, row: Row) -> None:
        lone = self._lone_token(row["id"])
        if lone and rows.token_of(row) and lone != rows.token_of(row):
            newer = "token.txt" if self.token(row["id"]) == lone else "tokens.json"
            log.info("account %s: token.txt and tokens.json differ; %s is used", row["id"], newer)

    def accounts(self) -> tuple[Account, ...]:
        """All of them, in the file's order."""
        return tuple(self._account(row) for row in self._rows())

    def there(self) -> bool:
        """Whether there is a registry at all; no accounts may also mean that somebody took it away."""
        return os.path.lexists(self._path)

    def stamp(self) -> object:
        """Differs whenever `tokens.json` was replaced."""
        try:
            found = self._path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def known(self, account_id: str) -> bool:
        return self._row(account_id) is not None

    def add(self, sign_in: SignIn) -> tuple[Account, bool]:
        """Stores a sign-in, a new account's or of one that is the same person's; whether it was known.

        A bare token does not take the place of a browser state that still works: that one can be renewed.
        """
        with self._locked():
            row = next((row for row in self._rows() if rows.same_person(row, sign_in)), None)
            if row is None:
                return self._sign_in({"id": self._free_id(), "token": "", "resetAt": None}, sign_in), False
            if sign_in.state is None and not self._account(row).invalid:
                sign_in = replace(sign_in, state=self._read_state(self._file(row["id"], "state.json")))
            return self._sign_in(row, sign_in), True

    def sign_in_again(self, account_id: str, sign_in: SignIn) -> Account:
        """Replaces the account's sign-in, whoever it is.

        Raises:
            AccountGone: the account was deleted meanwhile.
        """
        with self._locked():
            row = self._row(account_id)
            if row is None:
                raise AccountGone("this account has been deleted")
            return self._sign_in(row, sign_in)

    def update(self, account_id: str, edit: Callable[[Account], Account]) -> Account | None:
        """Changes what is known about an account; None when there is no such account."""
        with self._locked():
            row = self._row(account_id)
            if row is None:
                return None
            before = self._account(row)
            after = replace(edit(before), id=account_id)
            self._replace_row(rows.edited(row, before, after))
            return after

    def keep_state(self, account_id: str, state: Mapping[str, Any]) -> bool:
        """Stores the browser's newer cookies and storage of the sign-in that `browser_state` last gave.

        False, and nothing is written, when the account is gone or another sign-in has taken its place. A
        state that holds no sign-in replaces none that does.
        """
        with self._locked():
            row = self._row(account_id)
            if row is None or not self._is_of(row, state):
                return False
            self._finish(row)
            file = self._file(account_id, "state.json")
            if not rows.holds_sign_in(state) and rows.holds_sign_in(self._read_state(file)):
                log.warning("account %s: the page holds no sign-in; the stored one stays", account_id)
                return True
            token = rows.token_in(state) or rows.token_of(row)
            ends = rows.ends_at(state, token)
            changed = {**row, "token": token, "holdsUntil": ends.isoformat() if ends else None}
            if token == rows.token_of(row):
                store.write(file, state)
                self._replace_row(changed)
            else:
                self._store(changed, SignIn(token, dict(state)))
            return True

    def remove(self, account_id: str) -> bool:
        """Deletes the account's record and folder for ever; False when there is no such account."""
        with self._locked():
            row = self._row(account_id)
            if row is None:
                return False
            self._replace_row({**row, "removed": True})
            store.remove_folder(self._folders / account_id)
            self._write([row for row in self._all_rows() if row["id"] != account_id])
            return True

    def browser_state(self, account_id: str) -> dict[str, Any] | None:
        """The saved browser state; None where there is none that can be read: the token is left then.

        Neither counts the state of a sign-in that another program has replaced in `tokens.json`.
        """
        row = self._row(account_id)
        if row is None:
            return None
        self._given[account_id] = row.get("signedInAt")
        pending = self._pending(row)
        if pending:
            return pending.state
        state = self._read_state(self._file(account_id, "state.json"))
        return None if rows.outlives(rows.token_of(row), state) else state

    def token(self, account_id: str) -> str:
        """The last known token, or "" where none is stored. A secret: for the browser's storage alone.

        Of two that differ the newer wins (`rows.newest`); where that cannot be told, the registry's.
        """
        row = self._row(account_id)
        if row is None:
            return ""
        if self._pending(row):
            return rows.token_of(row)
        return rows.newest((rows.token_of(row), self._lone_token(account_id)))

    def served(self, day: date) -> Mapping[str, int]:
        """Requests answered on that day, by account."""
        with suppress(SessionDamaged, ValueError):
            return _counts(store.read(self._dir / "served.json")).get(day.isoformat(), {})
        return {}

    def add_served(self, day: date, counts: Mapping[str, int]) -> None:
        path = self._dir / "served.json"
        with self._locked():
            try:
                raw = store.read_bytes(path)
                days = {} if raw is None else _counts(store.parse(raw))
            except ValueError:
                log.warning(
                    "served.json was damaged; it was put aside as %s",
                    store.put_aside(path, self._clock.now()),
                )
                days = {}
            today = days.setdefault(day.isoformat(), {})
            for account_id, count in counts.items():
                today[account_id] = today.get(account_id, 0) + count
            first = (day - timedelta(days=DAYS_SERVED - 1)).isoformat()
            store.write(path, {name: found for name, found in sorted(days.items()) if name >= first})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with store.locked(self._lock):
            yield

    def _all_rows(self) -> list[Row]:
        return rows.checked(store.read(self._path))

    def _rows(self) -> list[Row]:
        return [row for row in self._all_rows() if not row.get("removed")]

    def _row(self, account_id: str) -> Row | None:
        return next((row for row in self._rows() if row["id"] == account_id), None)

    def _account(self, row: Row) -> Account:
        def ends() -> datetime | None:
            return rows.ends_at(self._read_state(self._file(row["id"], "state.json")), rows.token_of(row))

        return rows.account_of(row, self._clock.now(), ends)

    def _replace_row(self, row: Row) -> None:
        """In its place, or at the end if it is new. What is already so is not written again."""
        known = self._all_rows()
        changed = [row if each["id"] == row["id"] else each for each in known]
        if row["id"] not in {each["id"] for each in known}:
            changed.append(row)
        if changed != known:
            self._write(changed)

    def _write(self, changed: list[Row]) -> None:
        """The mirror comes second, so it never knows more than the registry itself."""
        for path in (self._path, self._mirror):
            with suppress(SessionDamaged, ValueError):
                raw = store.read_bytes(path)
                if raw is not None and store.parse(raw) == changed:
                    continue
            store.write(path, changed)

    def _sign_in(self, row: Row, sign_in: SignIn) -> Account:
        changed = rows.signed_in(row, sign_in, self._clock.now())
        self._store(changed, sign_in)
        return self._account(changed)

    def _store(self, row: Row, sign_in: SignIn) -> None:
        """The row and its files, wholly or not at all."""
        folder = self._folder(row["id"])
        fresh = not folder.exists()
        try:
            store.write(folder / PENDING, {"token": sign_in.token, "state": sign_in.state})
            self._replace_row(row)
        except BaseException:
            with suppress(StoreError, OSError):
                current = self._row(row["id"])
                if current is None or self._pending(current) is None:
                    (folder / PENDING).unlink(missing_ok=True)
                    if fresh:
                        folder.rmdir()
            raise
        self._finish(row)

    def _pending(self, row: Row) -> SignIn | None:
        """A sign-in that is the row's already and not yet in its files."""
        with suppress(SessionDamaged):
            found = store.read(self._file(row["id"], PENDING))
            if isinstance(found, dict) and found.get("token") == row.get("token"):
                return SignIn(found["token"], found.get("state"))
        return None

    def _finish(self, row: Row) -> None:
        pending = self._pending(row)
        if pending is None:
            return
        file = self._file(row["id"], "state.json")
        if pending.state is None:
            store.remove(file)
        else:
            store.write(file, pending.state)
        store.write_text(self._file(row["id"], "token.txt"), pending.token)
        store.remove(self._file(row["id"], PENDING))

    def _drop_pending(self, known: set[str]) -> None:
        """Sign-ins that never came to count: nobody was told that they did."""
        for folder in healing.account_folders(self._dir):
            with suppress(OSError):
                (folder / PENDING).unlink()
                if folder.name not in known:
                    folder.rmdir()

    def _is_of(self, row: Row, state: Mapping[str, Any]) -> bool:
        """Whether the state belongs to the row's sign-in, as far as can be told."""
        given = self._given.get(row["id"], row.get("signedInAt"))
        other = rows.same_owner(rows.token_of(row), rows.token_in(state)) is False
        if given != row.get("signedInAt") or other:
            log.warning("account %s: the state of another sign-in was not stored", row["id"])
            return False
        return True

    def _free_id(self) -> str:
        """`acc_<ms>`, as the older proxies make them, and no folder's."""
        made = int(self._clock.now().timestamp() * 1000)
        taken = {row["id"].lower() for row in self._all_rows()}
        while f"acc_{made}" in taken or os.path.lexists(self._folders / f"acc_{made}"):
            made += 1
        return f"acc_{made}"

    def _folder(self, account_id: str) -> Path:
        """Raises: SessionDamaged. A link in the folder's place would lead our secrets elsewhere."""
        folder = self._folders / account_id
        for each in (self._folders, folder):
            if each.is_symlink() or (os.path.lexists(each) and not each.is_dir()):
                raise SessionDamaged(f"{each.name} in the session folder is not a plain folder; move it away")
        return folder

    def _file(self, account_id: str, name: str) -> Path:
        return self._folder(account_id) / name

    def _read_state(self, path: Path) -> dict[str, Any] | None:
        try:
            state = store.read(path)
        except SessionDamaged:
            return None
        return state if rows.is_state(state) else None

    def _lone_token(self, account_id: str) -> str:
        return healing.token_in_file(self._file(account_id, "token.txt"))


def _counts(value: Any) -> dict[str, dict[str, int]]:
    """Raises: ValueError. Not the shape that we write."""
    if not isinstance(value, dict):
        raise ValueError("it is not a table of days")
    days = {day: found for day, found in value.items() if isinstance(found, dict)}
    return {day: {k: v for k, v in found.items() if isinstance(v, int)} for day, found in days.items()}
