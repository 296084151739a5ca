from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from rich.cells import cell_len
from rich.console import Console

from qwenproxy.account_table import (
    Form,
    Glyphs,
    Row,
    accounts_table,
    cares,
    coarse,
    glyphs_of,
    notes,
    span,
    state_text,
)
from qwenproxy.accounts.account import Account

NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
PLAIN = Glyphs("cp866", emoji=False)
ACCOUNTS = (
    Account(
        "acc_1752745840684",
        email="anna@example.com",
        signed_in_at=NOW - 3 * DAY,
        holds_until=NOW + 27 * DAY,
    ),
    Account(
        "acc_1752745890062",
        label="work",
        email="b@example.com",
        wait_until=NOW + 3 * HOUR,
        why="limit",
        holds_until=NOW + 2 * DAY,
    ),
    Account("acc_1752745890099", invalid=True, signed_in_at=NOW - 31 * DAY, holds_until=NOW - DAY),
    Account("acc_1752745890199", email="h@example.com", why="human"),
    Account("acc_1752745890299", label="Семья", paused=True),
)
ROWS = [Row(account, served) for account, served in zip(ACCOUNTS, (27, 4, 0, 0, 1), strict=True)]


def shown(
    rows: Sequence[Row] = ROWS, *, width: int = 120, form: Form = "wide", glyphs: Glyphs | None = None
) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True, legacy_windows=False)
    console.print(accounts_table(rows, NOW, glyphs or Glyphs(), width=width, form=form))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_wide_form_tells_all_of_an_account_on_its_line() -> None:
    header, *lines = shown()
    assert header.split() == ["#", "Account", "ID", "State", "Signed", "in", "Holds", "Today"]
    assert lines[0].split() == [
        *("1", "anna@example.com", "acc_1752745840684", "✅", "OK", "3", "d", "ago", "27", "d", "27")
    ]
    assert "work  b@example.com" in lines[1]
    assert "⏳ WAIT 3 h limit" in lines[1]
    assert "❌ INVALID sign in again" in lines[2]
    assert "⏳ WAIT needs you" in lines[3]
    assert "⏸  PAUSED" in lines[4]
    assert len(lines) == 5


def test_the_stacked_form_puts_the_id_and_the_reason_below() -> None:
    lines = shown(width=60, form="stacked")[3:5]
    assert "work" in lines[0]
    assert "WAIT" in lines[0]
    assert "acc_1752745890062" in lines[1]
    assert "3 h limit" in lines[1]
    assert "2 d left!" in lines[1]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("form", ["wide", "stacked", "short"])
@pytest.mark.parametrize("glyphs", [Glyphs(), PLAIN])
def test_no_form_wraps_or_runs_over_the_edge(width: int, form: Form, glyphs: Glyphs) -> None:
    lines = shown(width=width, form=form, glyphs=glyphs)
    assert len(lines) == 1 + len(ROWS) * (2 if form == "stacked" else 1)
    assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_still_tells_number_name_state_and_count(width: int) -> None:
    lines = shown(width=width, form="short")[1:]
    for number, (line, word) in enumerate(
        zip(lines, ("OK", "WAIT", "INVALID", "WAIT", "PAUSED"), strict=True), 1
    ):
        assert line.split()[0] == str(number)
        assert word in line
    assert "anna@exam" in lines[0]
    assert "3 h limit" in lines[1]
    assert lines[0].endswith("27")


@pytest.mark.parametrize("encoding", ["cp1252", "cp866", "ascii"])
def test_old_code_pages_get_only_what_they_have(encoding: str) -> None:
    glyphs = Glyphs(encoding, emoji=False)
    for form in ("wide", "stacked", "short"):
        text = "\n".join(shown(glyphs=glyphs, form=form))
        assert text.encode(encoding)
        assert all(word in text for word in ("OK", "WAIT", "INVALID", "PAUSED"))


def test_a_running_proxy_adds_the_slots() -> None:
    lines = shown([Row(ACCOUNTS[0], 1, 1, 2)])
    assert "Busy" in lines[0]
    assert "1/2" in lines[1]


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    label = "a\x1b[2Jb\nc\u202e"
    text = "\n".join(shown([Row(Account("acc_1", label=label))]))
    assert "a [2Jb c" in text
    assert not {"\x1b", "\u202e"} & set(text)


def test_an_invalid_account_that_is_paused_too_needs_its_sign_in_first() -> None:
    assert str(state_text(Account("a", invalid=True, paused=True), NOW, PLAIN)) == "INVALID sign in again"


def test_an_old_wait_is_over() -> None:
    assert str(state_text(Account("a", wait_until=NOW - HOUR, why="limit"), NOW, PLAIN)) == "OK"


def test_notes_tell_limits_of_models_and_ends_of_sign_ins() -> None:
    limits = (("qwen3-max", NOW + HOUR), ("old", NOW - HOUR))
    found = list(notes([Account("a", model_waits=limits), ACCOUNTS[1], ACCOUNTS[2]], NOW, Glyphs()))
    assert found == [
        "a: qwen3-max is limited for 1 h",
        "work: the sign-in ends in 2 d; sign in again before it stops working",
    ]


def test_care_is_told_while_it_lasts() -> None:
    rows = [Row(Account("b"), careful_until=NOW + HOUR / 2), Row(Account("c"), careful_until=NOW - HOUR)]
    told = "b: one answer at a time for 30 min, as the service has warned"
    assert list(cares(rows, NOW, Glyphs())) == [told]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-5, "0 s"),
        (0.2, "1 s"),
        (59, "59 s"),
        (60, "1 min"),
        (545, "9 min 5 s"),
        (600, "10 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (10_740, "2 h 59 min"),
        (86_400, "1 d"),
        (187_200, "2 d 4 h"),
    ],
)
def test_a_span_is_told_in_two_units_at_most(seconds: float, told: str) -> None:
    assert span(timedelta(seconds=seconds)) == told


@pytest.mark.parametrize(("seconds", "told"), [(5, "5 s"), (119, "1 min"), (7200, "2 h"), (90_000, "1 d")])
def test_an_age_is_told_in_its_largest_unit(seconds: float, told: str) -> None:
    assert coarse(timedelta(seconds=seconds)) == told


@pytest.mark.parametrize(
    ("encoding", "term", "emoji"),
    [
        ("utf-8", "xterm", True),
        ("cp1252", "xterm", False),
        ("cp866", "xterm", False),
        ("utf-8", "dumb", False),
    ],
)
def test_emoji_go_only_where_they_can_be_shown(encoding: str, term: str, emoji: bool) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, force_terminal=True, legacy_windows=False, _environ={"TERM": term})
    assert glyphs_of(console).emoji is emoji
    assert not glyphs_of(Console(file=file, legacy_windows=True)).emoji
