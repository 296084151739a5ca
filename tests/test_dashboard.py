from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.cells import cell_len
from rich.console import Console

from qwenproxy.account_table import Glyphs, Row
from qwenproxy.accounts.account import Account
from qwenproxy.activity import Failure
from qwenproxy.dashboard import FIRST_WORD, HELP, Line, Moment, draw, needs

NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
OK = Account("acc_1", email="anna@example.com", signed_in_at=NOW - HOUR, holds_until=NOW + 700 * HOUR)
LIMITED = Account("acc_2", label="work", wait_until=NOW + 3 * HOUR, why="limit")
GONE = Account("acc_3", invalid=True)
HUMAN = Account("acc_4", email="h@example.com", why="human")
PAUSED = Account("acc_5", paused=True)
ROWS = tuple(Row(account, 3, 1, 2) for account in (OK, LIMITED, GONE, HUMAN, PAUSED))
BUSY = Moment(
    base_url="http://127.0.0.1:3264",
    now=NOW,
    up_s=750,
    rows=ROWS,
    queue=1,
    requests=(
        Line(12, "qwen3.7-plus", "anna@example.com", 12.4, 31.4),
        Line(13, "qwen3-max", "anna@example.com", 3),
        Line(14, "qwen3-max", "", 1, place=1),
    ),
    failures=(
        Failure(NOW, "upstream_timeout", "the service was silent", "acc_2"),
        Failure(NOW - HOUR, "queue_full", "nothing came free", ""),
    ),
    needs=needs(ROWS, NOW),
    said="work is paused",
)
SIZES = [(200, 60), (120, 35), (80, 24), (60, 20), (40, 12), (30, 6), (20, 4), (10, 3), (5, 2), (1, 1)]


def shown(
    moment: Moment = BUSY, width: int = 120, height: int = 35, glyphs: Glyphs | None = None
) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), record=True, legacy_windows=False)
    console.print(draw(moment, glyphs or Glyphs(), width=width, height=height))
    return [line.rstrip() for line in console.export_text().splitlines()]


def line_of(text: str, lines: list[str]) -> str:
    return next(line for line in lines if text in line)


def test_all_that_goes_on_is_told() -> None:
    lines = shown()
    assert "http://127.0.0.1:3264/v1" in lines[0]
    assert lines[0].endswith("2 answering · 1 queued · 15 today · up 12 min")
    assert "curl http://127.0.0.1:3264/v1/models" in lines[1]
    assert "1/2" in line_of("anna@example.com", lines[5:])
    assert "WAIT 3 h limit" in line_of(" work ", lines[5:])
    assert line_of("12  qwen", lines).split() == [
        "12",
        "qwen3.7-plus",
        "anna@example.com",
        "12",
        "s",
        "31",
        "pieces/s",
    ]
    assert FIRST_WORD in line_of("13  qwen", lines)
    reading = replace(
        BUSY, requests=(Line(13, "qwen3-max", "anna@example.com", 3, step="a document is read"),)
    )
    assert "a document is read" in line_of("13  qwen", shown(reading))
    assert "queued, place 1" in line_of("14  qwen", lines)
    assert "work: the service was silent" in line_of("upstream_timeout", lines)
    assert lines[-2].strip() == "work is paused"
    assert lines[-1].split()[:2] == ["a", "add"]


def test_what_a_person_must_do_stands_above_the_accounts() -> None:
    lines = shown()
    assert "! Needs you: press h and pass the site's check for h@example.com" in lines[3]
    assert "! Sign in again: press r for acc_3" in lines[4]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("glyphs", [Glyphs(), Glyphs("cp866", emoji=False)])
@pytest.mark.parametrize("changes", [{}, {"choosing": True}, {"helping": True}, {"giving_up": True}])
def test_the_picture_is_never_larger_than_the_terminal(
    size: tuple[int, int], glyphs: Glyphs, changes: dict[str, bool]
) -> None:
    width, height = size
    lines = shown(replace(BUSY, **changes), width, height, glyphs)  # type: ignore[arg-type]
    assert max(map(cell_len, lines), default=0) <= width
    assert len(lines) <= max(height, 3)


