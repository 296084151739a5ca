"""One row of `tokens.json` as the older proxies write it, and the sign-in that is in it. No disk in here.

A row is `{id, token, resetAt, invalid}`, our own fields beside them (`label`, `email`, `userId`, `paused`,
`waitsFor`, `modelResetAt`, `signedInAt`, `holdsUntil`) and whatever else a program put there, which is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, TypeGuard

import jwt

from qwenproxy.accounts.account import Account, SignIn
from qwenproxy.errors import SessionDamaged

Row = dict[str, Any]
State = Mapping[str, Any]

SAFE_ID = re.compile(r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)\Z)[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Account ids become folder names; some names are devices on Windows."""

LONGEST_WAIT = timedelta(hours=48)
"""A clock that was wrong once, or a garbled time, rests no account longer than this."""

_TORN_ROW = re.compile(r'\{\s*"id"\s*:\s*"(?P<id>[^"\\]*)"\s*,\s*"token"\s*:\s*"(?P<token>[^"\\]*)"')
MOST_TRIES = 10_000
"""How often a damaged file is looked into for a row that is whole."""

SESSION_COOKIES = ("token", "refresh_token")
"""The cookies that carry a sign-in (protocol §1.2)."""

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "label": "label",
        "email": "email",
        "user_id": "userId",
        "invalid": "invalid",
        "paused": "paused",
        "wait_until": "resetAt",
        "why": "waitsFor",
        "model_waits": "modelResetAt",
        "signed_in_at": "signedInAt",
        "holds_until": "holdsUntil",
    }
)
"""An account's fields and what they are called in a row."""


def checked(value: Any) -> list[Row]:
    """The rows of the file.

    Raises:
        SessionDamaged: the value is no list of accounts. A file of another shape is somebody's data.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise SessionDamaged("tokens.json is not a list of accounts; it was left as it is")
    rows, unusable = parted(value)
    if unusable:
        raise SessionDamaged(
            "tokens.json holds an account without a usable id of its own; it was left as it is"
        )
    return rows


def parted(value: Iterable[Any]) -> tuple[list[Row], list[Any]]:
    """The usable rows, and those whose id is missing, unfit for a folder's name, or another's.

    Ids that differ in capitals alone are one folder on most computers.
    """
    rows: list[Row] = []
    unusable: list[Any] = []
    taken: set[str] = set()
    for row in value:
        name = row.get("id") if isinstance(row, dict) else None
        if isinstance(name, str) and SAFE_ID.fullmatch(name) and name.lower() not in taken:
            taken.add(name.lower())
            rows.append(row)
        else:
            unusable.append(row)
    return rows, unusable


def salvaged(raw: bytes) -> list[Row]:
    """The rows of a damaged file that still tell id and token, for example of one that ends too early."""
    text = raw.decode("utf-8", errors="replace").replace("\0", "")
    decoder, found, start = json.JSONDecoder(), list[Row](), 0
    for _ in range(MOST_TRIES):
        start = text.find("{", start)
        if start < 0:
            break
        try:
            row, start = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            torn = _TORN_ROW.match(text, start)
            row = torn.groupdict() if torn else {}
            start += 1
        if {"id", "token"} <= row.keys():
            found.append(row)
    return found


def account_of(row: Row, now: datetime, holds_until: Callable[[], datetime | None]) -> Account:
    """`holds_until` is asked where the row does not tell."""
    waits = row.get("modelResetAt")
    models = waits.items() if isinstance(waits, dict) else ()
    limits = ((model, soon(until, now)) for model, until in models)
    wait_until = soon(row.get("resetAt"), now)
    return Account(
        id=row["id"],
        label=_text(row.get("label")),
        email=_text(row.get("email")),
        user_id=_text(row.get("userId")),
        invalid=_yes(row.get("invalid")),
        paused=_yes(row.get("paused")),
        wait_until=wait_until,
        why="human" if row.get("waitsFor") == "human" else "limit" if wait_until else "",
        model_waits=tuple((model, until) for model, until in limits if until is not None),
        signed_in_at=instant(row.get("signedInAt")),
        holds_until=instant(row.get("holdsUntil")) or holds_until(),
    )


def edited(row: Row, before: Account, after: Account) -> Row:
    """The row with what became different; the same row if nothing did."""
    changed = {
        NAMES[field.name]: _written(getattr(after, field.name))
        for field in fields(Account)
        if field.name in NAMES and getattr(after, field.name) != getattr(before, field.name)
    }
    return {**row, **changed} if changed else row


def clamped(row: Row, now: datetime) -> Row:
    """The row without waits that are longer than any can be; the same row if there are none."""
    changed: Row = {}
    if _too_far(row.get("resetAt"), now):
        changed["resetAt"] = _written(now + LONGEST_WAIT)
    models = row.get("modelResetAt")
    if isinstance(models, dict) and any(_too_far(until, now) for until in models.values()):
        changed["modelResetAt"] = {model: _written(soon(until, now)) for model, until in models.items()}
    return {**row, **changed} if changed else row


def signed_in(row: Row, sign_in: SignIn, now: datetime) -> Row:
    """The row after a sign-in. A limit stays with the person that met it."""
    other = same_person(row, sign_in) is False
    before = instant(row.get("signedInAt"))
    at = now if before is None else max(now, before + timedelta(microseconds=1))
    ends = ends_at(sign_in.state, sign_in.token)
    changed: Row = {
        "token": sign_in.token,
        "invalid": False,
        "email": sign_in.email or ("" if other else _text(row.get("email"))),
        "userId": sign_in.user_id or ("" if other else _text(row.get("userId"))),
        "signedInAt": _written(at),
        "holdsUntil": _written(ends),
    }
    if other or row.get("waitsFor") == "human":
        changed |= {"waitsFor": "", "resetAt": None}
    if other:
        changed["modelResetAt"] = {}
    return {**row, **changed}


def same_person(row: Row, sign_in: SignIn) -> bool | None:
    """Whether the sign-in is that row's; None where neither the service nor the tokens tell."""
    if _text(row.get("userId")) and sign_in.user_id:
        return _text(row.get("userId")) == sign_in.user_id
    if sign_in.token and token_of(row) == sign_in.token:
        return True
    return same_owner(token_of(row), sign_in.token)


