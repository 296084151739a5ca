"""The menu over a real registry, with real keys; `tests/e2e/test_console.py` has it in a terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from rich.cells import cell_len
from rich.console import Console

from qwenproxy.account_table import Glyphs, Row
from qwenproxy.accounts.account import Account
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
from qwenproxy.errors import BrowserMissing, NoAccount, SignInFailed
from qwenproxy.menu import Menu, all_wait, refusal, screen, settings_table
from qwenproxy.settings import Settings, SettingsError
from tests.owner import Persons, Screen, drawing_on, kept_console, sign_in
from tests.terminal import CTRL_C, DOWN, ENTER, ESC

pytestmark = pytest.mark.anyio

CLOCK = SystemClock()
NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ANNA, BORIS = "anna@example.com", "boris@example.com"
QUIT = "q" + ENTER
STYLE = re.compile(r"\x1b\[[\d;]*m")


@dataclass
class Owner:
    """Somebody at the menu."""

    registry: Registry
    persons: Persons
    keyboard: PipeInput
    console: Console
    written: io.StringIO
    settings: Settings
    starts: list[BaseException | None] = field(default_factory=list)
    """What each start ends in."""
    started: int = 0

    async def start(self) -> None:
        self.started += 1
        error = self.starts.pop(0) if self.starts else None
        if error is not None:
            raise error

    async def run(self, *keys: str) -> str:
        """What was written, without styles, once these keys have been pressed and the menu is left."""
        menu = Menu(self.settings, self.registry, self.persons.saying, self.start, CLOCK, self.console)
        self.keyboard.send_text("".join(keys))
        with anyio.fail_after(20):
            await menu.run()
        return STYLE.sub("", self.written.getvalue())

    @property
    def screen(self) -> Screen:
        return Screen(self.written, 100, 40)

    def add(self, email: str, **fields: object) -> Account:
        account, _ = self.registry.add(sign_in(email))
        changed = self.registry.update(account.id, lambda known: replace(known, **fields))  # type: ignore[arg-type]
        assert changed
        return changed

    @property
    def accounts(self) -> tuple[Account, ...]:
        return self.registry.accounts()


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    settings = Settings(session_dir=tmp_path / "session")
    registry = Registry(settings.session_dir, CLOCK)
    console, written = kept_console()
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=drawing_on(written)):
        yield Owner(registry, Persons(registry), pipe, console, written, settings)


async def test_enter_alone_leads_from_nothing_to_a_running_proxy(owner: Owner) -> None:
    owner.persons.next = [ANNA]
    text = await owner.run(ENTER, ENTER, ENTER, QUIT)
    assert "No account yet. Choose 1" in text
    assert "there is no account; choose 1 to add one" in text
    assert "A browser window opens" in text
    assert "anna@example.com is added" in text
    assert "The proxy has stopped" in text
    assert owner.started == 1


async def test_the_table_tells_accounts_and_what_they_answered_today(owner: Owner) -> None:
    anna = owner.add(ANNA)
    owner.add(BORIS, wait_until=CLOCK.now() + 3 * HOUR, why="limit")
    owner.registry.add_served(CLOCK.now().astimezone().date(), {anna.id: 41})
    text = await owner.run(QUIT)
    assert all(told in text for told in (anna.id, "OK", "41", "WAIT", "3 h limit"))


async def test_what_the_session_folder_had_to_be_mended_of_is_said(owner: Owner) -> None:
    owner.add(ANNA)
    (owner.settings.session_dir / "tokens.json").write_text("{ torn")
    owner_says = await owner.run(QUIT)
    assert "tokens.json" in owner_says
    assert ANNA in owner_says


@pytest.mark.parametrize("keys", [ESC, CTRL_C, QUIT, DOWN * 7 + ENTER])
async def test_the_top_is_left_by_esc_ctrl_c_and_quit(owner: Owner, keys: str) -> None:
    await owner.run(keys)
    assert owner.started == 0


@pytest.mark.parametrize("key", [ESC, CTRL_C])
@pytest.mark.parametrize(
    ("item", "asked"),
    [
        ("2", "Who signs in again?"),
        ("4", "Which account is deleted?"),
        ("5", "Which account gets another name?"),
        ("7", "Which account stops waiting?"),
        ("8", "Which account is paused or resumed?"),
    ],
)
async def test_a_list_of_accounts_is_left_the_same_way(owner: Owner, item: str, asked: str, key: str) -> None:
    before = (owner.add(ANNA), owner.add(BORIS, wait_until=CLOCK.now() + HOUR, why="limit"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(owner.run, item + ENTER)
        await owner.screen.until(asked)
        owner.keyboard.send_text(key)
        await owner.screen.until("What now?")
        owner.keyboard.send_text(QUIT)
    assert owner.accounts == before


@pytest.mark.parametrize("item", "2458")
async def test_without_accounts_there_is_nothing_to_choose(owner: Owner, item: str) -> None:
    assert "There is no account" in await owner.run(item, ENTER, QUIT)


async def test_signing_in_again_offers_those_without_a_sign_in_first(owner: Owner) -> None:
    owner.add(ANNA)
    owner.add(BORIS, invalid=True)
    owner.persons.next = [BORIS]
    assert "boris@example.com is signed in again" in await owner.run("2", ENTER, ENTER, QUIT)
    assert not owner.accounts[1].invalid


async def test_a_list_keeps_the_numbers_of_the_table(owner: Owner) -> None:
    for number in range(12):
        owner.add(
            f"n{number}@example.com", wait_until=CLOCK.now() + HOUR if number > 5 else None, why="limit"
        )
    assert "n7@example.com no longer waits" in await owner.run("7", ENTER, "8", ENTER, QUIT)
    assert "n10@example.com is paused" in await owner.run("8", ENTER, "9", DOWN, DOWN, ENTER, QUIT)


@pytest.mark.parametrize(("answer", "email"), [("y", "dora@example.com"), ("n", ANNA), (ENTER, ANNA)])
async def test_another_person_is_asked_about(owner: Owner, answer: str, email: str) -> None:
    owner.add(ANNA)
    owner.persons.next = ["dora@example.com"]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(owner.run, "2" + ENTER + ENTER)
        await owner.screen.until("dora@example.com is someone else; replace? (y/N)")
        owner.keyboard.send_text(answer)
        await owner.screen.until("is signed in again" if answer == "y" else "somebody else signed in")
        owner.keyboard.send_text(QUIT)
    assert owner.accounts[0].email == email


async def test_a_window_can_be_given_up(owner: Owner) -> None:
    owner.persons.next = [None]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(owner.run, "1" + ENTER)
        await owner.persons.begun.wait()
        owner.keyboard.send_text(ESC)
        await owner.screen.until("Given up; nothing has changed")
        owner.keyboard.send_text(QUIT)
    assert not owner.accounts


async def test_how_a_sign_in_failed_is_one_line(owner: Owner) -> None:
    owner.persons.next = [SignInFailed("nobody signed in within 600 s")]
    assert "nobody signed in within 600 s" in await owner.run("1", ENTER, QUIT)


@pytest.mark.parametrize(
    ("answer", "left"), [("y" + ENTER, [BORIS]), ("n" + ENTER, [ANNA, BORIS]), (ENTER, [ANNA, BORIS])]
)
async def test_an_account_is_deleted_only_after_a_yes(owner: Owner, answer: str, left: list[str]) -> None:
    owner.add(ANNA)
    owner.add(BORIS)
    text = await owner.run("4", ENTER, "1", ENTER, answer, QUIT)
    assert [account.email for account in owner.accounts] == left
    assert ("anna@example.com is deleted" in text) == (left == [BORIS])
    assert owner.started == 0


async def test_an_account_gets_a_name(owner: Owner) -> None:
    owner.add(ANNA)
    assert "is now called work" in await owner.run("5", ENTER, ENTER, "  work ", ENTER, QUIT)
    assert owner.accounts[0].label == "work"


async def test_all_are_checked(owner: Owner) -> None:
    owner.add(ANNA)
    owner.add(BORIS)
    owner.persons.lives = {BORIS: False}
    assert "1 of 2 sign-ins works; signed out: boris@example.com" in await owner.run("6", ENTER, QUIT)


async def test_a_wait_is_cleared(owner: Owner) -> None:
    owner.add(ANNA)
    assert "No account waits" in await owner.run("7", ENTER, QUIT)
    owner.add(BORIS, wait_until=CLOCK.now() + HOUR, why="limit")
    assert "boris@example.com no longer waits" in await owner.run("7", ENTER, ENTER, QUIT)
    assert owner.accounts[1].wait_until is None


async def test_an_account_is_paused_and_resumed(owner: Owner) -> None:
    owner.add(ANNA)
    text = await owner.run("8", ENTER, ENTER, ENTER, "8", ENTER, ENTER, QUIT)
    assert "anna@example.com is paused" in text
    assert "every account is paused; choose 8" in text
    assert "anna@example.com takes part again" in text


async def test_an_account_that_waits_for_a_person_offers_its_window(owner: Owner) -> None:
    owner.add(ANNA)
    await owner.run("9", ENTER, QUIT)
    assert owner.started == 1, "9 is not offered, so Enter starts"
    owner.add(BORIS, why="human")
    owner.persons.next = [BORIS]
    assert "boris@example.com has passed the check" in await owner.run("9", ENTER, QUIT)


async def test_the_settings_are_shown_without_secrets(owner: Owner, tmp_path: Path) -> None:
    owner.settings = Settings(session_dir=tmp_path / "session", proxy="http://me:hunter2@proxy.example:1")
    text = await owner.run("s", ENTER, ENTER, QUIT)
    assert "QWENPROXY_PROXY" in text
    assert "proxy.example" in text
    assert "hunter2" not in text
    assert "QWENPROXY_HEADLESS" in text


@pytest.mark.parametrize(
    "error",
    [
        NoAccount("every account's sign-in is gone"),
        SettingsError("QWENPROXY_PORT=3264 cannot be used: another program listens there"),
        BrowserMissing("no Chromium was found"),
        OSError(28, "No space left on device"),
    ],
)
async def test_a_proxy_that_ends_badly_brings_the_menu_back_with_one_line(
    owner: Owner, error: Exception
) -> None:
    owner.add(ANNA)
    owner.starts = [error]
    text = await owner.run(ENTER, ENTER, QUIT)
    told = error.strerror if isinstance(error, OSError) else str(error)
    assert str(told) in text
    assert "Traceback" not in text
    assert owner.started == 2, "the menu came back"


async def test_what_ends_the_program_ends_the_menu(owner: Owner) -> None:
    owner.add(ANNA)
    owner.starts = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        await owner.run(ENTER)


async def test_a_terminal_without_a_cursor_is_asked_by_lines(
    owner: Owner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    owner.console = Console(file=owner.written, force_terminal=True, width=100, _environ={"TERM": "dumb"})
    owner.add(ANNA)
    text = await owner.run("8", ENTER, "1", ENTER, QUIT) + capsys.readouterr().out
    assert "is paused" in text
    assert "8 - Pause or resume an account" in text
    assert not {"\x1b", "⏸"} & set(text)


@pytest.mark.parametrize(
    ("accounts", "told"),
    [
        ((), "there is no account"),
        ((Account("a", invalid=True),), "no sign-in is left that works"),
        ((Account("a", paused=True),), "every account is paused"),
        ((Account("a", paused=True), Account("b", invalid=True)), "every account is paused or signed out"),
    ],
)
def test_a_start_is_refused_with_the_reason(accounts: tuple[Account, ...], told: str) -> None:
    refused = refusal(accounts)
    assert refused
    assert told in refused[1]


@pytest.mark.parametrize(
    "account", [Account("a"), Account("a", why="human"), Account("a", wait_until=NOW, why="limit")]
)
def test_a_start_is_not_refused_while_an_account_may_answer_ever(account: Account) -> None:
    assert refusal([account, Account("b", invalid=True)]) is None


@pytest.mark.parametrize(
    ("accounts", "told"),
    [
        ((), ""),
        ((Account("a"), Account("b", why="human")), ""),
        ((Account("a", invalid=True),), ""),
        (
            (
                Account("a", wait_until=NOW + 3 * HOUR, why="limit"),
                Account("b", wait_until=NOW + HOUR, why="limit"),
                Account("c", why="human"),
                Account("d", paused=True),
            ),
            "all wait: the first is free in 1 h",
        ),
        ((Account("a", why="human"),), "all wait for you: see 9"),
    ],
)
def test_when_all_wait_the_soonest_end_is_told(accounts: tuple[Account, ...], told: str) -> None:
    assert all_wait(accounts, NOW) == told


ROWS = [
    Row(Account("acc_1752745840684", email=ANNA, signed_in_at=NOW - HOUR, holds_until=NOW + 700 * HOUR), 3),
    Row(Account("acc_1752745840685", label="work", wait_until=NOW + 3 * HOUR, why="limit")),
    Row(Account("acc_1752745840686", email="x" * 60 + "@example.com", invalid=True, holds_until=NOW)),
]


@pytest.mark.parametrize(("width", "height"), [(200, 50), (120, 35), (80, 24), (60, 20), (40, 15)])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "cp866"])
@pytest.mark.parametrize("no_color", [True, False])
def test_the_screen_is_readable_on_any_terminal(
    width: int, height: int, encoding: str, no_color: bool
) -> None:
    glyphs = Glyphs(encoding, emoji=encoding == "utf-8")
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(
        width=width,
        height=height,
        file=file,
        force_terminal=True,
        no_color=no_color,
        legacy_windows=False,
        record=True,
    )
    console.print(screen(ROWS, NOW, glyphs, width=width, height=height, said=["work is paused"]))
    lines = console.export_text().splitlines()
    assert max(map(cell_len, lines)) <= width
    assert all(word in "\n".join(lines) for word in (" OK", "WAIT", "INVALID", "work is paused"))
    numbered = [line.split()[0] for line in lines if line.split() and line.split()[0].isdecimal()]
    assert numbered == ["1", "2", "3"], "one account, one number, in its line"


def test_ids_stand_there_at_80_columns_too() -> None:
    for count in (2, 3):
        console = Console(width=80, height=24, file=io.StringIO(), record=True)
        console.print(screen(ROWS[:count], NOW, Glyphs(), width=80, height=24))
        assert "acc_1752745840685" in console.export_text()


def test_settings_tell_what_the_owner_has_set() -> None:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(settings_table(Settings(headless=False), Glyphs()))
    lines = console.export_text().splitlines()
    own = next(line for line in lines if "QWENPROXY_HEADLESS" in line)
    assert own.split() == ["QWENPROXY_HEADLESS", "0", "set", "by", "you"]
    assert len([line for line in lines if "set by you" in line]) == 1
