"""A session folder put right at a start: made private, swept, and its registry rebuilt where it was damaged.

Never shrunk silently: what was damaged is kept aside, and every account that any file still names comes back.

| `tokens.json` is                                  | outcome                                               |
|---------------------------------------------------|-------------------------------------------------------|
| with a byte order mark, CRLF, in UTF-16 or UTF-32 | read as it is                                         |
| empty, cut, with NULs, no UTF, over 64 MiB,       | kept as `tokens.json.corrupt-<UTC>`; rebuilt from its |
| no JSON, or JSON that is no list                  | own rows, then the mirror, then the account folders   |
| missing                                           | rebuilt from the mirror and the account folders       |
| `[]`, and the mirror is not                       | rebuilt from the account folders                      |
| a list with ids that are missing, no name for a   | kept aside as well; such a row gets a new id if its   |
| folder, or another row's                          | token is no other row's                               |
| not to be read (rights, a broken disk)            | refused and not touched: nothing is known of it       |
| a link, a folder, a pipe                          | refused, and not followed                             |

The caller holds the registry's lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from qwenproxy import store
from qwenproxy.accounts import rows
from qwenproxy.accounts.rows import Row
from qwenproxy.errors import SessionDamaged

LONGEST_TOKEN = 16_384
OURS = ("tokens.json", "tokens.json.bak", "served.json")
OURS_PER_ACCOUNT = ("sign-in.json", "state.json", "token.txt")


def account_folders(session_dir: Path) -> list[Path]:
    """Real folders whose names may be account ids, oldest id first."""
    root = session_dir / "accounts"
    if root.is_symlink() or not root.is_dir():
        return []
    fit = (path for path in root.iterdir() if rows.SAFE_ID.fullmatch(path.name))
    return sorted(path for path in fit if path.is_dir() and not path.is_symlink())


def tidy(session_dir: Path) -> Iterator[str]:
    """Deletes what died writers left, and closes to others what is open to them; says so."""
    opened, foreign = False, False
    folders = account_folders(session_dir)
    store.sweep(session_dir, OURS)
    for folder in folders:
        store.sweep(folder, OURS_PER_ACCOUNT)
    mine = [path for path in session_dir.glob("*.json*") if not path.is_dir()]
    inside = [path / name for path in folders for name in OURS_PER_ACCOUNT]
    for path in [session_dir.resolve(), session_dir / "accounts", *mine, *folders, *inside]:
        try:
            opened |= store.make_private(path)
        except FileNotFoundError:
            continue
        except OSError:
            foreign = True
    held = folders or any(path.suffix != ".lock" for path in mine)
    if opened and held:  # a fresh clone's folder holds nothing yet
        yield "the session folder was open to others on this computer; it is private now"
    if foreign:
        yield "the session folder belongs to somebody else and cannot be made private"


def healed(session_dir: Path, now: datetime) -> tuple[list[Row], str]:
    """The rows of the registry, or what can be found of them, and what a person should read about it, or "".

    Raises:
        SessionDamaged: the registry may not be read, so that nothing is known about it.
        StoreError: it is damaged and cannot be kept aside.
    """
    path, copy = session_dir / "tokens.json", session_dir / "tokens.json.bak"
    value, unsound = _value_of(path)
    if unsound:
        found = _merged(_rows_in(copy, now), rows.salvaged(store.read_bytes(path, whole=False) or b""), now)
        found = _with_folders(found, session_dir)
        aside = store.put_aside(path, now)
        return found, f"tokens.json was damaged and put aside as {aside}; {_count(found)} found again"
    if value is None:
        found = _with_folders(_rows_in(copy, now), session_dir)
        return found, f"tokens.json was missing; {_count(found)} found again" if found else ""
    usable, odd = rows.parted(value)
    if odd:
        found = _with_new_ids(usable, odd, now)
        aside = store.put_aside(path, now)
        return found, (
            f"tokens.json held {len(odd)} without a usable id of its own; {len(found) - len(usable)} of them "
            f"got a new one, and the file as it was is kept as {aside}"
        )
    if not usable and _value_of(copy)[0] != []:
        known = {row["id"]: row for row in _rows_in(copy, now)}
        found = [known.get(row["id"], row) for row in _rows_of_folders(session_dir)]
        return found, f"another program had emptied tokens.json; {_count(found)} found again" if found else ""
    return usable, ""


def put_state_aside(path: Path, now: datetime) -> str:
    """Moves a browser state that is none out of the way; its new name, or "" if it is sound or missing.

    Raises:
        SessionDamaged: it may not be read.
        StoreError: it cannot be moved.
    """
    with suppress(ValueError):
        raw = store.read_bytes(path)
        if raw is None or rows.is_state(store.parse(raw)):
            return ""
    aside = store.put_aside(path, now)
    store.remove(path)
    return aside


def token_in_file(path: Path) -> str:
    """The token of a `token.txt`, or "" where it holds none that can be one."""
    with suppress(SessionDamaged, ValueError):
        token = (store.read_bytes(path) or b"").decode("utf-8-sig").strip()
        if len(token) <= LONGEST_TOKEN and token.isascii() and token.isprintable() and " " not in token:
            return token
    return ""


def _value_of(path: Path) -> tuple[list[Any] | None, bool]:
    """The list in the file, None if there is no file; and whether what is there is no such list."""
    try:
        raw = store.read_bytes(path)
        value = None if raw is None else store.parse(raw)
    except ValueError:
        return None, True
    if raw is None:
        return None, False
    return (value, False) if isinstance(value, list) else (None, True)


def _rows_in(copy: Path, now: datetime) -> list[Row]:
    """What the mirror knows; a damaged one is kept aside too."""
    value, unsound = _value_of(copy)
    if unsound:
        value = rows.salvaged(store.read_bytes(copy, whole=False) or b"")
        store.put_aside(copy, now)
    return _merged([], value or [], now)


def _with_folders(known: list[Row], session_dir: Path) -> list[Row]:
    named = {row["id"].lower() for row in known}
    return [*known, *(row for row in _rows_of_folders(session_dir) if row["id"].lower() not in named)]


def _rows_of_folders(session_dir: Path) -> list[Row]:
    """An account for every folder in which a sign-in is left."""
    found = []
    for folder in account_folders(session_dir):
        state: Any = None
        with suppress(SessionDamaged):
            state = store.read(folder / "state.json")
        token = rows.newest((token_in_file(folder / "token.txt"), rows.token_in(state)))
        if token or rows.holds_sign_in(state):
            found.append({"id": folder.name, "token": token, "resetAt": None})
    return found


def _merged(known: list[Row], newer: Iterable[Any], now: datetime) -> list[Row]:
    """Both; of an account that both name what is newer counts, but a removal stays one."""
    merged = {row["id"].lower(): row for row in known}
    usable, odd = rows.parted(newer)
    for row in usable:
        before = merged.get(row["id"].lower(), {})
        removed = {"removed": True} if before.get("removed") else {}
        merged[row["id"].lower()] = {**before, **row, **removed}
    return _with_new_ids(list(merged.values()), odd, now)


def _with_new_ids(known: list[Row], odd: Iterable[Any], now: datetime) -> list[Row]:
    """The rows, and those without a usable id of their own that have a token which no other row has."""
    found = list(known)
    made = int(now.timestamp() * 1000)
    for row in odd:
        token = rows.token_of(row) if isinstance(row, dict) else ""
        if token and token not in map(rows.token_of, found):
            while f"acc_{made}" in {row["id"].lower() for row in found}:
                made += 1
            found.append({**row, "id": f"acc_{made}"})
    return found


def _count(found: list[Row]) -> str:
    count = sum(1 for row in found if not row.get("removed"))
    return "no account was" if not count else "1 account was" if count == 1 else f"{count} accounts were"
