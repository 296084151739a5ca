"""The accounts on disk, in the older proxies' own form, so that their session folders keep working.

`tokens.json` is a list of `{id, token, resetAt, invalid}`; `accounts/<id>/token.txt` holds the bare token
and `accounts/<id>/state.json` the browser's storage state, which is the credential (protocol §1.2: the token
alone lives 15 minutes today). Fields we do not know are kept.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qwenproxy import store
from qwenproxy.accounts.account import Account
from qwenproxy.clock import Clock
from qwenproxy.errors import SessionDamaged

SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Account ids become folder names."""


class Registry:
    """`tokens.json` and the folders beside it. Every method blocks on the disk."""

    def __init__(self, session_dir: Path, clock: Clock) -> None:
        self._dir = session_dir
        self._path = session_dir / "tokens.json"
        self._clock = clock

    def accounts(self) -> tuple[Account, ...]:
        """All of them, in the file's order.

        Raises:
            SessionDamaged: `tokens.json` is there and is not a list of accounts.
        """
        return tuple(_account(row) for row in _rows(store.read(self._path)))

    def add(self, token: str, state: dict[str, Any] | None = None) -> Account:
        """Stores a new sign-in and gives its account."""
        made = int(self._clock.now().timestamp() * 1000)

        def append(rows: Any) -> list[dict[str, Any]]:
            known = _rows(rows)
            taken = {row["id"] for row in known}
            free = (f"acc_{n}" for n in range(made, made + len(taken) + 1))
            fresh = next(account_id for account_id in free if account_id not in taken)
            return [*known, {"id": fresh, "token": token, "resetAt": None}]

        account = _account(store.change(self._path, append)[-1])
        if state is not None:
            store.write(self._folder(account.id) / "state.json", state)
        store.write_text(self._folder(account.id) / "token.txt", token)
        return account

    def record(self, account: Account) -> None:
        """Stores the state an account has come to."""
        until = account.wait_until.isoformat() if account.wait_until else None
        fields = {"invalid": account.invalid, "resetAt": until, "waitsFor": account.why}

        def edit(rows: Any) -> list[dict[str, Any]]:
            return [{**row, **fields} if row["id"] == account.id else row for row in _rows(rows)]

        store.change(self._path, edit)

    def browser_state(self, account_id: str) -> dict[str, Any] | None:
        """The saved browser state; None where there is none that can be read: the token is left then."""
        try:
            state = store.read(self._folder(account_id) / "state.json")
        except SessionDamaged:
            return None
        return state if isinstance(state, dict) and isinstance(state.get("cookies"), list) else None

    def token(self, account_id: str) -> str:
        """The last known token, or "" where none is stored. A secret: for the browser's storage alone."""
        for row in _rows(store.read(self._path)):
            if row["id"] == account_id and isinstance(row.get("token"), str) and row["token"].strip():
                return str(row["token"]).strip()
        try:
            return (self._folder(account_id) / "token.txt").read_text("utf-8-sig").strip()
        except (OSError, ValueError):
            return ""

    def _folder(self, account_id: str) -> Path:
        return self._dir / "accounts" / account_id


def _rows(value: Any) -> list[dict[str, Any]]:
    """Raises: SessionDamaged. A file of another shape is somebody's data, not an empty list."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise SessionDamaged("tokens.json is not a list of accounts; it was left as it is")
    for row in value:
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("id"), str)
            or not SAFE_ID.fullmatch(row["id"])
        ):
            raise SessionDamaged("tokens.json holds an account without a usable id; it was left as it is")
    return value


def _account(row: dict[str, Any]) -> Account:
    return Account(
        id=row["id"],
        invalid=row.get("invalid") is True,
        wait_until=_instant(row.get("resetAt")),
        why="human" if row.get("waitsFor") == "human" else "limit" if row.get("resetAt") else "",
    )


def _instant(value: Any) -> datetime | None:
    """An ISO time; without a zone it is taken for UTC, as the older proxies' own reader did."""
    try:
        instant = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