def same_owner(one: str, other: str) -> bool | None:
    """Whether two tokens are one person's, by their own claims; None where they do not tell."""
    owner, another = claims(one).get("id"), claims(other).get("id")
    return owner == another if owner and another else None


def token_of(row: Row) -> str:
    return _text(row.get("token")).strip()


def is_state(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether it has the shape of a browser state."""
    return isinstance(value, dict) and isinstance(value.get("cookies"), list)


def token_in(state: Any) -> str:
    """The token that a saved browser state holds, or ""."""
    stored = [item for origin in _dicts(state, "origins") for item in _dicts(origin, "localStorage")]
    tokens = [_text(item.get("value")) for item in stored if item.get("name") == "token"]
    cookies = [_text(c.get("value")) for c in _dicts(state, "cookies") if c.get("name") == "token"]
    return newest(token.strip() for token in (*tokens, *cookies))


def holds_sign_in(state: Any) -> bool:
    cookies = (c for c in _dicts(state, "cookies") if c.get("name") in SESSION_COOKIES and c.get("value"))
    return bool(token_in(state)) or any(cookies)


def ends_at(state: Any, token: str) -> datetime | None:
    """When the sign-in ends: the latest of the session's cookies, else the token."""
    cookies = (c for c in _dicts(state, "cookies") if c.get("name") in SESSION_COOKIES)
    ends = [end for end in (_moment(cookie.get("expires")) for cookie in cookies) if end is not None]
    return max(ends, default=None) or _moment(claims(token).get("exp"))


def outlives(token: str, state: Any) -> bool:
    """Whether the token ends so much later than the browser state that the state cannot be of its sign-in.

    The service may renew the one a moment before the other; days mean that somebody signed in elsewhere.
    """
    token_end, state_end = _moment(claims(token).get("exp")), ends_at(state, token_in(state))
    return token_end is not None and state_end is not None and token_end - state_end > timedelta(days=1)


def newest(tokens: Iterable[str]) -> str:
    """The token that ends last, or of those the one made last; the first where none tells; "" of none."""
    return max((token for token in tokens if token), key=_age, default="")


def claims(token: str) -> dict[str, Any]:
    """What a token says about itself, unproved; nothing for one that is no JWT."""
    try:
        return jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        return {}


def instant(value: Any) -> datetime | None:
    """An ISO time; without a zone it is taken for UTC, as the older proxies' own reader did."""
    try:
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def soon(value: Any, now: datetime) -> datetime | None:
    """The same for the end of a wait, at most `LONGEST_WAIT` from now."""
    until = instant(value)
    return None if until is None else min(until, now + LONGEST_WAIT)


def _too_far(value: Any, now: datetime) -> bool:
    until = instant(value)
    return until is not None and until - now > LONGEST_WAIT


def _age(token: str) -> tuple[float, float]:
    said = claims(token)
    return _number(said.get("exp")), _number(said.get("iat"))


def _number(value: Any) -> float:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
    return float(value) if usable else 0.0


def _moment(value: Any) -> datetime | None:
    """Seconds since 1970; cookies of a browser's run have -1."""
    try:
        return datetime.fromtimestamp(_number(value), UTC) if _number(value) > 0 else None
    except (ValueError, OverflowError, OSError):
        return None


def _dicts(value: Any, name: str) -> list[dict[str, Any]]:
    found = value.get(name) if isinstance(value, dict) else None
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _yes(value: Any) -> bool:
    return value is True or (isinstance(value, str) and value.strip().lower() == "true")


def _written(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return {model: _written(until) for model, until in value} if isinstance(value, tuple) else value
