"""An owner at work without a browser: sign-ins that end as a test says, a console that is kept."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import anyio
import pyte
from prompt_toolkit.data_structures import Size
from prompt_toolkit.output.vt100 import Vt100_Output
from rich.console import Console

from qwenproxy.accounts.account import Account, SignIn
from qwenproxy.accounts.registry import Registry
from qwenproxy.errors import AccountGone, QwenProxyError, SignInFailed
from tests.serve import until_async

Say = Callable[[str], object]


@dataclass(frozen=True)
class Added:
    account: Account
    known: bool


@dataclass(frozen=True)
class Checked:
    account: Account
    live: bool | None
    note: str = ""


def sign_in(email: str) -> SignIn:
    return SignIn(f"token of {email}", None, user_id=f"id of {email}", email=email)


@dataclass
class Persons:
    """Who signs in next, in their order; an error is what a window ends in, None one that nobody closes."""

    registry: Registry
    next: list[str | QwenProxyError | None] = field(default_factory=list)
    lives: dict[str, bool | None] = field(default_factory=dict)
    """What a check finds, by e-mail; True where nothing is said."""
    begun: anyio.Event = field(default_factory=anyio.Event)
    say: Say = print

    def saying(self, say: Say) -> Persons:
        self.say = say
        return self

    async def add(self) -> Added:
        return Added(*self.registry.add(sign_in(await self._person())))

    async def sign_in_again(self, account_id: str, confirm: Callable[[str], Awaitable[bool]]) -> Account:
        email = await self._person()
        known = self._account(account_id)
        if known.email not in {"", email} and not await confirm(f"{email} is someone else; replace?"):
            raise SignInFailed("somebody else signed in; nothing was changed")
        return self.registry.sign_in_again(account_id, sign_in(email))

    async def pass_check(self, account_id: str) -> Account:
        await self._person()
        changed = self.registry.update(account_id, lambda known: Account(known.id, email=known.email))
        assert changed
        return changed

    async def check(self, account_ids: Sequence[str]) -> tuple[Checked, ...]:
        known = [account for account in self.registry.accounts() if account.id in account_ids]
        return tuple(Checked(each, self.lives.get(each.email, True), "not reached") for each in known)

    async def _person(self) -> str:
        self.begun.set()
        self.say("somebody is at the window")
        person = self.next.pop(0)
        if person is None:
            await anyio.sleep_forever()
        if isinstance(person, QwenProxyError):
            raise person
        assert person is not None
        return person

    def _account(self, account_id: str) -> Account:
        found = next((each for each in self.registry.accounts() if each.id == account_id), None)
        if found is None:
            raise AccountGone("that account was deleted meanwhile")
        return found


def kept_console(width: int = 100, height: int = 40) -> tuple[Console, io.StringIO]:
    """A console that believes it is a terminal, and what was written to it."""
    written = io.StringIO()
    console = Console(
        file=written,
        width=width,
        height=height,
        force_terminal=True,
        legacy_windows=False,
        no_color=True,
        highlight=False,
        emoji=False,
        markup=False,
        _environ={"TERM": "xterm"},
    )
    return console, written


class Screen:
    """What stands on the terminal now."""

    def __init__(self, written: io.StringIO, width: int, height: int) -> None:
        self._written = written
        self._screen = pyte.Screen(width, height)
        self._stream = pyte.Stream(self._screen)
        self._read = 0

    @property
    def text(self) -> str:
        written = self._written.getvalue()
        self._stream.feed(written[self._read :].replace("\n", "\r\n"))
        self._read = len(written)
        return "\n".join(line.rstrip() for line in self._screen.display)

    @property
    def written(self) -> str:
        return self._written.getvalue()

    async def until(self, *texts: str, without: str = "") -> None:
        try:
            await until_async(
                lambda: all(text in self.text for text in texts) and not (without and without in self.text),
                10,
            )
        except TimeoutError:
            raise AssertionError(f"not on the screen: {texts}, without {without!r}\n{self.text}") from None


def drawing_on(written: io.StringIO, width: int = 100, height: int = 40) -> Vt100_Output:
    """Where questions are drawn, so that all of it is on one screen."""
    return Vt100_Output(written, lambda: Size(rows=height, columns=width), term="xterm")
