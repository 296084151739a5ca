"""Rows of the older proxies, read as they meant them; tokens compared by what they say."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.accounts import rows
from qwenproxy.accounts.account import Account, SignIn
from qwenproxy.errors import SessionDamaged
from tests.accounts.old_sessions import ROWS, token

NOW = datetime(2026, 11, 21, 9, tzinfo=UTC)


def account(**fields: Any) -> Account:
    return rows.account_of({"id": "a", "token": "t", **fields}, NOW, lambda: None)


@pytest.mark.parametrize(
    "stamp",
    [
        "2026-11-21T10:00:00+00:00",
        "2026-11-21T10:00:00",
        "2026-11-21T12:00:00+02:00",
        "2026-11-21T10:00:00.000Z",
    ],
)
def test_a_reset_time_is_the_same_instant_however_it_is_written(stamp: str) -> None:
    assert account(resetAt=stamp).wait_until == datetime(2026, 11, 21, 10, tzinfo=UTC)
    assert account(resetAt=stamp).why == "limit"


@pytest.mark.parametrize(
    "stamp", ["", "soon", 5, True, [], {}, None, "0000-00-00T00:00:00Z", "+275760-09-13T00:00:00Z"]
)
def test_a_reset_time_that_is_none_is_no_wait(stamp: Any) -> None:
    assert account(resetAt=stamp) == Account("a")
    assert rows.clamped({"resetAt": stamp}, NOW) == {"resetAt": stamp}


@pytest.mark.parametrize("stamp", ["2026-12-24T00:00:00Z", "9999-12-31T23:59:59Z", "2999-01-01"])
def test_a_wait_beyond_reason_is_cut_on_reading_and_for_good_at_a_start(stamp: str) -> None:
    row: dict[str, Any] = {
        "id": "a",
        "resetAt": stamp,
        "modelResetAt": {"m": stamp, "n": "2026-11-21T10:00:00Z"},
    }
    end = NOW + timedelta(hours=48)
    read = rows.account_of(row, NOW, lambda: None)
    assert (read.wait_until, read.model_waits[0]) == (end, ("m", end))
    kept = rows.clamped(row, NOW)
    assert rows.account_of(kept, NOW + timedelta(hours=1), lambda: None).wait_until == end
    assert kept["modelResetAt"] == {"m": end.isoformat(), "n": "2026-11-21T10:00:00+00:00"}
    assert rows.clamped(kept, NOW) is kept


@pytest.mark.parametrize(
    ("value", "invalid"),
    [(True, True), ("true", True), ("True ", True), ("false", False), ("", False), (None, False), (0, False)],
)
def test_invalid_is_what_it_says(value: Any, invalid: bool) -> None:
    assert account(invalid=value).invalid is invalid


def test_fields_of_another_type_are_as_good_as_none() -> None:
    odd: dict[str, Any] = {name: [{}] for name in rows.NAMES.values()}
    assert account(**odd) == Account("a")
    assert account(modelResetAt={"m": 5}) == Account("a")


def test_what_an_edit_changes_is_written_and_nothing_else() -> None:
    row = {"id": "a", "token": "t", "resetAt": "garbled", "cookies": [1], "invalid": "no"}
    before = rows.account_of(row, NOW, lambda: NOW)
    after = Account(
        "a",
        label="ä",
        email="a@example.com",
        user_id="u",
        invalid=True,
        paused=True,
        wait_until=NOW,
        why="human",
        model_waits=(("m", NOW + timedelta(hours=1)),),
        signed_in_at=NOW,
        holds_until=NOW + timedelta(days=30),
    )
    changed = json.loads(json.dumps(rows.edited(row, before, after)))
    assert rows.account_of(changed, NOW, lambda: None) == after
    assert (changed["token"], changed["cookies"]) == ("t", [1])
    assert rows.edited(row, before, before) is row
    assert rows.edited(row, before, Account("a", label="x", holds_until=NOW)) == {**row, "label": "x"}


@pytest.mark.parametrize(
    "value", [{}, "x", 5, ["a"], [{"id": 5}], [{"id": "../up"}], [{"id": "a"}, {"id": "A"}], [{"id": "nul"}]]
)
def test_another_shape_is_damage(value: Any) -> None:
    with pytest.raises(SessionDamaged):
        rows.checked(value)


@pytest.mark.parametrize(
    "name", ["..", ".", "", "a/b", "a\\b", "a\0", "a b", "-a", "a" * 65, "COM1", "lpt9", "con", "ä", "a."]
)
def test_no_id_leads_out_of_its_folder_or_to_a_device(name: str) -> None:
    assert not rows.SAFE_ID.fullmatch(name)


@pytest.mark.parametrize("name", ["acc_1752745840684", "a", "console", "com10x", "A-b_9"])
def test_usual_ids_are_usable(name: str) -> None:
    assert rows.SAFE_ID.fullmatch(name)


def test_rows_are_found_in_a_file_cut_anywhere() -> None:
    raw = json.dumps(ROWS, indent=2, ensure_ascii=False).encode()
    for cut in range(len(raw)):
        found = {row["token"] for row in rows.salvaged(raw[:cut])}
        assert found == {row["token"] for row in ROWS if f'{row["token"]}"'.encode() in raw[:cut]}


@given(st.binary(max_size=200))
def test_junk_before_and_after_hides_no_row(junk: bytes) -> None:
    text = junk.replace(b'"', b"'").replace(b"{", b"(")
    found = rows.salvaged(text + json.dumps(ROWS[0]).encode() + text)
    assert found == [ROWS[0]]


@pytest.mark.parametrize("junk", [b'{"a":' * 100_000, b"{" * 100_000, b'{"id": 1}' * 20_000])
def test_salvage_ends_whatever_it_is_given(junk: bytes) -> None:
    assert rows.salvaged(junk) == []


OLD, NEW = token("u", 1_800_000_000), token("u", 1_900_000_000)
RENEWED = token("u", 1_900_000_000, iat=1_790_000_000)


@pytest.mark.parametrize(
    ("registry", "file", "winner"),
    [
        (OLD, NEW, NEW),
        (NEW, OLD, NEW),
        (NEW, RENEWED, RENEWED),
        (NEW, "", NEW),
        ("", OLD, OLD),
        ("no JWT", NEW, NEW),
        (OLD, "no JWT", OLD),
        ("no JWT", "neither", "no JWT"),
        (NEW, token("other", 1_900_000_000), NEW),
        (OLD, token("u", 10**30), OLD),
        (OLD, token("u", True), OLD),
        ("", "", ""),
    ],
)
def test_of_two_tokens_the_newer_wins_else_the_registrys(registry: str, file: str, winner: str) -> None:
    assert rows.newest((registry, file)) == winner


def cookie(name: str, expires: Any, value: str = "x") -> dict[str, Any]:
    return {"name": name, "value": value, "expires": expires}


def state(*cookies: dict[str, Any], token: str = "") -> dict[str, Any]:
    stored = [{"name": "theme", "value": "dark"}, *([{"name": "token", "value": token}] if token else [])]
    return {"cookies": list(cookies), "origins": [{"origin": "https://x.example", "localStorage": stored}]}


@pytest.mark.parametrize(
    ("saved", "bare", "ends"),
    [
        (
            state(cookie("token", 1_850_000_000), cookie("refresh_token", 1_860_000_000.5)),
            NEW,
            1_860_000_000.5,
        ),
        (state(cookie("token", -1), cookie("cna", 1_999_000_000)), NEW, 1_900_000_000),
        (state(), "no JWT", None),
        (None, NEW, 1_900_000_000),
        (None, token("u", 10**20), None),
        ({"cookies": "x", "origins": [5, {"localStorage": 5}]}, "", None),
        (state(cookie("token", "soon")), "", None),
    ],
)
def test_a_sign_in_ends_with_its_longest_cookie_else_with_its_token(
    saved: Any, bare: str, ends: float | None
) -> None:
    assert rows.ends_at(saved, bare) == (datetime.fromtimestamp(ends, UTC) if ends else None)


def test_a_state_tells_its_token_and_whether_it_holds_a_sign_in() -> None:
    assert rows.token_in(state(token=NEW)) == NEW
    assert rows.token_in(state(cookie("token", 5, OLD), token=NEW)) == NEW
    assert rows.token_in(state(cookie("token", 5, OLD))) == OLD
    assert rows.token_in(None) == rows.token_in({"origins": None}) == ""
    assert rows.holds_sign_in(state(cookie("refresh_token", 5)))
    assert rows.holds_sign_in(state(token=NEW))
    assert not rows.holds_sign_in(state(cookie("refresh_token", 5, ""), cookie("cna", 5)))
    assert not rows.holds_sign_in(None)


def test_only_days_make_a_token_another_sign_ins() -> None:
    assert rows.outlives(NEW, state(cookie("token", 1_800_000_000)))
    assert not rows.outlives(NEW, state(cookie("token", 1_900_000_000 - 3600)))
    assert not rows.outlives(NEW, state())
    assert not rows.outlives("no JWT", state(cookie("token", 5)))


@pytest.mark.parametrize(
    ("row", "sign_in", "same"),
    [
        ({"userId": "u", "token": "t"}, SignIn("other", None, user_id="u"), True),
        ({"userId": "u", "token": "t"}, SignIn("t", None, user_id="v"), False),
        ({"token": "t\n"}, SignIn("t", None, user_id="u"), True),
        ({"token": "t"}, SignIn("other", None), None),
        ({"token": ""}, SignIn("", None), None),
        ({"token": OLD}, SignIn(NEW, None, user_id="an id of another kind"), True),
        ({"token": OLD, "userId": 5}, SignIn(token("v"), None), False),
    ],
)
def test_who_signed_in_is_told_by_the_service_else_by_the_tokens(
    row: Any, sign_in: SignIn, same: bool | None
) -> None:
    assert rows.same_person(row, sign_in) is same


def test_a_sign_in_ends_what_kept_the_account_back_but_no_limit_of_its_own() -> None:
    row = {
        "id": "a",
        "token": OLD,
        "userId": "u",
        "email": "a@example.com",
        "label": "mine",
        "invalid": True,
        "paused": True,
        "resetAt": "2026-11-21T10:00:00Z",
        "waitsFor": "limit",
        "modelResetAt": {"m": "2026-11-21T11:00:00Z"},
    }
    limited = rows.account_of(rows.signed_in(row, SignIn(NEW, None, user_id="u"), NOW), NOW, lambda: None)
    assert (limited.invalid, limited.why, limited.paused) == (False, "limit", True)
    assert (limited.email, limited.signed_in_at, len(limited.model_waits)) == ("a@example.com", NOW, 1)

    human = rows.signed_in({**row, "waitsFor": "human"}, SignIn(NEW, None, user_id="u"), NOW)
    assert rows.account_of(human, NOW, lambda: None).state(NOW) == "OK"

    other = rows.account_of(rows.signed_in(row, SignIn(NEW, None, user_id="v"), NOW), NOW, lambda: None)
    assert (other.user_id, other.email, other.label) == ("v", "", "mine")
    assert (other.wait_until, other.why, other.model_waits) == (None, "", ())


def test_a_later_sign_in_has_a_later_time_though_the_clock_went_back() -> None:
    first = rows.signed_in({"id": "a"}, SignIn(NEW, None), NOW)
    second = rows.signed_in(first, SignIn(NEW, None), NOW - timedelta(days=1))
    times = [datetime.fromisoformat(row["signedInAt"]) for row in (first, second)]
    assert times[0] == NOW < times[1]