@pytest.mark.parametrize("size", [(80, 24), (60, 20), (40, 12)])
def test_a_small_terminal_keeps_the_address_the_need_an_account_and_the_keys(size: tuple[int, int]) -> None:
    width, height = size
    lines = shown(width=width, height=height)
    text = "\n".join(lines)
    assert "http://127.0.0.1:3264/v1" in text
    assert "! Needs you: press h" in text
    assert "anna@exam" in text
    assert "q quit" in lines[-1]
    assert len(lines) == height


def test_the_words_of_all_five_states_stand_there_at_80_by_24() -> None:
    text = "\n".join(shown(width=80, height=24))
    assert all(word in text for word in ("OK", "WAIT 3 h limit", "WAIT needs you", "INVALID", "PAUSED"))
    assert "31 pieces/s" in text


def test_what_there_is_no_room_for_is_counted() -> None:
    rows = tuple(Row(Account(f"acc_{number}"), 0, 0, 2) for number in range(40))
    lines = shown(replace(BUSY, rows=rows, needs=()), 80, 24)
    assert any(line.strip().startswith("and 3") and line.endswith("more") for line in lines)
    assert len(lines) == 24


def test_an_idle_proxy_says_so() -> None:
    lines = shown(Moment("http://127.0.0.1:1", NOW, 5, (Row(OK, 0, 0, 2),)))
    assert "None now" in "\n".join(lines)
    assert "Last errors" not in "\n".join(lines)


@pytest.mark.parametrize("encoding", ["cp1252", "cp866", "ascii"])
def test_an_old_code_page_gets_only_what_it_has(encoding: str) -> None:
    glyphs = Glyphs(encoding, emoji=False)
    moment = replace(BUSY, said="Привет \u4f60", needs=("\U0001f600 \u4f60",))
    console = Console(
        width=80, height=24, file=io.TextIOWrapper(io.BytesIO(), encoding=encoding), legacy_windows=False
    )
    console.print(draw(moment, glyphs, width=80, height=24))
    assert "WAIT" in "\n".join(shown(moment, 80, 24, glyphs))


def test_no_colour_changes_no_word() -> None:
    def printed(no_color: bool) -> str:
        console = Console(
            width=80, height=24, file=io.StringIO(), force_terminal=True, no_color=no_color, record=True
        )
        console.print(draw(BUSY, Glyphs(), width=80, height=24))
        return console.export_text()

    assert printed(True) == printed(False)


def test_control_characters_from_outside_do_not_reach_the_terminal() -> None:
    evil = "\x1b[2J\u202e\n"
    moment = replace(
        BUSY,
        rows=(Row(Account("a", label=evil)),),
        requests=(Line(1, evil, evil, 1),),
        failures=(Failure(NOW, "code", evil, ""),),
        needs=(evil,),
        said=evil,
    )
    console = Console(width=100, height=30, file=io.StringIO(), force_terminal=False)
    console.print(draw(moment, Glyphs(), width=100, height=30))
    assert not {"\x1b", "\u202e"} & set(console.file.getvalue())  # type: ignore[attr-defined]


def test_while_an_account_is_chosen_the_keys_say_how_to_leave() -> None:
    assert shown(replace(BUSY, choosing=True))[-1].strip() == "Esc leaves"


def test_an_open_window_can_be_given_up() -> None:
    assert "Esc give up" in shown(replace(BUSY, giving_up=True))[-1]


def test_help_tells_every_key() -> None:
    text = "\n".join(shown(replace(BUSY, helping=True), 100, 30))
    assert all(told in text for _, _, told in HELP)


@pytest.mark.parametrize(
    ("accounts", "told"),
    [
        ((), ["There is no account: press a to add one"]),
        ((OK, LIMITED), []),
        (
            (LIMITED, GONE),
            ["Sign in again: press r for acc_3", "Every account waits; the first is free in 3 h"],
        ),
        ((HUMAN,), ["Needs you: press h and pass the site's check for h@example.com"]),
        ((PAUSED,), ["Every account is paused: press p to resume one"]),
        ((OK, HUMAN), ["Needs you: press h and pass the site's check for h@example.com"]),
    ],
)
def test_what_a_person_must_do(accounts: tuple[Account, ...], told: list[str]) -> None:
    assert list(needs([Row(account) for account in accounts], NOW)) == told
