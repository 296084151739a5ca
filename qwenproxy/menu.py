"""The console menu over the accounts: what is run without a command.

Every action ends in one line, which stands above the choices; so does every error. Esc and Ctrl-C go back one
step, at the top they quit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Final

import anyio
from anyio.to_thread import run_sync
from rich.console import Console, Group, RenderableType
from rich.control import Control
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qwenproxy import logs
from qwenproxy.account_actions import Actions, Confirm, Enrolling, Say, needs_person, waiting
from qwenproxy.account_table import WIDE, Form, Glyphs, Row, accounts_table, glyphs_of, notes, reason, span
from qwenproxy.accounts.account import Account
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import Clock, SystemClock
from qwenproxy.enrolment import Enrolment
from qwenproxy.errors import QwenProxyError
from qwenproxy.keys import pressed
from qwenproxy.questions import Option, line, pick, yes
from qwenproxy.settings import Settings, SettingsError, variable_of

LONGEST_NAME: Final = 40
WIDEST: Final = 110
"""Columns of the table at most: what belongs together stays together."""
AROUND: Final = 18
"""Lines of the screen that are neither rows nor notes: heads, blanks, what was said, the choices."""
EMPTY: Final = "No account yet. Choose 1: a browser window opens, and you sign in there as you always do."
WINDOW: Final = "A browser window opens. Sign in there; the rest happens by itself. Esc gives up."
CHECK_WINDOW: Final = "A browser window opens. Do there what the site asks. Esc gives up."
CHECKING: Final = "Asking the service about each sign-in; this costs no message. Esc gives up."
GIVEN_UP: Final = "Given up; nothing has changed"
CHANGE_SETTINGS: Final = "Settings are changed in the file .env, or in the environment, before a start."
STOPPED: Final = "The proxy has stopped"

Start = Callable[[], Awaitable[None]]


async def menu(settings: Settings, start: Start) -> int:
    """Shows the menu until it is left; gives the exit code. `start` serves until it is stopped.

    Raises:
        SessionDamaged, SessionLocked: the accounts cannot be read at all.
    """
    clock = SystemClock()
    registry = Registry(settings.session_dir, clock)
    console = Console(highlight=False, emoji=False, markup=False)

    def enrolment(say: Say) -> Enrolling:
        return Enrolment(settings, registry, clock, say=say)

    await Menu(settings, registry, enrolment, start, clock, console).run()
    return 0


class Menu:
    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        enrolment: Callable[[Say], Enrolling],
        start: Start,
        clock: Clock,
        console: Console,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._actions = Actions(registry, enrolment(self._tell))
        self._start_proxy = start
        self._clock = clock
        self._console = console
        self._glyphs = glyphs_of(console)
        self._drawn = not console.is_dumb_terminal
        self._accounts: tuple[Account, ...] = ()
        self._said: Sequence[str] = ()
        self._next = "start"
        """What Enter alone chooses."""
        self._deeds: dict[str, Callable[[], Awaitable[str | None]]] = {
            "add": self._add,
            "again": self._again,
            "start": self._start,
            "delete": self._delete,
            "rename": self._rename,
            "check": self._check,
            "clear": self._clear,
            "pause": self._pause,
            "human": self._pass_check,
            "settings": self._show_settings,
        }

    async def run(self) -> None:
        self._said = await run_sync(self._registry.open)
        if self._drawn:
            # Keeps what stands on the screen: it moves up, out of sight.
            self._console.print("\n" * (self._console.height - 1))
        while True:
            await self._show()
            chosen = await pick("What now?", self._options(), self._next, esc="quits", drawn=self._drawn)
            if chosen not in self._deeds:
                return
            self._next = "start"
            said = await self._do(self._deeds[chosen])
            self._said = [said] if said else []

    async def _do(self, deed: Callable[[], Awaitable[str | None]]) -> str | None:
        """The line that it ends in; None when it was left."""
        try:
            return await deed()
        except (QwenProxyError, SettingsError) as exc:
            return logs.redact(str(exc))
        except OSError as exc:
            return f"The session folder cannot be used: {exc.strerror or exc}"

    async def _show(self) -> None:
        now = self._clock.now()
        self._accounts = await run_sync(self._registry.accounts)
        served = await run_sync(self._registry.served, now.astimezone().date())
        rows = [Row(account, served.get(account.id, 0)) for account in self._accounts]
        width, height = self._console.size
        self._wipe()
        self._console.print(screen(rows, now, self._glyphs, width=width, height=height, said=self._said))

    def _wipe(self) -> None:
        if self._drawn:
            self._console.control(Control.home(), Control.clear())

    def _tell(self, text: str) -> None:
        """What a person should read while an action runs."""
        self._console.print(Padding(Text(self._glyphs.clean(logs.redact(text))), (0, 1)))

    def _options(self) -> list[Option]:
        wait = all_wait(self._accounts, self._clock.now())
        options = [
            Option("1", "Add an account", "add"),
            Option("2", "Sign in again", "again"),
            Option("3", f"Start the proxy{f' ({wait})' if wait else ''}", "start"),
            Option("4", "Delete an account", "delete"),
            Option("5", "Rename an account", "rename"),
            Option("6", "Check all sign-ins now", "check"),
            Option("7", "Clear a wait", "clear"),
            Option("8", "Pause or resume an account", "pause"),
        ]
        if any(map(needs_person, self._accounts)):
            options.append(Option("9", "Needs you: pass the site's human check", "human"))
        return [*options, Option("s", "Show the settings", "settings"), Option("q", "Quit", "quit")]

    async def _add(self) -> str:
        return await self._watched(WINDOW, lambda confirm: self._actions.add())

    async def _again(self) -> str | None:
        ordered = sorted(self._accounts, key=lambda account: not account.invalid)
        account = await self._choose("Who signs in again?", ordered)
        if isinstance(account, Account):
            known = account.id
            return await self._watched(WINDOW, lambda confirm: self._actions.sign_in_again(known, confirm))
        return account

    async def _start(self) -> str:
        if refused := refusal(self._accounts):
            self._next, reason = refused
            return reason
        self._wipe()
        await self._start_proxy()
        return STOPPED

    async def _delete(self) -> str | None:
        account = await self._choose("Which account is deleted?", self._accounts)
        if not isinstance(account, Account):
            return account
        asked = f"Delete {self._name(account)} and its sign-in?"
        return await self._actions.remove(account) if await yes(asked, drawn=self._drawn) else None

    async def _rename(self) -> str | None:
        account = await self._choose("Which account gets another name?", self._accounts)
        if not isinstance(account, Account):
            return account
        label = await line("Its name (none: its e-mail):", account.label, drawn=self._drawn)
        if label is None:
            return None
        return await self._actions.rename(account.id, self._glyphs.clean(label).strip()[:LONGEST_NAME])

    async def _check(self) -> str:
        if not self._accounts:
            return "There is no account to check"
        return await self._watched(CHECKING, lambda confirm: self._actions.check(self._accounts))

    async def _clear(self) -> str | None:
        found = [account for account in self._accounts if waiting(account, self._clock.now())]
        account = await self._choose("Which account stops waiting?", found, none="No account waits")
        return await self._actions.clear_wait(account.id) if isinstance(account, Account) else account

    async def _pause(self) -> str | None:
        account = await self._choose("Which account is paused or resumed?", self._accounts)
        return await self._actions.pause_or_resume(account) if isinstance(account, Account) else account

    async def _pass_check(self) -> str | None:
        found = [account for account in self._accounts if needs_person(account)]
        account = found[0] if len(found) == 1 else await self._choose("Which account?", found)
        if isinstance(account, Account):
            known = account.id
            return await self._watched(CHECK_WINDOW, lambda confirm: self._actions.pass_check(known))
        return account

    async def _show_settings(self) -> None:
        self._wipe()
        self._console.print(settings_table(self._settings, self._glyphs))
        await pick(CHANGE_SETTINGS, [Option("b", "Back", "back")], drawn=self._drawn)

    async def _choose(
        self, question: str, accounts: Sequence[Account], none: str = "There is no account"
    ) -> Account | str | None:
        """The account chosen; a line where there is nothing to choose; None when it was left."""
        if not accounts:
            return none
        # By its number in the table, in whatever order they are offered.
        numbers = {account.id: str(number) for number, account in enumerate(self._accounts, 1)}
        keys = {account_id: number if len(number) == 1 else "" for account_id, number in numbers.items()}
        options = [Option(keys[each.id], self._title(each), each.id) for each in accounts]
        chosen = await pick(question, options, drawn=self._drawn)
        return next((account for account in accounts if account.id == chosen), None)

    def _title(self, account: Account) -> str:
        now = self._clock.now()
        state = "PAUSED" if account.paused else account.state(now)
        return f"{self._name(account)}{self._glyphs.dot}{f'{state} {reason(account, now)}'.strip()}"

    def _name(self, account: Account) -> str:
        """With the id: two accounts may have one name."""
        name = account.id if account.name == account.id else f"{account.name} ({account.id})"
        return self._glyphs.clean(name)

    async def _watched(self, said: str, work: Callable[[Confirm], Awaitable[str]]) -> str:
        """What `work` ends in, unless Esc or Ctrl-C gives it up first. It may ask one thing at a time."""
        watch = _Watch(self._tell)
        self._tell(said)
        with watch.scope, pressed(watch.hear):
            return await work(watch.confirm)
        return GIVEN_UP


class _Watch:
    """A person at the keys while an action runs."""

    def __init__(self, say: Say) -> None:
        self.scope = anyio.CancelScope()
        self._say = say
        self._answered: anyio.Event | None = None
        self._answer = False

    def hear(self, key: str) -> None:
        if self._answered is None:
            if key in {"esc", "ctrl-c"}:
                self.scope.cancel()
        elif key in {"y", "Y", "n", "N", "enter", "esc", "ctrl-c"}:
            self._answer = key in {"y", "Y"}
            self._answered.set()

    async def confirm(self, question: str) -> bool:
        self._say(f"{question} (y/N)")
        self._answered = anyio.Event()
        try:
            await self._answered.wait()
        finally:
            self._answered = None
        return self._answer


def refusal(accounts: Sequence[Account]) -> tuple[str, str] | None:
    """Why there is nothing to start with, after what to choose instead; None when there is."""
    if any(account.usable for account in accounts):
        return None
    if not accounts:
        return "add", "The proxy cannot start yet: there is no account; choose 1 to add one"
    if all(account.invalid for account in accounts):
        return "again", "The proxy cannot start: no sign-in is left that works; choose 2 to sign in again"
    if all(account.paused for account in accounts):
        return "pause", "The proxy cannot start: every account is paused; choose 8 to resume one"
    return "again", "The proxy cannot start: every account is paused or signed out; 2 signs in, 8 resumes"


def all_wait(accounts: Iterable[Account], now: datetime) -> str:
    """When the first account is free again, where all that are usable wait; else nothing."""
    usable = [account for account in accounts if account.usable]
    if not usable or any(account.state(now) == "OK" for account in usable):
        return ""
    ends = [
        account.wait_until for account in usable if account.wait_until is not None and account.why != "human"
    ]
    return f"all wait: the first is free in {span(min(ends) - now)}" if ends else "all wait for you: see 9"


def screen(
    rows: Sequence[Row], now: datetime, glyphs: Glyphs, *, width: int, height: int, said: Sequence[str] = ()
) -> RenderableType:
    """What stands above the choices."""
    parts: list[RenderableType] = [Text("qwenproxy", "bold").append(f"{glyphs.dot}accounts", "dim"), Text()]
    noted = [Text(note, "yellow") for note in notes((row.account for row in rows), now, glyphs)]
    if rows:
        room = height - AROUND - len(noted) - bool(noted)
        form: Form = "wide" if width >= WIDE else "stacked" if 2 * len(rows) <= room else "short"
        parts.append(accounts_table(rows, now, glyphs, width=min(width - 2, WIDEST), form=form))
    else:
        parts.append(Text(EMPTY))
    spoken = [Text(glyphs.clean(line), "bold") for line in said]
    for lines in filter(None, (noted, spoken)):
        parts += [Text(), *lines]
    return Padding(Group(*parts, Text()), (0, 1))


def settings_table(settings: Settings, glyphs: Glyphs) -> RenderableType:
    """Every setting and its value; secrets of a URL are masked."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("Setting", no_wrap=True)
    table.add_column("Value", overflow="fold")
    table.add_column("", style="dim", no_wrap=True)
    for name in Settings.model_fields:
        own = name in settings.model_fields_set
        value = glyphs.clean(logs.redact(_written(getattr(settings, name))))
        table.add_row(variable_of(name), Text(value, "bold" if own else ""), "set by you" if own else "")
    return Padding(table, (0, 1, 1, 1))


def _written(value: object) -> str:
    """A value as a person would write it into `.env`."""
    if isinstance(value, bool | float):
        return f"{value:g}"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
